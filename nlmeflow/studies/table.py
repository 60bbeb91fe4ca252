"""The table of a study: a folder that takes each job's rows as it finishes, and in the end holds one file.

    rows.parquet    all rows, sorted by the values of their jobs
    parts           rows of jobs that have finished since: a file for each job, until the run is complete
    about.json      the study, and of each run the command, versions, commit, machine, time and cost

Beside what was measured a row has its job's values, the CPU seconds of its job, and `failed`: why the job
has nothing else.
"""

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from nlmeflow.errors import ModelError, extra
from nlmeflow.studies.notebook import DATA, stored_file, versions

Job = dict[str, Any]
SECONDS, FAILED = "job seconds", "failed"
NEWER = "newer than the file"  # while files are put together: 1 of a part, 0 of the file


@dataclass(frozen=True)
class Table:
    """The folder of a study's rows; `key` names the columns that are a job's values."""

    folder: Path
    key: list[str]

    def rows(self) -> pd.DataFrame:
        """Return all rows, sorted by their jobs, failed ones too."""
        return self._merged(self._parts())

    def missing(self, jobs: list[Job], retry_failed: bool = False) -> list[Job]:
        """Return the jobs that have no row; with `retry_failed` also those that failed."""
        rows = self.rows()
        done = rows[rows[FAILED].isna()] if retry_failed else rows
        have = set(done[self.key].itertuples(index=False, name=None))
        return [job for job in jobs if tuple(job.values()) not in have]

    def seconds(self) -> list[float]:
        """Return the CPU seconds of each job that was measured."""
        jobs = self.rows().drop_duplicates(self.key)
        return jobs[SECONDS][jobs[FAILED].isna()].tolist()

    def keep(self, job: Job, rows: pd.DataFrame) -> None:
        """Write the rows of a job that has finished."""
        name = hashlib.sha256(json.dumps(job).encode()).hexdigest()[:16]
        _write(rows, self.folder / "parts" / f"{name}.parquet")

    def compact(self) -> None:
        """Write all rows into one file, in place of the parts."""
        if parts := self._parts():
            _write(self._merged(parts), self.folder / "rows.parquet")
            for part in parts:
                part.unlink()
            with suppress(OSError):  # what another run has written meanwhile stays
                (self.folder / "parts").rmdir()

    def _parts(self) -> list[Path]:
        return sorted((self.folder / "parts").glob("*.parquet"))

    def _merged(self, parts: list[Path]) -> pd.DataFrame:
        """Return the rows of the file and of parts, which replace older rows of their jobs."""
        with extra("The table of a study"):
            import pyarrow.parquet

        def read(path: Path) -> Any:
            table = pyarrow.parquet.read_table(path).replace_schema_metadata()
            return table.append_column(NEWER, [[int(path != whole)] * len(table)])

        whole = self.folder / "rows.parquet"
        found = [read(whole)] if whole.exists() else []
        found += sorted(map(read, parts), key=lambda table: [table[name][0].as_py() for name in self.key])
        if not found:
            return pd.DataFrame(columns=[*self.key, SECONDS, FAILED])
        rows: pd.DataFrame = pyarrow.concat_tables(found, promote_options="permissive").to_pandas()
        newest = rows[NEWER] == rows.groupby(self.key)[NEWER].transform("max")
        return rows[newest].drop(columns=NEWER).sort_values(self.key, kind="stable", ignore_index=True)


def _write(rows: pd.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    rows.to_parquet(unfinished, engine="pyarrow", index=False)
    os.replace(unfinished, path)


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of jobs that did not fail, without the columns of the runner."""
    return rows[rows[FAILED].isna()].drop(columns=[SECONDS, FAILED]).infer_objects()


def rows(study: str | Path) -> pd.DataFrame:
    """Return what a study measured, sorted by its jobs; failed jobs are left out.

    study : the name of a study whose table the project keeps in data/studies, or the folder of a table.

    Raises
    ------
    FileNotFoundError : there is no such table.

    """
    if isinstance(study, str):
        stored_file(f"studies/{study}/about.json")
        study = DATA / "studies" / study
    if not (study / "about.json").is_file():
        raise FileNotFoundError(
            f"{study} holds no table of a study (about.json, rows.parquet); "
            f"'python -m nlmeflow.studies run STUDY.yml --out {study}' makes one."
        )
    about = json.loads((study / "about.json").read_text())
    return measured(Table(study, about["key"]).rows())


def opened(folder: Path, key: list[str], **facts: Any) -> Table:
    """Return the table of a study in a folder.

    facts : what all its rows have in common, by name.

    Raises
    ------
    ModelError : the folder holds the table of another study, one made with other options, or something else.

    """
    if (folder / "about.json").exists():
        about = json.loads((folder / "about.json").read_text())
        for name, value in {**facts, "key": key}.items():
            if about[name] != value:
                raise ModelError(
                    f"{folder} holds rows made with {name} {about[name]!r}, and this study has {value!r}. "
                    "Name another folder: --out FOLDER."
                )
    elif folder.exists() and any(folder.iterdir()):
        raise ModelError(f"{folder} holds something else than a study's table. Name another folder: --out.")
    return Table(folder, key)


@contextmanager
def noted(table: Table, source: Path, workers: int, **about: Any) -> Iterator[dict[str, Any]]:
    """Note a run in about.json as it begins, and its time and cost when it ends, however it ends.

    source : the study's file. about : what is said of the study. Gives what is noted of the run; who runs it
    counts "jobs" and "CPU seconds".
    """
    path, begun = table.folder / "about.json", perf_counter()
    earlier = json.loads(path.read_text())["runs"] if path.exists() else []
    changes = git(source.parent, "status", "--porcelain")
    this: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "nlmeflow.studies", *sys.argv[1:]]),
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git(source.parent, "rev-parse", "HEAD"),
        "uncommitted": changes and [line[3:] for line in changes.splitlines()],
        "versions": versions(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "workers": workers,
        },
        "jobs": 0,
        "CPU seconds": 0.0,
    }

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = {**about, "key": table.key, "text": source.read_text(), "runs": [*earlier, this]}
        path.with_suffix(".partial").write_text(json.dumps(text, indent=2) + "\n")
        os.replace(path.with_suffix(".partial"), path)

    write()
    try:
        yield this
    finally:
        this["wall seconds"] = round(perf_counter() - begun, 1)
        write()


def git(folder: Path, *words: str) -> str | None:
    """Return what git says about a folder; None where there is no git or no repository."""
    with suppress(FileNotFoundError, subprocess.CalledProcessError):
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()
    return None
