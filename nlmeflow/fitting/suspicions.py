"""What may be wrong with data whose fit broke down, or ended well and misleads, in the user's words."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nlmeflow.curves import Curve
from nlmeflow.data import LongitudinalData

WILD = 100.0  # times the 99 % quantile (90 % of 200 or fewer) of distances from the median: so far is named
APART = 3.0  # ranges of the other responses between them and a response that several observations share
UNLIKE = 20.0  # times the second largest size, or last time, of an individual: the largest is named
LATE = 1.0  # spans of time between zero and the first time


def suspicions(data: LongitudinalData, curve: Curve) -> list[str]:
    """Return what is striking in the data: two values only, mistakes, times far from zero, single visits."""
    found, time = mistakes(data), data.time[data.mask]
    first, span = float(time.min()), float(time.max() - time.min())
    if span > 0 and first > LATE * span and counts_from_zero(curve):
        name = data.names[1]
        found.append(
            f"Times ({name}) begin at {first:g} and span {span:g}; a curve that counts time from 0 "
            f"needs them from the beginning on: subtract {first:g}."
        )
    counts = torch.unique(data.counts[data.counts > 0])
    if float(counts.max()) < 2:
        found.append("Nobody was measured twice.")
    return found


def mistakes(data: LongitudinalData) -> list[str]:
    """Return what looks like a slip: two values only; codes, or else other units, or else a wild value."""
    return [*_two(data), *(list(_codes(data)) or list(_unlike(data)) or list(_wild(data)))]


def _two(data: LongitudinalData) -> Iterator[str]:
    """Yield a response that is no measurement, but one of two values."""
    values = data.response[data.mask].unique()
    if len(values) == 2:
        shown = " and ".join(f"{float(v):g}" for v in values)
        yield f"The response takes two values only ({shown}); a curve with normal errors needs a measurement."


def _codes(data: LongitudinalData) -> Iterator[str]:
    """Yield a lowest or highest response that several observations share, far from all others."""
    observed = data.mask & ~data.censored
    response = data.response[observed]
    if not len(response):
        return
    for end in (response.min(), response.max()):
        others = response[response != end]
        count = len(response) - len(others)
        if count < 2 or not len(others):
            continue
        low, high = float(others.min()), float(others.max())
        gap = low - float(end) if float(end) < low else float(end) - high
        if gap > APART * (high - low) > 0:
            row, column = torch.nonzero((data.response == end) & observed)[0].tolist()
            yield (
                f"{count} observations have {data.names[2]} = {float(end):g}, far from all others "
                f"({low:g} to {high:g}), for example {data.about(row, column)}. Leave them empty if it is a "
                "code for missing values."
            )


def _wild(data: LongitudinalData) -> Iterator[str]:
    """Yield one observation that is far from all others."""
    observed = data.mask & ~data.censored
    response = data.response[observed]
    if not len(response):
        return
    centre = response.median()
    far = (data.response - centre).abs().masked_fill(~observed, 0.0)
    usual = float((response - centre).abs().quantile(0.99 if len(response) > 200 else 0.9))
    if usual > 0 and float(far.max()) > WILD * usual:
        row, column = divmod(int(far.argmax()), far.shape[1])
        yield (
            f"One observation is far from all others: {data.about(row, column)}. Leave it empty if it "
            "is a code for a missing value, or a mistake."
        )


def _unlike(data: LongitudinalData) -> Iterator[str]:
    """Yield one individual whose responses, or last time, are many times those of all others."""
    who, when, what = data.names
    responses = data.response.abs().masked_fill(~data.mask, torch.nan).nanquantile(0.75, 1)
    last = data.time.masked_fill(~data.mask, -torch.inf).amax(1)
    for sizes, said in ((responses, f"has {what} of size"), (last, f"is observed until {when} =")):
        if (found := _largest(sizes)) is not None:
            row, most, second = found
            yield (
                f"{who} '{data.labels[row]}' {said} {most:.4g}, the others {second:.4g} at most: in another "
                "unit, or a mistake?"
            )


def _largest(sizes: Tensor) -> tuple[int, float, float] | None:
    """Return place and size of the largest of at least three, and the second, where they are far apart."""
    sizes = sizes.nan_to_num(-torch.inf)
    if int(torch.isfinite(sizes).sum()) < 3:
        return None
    (most, second), (row, _) = (part.tolist() for part in sizes.topk(2))
    return (row, most, second) if most > UNLIKE * second > 0 else None


def counts_from_zero(curve: Curve) -> bool:
    """Return whether no parameter of a curve, added to, moves it along time by as much."""
    phi = torch.linspace(-0.4, 0.6, len(curve.names), dtype=torch.float64)
    time, psi = torch.linspace(0.5, 2.0, 7, dtype=torch.float64), curve.natural(phi)
    x = {name: torch.ones((), dtype=torch.float64) for name in curve.inputs}
    value = curve(time, psi, x)
    return not any(
        torch.allclose(curve(time + 1, psi | {name: psi[name] + 1}, x), value, equal_nan=True)
        for name in curve.names
        if curve[name].scale.name == "identity"
    )
