"""How long work runs: on one thread, and showing what it does."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from tqdm.auto import tqdm

from nlmeflow.estimation.em import Report


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: on tensors this small two are many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def show_progress(law: Any, show: bool | None) -> Iterator[Report]:
    """Give a function that shows what runs now in one line, with the time elapsed.

    show : None shows it in a terminal only.
    """
    with tqdm(desc=type(law).__name__, disable=None if show is None else not show, unit=" steps") as bar:

        def report(message: str) -> None:
            bar.set_postfix_str(message)
            bar.update()

        yield report
