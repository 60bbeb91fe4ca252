"""Compute what the interactive figure 'How many plants?' shows, into data/interactive/recovery.json.

    python tools/interactive.py

A population of days of senescence tau: 60 % of the plants N(50 - gap / 2, 2^2), 40 % N(50 + gap / 2, 2^2), in
days. Each plant's greenness 1 / (1 + exp((t - tau) / 3)) is read on six days with an error N(0, sigma^2).
Only tau varies; its law and sigma are estimated. Three laws are fitted to every data set.
Their densities are kept on a grid of days. Three CPU minutes.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch

import nlmeflow as nf
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.studies.notebook import versions

FOLDER = Path(__file__).resolve().parents[1] / "data" / "interactive"
PLANTS = (30, 100, 300)
SIGMAS = (0.04, 0.12, 0.24)
GAPS = (0, 5, 10)  # days between the centres of the two groups
SAMPLES = (1, 2)
DAYS = (32.0, 40.0, 48.0, 56.0, 64.0, 72.0)
SPREAD, SHARE, CENTRE, SLOPE = 2.0, 0.6, 50.0, 3.0
GRID = (25.0, 75.0, 0.5)  # first, last, step, in days
FINE = 200  # points of a cell
LAWS = {"Gaussian": nf.Gaussian(), "mixture": nf.Mixture(), "flow": nf.Flow()}


def population(gap: float) -> MixtureLaw:
    """Return the law of tau that the plants are drawn from."""
    means = torch.tensor([[CENTRE - gap / 2], [CENTRE + gap / 2]]).double()
    factors = torch.full((2, 1, 1), SPREAD).double()
    return MixtureLaw(torch.tensor([SHARE, 1 - SHARE]).double(), means, factors, 0.01 * factors[0])


def greenness(t: torch.Tensor, psi: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the curve; how fast the plants lose their greenness is known."""
    return torch.sigmoid((psi["tau"] - t) / SLOPE)


def heights(law: Law, grid: torch.Tensor) -> list[float]:
    """Return the mean density over the cell around each point of the grid, in 1e-4 per day.

    Means over cells keep the mass of a law that is narrower than a cell.
    """
    offsets = GRID[2] * ((torch.arange(FINE).double() + 0.5) / FINE - 0.5)
    points = (grid[:, None] + offsets).reshape(-1, 1)
    means = law.log_prob(points).exp().reshape(-1, FINE).mean(1)
    return [round(1e4 * height) for height in means.tolist()]


def compute() -> tuple[dict[str, object], float]:
    """Return what the figure reads, and the CPU seconds that it took."""
    start = time.process_time()
    first, last, step = GRID
    grid = torch.arange(first, last + step / 2, step).double()
    model = nf.Model(nf.Curve(greenness, [nf.Parameter("tau")]))
    estimates = {}
    for place, (gap, n, sigma, sample) in enumerate(itertools.product(GAPS, PLANTS, SIGMAS, SAMPLES)):
        data, _ = model.simulate(population(gap), DAYS, n, 1000 + place, sigma)
        fits = model.fit_laws(data, LAWS, seed=sample, progress=False)
        estimates[f"{gap}/{n}/{sigma}/{sample}"] = {
            name: heights(fit.law, grid) for name, fit in fits.items()
        }
        print(f"{gap} days apart, {n} plants, sigma {sigma}, sample {sample}", flush=True)
    result = {
        "grid": GRID,
        "unit": 1e-4,
        "gaps": GAPS,
        "plants": PLANTS,
        "sigmas": SIGMAS,
        "samples": SAMPLES,
        "truth": {str(gap): heights(population(gap), grid) for gap in GAPS},
        "estimates": estimates,
    }
    return result, time.process_time() - start


def main() -> None:
    """Write the numbers, and beside them how they came about."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    folder = parser.parse_args().out
    result, seconds = compute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recovery.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
    about = {"command": "python tools/interactive.py", "versions": versions(), "CPU seconds": round(seconds)}
    (folder / "recovery.about.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
