"""Execute a chapter with papermill: strict parameters, nothing half-written, reproducible output."""

import argparse
import os
import shutil
from pathlib import Path

import narrow
import nbformat
import papermill
import yaml

STARTUP = Path(__file__).resolve().with_name("startup.py")
VOLATILE = ("papermill", "execution")


def declared(path: Path) -> set[str]:
    """Return the names of a notebook's parameters."""
    return set(papermill.inspect_notebook(str(path)))


def strip(path: Path) -> None:
    """Remove what changes from run to run: times, paths, versions of the runner."""
    notebook = nbformat.read(path, as_version=4)
    for metadata in [notebook.metadata, *(cell.metadata for cell in notebook.cells)]:
        for key in VOLATILE:
            metadata.pop(key, None)
    nbformat.write(notebook, path)


def execute(source: Path, target: Path, parameters: dict[str, object]) -> None:
    """Run `source` and write `target`, or nothing when a cell fails; figures for phones go beside it."""
    unknown = set(parameters) - declared(source)
    if unknown:
        known = ", ".join(sorted(declared(source)))
        raise SystemExit(f"{source} has no parameter {', '.join(sorted(unknown))}; it has: {known}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}")
    figures = target.parent / narrow.NAME / target.stem
    drawn = figures.with_name(f".{target.stem}")
    drawn.mkdir(parents=True, exist_ok=True)
    os.environ |= {"PYTHONSTARTUP": str(STARTUP), narrow.FOLDER: str(drawn.resolve())}
    try:
        papermill.execute_notebook(
            str(source), str(partial), parameters=parameters, kernel_name="python3", progress_bar=False
        )
        strip(partial)
        shutil.rmtree(figures, ignore_errors=True)
        os.replace(drawn, figures)
        os.replace(partial, target)
    except papermill.PapermillExecutionError as error:
        if "check_parameters(" not in error.source:
            raise
        raise SystemExit(f"{source}: {error.evalue}") from None
    finally:
        partial.unlink(missing_ok=True)
        shutil.rmtree(drawn, ignore_errors=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--parameters", type=Path, help="YAML file: parameter: value")
    arguments = parser.parse_args()
    given = yaml.safe_load(arguments.parameters.read_text()) if arguments.parameters else {}
    print(f"executing {arguments.source}", flush=True)
    execute(arguments.source, arguments.target, given or {})


if __name__ == "__main__":
    main()
