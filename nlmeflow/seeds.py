"""Random numbers: every draw comes from a generator made from a seed that the caller gave.

Each use of a seed has a stream of its own, named in `Stream`, or is a numbered part of one, so that adding
draws in one place never shifts another. (The starts of mixtures have a number alone: stored results rest on
it.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum, unique

import numpy as np
import torch

from nlmeflow.errors import whole

Seed = int | torch.Generator
LARGEST = 2**63 - 1


@unique
class Stream(IntEnum):
    """What a seed is used for."""

    FIRST_VALUES = 0
    GAUSSIAN = 1
    ROUGH_MIXTURE = 2
    FINAL_STEPS = 3
    ROUGH_DRAWS = 4
    DRAWS = 5
    SAEM = 21
    SAEM_FLOW = 22
    LIKELIHOOD = 90
    PARTICLES = 91
    NEW_INDIVIDUALS = 92
    CERTIFICATE = 94
    BOOTSTRAP_DRAWS = 95
    BOOTSTRAP_LAWS = 96
    BOOTSTRAP_WEIGHTS = 97
    FOLDS = 100
    FLOWS = 101
    REFITTED = 102
    WITHOUT_FOLD = 200
    COMPARISON_FOLDS = 201
    CONDITIONAL_FOLDS = 202
    POINTS_ALONE = 300
    NPEM_GRID = 301
    NPAG_GRID = 302
    EBE_POINTS = 303
    PARTICLE_POINTS = 304
    CANDIDATE_POINTS = 305
    CONDITIONAL_FLOW = 400
    NEW_DATA = 401
    CONDITIONAL_START = 402
    SNP_START = 500
    KERNEL_POINTS = 501
    DIRICHLET = 502
    SIMULATED_LAW = 600
    SIMULATED_NOISE = 601
    DRAWN_POPULATION = 602
    PREDICTIONS = 603
    REPLICATED_LAW = 604
    REPLICATED_NOISE = 605
    EXPORTED_DRAWS = 606
    EXPORTED_ORDER = 607
    CHARACTERISED = 608
    POPULATION_LAW = 700
    POPULATION_DESIGN = 701
    POPULATION_INDIVIDUALS = 702


def check_seed(seed: object) -> int:
    """Return a seed as an int, or raise ModelError unless it is a whole number from 0 to 2^63 - 1."""
    return whole("seed", seed, 0, LARGEST)


def derive(seed: int, *stream: int) -> int:
    """Return the seed of a sub-stream (`numpy.random.SeedSequence`).

    Different `stream` tuples give statistically independent generators, but for zeros at the end: they are
    not seen, derive(5, 3) equals derive(5, 3, 0), so that a stream used as a whole has no part 0.
    """
    return int(np.random.SeedSequence([check_seed(seed), *stream]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: Seed) -> torch.Generator:
    """Return a CPU generator: a new one for an integer, the same one for a generator.

    Raises
    ------
    ModelError : the seed is not a whole number from 0 to 2^63 - 1.

    """
    if isinstance(seed, torch.Generator):
        return seed
    return torch.Generator().manual_seed(check_seed(seed))


def integer(random: torch.Generator) -> int:
    """Draw a seed for a library that wants an integer."""
    return int(torch.randint(2**31 - 1, (), generator=random))


@contextmanager
def usual_precision() -> Iterator[None]:
    """Draw what torch draws in its default precision, in single precision whatever the user made of it."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)


def sobol(n: int, dim: int, seed: int | None) -> torch.Tensor:
    """Return the first n Sobol points of [0, 1)^d, scrambled by a seed, as they are for None: (n, d)."""
    with usual_precision():  # the engine keeps its first point in it
        engine = torch.quasirandom.SobolEngine(dim, scramble=seed is not None, seed=seed)
        points: torch.Tensor = engine.draw(n, dtype=torch.float64)
    return points
