"""Name what chapters, pages and studies use of the package, so that it does not count as dead code."""

import argparse
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def chapter(path: Path) -> str:
    """Return the code of a notebook."""
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def page(path: Path) -> str:
    """Return the blocks of Python on a page."""
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.S))


def study(path: Path) -> str:
    """Return what a study's YAML file names, as code that uses it."""
    about = yaml.safe_load(path.read_text())
    return "\n".join(about[role].replace(":", ".") for role in ("measure", "report"))


def used(code: str) -> Iterator[str]:
    """Give the names that code uses, not those that it makes."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
                yield name
            case ast.keyword(arg=str(name)) | ast.alias(name=name):
                yield name.rpartition(".")[2]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="a Python file that uses each name")
    target = parser.parse_args().target
    code = [chapter(path) for path in (ROOT / "book").glob("*.ipynb")]
    code += [page(path) for path in [ROOT / "README.md", *(ROOT / "book").glob("*.md")]]
    code += [study(path) for path in (ROOT / "tools" / "studies").glob("*.yml")]
    names = {name for part in code for name in used(part)}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(f"_.{name}\n" for name in sorted(names)))


if __name__ == "__main__":
    main()
