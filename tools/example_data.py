"""Write the simulated files of the chapter on the reader's own data into data/example.

    python tools/example_data.py

two_strategies.csv: 200 varieties whose greenness, in percent, is read at eight dates; 60 % of them senesce
early and fast, 40 % late and slowly (scenario L2). one_strategy.csv: as many from one Gaussian (scenario L1).
"""

from pathlib import Path

import nlmeflow as nf

FOLDER = Path(__file__).resolve().parents[1] / "data" / "example"
FILES = {"two_strategies": "L2", "one_strategy": "L1"}


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, scenario in FILES.items():
        frame = nf.scenarios.load(scenario, "M", 200, 50).data.to_frame().iloc[:, :3]
        frame.columns = ["variety", "day", "greenness"]
        frame["variety"] = "V" + (frame["variety"] + 1).astype(str).str.zfill(3)
        frame["greenness"] = (90 * frame["greenness"]).round(1)
        frame.to_csv(FOLDER / f"{name}.csv", index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
