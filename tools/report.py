"""Analyse the reader's own table: run the chapter your_data on it and render one self-contained HTML file.

    python tools/report.py my.csv --out build/report --set individual=variety --set time=day ...

The folder gets report.html, the executed notebook, and the tables as CSV files.
"""

import argparse
import base64
import html
import sys
from pathlib import Path

import nbformat
import papermill
import yaml
from execute import declared, strip
from nbconvert import HTMLExporter
from traitlets.config import Config

CHAPTER = Path(__file__).resolve().parents[1] / "book" / "your_data.ipynb"
NUMBERS = {"lower", "upper", "step", "threshold", "folds", "refits", "seed"}  # other parameters are text
EXPLAINED = {"DataError", "ModelError", "EstimationError"}  # their message is the explanation
STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 54rem;
  padding: 1rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
img { max-width: 100%; height: auto; } .anchor-link { display: none; }
table { border-collapse: collapse; font-size: .86rem; display: block; overflow-x: auto; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
thead th { border-bottom: 2px solid #999; } pre { overflow-x: auto; }
"""


def run(csv: Path, out: Path, given: dict[str, object]) -> int:
    """Execute the chapter on a file and write the report; return the status of the program."""
    known = declared(CHAPTER)
    if unknown := set(given) - known:
        print(
            f"No parameter {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}.",
            file=sys.stderr,
        )
        return 2
    out.mkdir(parents=True, exist_ok=True)
    executed = out / "report.ipynb"
    parameters = {**given, "csv": str(csv.resolve()), "out": str(out.resolve() / "tables")}
    analysis = nbformat.read(CHAPTER, as_version=4)
    analysis.cells = [cell for cell in analysis.cells if "chapter-only" not in cell.metadata.get("tags", ())]
    try:
        papermill.execute_notebook(analysis, str(executed), parameters=parameters, kernel_name="python3")
    except papermill.PapermillExecutionError as error:
        executed.unlink(missing_ok=True)
        if error.ename not in EXPLAINED:
            raise
        print(f"\n{csv}: {error.evalue}", file=sys.stderr)
        return 1
    strip(executed)
    (out / "report.html").write_text(page(executed, out / "tables", csv.name), encoding="utf-8")
    print(f"The report is in {out / 'report.html'}")
    return 0


def page(executed: Path, tables: Path, title: str) -> str:
    """Return the report as one page: figures and tables are inside it, nothing is fetched."""
    skipped = {"enabled": True, "remove_cell_tags": ("skip-report", "parameters", "remove-cell")}
    config = Config({"TagRemovePreprocessor": skipped})
    exporter = HTMLExporter(
        config=config, template_name="basic", exclude_input=True, exclude_output_prompt=True
    )
    notebook = nbformat.read(executed, as_version=4)
    for cell in notebook.cells:  # captions under figures, alternative text in them
        _describe(cell)
    body, _ = exporter.from_notebook_node(notebook)
    links = "".join(_link(path) for path in sorted(tables.glob("*.csv")))
    name = html.escape(title)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>Report on {name}</h1>{body}<h2>Tables</h2><ul>{links}</ul></body></html>"
    )


def _describe(cell: nbformat.NotebookNode) -> None:
    if cell.cell_type == "markdown":  # comments, which the book's own renderer leaves out
        cell.source = "\n".join(line for line in cell.source.split("\n") if not line.startswith("% "))
    about = cell.metadata.get("mystnb", {})
    for output in cell.get("outputs", []):
        image = output.get("data", {}).pop("image/png", None)
        if image is not None:
            alt = html.escape(about.get("image", {}).get("alt", ""))
            caption = html.escape(about.get("figure", {}).get("caption", ""))
            output.data["text/html"] = (
                f'<figure><img alt="{alt}" src="data:image/png;base64,{image}">'
                f"<figcaption>{caption}</figcaption></figure>"
            )


def _link(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode()
    return f'<li><a download="{path.name}" href="data:text/csv;base64,{content}">{path.name}</a></li>'


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/report"))
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter")
    options = parser.parse_args()
    pairs = [pair.partition("=") for pair in options.set]
    given = {name: yaml.safe_load(value) if name in NUMBERS else value for name, _, value in pairs}
    sys.exit(run(options.csv, options.out, given))


if __name__ == "__main__":
    main()
