"""nlmeflow.studies: jobs are measured once, whatever happens to workers, and failures are told."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import dask
import pandas as pd
import pytest
from distributed import Client

import nlmeflow as nf
from nlmeflow.studies import rows
from nlmeflow.studies.__main__ import main
from nlmeflow.studies.check import differences
from nlmeflow.studies.run import Study
from nlmeflow.studies.table import Table

ROOT = Path(__file__).resolve().parent.parent
JOBS = '''
import os
import signal
import time
from pathlib import Path


def measure(n, replicate, folder):
    """Note the call; wait while a file holds this job; fail while another says so."""
    folder = Path(folder)
    with (folder / "calls").open("a") as calls:
        calls.write(f"{n} {replicate}\\n")
    (folder / "trimmed").write_text(os.environ.get("MALLOC_TRIM_THRESHOLD_", "0"))
    hold = folder / f"hold {n} {replicate}"
    if hold.exists():
        (folder / "pid").write_text(str(os.getpid()))
        while hold.exists():
            time.sleep(0.02)
    if (folder / f"deadly {n} {replicate}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if n == 0.5 and (folder / "broken").exists():
        raise ValueError("no law in sight")
    return [{"law": "one", "value": n + replicate}, {"law": "two", "value": 0.25, "large": n > 1}]


def report(rows):
    print("mean value", rows["value"].mean())
'''
slow = pytest.mark.slow  # what runs on the workers below


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """The address of a scheduler with two workers, each a process."""
    place = tmp_path_factory.mktemp("dask")
    address, started = place / "scheduler.json", []
    common = ["--scheduler-file", str(address), "--host", "127.0.0.1", "--no-dashboard"]
    for words in (["scheduler", "--port", "0"], *[["worker", "--nthreads", "1", "--memory-limit", "0"]] * 2):
        command = [sys.executable, "-m", "dask", words[0], *common, *words[1:]]
        with (place / f"{len(started)}.log").open("w") as log:
            started.append(subprocess.Popen(command, cwd=place, stdout=log, stderr=log))
        until(address.exists)
    yield json.loads(address.read_text())["address"]
    with Client(scheduler_file=str(address)) as client:
        client.shutdown()
    for process in started:
        process.wait(timeout=60)


def until(happens):
    """Wait until something is so, a minute at most."""
    end = monotonic() + 60
    while not happens():
        assert monotonic() < end, "it did not happen"
        sleep(0.02)


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """The folder of a module with the functions of a study."""
    place = tmp_path_factory.mktemp("study")
    (place / "counted_jobs.py").write_text(JOBS)
    return place


@pytest.fixture
def study(module, tmp_path):
    """A study of six jobs, and a folder where its jobs note that they were called."""
    return written(module, tmp_path)


def written(module, folder, name="counted", more=""):
    path = module / f"{name}.yml"
    path.write_text(
        "measure: counted_jobs:measure\nreport: counted_jobs:report\ngrid: {n: [2, 0.5]}\nreplicates: 3\n"
        f"options: {{folder: '{folder}'{more}}}\n"
    )
    return path


def calls(folder):
    return Counter((folder / "calls").read_text().splitlines())


def table(out):
    """The rows of a folder, without what is never the same twice."""
    return Table(out, ["replicate", "n"]).rows().drop(columns="job seconds")


def expected():
    """The rows of an undisturbed run, by what the function says."""
    jobs = [(replicate, n) for replicate in range(3) for n in (0.5, 2.0)]
    found = [
        {"replicate": r, "n": n, "failed": None, "law": law, "value": value, "large": large}
        for r, n in jobs
        for law, value, large in (("one", n + r, None), ("two", 0.25, n > 1))
    ]
    return pd.DataFrame(found)


def same(found, right):
    one, other = (frame.astype(object).where(frame.notna(), None) for frame in (found, right))
    pd.testing.assert_frame_equal(one, other)


@slow
def test_a_killed_worker_costs_the_time_of_its_job_alone(study, scheduler, tmp_path):
    out, hold, pid = tmp_path / "out", tmp_path / "hold 2 1", tmp_path / "pid"
    hold.touch()

    def kill():
        until(lambda: pid.exists() and pid.read_text() and len(list(out.glob("parts/*.parquet"))) == 5)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        hold.unlink()

    killer = Thread(target=kill)
    killer.start()
    main(["run", str(study), "--out", str(out), "--scheduler", scheduler])
    killer.join()
    same(table(out), expected())
    assert calls(tmp_path) == {f"{n} {r}": 2 if (n, r) == (2, 1) else 1 for n in (2, 0.5) for r in range(3)}
    assert sorted(path.name for path in out.iterdir()) == ["about.json", "rows.parquet"]


@slow
def test_an_interrupted_run_goes_on_and_repeats_no_job_that_was_kept(study, scheduler, tmp_path):
    out, hold = tmp_path / "out", tmp_path / "hold 0.5 2"
    hold.touch()
    command = ["run", str(study), "--out", str(out), "--scheduler", scheduler]
    started = subprocess.Popen(
        [sys.executable, "-m", "nlmeflow.studies", *command],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # what runs in the background ignores it
    )
    until(lambda: len(list(out.glob("parts/*.parquet"))) == 5)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130
    assert errors.endswith("Interrupted. Jobs that had finished are kept; the same command goes on.\n")
    assert len(table(out)) == 10
    hold.unlink()
    main(command)
    same(table(out), expected())
    again = calls(tmp_path)
    assert {job: n for job, n in again.items() if job != "0.5 2"} == dict.fromkeys(
        ["2 0", "0.5 0", "2 1", "0.5 1", "2 2"], 1
    )
    about = json.loads((out / "about.json").read_text())
    assert len(about["runs"]) == 2
    assert about["runs"][1]["jobs"] == 1


@slow
def test_more_replicates_go_on_from_the_table(study, scheduler, tmp_path):
    out = tmp_path / "out"
    command = ["run", str(study), "--out", str(out), "--scheduler", scheduler]
    main([*command, "--replicates", "1"])
    assert table(out)["replicate"].max() == 0
    main(command)
    same(table(out), expected())
    assert set(calls(tmp_path).values()) == {1}


@slow
def test_a_job_that_raises_is_a_row_with_its_reason_until_it_is_tried_again(
    study, scheduler, tmp_path, capsys
):
    out, broken = tmp_path / "out", tmp_path / "broken"
    broken.touch()
    command = ["run", str(study), "--out", str(out), "--scheduler", scheduler]
    main(command)
    found = table(out)
    failed = found[found["failed"].notna()]
    assert failed["n"].tolist() == [0.5] * 3
    assert failed["failed"].unique().tolist() == ["ValueError: no law in sight"]
    assert failed[["law", "value", "large"]].isna().all(axis=None)
    shown = capsys.readouterr().out
    assert "mean value 1.625\n" in shown, "of the other jobs"
    assert "3 jobs failed, and are left out" in shown
    assert "3 × ValueError: no law in sight" in shown
    assert len(rows(out)) == 6
    broken.unlink()
    main(command)
    assert len(table(out)["failed"].dropna()) == 3, "not tried again unless it is asked for"
    main([*command, "--retry-failed"])
    same(table(out), expected())
    assert calls(tmp_path) == {f"{n} {r}": 2 if n == 0.5 else 1 for n in (2, 0.5) for r in range(3)}


@slow
def test_a_run_notes_how_it_was_made_and_what_it_cost(module, scheduler, tmp_path, capsys):
    study, out = written(module, tmp_path), tmp_path / "out"
    with Client(scheduler) as client:
        client.wait_for_workers(2)
    main(["estimate", str(study), "--out", str(out), "--scheduler", scheduler, "--processes", "2"])
    assert re.search(
        r"4 jobs left, \S+ CPU seconds each so far: about \S+ CPU hours", capsys.readouterr().out
    )
    about = json.loads((out / "about.json").read_text())
    assert about["text"] == study.read_text()
    assert (about["study"], about["replicates"]) == ("counted", 3)
    (run,) = about["runs"]
    assert (run["jobs"], run["machine"]["workers"], run["commit"]) == (2, 2, None)
    assert 0 <= run["CPU seconds"] < 1
    assert 0 <= run["wall seconds"] < 60
    assert run["versions"]["torch"] == version("torch")


@slow
def test_a_job_that_kills_each_of_its_workers_is_a_row_with_this_reason(study, tmp_path, capsys):
    """On processes of this machine, which are reached from it alone; the dead one is started again."""
    (tmp_path / "deadly 0.5 1").touch()
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        main(["run", str(study), "--out", str(tmp_path / "out"), "--processes", "1"])
    found = table(tmp_path / "out")
    failed = found.query("replicate == 1 and n == 0.5")
    assert failed["failed"].tolist() == ["KilledWorker: its worker died in each of 1 attempts"]
    whole = expected().query("not (replicate == 1 and n == 0.5)").reset_index(drop=True)
    same(found.drop(failed.index).reset_index(drop=True), whole)
    assert "6 of 6 jobs on 1 workers of tcp://127.0.0.1:" in capsys.readouterr().out
    kept = int((tmp_path / "trimmed").read_text())
    assert kept > 1e9  # bytes that a worker frees before it returns memory to the system


@slow
def test_an_address_without_a_scheduler_is_named(study, tmp_path):
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(SystemExit, match=r"No scheduler answers at tcp://127.0.0.1:9: "),
    ):
        main(["run", str(study), "--out", str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:9"])


@pytest.fixture
def whole(study, tmp_path):
    """The folder of a complete table, written without workers."""
    out = tmp_path / "whole"
    (out / "parts").mkdir(parents=True)
    made = Study.read(study)
    about = {"measure": made.measure, "options": made.options, "key": made.key}
    (out / "about.json").write_text(json.dumps(about))
    written = expected().assign(**{"job seconds": 1.5})
    for job in made.jobs:
        mine = (written["n"] == job["n"]) & (written["replicate"] == job["replicate"])
        Table(out, made.key).keep(job, written[mine])
    return out


def test_a_folder_of_other_options_is_refused(module, whole, tmp_path):
    other = written(module, tmp_path, "other", ", seed: 1")
    with pytest.raises(SystemExit, match=r"holds rows made with options \{'folder'.*'seed': 1.*--out"):
        main(["run", str(other), "--out", str(whole)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="holds something else than a study's table"):
        main(["run", str(other), "--out", str(tmp_path / "full")])


def test_a_complete_table_is_reported_without_any_worker(study, whole, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    main(["run", str(study), "--out", str(whole)])
    assert capsys.readouterr().out == f"mean value {expected()['value'].mean()}\n"
    main(["estimate", str(study), "--out", str(whole), "--replicates", "7"])
    assert "8 jobs left, 1.5 CPU seconds each so far: about 0.0033 CPU hours" in capsys.readouterr().out


def test_parts_become_one_file_that_is_the_same_twice(whole):
    before = table(whole)
    same(before, expected())
    Table(whole, ["replicate", "n"]).compact()
    first = (whole / "rows.parquet").read_bytes()
    assert sorted(path.name for path in whole.iterdir()) == ["about.json", "rows.parquet"]
    same(table(whole), expected())
    again = Table(whole, ["replicate", "n"])
    again.keep({"replicate": 2, "n": 2}, again.rows().query("replicate == 2 and n == 2"))
    again.compact()
    assert (whole / "rows.parquet").read_bytes() == first


def test_rows_of_a_folder_are_what_was_measured(whole, tmp_path):
    same(rows(whole), expected().drop(columns="failed"))
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no table of a study .*--out .*nowhere"):
        rows(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="No stored results 'studies/nothing"):
        rows("nothing")


def test_what_differs_from_stored_rows_is_said_by_column():
    stored = expected().drop(columns="failed").assign(seconds=1.0)
    new = stored[stored["replicate"] < 2].assign(seconds=2.0)
    key = ["replicate", "n"]
    assert differences(new.iloc[::-1], stored, key) == []
    assert differences(new.assign(value=new["value"] * (1 + 1e-9)), stored, key) == []
    moved = new.assign(value=new["value"].where(new["replicate"] == 0, 7.0))
    assert differences(moved, stored, key) == [
        "column 'value' differs in 4 of 8 rows: 7, stored 1.5 (replicate 1, n 0.5, law one)"
    ]
    assert differences(new, stored.assign(later=stored["n"].where(stored["replicate"] == 2)), key) == []
    assert differences(new.assign(other=1), stored, key) == ["column 'other' is not stored"]
    assert differences(new.iloc[1:], stored, key) == ["7 rows, and 8 are stored"]


@pytest.mark.parametrize("package", ["yaml", "distributed", "pyarrow"])
def test_what_a_study_needs_is_named_where_it_is_absent(package, study, tmp_path, monkeypatch):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(line.startswith(package.replace("yaml", "pyyaml")) for line in declared["studies"])
    monkeypatch.setitem(sys.modules, package, None)
    words = rf"needs the package {package}: pip install 'nlmeflow\[studies\]'"
    with pytest.raises(SystemExit, match=words):
        main(["run", str(study), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("measure: a:b\ngrid: {}\n", "a study has measure, report and grid.*; it has measure, grid"),
        ("measure: a:b\nreport: a:b\ngrid: {}\nreplicate: 2\n", "it has .*replicate"),
        ("measure: a:b\nreport: a:b\ngrid: {}\n", "a study has a grid, replicates or both"),
        ("measure: a:b\nreport: a:b\ngrid: {n: [null]}\n", "a value of the grid is a word, .*None"),
        ("measure: a:b\nreport: a:b\ngrid: [{n: [1]}, {m: [1]}]\n", "the same names in the same order"),
        ("measure: a:b\nreport: a:b\ngrid: {}\nreplicates: 0.5\n", "replicates is a whole number from 1"),
    ],
)
def test_a_file_that_is_no_study_is_refused_in_words(text, words, tmp_path):
    path = tmp_path / "study.yml"
    path.write_text(text)
    with pytest.raises(nf.ModelError, match=words):
        Study.read(path)
