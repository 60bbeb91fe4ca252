"""Build the site from executed chapters: stage them beside the pages, run jupyter-book, move the result."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(executed: Path, site: Path) -> None:
    """Write the site; the old one stays until the new one is complete."""
    stage = executed.parent / f"stage-{executed.name}"
    shutil.rmtree(stage, ignore_errors=True)
    (stage / "book").mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, stage)
    for page in [*(ROOT / "book").glob("*.md"), ROOT / "book" / "references.bib"]:
        shutil.copy(page, stage / "book")
    if (ROOT / "book" / "images").is_dir():
        shutil.copytree(ROOT / "book" / "images", stage / "book" / "images")
    for notebook in executed.glob("*.ipynb"):
        shutil.copy(notebook, stage / "book")
    program = Path(sys.executable).parent / "jupyter-book"
    command = [str(program), "build", "-W", "--keep-going", "--all", str(stage)]
    subprocess.run(command, check=True)
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(stage / "_build" / "html", site)
    shutil.rmtree(stage)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executed", type=Path)
    parser.add_argument("site", type=Path)
    arguments = parser.parse_args()
    build(arguments.executed, arguments.site)


if __name__ == "__main__":
    main()
