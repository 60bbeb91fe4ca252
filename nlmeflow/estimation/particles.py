"""Particles: weighted individual parameters that carry everything the data say.

Each individual's proposal is a defensive mixture of two Gaussians around its own data (narrow and wide),
the current law, and a broad Gaussian; a particle is weighted with the whole mixture in the denominator (Owen
and Zhou, JASA 2000), so that no weight can explode where one component alone misses the target. Points of
Gaussian components are scrambled Sobol points, shifted at random for each individual, so that errors of
different individuals are independent; those of another law are its own draws.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.affine import normal_log_prob, safe_cholesky
from nlmeflow.laws.draws import Expectation
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.numerics import moments
from nlmeflow.residuals.residual import Summary
from nlmeflow.seeds import integer, sobol

NARROW, WIDE = 1.15, 2.5  # inflation of the individual's own scale
SHARES = (0.7, 0.2, 0.05, 0.05)  # narrow, wide, law, broad
LONG = 25.0  # observations of an individual beyond which it has fewer particles
BLOCK = 1_000_000  # particles whose density is computed at a time


@dataclass(frozen=True)
class Proposal:
    """Where each individual's particles are drawn.

    centre (N, d), factor (N, d, d): the individual's own location and scale; law: the current
    population; broad: a Gaussian that covers the population.
    """

    centre: Tensor
    factor: Tensor
    law: Law
    broad: GaussianLaw

    def subset(self, index: Tensor) -> "Proposal":
        """Return the proposal of the individuals at these positions."""
        return replace(self, centre=self.centre[index], factor=self.factor[index])

    def draw(self, n: int, random: torch.Generator, calibrated: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        """Return phi (N, M, d), log-densities of the proposal and of the law at phi (N, M), M = n.

        calibrated : see `_calibration`; without, means of weights have no bias, whatever M is.
        """
        sizes = _allocate(n)
        phi = torch.cat(
            [
                _local(self.centre, self.factor * NARROW, sizes[0], random),
                _local(self.centre, self.factor * WIDE, sizes[1], random),
                self._population(self.law, sizes[2], random),
                self._population(self.broad, sizes[3], random),
            ],
            1,
        )
        log_law = self.law.log_prob(phi)
        tensors, some = (phi, log_law, self.centre, self.factor), max(1, BLOCK // n)
        blocks = zip(*(tensor.split(some) for tensor in tensors), strict=True)
        shares = torch.tensor(sizes, dtype=phi.dtype) / n
        mixed = [_mixed(self._log_components(*block), shares, calibrated) for block in blocks]
        return phi, torch.cat(mixed), log_law

    def _log_components(self, phi: Tensor, log_law: Tensor, centre: Tensor, factor: Tensor) -> Tensor:
        """Return log-densities (n, M, 4) of the components at phi (n, M, d) of some individuals."""
        components = [
            normal_log_prob(phi, centre, factor * NARROW),
            normal_log_prob(phi, centre, factor * WIDE),
            log_law,
            self.broad.log_prob(phi),
        ]
        return torch.stack(components, -1)

    def _population(self, law: Law, n: int, random: torch.Generator) -> Tensor:
        size, dim = self.centre.shape
        if (normal := law.normal) is not None:
            return _local(normal.mean.expand(size, -1), normal.factor.expand(size, -1, -1), n, random)
        return law.sample(size * n, random).reshape(size, n, dim)


def _mixed(log_components: Tensor, shares: Tensor, calibrated: bool) -> Tensor:
    """Return the log-density (N, M) of a mixture from those of its components (N, M, K)."""
    log_mixture = (log_components + shares.log()).logsumexp(-1)
    if not calibrated:
        return log_mixture
    return log_mixture - _calibration((log_components - log_mixture[..., None]).exp()).log()


def _calibration(ratios: Tensor) -> Tensor:
    """Return weights c (N, M), mean one, under which components integrate to one (but for a cut at .1).

    ratios (N, M, K) are q_k / q at the particles. c = 1 + (1 - mean g)' S^-1 (g - mean g) over the
    first K - 1 components (the last follows from them): the regression estimator with the
    components as control variates. Depends on the proposal only, so it serves every law.
    """
    g = ratios[..., :-1]
    mean = g.mean(1, keepdim=True)
    centred = g - mean
    spread = centred.mT @ centred / g.shape[1]
    lift = 1e-6 * torch.eye(g.shape[-1], dtype=g.dtype)
    slope = torch.linalg.solve(spread + lift, (1 - mean).mT)
    weights: Tensor = (1 + (centred @ slope).squeeze(-1)).clamp_min(0.1)
    return weights


@dataclass(frozen=True)
class Particles:
    """phi (N, M, d), log-density of the proposal (N, M), the error model's summary of predictions at phi.

    law, log_law : a law whose log-density at phi is known, and that (N, M).
    """

    phi: Tensor
    log_proposal: Tensor
    summary: Summary
    law: Law | None = None
    log_law: Tensor | None = None

    def subset(self, index: Tensor) -> "Particles":
        """Return the particles of the individuals at these positions."""
        log_law = None if self.log_law is None else self.log_law[index]
        summary = self.summary.map(lambda values: values[index])
        return replace(
            self,
            phi=self.phi[index],
            log_proposal=self.log_proposal[index],
            summary=summary,
            log_law=log_law,
        )

    def log_ratio(self, problem: Problem, sigma: Tensor) -> Tensor:
        """Return log p(y_i | phi) - log q_i(phi), (N, M): all that does not depend on the law."""
        return problem.residual.log_likelihood(self.summary, sigma) - self.log_proposal

    def log_prob(self, law: Law) -> Tensor:
        """Return the log-density of a law at phi, (N, M)."""
        return self.log_law if law is self.law and self.log_law is not None else law.log_prob(self.phi)


def draw(
    problem: Problem,
    proposal: Proposal,
    beta: Tensor,
    n: int,
    random: torch.Generator,
    calibrated: bool = True,
) -> Particles:
    """Draw n particles per individual and run the structural model on them."""
    phi, log_proposal, log_law = proposal.draw(n, random, calibrated)
    return Particles(phi, log_proposal, problem.summary(phi, beta), proposal.law, log_law)


def adapted(proposal: Proposal, particles: Particles, step: Expectation, law: Law) -> Proposal:
    """Return the proposal moved to the particles' weighted moments and to the current law.

    Individuals with fewer than 5 (d + 1) effective particles keep their place.
    """
    mean, covariance = moments(particles.phi, step.weights)
    enough = step.ess > 5 * (law.dim + 1)
    scale = torch.where(enough[:, None, None], covariance, proposal.factor @ proposal.factor.mT)
    centre = torch.where(enough[:, None], mean, proposal.centre)
    return Proposal(centre, safe_cholesky(scale), law, envelope(law, particles, step))


def envelope(law: Law, particles: Particles, step: Expectation) -> GaussianLaw:
    """Return a broad Gaussian: the population's mean, twice its standard deviations."""
    if law.normal is not None:
        return GaussianLaw.like(law).inflated(2.0)
    return GaussianLaw.of(particles.phi, step.weights).inflated(2.0)


def default_particles(n_individuals: int, grouped: bool, n_observations: float = 0.0) -> int:
    """Return the particles per individual: 200,000 in all, between a least number and 16,384.

    With more than 25 observations of an individual on average fewer, so that predictions stay as many.

    The least number is 512, and 256 (128) above 5,000 (20,000) individuals: the more there are, the
    less each one's Monte-Carlo error matters, and predictions of all particles are kept in memory.
    Groups have 256: each stands for eight times as many predictions of every individual.
    """
    if grouped:
        return 256
    total = 200_000 * min(1.0, LONG / max(n_observations, 1.0))
    least = 512 if n_individuals <= 5000 else 256 if n_individuals <= 20_000 else 128
    return int(min(16384, max(least, 2 ** round(math.log2(total / n_individuals)))))


def _allocate(n: int) -> list[int]:
    sizes = [max(1, round(share * n)) for share in SHARES[1:]]
    return [max(1, n - sum(sizes)), *sizes]


def _local(centre: Tensor, factor: Tensor, n: int, random: torch.Generator) -> Tensor:
    """Draw (N, n, d) Gaussian points from one Sobol set, shifted at random for each individual."""
    size, dim = centre.shape
    points = sobol(n, dim, integer(random))
    shift = torch.rand(size, 1, dim, generator=random, dtype=centre.dtype)
    uniform = (points + shift).remainder_(1.0)
    uniform.clamp_(1e-12, 1 - 1e-12)
    z = torch.special.ndtri(uniform)
    drawn: Tensor = centre[:, None] + z @ factor.mT
    return drawn
