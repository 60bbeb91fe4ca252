"""How long work runs: on one thread, showing what it does, and never computing the same thing twice."""

import contextlib
import functools
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from nlmeflow.errors import EstimationError, ModelError

FULL = "The computer's memory does not suffice; fewer draws, replicates, particles or points need less."
T = TypeVar("T")
Report = Callable[[str], None]
_TURN = threading.RLock()


def silent(_: str) -> None:
    """Report nothing."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: on tensors this small two are many times slower.

    One computation at a time: torch's forward differentiation is not safe in several Python threads, which
    wait for one another here. What is computed can be differentiated, also within torch.inference_mode().
    """
    _check_defaults()
    with _TURN, torch.inference_mode(False):
        _prepare()
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            yield
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "allocate memory" in str(error):
                raise EstimationError(FULL) from error
            raise
        finally:
            torch.set_num_threads(threads)


def _check_defaults() -> None:
    if (
        torch.get_default_dtype() not in (torch.float32, torch.float64)
        or torch.get_default_device().type != "cpu"
    ):
        raise ModelError(
            f"Fits are computed on the CPU in double precision; torch's defaults are "
            f"{torch.get_default_dtype()} on {torch.get_default_device()}. Set "
            "torch.set_default_dtype(torch.float32) and torch.set_default_device('cpu') before."
        )


@functools.cache
def _prepare() -> None:
    """Import what torch imports when it is first used; an interrupt waits until that is whole."""
    waiting: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number)) if main else None
    try:
        with warnings.catch_warnings():  # torch's own, which may have been made errors
            warnings.simplefilter("ignore")
            torch.optim.LBFGS([torch.zeros(1, requires_grad=True)])
            torch.func.jvp(torch.exp, (torch.zeros(1),), (torch.ones(1),))
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
    if waiting:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def estimating() -> Iterator[None]:
    """Run torch on one thread and without recording gradients."""
    with one_thread(), torch.no_grad():
        yield


@contextlib.contextmanager
def show_progress(law: object, show: bool | None, delay: float = 0.0) -> Iterator[Report]:
    """Give a function that shows what runs now in one line, with the time elapsed.

    show : None shows it in a terminal only. delay : seconds before it is shown.
    """
    terminal = "ipykernel" not in sys.modules and sys.stderr.isatty()  # a notebook's stream says it is one
    disable = not (terminal if show is None else show)
    with tqdm(desc=type(law).__name__, disable=disable, unit=" steps", delay=delay) as bar:

        def report(message: str) -> None:
            bar.set_postfix_str(message)
            bar.update()

        yield report


class Memory:
    """Makes each thing once: what several laws have in common, by a key that says all it depends on."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """Return what `make` made the first time it was asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made
