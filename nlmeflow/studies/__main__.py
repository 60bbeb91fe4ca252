"""The command line of studies: `python -m nlmeflow.studies run STUDY.yml`.

run         measure the jobs that the table has not, and print the report
report      print the report of the rows that the table has
estimate    print the cost of the jobs that the table has not, from that of the others; from a first few,
            which are kept, where there are no others
check       measure a few jobs again, and compare their rows with stored ones
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from tqdm.auto import tqdm

from nlmeflow.errors import ModelError
from nlmeflow.studies.check import differences
from nlmeflow.studies.run import Study, connected, found, run
from nlmeflow.studies.table import FAILED, Job, Table, measured, noted, opened, rows


def main(words: Sequence[str] | None = None) -> None:
    """Read the command line and do what it says."""
    options = _parser().parse_args(words)
    try:
        study = Study.read(options.study, options.replicates)
        options.act(study, options)
    except (ModelError, ModuleNotFoundError, FileNotFoundError, ConnectionError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Interrupted. Jobs that had finished are kept; the same command goes on.", file=sys.stderr)
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nlmeflow.studies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, act in (("run", _run), ("report", _report), ("estimate", _estimate), ("check", _check)):
        command = commands.add_parser(name)
        command.set_defaults(act=act)
        add = command.add_argument
        add("study", type=Path, help="YAML file")
        add("--replicates", type=int, help="another number of them than the file's")
        if name != "check":
            add("--out", type=Path, help="folder of the table; build/studies/NAME when absent")
        if name != "report":
            add("--processes", type=int, default=os.cpu_count() or 1, help="on this machine, one thread each")
            add("--scheduler", metavar="ADDRESS", help="tcp://HOST:PORT of dask, in place of processes")
        if name == "run":
            add("--retry-failed", action="store_true", help="also measure the jobs that failed")
        if name == "check":
            add("--against", type=Path, required=True, help="stored rows: folder of a table")
            add("--jobs", type=int, default=6, help="how many, drawn from the study, always the same")
    return parser


def _table(study: Study, options: argparse.Namespace) -> Table:
    folder = options.out or Path("build/studies") / study.path.stem
    return opened(folder, study.key, **_facts(study))


def _facts(study: Study) -> dict[str, Any]:
    return {"measure": study.measure, "options": study.options}


def _run(study: Study, options: argparse.Namespace) -> None:
    table = _table(study, options)
    table.compact()
    if jobs := table.missing(study.jobs, options.retry_failed):
        _measure(study, jobs, table, options)
    _report(study, options)


def _report(study: Study, options: argparse.Namespace) -> None:
    table = _table(study, options)
    every, missing = table.rows(), table.missing(study.jobs)
    failed = every[FAILED].dropna()
    if len(good := measured(every)):
        found(study.report)(good)
    if len(failed):
        print(f"\n{len(failed)} jobs failed, and are left out ('run --retry-failed' tries them again):")
        print("\n".join(f"{count:6d} × {reason}" for reason, count in failed.value_counts().items()))
    if missing:
        print(f"\n{len(missing)} of {len(study.jobs)} jobs have no rows yet.")


def _estimate(study: Study, options: argparse.Namespace) -> None:
    table = _table(study, options)
    if not table.seconds() and (jobs := table.missing(study.jobs)):
        _measure(study, jobs[: options.processes], table, options)
    print(_cost(table.seconds(), len(table.missing(study.jobs))))


def _cost(seconds: list[float], left: int) -> str:
    if not seconds:
        return f"{left} jobs left; what they cost is not known, because none has been measured."
    each = sum(seconds) / len(seconds)
    return f"{left} jobs left, {each:.3g} CPU seconds each so far: about {left * each / 3600:.2g} CPU hours."


def _measure(study: Study, jobs: list[Job], table: Table, options: argparse.Namespace) -> None:
    """Measure jobs, with progress and an estimate of their cost, and note the run."""
    seconds, total = table.seconds(), len(study.jobs)
    if seconds:
        print(_cost(seconds, len(jobs)))
    about = {"study": study.path.stem, "replicates": study.replicates, **_facts(study)}
    with connected(study, min(options.processes, len(jobs)), options.scheduler) as client:
        workers = len(client.nthreads())
        print(f"{len(jobs)} of {total} jobs on {workers} workers of {client.scheduler.address}")
        with (
            noted(table, study.path, workers, **about) as this,
            tqdm(total=total, initial=total - len(jobs), unit="job", smoothing=0) as bar,
        ):
            for spent in run(study, jobs, table, client):
                this["jobs"] += 1
                this["CPU seconds"] = round(this["CPU seconds"] + spent, 2)
                bar.update()
                if not seconds and this["jobs"] == workers < len(jobs):
                    bar.write(_cost([this["CPU seconds"] / this["jobs"]], len(jobs) - this["jobs"]))


def _check(study: Study, options: argparse.Namespace) -> None:
    """Exit with what differs, if anything does."""
    stored = rows(options.against)
    jobs = Random(1).sample(study.jobs, min(options.jobs, len(study.jobs)))
    with TemporaryDirectory() as folder, connected(study, options.processes, options.scheduler) as client:
        table = Table(Path(folder), study.key)
        for _ in tqdm(run(study, jobs, table, client), total=len(jobs), unit="job"):
            pass
        new = table.rows()
    if len(failed := new.loc[new[FAILED].notna(), [*study.key, FAILED]]):
        sys.exit(f"{len(failed)} of {len(jobs)} jobs failed:\n{failed.to_string(index=False)}")
    if differ := differences(measured(new), stored, study.key):
        sys.exit("\n".join([f"{len(jobs)} jobs of {study.path}, and {options.against}:", *differ]))
    print(f"{len(jobs)} jobs of {study.path} have the rows of {options.against}, to six digits.")


if __name__ == "__main__":
    main()
