"""Fit the whole Arabidopsis window with a Gaussian and a flow, twice, and print times and agreement."""

from time import perf_counter, process_time

import torch

import nlmeflow as nf


def fitted(data: nf.LongitudinalData, seed: int) -> tuple[nf.Fit, nf.Fit]:
    """Return the Gaussian and the flow fit; print what they cost."""
    model = nf.Model(nf.curves.exponential_recovery("day", "efficiency"))
    wall, cpu = perf_counter(), process_time()
    fits = model.fit_laws(data, {"gaussian": nf.Gaussian(), "flow": nf.Flow()}, seed=seed, progress=True)
    print(f"{len(data)} plants: {perf_counter() - wall:.0f} s wall, {process_time() - cpu:.0f} s CPU")
    return fits["gaussian"], fits["flow"]


def main() -> None:
    """Run twice with one seed."""
    frame = nf.datasets.high_light()
    data = nf.LongitudinalData.from_frame(frame, "plant", "day", "efficiency")
    runs = [fitted(data, seed=1) for _ in range(2)]
    phi = runs[0][0].law.sample(1000, 1)
    for name, first, second in zip(("Gaussian", "flow"), *runs, strict=True):
        same = torch.equal(first.law.log_prob(phi), second.law.log_prob(phi))
        same = same and torch.equal(first.sigma, second.sigma)
        print(f"{name}: the same numbers twice: {same}")


if __name__ == "__main__":
    main()
