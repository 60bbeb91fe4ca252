"""Run a study: one function that measures a job, and a YAML file that says for which jobs.

    python -m nlmeflow.studies run STUDY.yml [--out FOLDER] [--replicates 20] [--processes 2]

    measure: nlmeflow.studies.core:measure    # called with a job's values and the options, returns rows
    report: nlmeflow.studies.core:report      # called with all rows when the study is complete
    grid: {scenario: [L1, L2], design: [R, S], n: [200]}    # or a list of such grids
    replicates: 20
    first: 0                                  # number of the first replicate
    options: {fit_seed: 0}

A job is one combination of the grid's values and a replicate; its rows depend on nothing else. Jobs are
independent tasks of dask.distributed, on processes of this machine or on those of a scheduler. Functions of
a module beside the YAML file are found too, and are sent to the workers.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import pandas as pd
import torch

from nlmeflow.errors import ModelError, extra, whole
from nlmeflow.studies.table import FAILED, SECONDS, Job, Table

Row = dict[str, Any]
QUIET = """
import logging, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asked
logging.getLogger("distributed.worker.state_machine").setLevel("ERROR")  # that a job was not finished
"""
WORKERS = {  # their environment, which they inherit
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # Freed memory stays with them: to return it at each 64 KiB, as dask has it, takes as long as the fits.
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
NEEDED, MORE = {"measure", "report", "grid"}, {"replicates", "first", "options"}


@dataclass(frozen=True)
class Study:
    """What is measured, for which values of a job's parameters, and how the rows are told.

    path : its YAML file. measure, report : names of functions, "module:function".
    """

    path: Path
    measure: str
    report: str
    jobs: list[Job]
    options: dict[str, Any] = field(default_factory=dict)
    replicates: int | None = None

    @classmethod
    def read(cls, path: Path, replicates: int | None = None) -> "Study":
        """Read a study's YAML file; with another number of replicates when given."""
        with extra("A study"):
            import yaml

        about = yaml.safe_load(path.read_text())
        if not isinstance(about, dict) or not NEEDED <= about.keys() <= NEEDED | MORE:
            has = f"; it has {', '.join(map(str, about))}" if isinstance(about, dict) else ""
            may = "and may have replicates, first and options"
            raise ModelError(f"{path}: a study has measure, report and grid, {may}{has}.")
        sys.path.insert(0, str(path.resolve().parent))
        if (count := replicates or about.get("replicates")) is not None:
            count = whole("replicates", count, 1)
        first = about.get("first", 0)
        grids = about["grid"] if isinstance(about["grid"], list) else [about["grid"]]
        jobs = [
            ({} if replicate is None else {"replicate": replicate}) | dict(zip(grid, values, strict=True))
            for replicate in (range(first, first + count) if count else [None])
            for grid in grids
            for values in product(*grid.values())
        ]
        if not all(jobs):
            raise ModelError(f"{path}: a study has a grid, replicates or both.")
        if len({tuple(job) for job in jobs}) != 1:
            raise ModelError(f"{path}: the grids of a study have the same names in the same order.")
        for value in (value for job in jobs for value in job.values()):
            if not isinstance(value, str | int | float):
                raise ModelError(
                    f"{path}: a value of the grid is a word, a number, true or false, not {value!r}."
                )
        return cls(path, about["measure"], about["report"], jobs, about.get("options") or {}, count)

    @property
    def key(self) -> list[str]:
        """Names of a job's values."""
        return list(self.jobs[0])

    def modules(self) -> list[Path]:
        """Return the files beside the study's own from which its functions come, what they import first."""
        found(self.measure)
        folder = self.path.resolve().parent
        files = [Path(getattr(module, "__file__", None) or "") for module in sys.modules.values()]
        return [file for file in reversed(files) if file.parent == folder]


def found(name: str) -> Callable[..., Any]:
    """Return the function "module:function"."""
    module, function = name.split(":")
    result: Callable[..., Any] = getattr(import_module(module), function)
    return result


def attempt(job: Job, measure: str, options: dict[str, Any]) -> pd.DataFrame:
    """Return the rows of a job with its CPU seconds; where it raises, one row with the reason."""
    torch.set_num_threads(1)
    begun, reason = process_time(), None
    try:
        rows: list[Row] = found(measure)(**job, **options)
        if not rows or any(job.keys() & row.keys() for row in rows):
            raise ValueError("a job returns a row at least, and no column of its own values")
    except Exception as error:
        rows, reason = [{}], _reason(error)
    about = job | {SECONDS: process_time() - begun, FAILED: reason}
    return pd.DataFrame([about | row for row in rows])


def run(study: Study, jobs: list[Job], table: Table, client: Any) -> Iterator[float]:
    """Measure jobs, keep the rows of each as it finishes, and give its CPU seconds.

    A job whose worker dies is tried again, as often as the scheduler allows.

    client : of dask.distributed.

    Raises
    ------
    ConnectionError : the scheduler has gone.

    """
    from distributed import as_completed

    one = partial(attempt, measure=study.measure, options=study.options)
    futures = client.map(one, jobs, pure=False)
    waiting = {future.key: job for future, job in zip(futures, jobs, strict=True)}
    finished = as_completed(futures, with_results=True, raise_errors=False)
    del futures  # a result is forgotten by the workers when it is kept here
    for future, result in finished:
        job = waiting[future.key]
        if future.status == "cancelled":
            raise ConnectionError("The scheduler has gone; the same command goes on from the rows kept.")
        if future.status == "error":  # of a worker, not of the measure
            result = pd.DataFrame([job | {SECONDS: None, FAILED: _reason(result[1])}])
        table.keep(job, result)
        yield float(result[SECONDS].fillna(0.0).iloc[0])
    table.compact()


def _reason(error: BaseException) -> str:
    """Return why a job failed: the class of its exception, and the message."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return f"KilledWorker: its worker died in each of {error.allowed_failures + 1} attempts"
    return f"{type(error).__name__}: {error}"


@contextmanager
def connected(study: Study, processes: int, scheduler: str | None = None) -> Iterator[Any]:
    """Give a client of a scheduler, or of worker processes of one thread each on this machine.

    Workers on this machine are reached from it alone, have no dashboard and no limit of memory.

    Raises
    ------
    ConnectionError : no scheduler answers at this address.

    """
    with extra("Running a study"):
        import dask
        from distributed import Client, LocalCluster, UploadFile

    os.environ.update(WORKERS)
    settings = {
        "distributed.scheduler.worker-saturation": 1.0,  # no job waits on a worker: another may be free first
        "distributed.scheduler.worker-ttl": None,  # a worker may be long without a word
        "distributed.worker.profile.enabled": False,
    }
    nanny = logging.getLogger("distributed.nanny")
    with dask.config.set(settings), ExitStack() as stack:
        stack.callback(nanny.setLevel, nanny.level)
        if scheduler is None:
            cluster = LocalCluster(
                n_workers=processes,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",  # where dask says how it is, also without a dashboard
                scheduler_kwargs={"dashboard": False},
                memory_limit=None,
                preload=[QUIET],
            )
            stack.enter_context(cluster)
        try:
            client = stack.enter_context(Client(scheduler or cluster))
        except OSError as error:
            raise ConnectionError(f"No scheduler answers at {scheduler}: {error}.") from None
        for module in study.modules():
            client.register_plugin(UploadFile(str(module)), name=f"nlmeflow study: {module.name}")
        try:
            yield client
        finally:
            nanny.setLevel(logging.CRITICAL)  # how workers end, also in the middle of a job
