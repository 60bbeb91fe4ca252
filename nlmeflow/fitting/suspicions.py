"""What may be wrong with data whose fit broke down, in the user's words."""

import torch

from nlmeflow.data import LongitudinalData

WILD = 100.0  # times the 99 % quantile of distances from the median: an observation as far is named
LATE = 5.0  # spans of time between zero and the first time


def suspicions(data: LongitudinalData) -> list[str]:
    """Return what is striking in the data: two values only, one observation far away, times far from zero."""
    found = []
    response, time = data.response[data.mask], data.time[data.mask]
    values = response.unique()
    if len(values) == 2:
        shown = " and ".join(f"{float(v):g}" for v in values)
        found.append(
            f"The response takes two values only ({shown}); a curve with normal errors needs a measurement."
        )
    centre = response.median()
    far = (data.response - centre).abs().masked_fill(~data.mask, 0.0)
    usual = float((response - centre).abs().quantile(0.99 if len(response) > 200 else 0.9))
    if usual > 0 and float(far.max()) > WILD * usual:
        row, column = divmod(int(far.argmax()), far.shape[1])
        found.append(
            f"One observation is far from all others: {data.about(row, column)}. Leave it empty if it "
            "is a code for a missing value, or a mistake."
        )
    first, span = float(time.min()), float(time.max() - time.min())
    if span > 0 and first > LATE * span:
        name = data.names[1]
        found.append(
            f"Times ({name}) begin at {first:g} and span {span:g}; a curve that counts time from 0 "
            f"needs them from the beginning on: subtract {first:g}."
        )
    counts = torch.unique(data.counts[data.counts > 0])
    if float(counts.max()) < 2:
        found.append("Nobody was measured twice.")
    return found
