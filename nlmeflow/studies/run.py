"""Run a study: one function that measures a job, and a YAML file that says for which jobs.

    python -m nlmeflow.studies STUDY.yml [--out FILE.csv] [--replicates 20] [--processes 2]

    measure: nlmeflow.studies.core:measure    # called with a job's values and the options, returns rows
    report: nlmeflow.studies.core:report      # called with all rows when the study is complete
    grid: {scenario: [L1, L2], design: [R, S], n: [200]}    # or a list of such grids
    replicates: 20
    first: 0                                  # number of the first replicate
    options: {fit_seed: 0}

A job is one combination of the grid's values and a replicate; its rows depend on nothing else. Rows are
appended as jobs finish, so that an interrupted study goes on where it stopped. A job that fails is left out,
with its reason. Functions of a module beside the YAML file are found too.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from nlmeflow.studies.notebook import versions

Row = dict[str, Any]
Job = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What is measured, for which values of a job's parameters, and how the rows are told."""

    measure: Callable[..., list[Row]]
    report: Callable[[pd.DataFrame], None]
    jobs: list[Job]
    options: dict[str, Any] = field(default_factory=dict)
    replicates: int | None = None

    @classmethod
    def read(cls, path: Path, replicates: int | None = None) -> "Study":
        """Read a study's YAML file; with another number of replicates when given."""
        import yaml

        about = yaml.safe_load(path.read_text())
        sys.path.insert(0, str(path.resolve().parent))
        count, first = replicates or about.get("replicates"), about.get("first", 0)
        again = {"replicate": range(first, first + count)} if count else {}
        grids = about["grid"] if isinstance(about["grid"], list) else [about["grid"]]
        jobs = [
            dict(zip([*again, *grid], values, strict=True))
            for grid in grids
            for values in product(*again.values(), *grid.values())
        ]
        return cls(_found(about["measure"]), _found(about["report"]), jobs, about.get("options", {}), count)


def _found(name: str) -> Callable[..., Any]:
    module, function = name.split(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def run(study: Study, path: Path, processes: int) -> pd.DataFrame:
    """Measure the jobs that the file does not have yet; return all its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    key = list(study.jobs[0])
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=key)
    have = set(done[key].itertuples(index=False, name=None))
    missing = [job for job in study.jobs if tuple(job.values()) not in have]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = {pool.submit(partial(study.measure, **job, **study.options)): job for job in missing}
        for finished in tqdm(as_completed(waiting), total=len(waiting), unit="job"):
            job = waiting[finished]
            if error := finished.exception():
                print(f"{job} failed, and is left out: {error!r}")
                continue
            rows = pd.DataFrame([job | row for row in finished.result()])
            done = pd.concat([done, rows], ignore_index=True) if len(done) else rows
            unfinished = path.with_suffix(".partial")
            done.sort_values(key, kind="stable").to_csv(unfinished, index=False, float_format="%.6g")
            os.replace(unfinished, path)
    return done


def main() -> None:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(prog="python -m nlmeflow.studies", description="Run a study.")
    parser.add_argument("study", type=Path, help="YAML file")
    parser.add_argument("--out", type=Path, help="build/studies/NAME.csv when absent")
    parser.add_argument("--replicates", type=int)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    study = Study.read(options.study, options.replicates)
    out = options.out or Path("build/studies") / f"{options.study.stem}.csv"
    rows = run(study, out, options.processes)
    about = {"study": options.study.name, "replicates": study.replicates, "options": study.options}
    text = json.dumps({**about, "versions": versions()}, indent=2, default=str)
    out.with_suffix(".json").write_text(text + "\n")
    study.report(rows)
