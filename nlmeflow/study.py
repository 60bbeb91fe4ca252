"""Replicated simulation studies, from the command line; see the help of python -m nlmeflow.study.

Each job is one replicate of one scenario in one design: the laws are fitted and measured against the
truth. Rows are appended to a CSV file as jobs finish, so that an interrupted study goes on where it
stopped; a table of means with standard errors is printed at the end.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from nlmeflow import metrics, scenarios
from nlmeflow.fit import Fit
from nlmeflow.laws import Flow, Gaussian, Law, Mixture
from nlmeflow.notebook import versions

LAWS: dict[str, Any] = {"gaussian": Gaussian(), "mixture": Mixture(), "flow": Flow()}
KEY = ["scenario", "design", "n", "replicate"]
Job = tuple[str, str, int, int]


def measure(job: Job, names: Sequence[str]) -> list[dict[str, Any]]:
    """Fit the named laws to one replicate; return one row per law."""
    name, design, n, replicate = job
    scenario = scenarios.load(name, design, n, replicate)
    task = scenario.model.task(scenario.data, seed=replicate)
    rows = []
    for law in names:
        begun = process_time()
        fit = scenario.model.fit_task(task, LAWS[law], progress=False)
        seconds = process_time() - begun
        about = {**dict(zip(KEY, job, strict=True)), "law": law, **distances(scenario.law, fit.law)}
        rows.append({**about, **_errors(scenario, fit), "seconds": seconds, "converged": fit.converged})
    return rows


def distances(truth: Law, law: Law) -> dict[str, Any]:
    """Return the headline measures of an estimated law."""
    return {
        "kl": metrics.kl(truth, law),
        "tv": metrics.total_variation(truth, law),
        "hellinger": metrics.hellinger(truth, law),
        "modes": len(metrics.modes(law)),
    }


def _errors(scenario: scenarios.Scenario, fit: Fit) -> dict[str, float]:
    sigma = next(iter(fit.residual.values())) / scenario.sigma - 1
    fixed = {f"error {name}": fit.fixed[name] - value for name, value in scenario.fixed.items()}
    return {"relative error sigma": sigma, **fixed}


def run(jobs: Sequence[Job], names: Sequence[str], path: Path, processes: int) -> pd.DataFrame:
    """Run the jobs that the file does not have yet; return all its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    done = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=[*KEY, "law"])
    have = {tuple(key) for key in done[KEY].itertuples(index=False)}
    missing = [job for job in jobs if job not in have]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        waiting = [pool.submit(measure, job, names) for job in missing]
        for finished in tqdm(as_completed(waiting), total=len(waiting), unit="replicate"):
            done = pd.concat([done, pd.DataFrame(finished.result())], ignore_index=True)
            partial = path.with_suffix(".partial")
            done.sort_values([*KEY, "law"]).to_csv(partial, index=False, float_format="%.6g")
            os.replace(partial, path)
    return done


def table(rows: pd.DataFrame, measure: str = "kl") -> pd.DataFrame:
    """Return means with standard errors over replicates, one row per scenario and design."""
    grouped = rows.groupby(["design", "scenario", "law"])[measure]
    text = grouped.mean().map("{:.3f}".format) + " (" + grouped.sem().map("{:.3f}".format) + ")"
    return text.unstack("law")


def ratios(rows: pd.DataFrame, law: str) -> pd.Series:
    """Return mean KL of a law over that of the better of Gaussian and mixture, chosen in hindsight."""
    means = rows.groupby(["design", "scenario", "law"])["kl"].mean().unstack("law")
    return means[law] / means[["gaussian", "mixture"]].min(axis=1)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m nlmeflow.study", description=__doc__)
    parser.add_argument("--scenarios", nargs="+", default=list(scenarios.LAWS), choices=list(scenarios.LAWS))
    parser.add_argument("--designs", nargs="+", default=["R", "S"])
    parser.add_argument("--n", nargs="+", type=int, default=[200], help="individuals")
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument("--laws", nargs="+", default=list(LAWS), choices=list(LAWS))
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2)))
    parser.add_argument("--out", type=Path, default=Path("build/study/core.csv"))
    options = parser.parse_args()
    jobs = [
        (name, design, n, replicate)
        for replicate in range(options.replicates)
        for name in options.scenarios
        for design in options.designs
        for n in options.n
    ]
    rows = run(jobs, options.laws, options.out, options.processes)
    about = {"command": vars(options), "versions": versions()}
    options.out.with_suffix(".json").write_text(json.dumps(about, indent=2, default=str) + "\n")
    print(table(rows).to_string())
    if {"gaussian", "mixture", "flow"} <= set(rows["law"]):
        ratio = ratios(rows, "flow")
        geometric = {str(k): float(np.exp(np.log(r).mean())) for k, r in ratio.groupby("design")}
        print("\nKL of the flow over the better of Gaussian and mixture (in hindsight)")
        print(ratio.unstack("design").round(2).to_string())
        print("geometric mean:", ", ".join(f"{k} {v:.2f}" for k, v in geometric.items()))


if __name__ == "__main__":
    main()
