"""Learning p(phi | x) on a cloud: a Gaussian whose mean follows x, and flows that do so in shape too.

The same cures as in `training`: folds, early stopping where held-out individuals are predicted best, noise,
averages over folds. Individuals' scores are log p(y_i | x_i) relative to the cloud's reference.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nlmeflow.estimation.cloud import Cloud
from nlmeflow.estimation.components import redrawn
from nlmeflow.estimation.learning import Lesson, population, rows, without_folds
from nlmeflow.estimation.particles import expectation
from nlmeflow.estimation.training import CHECK, DRAWS, PATIENCE, best_look, cross_chosen
from nlmeflow.laws.conditional import ConditionalFlow
from nlmeflow.laws.flow import Flow, standardised
from nlmeflow.laws.gaussian import GaussianLaw, moments
from nlmeflow.laws.law import Law
from nlmeflow.laws.mixture import Mixture, MixtureLaw
from nlmeflow.seeds import derive, generator

RATE = 0.015
SHIFT_STEPS, SHIFT_TOLERANCE = 200, 1e-5


@dataclass(frozen=True)
class Shifted:
    """A Gaussian law N(m + S x, Omega): `gaussian` (m, Omega), shift S (d, q)."""

    gaussian: GaussianLaw
    shift: Tensor


@dataclass(frozen=True)
class Learned:
    """Flows, one for each fold, and the held-out score of each individual (N,)."""

    flows: tuple[ConditionalFlow, ...]
    scores: Tensor


def shifted_population(cloud: Cloud, x: Tensor) -> Shifted:
    """Return the Gaussian with a mean linear in x (N, q) of highest likelihood on a cloud, by EM."""
    design = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    gaussian, shift = population(cloud), x.new_zeros(cloud.dim, x.shape[1])
    for _ in range(SHIFT_STEPS):
        own = cloud.phi - (x @ shift.mT)[:, None]
        step = expectation(-cloud.log_reference, gaussian.log_prob(own))
        mean, covariance = moments(cloud.phi, step.weights)
        solution = torch.linalg.lstsq(design, mean).solution
        left = mean - design @ solution
        spread = covariance.mean(0) + left.mT @ left / len(left)
        moved = GaussianLaw.of_moments(solution[0], spread, len(left), "full", gaussian.prior)
        change = (solution[1:].mT - shift).abs() / moved.sd[:, None]
        gaussian, shift = moved, solution[1:].mT
        if float(change.max()) < SHIFT_TOLERANCE:
            break
    return Shifted(gaussian, shift)


def score(cloud: Cloud, flow: ConditionalFlow, x: Tensor) -> Tensor:
    """Return log p(y_i | x_i) - log p_R(y_i) of each individual, (N,)."""
    return expectation(-cloud.log_reference, _log_prob(flow, cloud.phi, x)).log_likelihood


def _log_prob(flow: ConditionalFlow, phi: Tensor, x: Tensor) -> Tensor:
    """Return log p(phi_im | x_i): (N, M, d), (N, q) -> (N, M)."""
    rows = x[:, None].expand(*phi.shape[:2], -1).flatten(0, 1)
    return flow.log_prob(phi.flatten(0, 1), rows).reshape(phi.shape[:2])


def shift_only(lesson: Lesson, x: Tensor, fold: Tensor) -> Learned:
    """Return Gaussians with a mean linear in x, one without each fold."""
    flows = []
    for inside, _ in rows(fold):
        found = shifted_population(lesson.cloud.subset(inside), x[inside])
        flows.append(_flow(found, None, lesson.seed))
    return Learned(tuple(flows), _held_out(lesson.cloud, flows, x, fold))


def on_shift(lesson: Lesson, x: Tensor, fold: Tensor) -> Learned:
    """Train flows that start at the Gaussian with a mean linear in x."""
    return _trained(lesson, x, fold, shift_only(lesson, x, fold).flows)


def on_mixture(lesson: Lesson, x: Tensor, fold: Tensor) -> Learned:
    """Train flows that start at the mixture of all individuals, whose shares follow x."""
    cloud, specification = lesson.cloud, Flow()
    frame = Shifted(population(cloud), x.new_zeros(cloud.dim, x.shape[1]))
    starts = []
    refits = without_folds(Mixture(), lesson, fold)
    for k, (refit, (inside, _)) in enumerate(zip(refits, rows(fold), strict=True)):
        base = redrawn(refit, cloud.subset(inside), specification.stiffness, specification.prior)
        starts.append(_flow(frame, base, derive(lesson.seed, k)))
    return _trained(lesson, x, fold, starts)


def _flow(frame: Shifted, base: Law | None, seed: int) -> ConditionalFlow:
    start = standardised(base, frame.gaussian)
    if isinstance(start, GaussianLaw):
        start = MixtureLaw(start.mean.new_ones(1), start.mean[None], start.factor[None], start.factor)
    random = generator(derive(seed, 1))
    return ConditionalFlow(frame.gaussian, frame.shift, start, Flow().hidden, random).requires_grad_(False)


def _held_out(cloud: Cloud, flows: Sequence[ConditionalFlow], x: Tensor, fold: Tensor) -> Tensor:
    scores = x.new_zeros(len(fold))
    for flow, (_, outside) in zip(flows, rows(fold), strict=True):
        scores[outside] = score(cloud.subset(outside), flow, x[outside])
    return scores


@torch.enable_grad()
def _trained(lesson: Lesson, x: Tensor, fold: Tensor, starts: Sequence[ConditionalFlow]) -> Learned:
    """Train one flow without each fold; stop where all held-out individuals are predicted best."""
    cloud, random = lesson.cloud, generator(derive(lesson.seed, 400))
    flows = [copy.deepcopy(start).requires_grad_(True) for start in starts]
    ascents = [torch.optim.Adam(flow.parameters(), lr=RATE) for flow in flows]
    noise = Flow().noise * len(cloud) ** (-1 / (cloud.dim + 4))
    looks: list[Tensor] = []
    states: list[list[dict[str, Tensor]]] = []
    for step in range(Flow().steps + 1):
        if step % CHECK == 0:
            with torch.no_grad():
                looks.append(_held_out(cloud, flows, x, fold).nan_to_num(-1e6))
            states.append([copy.deepcopy(flow.state_dict()) for flow in flows])
            best = best_look(torch.stack(looks))
            if len(looks) - 1 - best == PATIENCE:
                break
        for flow, ascent, (inside, _) in zip(flows, ascents, rows(fold), strict=True):
            draw = torch.randint(cloud.phi.shape[1], (len(inside), DRAWS), generator=random)
            place = cloud.phi[inside[:, None], draw]
            shake = torch.randn(place.shape, generator=random, dtype=place.dtype)
            place = place + noise * shake @ flow.gaussian.factor.mT
            ratio = _log_prob(flow, place, x[inside]) - cloud.log_reference[inside[:, None], draw]
            ascent.zero_grad()
            (-(ratio.logsumexp(-1) - math.log(DRAWS)).mean()).backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 5.0)
            ascent.step()
    best = best_look(torch.stack(looks))
    for flow, state in zip(flows, states[best], strict=True):
        flow.load_state_dict(state)
        flow.requires_grad_(False)
    return Learned(tuple(flows), cross_chosen(torch.stack(looks), fold))
