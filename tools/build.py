"""Build the site from executed chapters: stage them beside the pages, run jupyter-book, finish its pages."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

import equations
import pages
import slim
import yaml
from narrow import NAME

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(__file__).resolve().parent


def configure(stage: Path) -> pages.Repository:
    """Write the configuration with version, commit and address; return the repository at this address."""
    text = (ROOT / "_config.yml").read_text()
    repository = yaml.safe_load(text)["repository"]
    address = pages.web_address(ROOT, repository["url"])
    filled = text.replace(repository["url"], address)
    for name, value in (("version", pages.version(ROOT)), ("commit", pages.commit(ROOT))):
        filled = filled.replace(f"{{{name}}}", value)
    (stage / "_config.yml").write_text(filled)
    return pages.Repository(ROOT, address, repository["branch"])


def interactive(site: Path) -> None:
    """Put the programs of the interactive figures, and the numbers that they show, beside the pages."""
    folder = site / "_static" / "interactive"
    shutil.copytree(ROOT / "book" / "interactive", folder)
    numbers = (ROOT / "data" / "interactive" / "recovery.json").read_text().strip()
    (folder / "recovery.data.js").write_text(f"window.recovery = {numbers};\n")


def narrow_figures(site: Path, executed: Path) -> set[str]:
    """Put the figures for narrow screens beside those that pages show; return their names."""
    folder = site / "_images" / NAME
    folder.mkdir()
    shown = {path.name for path in folder.parent.iterdir()}
    for path in (executed / NAME).rglob("*.png"):
        if path.name in shown:
            shutil.copy(path, folder)
    return {path.name for path in folder.iterdir()}


def finish(site: Path, repository: pages.Repository, executed: Path) -> None:
    """Make pages small, readable on any screen, and without programs that a page does not need."""
    interactive(site)
    narrow = narrow_figures(site, executed)
    typesetter, written = equations.Typesetter(), []
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).with_suffix("").as_posix()
        notebook = site / "_sources" / f"{name}.ipynb"
        page = slim.slim_page(pages.set_page(path.read_text(), name, repository, notebook, narrow))
        written.append(equations.set_page(page, typesetter, up="../" * name.count("/")))
        path.write_text(written[-1])
    slim.slim_static(site / "_static", written)
    equations.write_style(typesetter, site / "_static" / "mathjax")


def extended(folder: Path) -> str:
    """Return the search path of Python with a folder: that of the extension `author_year`."""
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def build(executed: Path, site: Path) -> None:
    """Write the site; the old one stays until the new one is complete."""
    stage = executed.parent / f"stage-{executed.name}"
    shutil.rmtree(stage, ignore_errors=True)
    (stage / "book").mkdir(parents=True)
    repository = configure(stage)
    shutil.copy(ROOT / "_toc.yml", stage)
    shutil.copytree(ROOT / "book" / "_static", stage / "_static")
    for page in [*(ROOT / "book").glob("*.md"), ROOT / "book" / "references.bib"]:
        shutil.copy(page, stage / "book")
    shutil.copytree(ROOT / "data" / "example", stage / "data" / "example")  # to be downloaded
    if (ROOT / "book" / "images").is_dir():
        shutil.copytree(ROOT / "book" / "images", stage / "book" / "images")
    for notebook in executed.glob("[!.]*.ipynb"):  # none that is being executed
        shutil.copy(notebook, stage / "book")
    program = Path(sys.executable).parent / "jupyter-book"
    command = [str(program), "build", "-W", "--keep-going", "--all", str(stage)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": extended(TOOLS)})
    finish(stage / "_build" / "html", repository, executed)
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
