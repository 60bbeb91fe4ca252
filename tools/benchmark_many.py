"""Time fits of many individuals, and what is asked of them afterwards.

    python tools/benchmark_many.py                       # 1,000 and 3,000 individuals
    python tools/benchmark_many.py 10000 --laws flow --design R

Scenario L2, seen through design M unless another is given. Seconds are CPU seconds of one thread; what was
computed for one line is not computed again for the next. Peak memory is that of the process up to there; each
law and number of individuals has a process of its own.
"""

import argparse
import multiprocessing
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from time import process_time
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

import nlmeflow as nf

LAWS = {"gaussian": nf.Gaussian(), "mixture": nf.Mixture(), "flow": nf.Flow()}
ASKED: dict[str, Callable[[nf.Fit], Any]] = {
    "log_likelihood": lambda fit: fit.log_likelihood(),
    "individuals": lambda fit: fit.individuals(),
    "summary": lambda fit: fit.summary(),
    "certificate": lambda fit: fit.certificate().bound,
    "plots.population": lambda fit: nf.plots.population(fit),
    "plots.marginals": lambda fit: nf.plots.marginals({"fit": fit.law}, fit, fit.names[0]),
    "plots.trajectories": lambda fit: nf.plots.trajectories(fit),
    "plots.residuals": lambda fit: nf.plots.residuals(fit),
}


def measured(what: str, run: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """Return CPU seconds, peak memory so far and result of a call."""
    begun = process_time()
    result = run()
    seconds, peak = process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    plt.close("all")
    return {"what": what, "CPU (s)": seconds, "peak (GiB)": peak, "result": ""}, result


def measure(job: tuple[str, int, str]) -> list[dict[str, Any]]:
    """Return a row for the fit of one law to one data set, and one for each thing asked of it."""
    law, n, design = job
    mpl.use("agg")
    small = nf.scenarios.load("L2", design, 20)
    small.model.fit(small.data, nf.Gaussian(), seed=1)  # imports and first calls do not count
    known = nf.scenarios.load("L2", design, n)
    row, fit = measured("fit", lambda: known.model.fit(known.data, LAWS[law], seed=1))
    rows = [row]
    for what, ask in ASKED.items():
        row, answer = measured(what, lambda ask=ask: ask(fit))  # type: ignore[misc]
        rows.append(row | {"result": str(answer) if what in ("log_likelihood", "certificate") else ""})
    return [{"individuals": n, "law": law} | row for row in rows]


def tables(jobs: list[tuple[str, int, str]]) -> Iterator[pd.DataFrame]:
    """Return a table for each job, one row per measured call, each made in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for rows in pool.map(measure, jobs):
            yield pd.DataFrame(rows).set_index(["individuals", "law", "what"])


def main() -> None:
    """Print the tables that were asked for, each when it is complete."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", type=int, default=[1000, 3000], help="numbers of individuals")
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--design", default="M", help="R rich, M medium, S sparse")
    chosen = parser.parse_args()
    for table in tables([(law, n, chosen.design) for n in chosen.sizes for law in chosen.laws]):
        print(table.round(2).to_string(), flush=True)


if __name__ == "__main__":
    main()
