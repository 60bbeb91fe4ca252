"""The source archive and the wheel, installed with its dependencies alone: small, typed, enough to fit."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow

USE = """
import importlib.util, json, sys, time
extras = ["IPython", "arviz", "dask", "matplotlib", "pooch", "pyarrow", "pyreadr", "statsmodels", "yaml"]
found = [name for name in extras if importlib.util.find_spec(name)]
before = time.process_time()
import nlmeflow as nf
seconds = time.process_time() - before
import numpy as np
import pandas as pd
random = np.random.default_rng(1)
plant, day = np.repeat(np.arange(40), 6), np.tile(np.arange(6.0), 40)
height = random.normal(10, 2, 40)[plant] + random.normal(3, 0.5, 40)[plant] * day
frame = pd.DataFrame({"plant": plant, "day": day, "height": height + random.normal(0, 0.3, 240)})
data = nf.LongitudinalData.from_frame(frame, individual="plant", time="day", response="height")
fit = nf.Model(nf.curves.linear()).fit(data, law=nf.Gaussian(), seed=1, progress=False)
print(fit.summary())
fit.save("linear.fit")
same = float(nf.load("linear.fit").log_likelihood().value - fit.log_likelihood().value)
from nlmeflow.studies import core
try:
    core.stored()
except FileNotFoundError as error:
    message = str(error)
answer = {"extras": found, "seconds": seconds, "file": nf.__file__, "same": same, "message": message}
answer["pyplot"] = "matplotlib.pyplot" in sys.modules
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, made from the source archive of a copy of the repository: building leaves files in it."""
    place = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, place / "source", ignore=unwanted)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(place), "source"]
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    (path,) = place.glob("*.whl")
    return path


def closure(name, found=None):
    """The distributions that a distribution needs without extras, directly or not."""
    found = {} if found is None else found
    for line in distribution(name).requires or []:
        needed = Requirement(line)
        key = canonicalize_name(needed.name)
        if key not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            found[key] = distribution(key)
            closure(key, found)
    return found


def top_level(needed):
    """What a distribution has in site-packages: packages, modules, its metadata."""
    folder = Path(needed.locate_file(""))
    names = {file.parts[0] for file in needed.files or []} - {"..", "__pycache__"}
    return [folder / name for name in names if not name.endswith(".pth")]


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An interpreter that has the wheel and, by links, the dependencies of the library; nothing else."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "venv"], cwd=place, check=True)
    (place / "dependencies").mkdir()
    for path in {path for needed in closure("nlmeflow").values() for path in top_level(needed)}:
        (place / "dependencies" / path.name).symlink_to(path)
    (site,) = (place / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(f"{place / 'dependencies'}\n")
    interpreter = place / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    return interpreter


def modules():
    return {str(path.relative_to(ROOT)) for path in (ROOT / "nlmeflow").rglob("*.py")}


def test_the_source_archive_holds_the_package_and_no_test(wheel):
    (path,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        files = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "nlmeflow/py.typed"} <= files
    assert {file for file in files if file.endswith(".py")} == modules()


def test_the_wheel_holds_the_package_and_its_types_and_nothing_else(wheel):
    assert f"pip install dist/{wheel.name}\n" in (ROOT / "README.md").read_text()
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {"nlmeflow/py.typed", "nlmeflow/laws/flow/network.py", "nlmeflow/studies/core.py"} <= files
    assert {file.split("/")[0].split("-")[0] for file in files} == {"nlmeflow"}
    assert modules() == {file for file in files if file.endswith(".py")}


def test_the_library_works_with_its_dependencies_alone(python, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    run = subprocess.run(
        [str(python), "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    *summary, last = run.stdout.strip().splitlines()
    answer = json.loads(last)
    assert "log-likelihood" in "\n".join(summary).lower()
    assert answer["extras"] == [], "the environment has more than the library asks for"
    assert Path(answer["file"]).is_relative_to(python.parent.parent), "the wheel is what was used"
    assert answer["seconds"] < 4, "importing takes CPU time"
    assert not answer["pyplot"]
    assert answer["same"] == 0
    assert "repository" in answer["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["linear.fit"]
