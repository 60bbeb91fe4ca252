"""Random numbers: every draw comes from a generator made from a seed that the caller gave."""

import numpy as np
import torch

Seed = int | torch.Generator


def derive(seed: int, *stream: int) -> int:
    """Return the seed of a sub-stream, independent of every other stream of the same seed.

    Two different `stream` tuples give statistically independent generators
    (`numpy.random.SeedSequence`), so that adding draws in one place never shifts another.
    """
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: Seed) -> torch.Generator:
    """Return a CPU generator: a new one for an integer, the same one for a generator."""
    if isinstance(seed, torch.Generator):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}.")
    return torch.Generator().manual_seed(int(seed))


def integer(random: torch.Generator) -> int:
    """Draw a seed for a library that wants an integer."""
    return int(torch.randint(2**31 - 1, (), generator=random))
