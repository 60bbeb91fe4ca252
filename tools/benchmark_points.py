"""Fit laws made of points by every algorithm, on P1 (oral doses) and L8, three dimensions and N = 100 each.

    python tools/benchmark_points.py                        # all four, on both
    python tools/benchmark_points.py L2 --law npml --n 60   # some

Prints log-likelihood, certificate, sigma, number of points, whether converged, and CPU seconds, without what
all laws of a data set share, the Gaussian fit and the draws.
"""

import argparse
from time import process_time

import torch

import nlmeflow as nf
from nlmeflow.estimation.engine import training_set
from nlmeflow.running import estimating

LAWS = {law.name: law for law in (nf.NPML(), nf.NPEM(), nf.NPAG(), nf.ParticleNPML())}


def measure(name: str, n: int, laws: list[str]) -> None:
    """Fit the laws to one data set and print a line for each."""
    scenario = nf.scenarios.load(name, "R", n)
    begun = process_time()
    task = scenario.model.task(scenario.data, seed=1)
    with estimating():
        training_set(task)
    print(f"{name}, N = {n}; shared steps {process_time() - begun:.1f} s")
    for law in laws:
        begun = process_time()
        fit = scenario.model.fit_task(task, LAWS[law], progress=False)
        seconds = process_time() - begun
        sigma = " ".join(f"{value:.5f}" for value in fit.residual.values())
        print(
            f"  {law:10s} log-likelihood {fit.log_likelihood().value:.4f}, certificate "
            f"{fit.certificate().bound:.4f}, sigma {sigma}, {len(fit.law.weights)} points, "
            f"{'converged' if fit.converged else 'not converged'}, {seconds:.1f} s",
            flush=True,
        )


def main() -> None:
    """Print the lines that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenarios", nargs="*", default=["P1", "L8"])
    parser.add_argument("--law", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--n", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.scenarios:
        measure(name, arguments.n, arguments.law)


if __name__ == "__main__":
    main()
