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
from collections.abc import Callable
from time import process_time
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt

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
SHOWN = ("log_likelihood", "certificate")  # results that are printed


def measured(about: str, what: str, run: Callable[[], Any]) -> Any:
    """Print CPU seconds and peak memory so far of a call; return its result."""
    begun = process_time()
    result = run()
    seconds, peak = process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    plt.close("all")
    shown = result if what in SHOWN else ""
    print(f"{about} {what:18} {seconds:9.2f} s {peak:6.2f} GiB  {shown}", flush=True)
    return result


def measure(law: str, n: int, design: str) -> None:
    """Print a line for the fit of one law to one data set, and one for each thing asked of it."""
    mpl.use("agg")
    small = nf.scenarios.load("L2", design, 20)
    small.model.fit(small.data, nf.Gaussian(), seed=1)  # imports and first calls do not count
    known, about = nf.scenarios.load("L2", design, n), f"{n:7,} {law:8}"
    fit = measured(about, "fit", lambda: known.model.fit(known.data, LAWS[law], seed=1))
    for what, ask in ASKED.items():
        measured(about, what, lambda ask=ask: ask(fit))  # type: ignore[misc]


def main() -> None:
    """Print the tables that were asked for, line by line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", type=int, default=[1000, 3000], help="numbers of individuals")
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--design", default="M", help="R rich, M medium, S sparse")
    chosen = parser.parse_args()
    for job in [(law, n, chosen.design) for n in chosen.sizes for law in chosen.laws]:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=job)
        process.start()
        process.join()


if __name__ == "__main__":
    main()
