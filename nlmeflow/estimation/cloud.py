"""A cloud: a few posterior draws per individual, from which every law can be learned.

Draws phi_im come from each individual's posterior under a broad reference law R. For any law p

    log p_p(y_i) - log p_R(y_i) = log E_R[p(phi) / R(phi) | y_i] ~ log mean_m p(phi_im) / R(phi_im),

so that laws are fitted and compared without likelihood, curve or data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.estimation.anderson import Anderson
from nlmeflow.estimation.em import State
from nlmeflow.estimation.particles import Expectation, Particles, expectation, posterior_draws
from nlmeflow.estimation.problem import CHUNK, Problem
from nlmeflow.laws.discrete import DiscreteLaw
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law, log_prior
from nlmeflow.laws.stacked import StackedLaw


@dataclass(frozen=True)
class Seen:
    """What the data say at any point, for laws that are made of points; here the curve is called.

    log_marginal (N,): log p_R(y_i) under the cloud's reference law R.
    """

    problem: Problem
    beta: Tensor
    sigma: Tensor
    log_marginal: Tensor

    def log_psi(self, points: Tensor) -> Tensor:
        """Return log p(y_i | phi_k) - log p_R(y_i) at points (K, d): (N, K). Differentiable."""
        size = max(1, CHUNK // (len(self.problem) * self.problem.data.time.shape[1]))
        parts = [
            self.problem.log_likelihood(some.expand(len(self.problem), -1, -1), self.beta, self.sigma)
            for some in points.split(size)
        ]
        return torch.cat(parts, 1) - self.log_marginal[:, None]

    def score(self, law: DiscreteLaw) -> Tensor:
        """Return log p_law(y_i) - log p_R(y_i), (N,)."""
        return (self.log_psi(law.support) + law.weights.log()).logsumexp(1)

    def subset(self, index: Tensor) -> "Seen":
        """Return the same of the individuals at these positions."""
        return Seen(self.problem.subset(index), self.beta, self.sigma, self.log_marginal[index])


@dataclass(frozen=True)
class Cloud:
    """phi (N, m, d) and log R(phi) (N, m); `seen` for laws made of points, when the data are at hand."""

    phi: Tensor
    log_reference: Tensor
    seen: Seen | None = None

    def __len__(self) -> int:
        return len(self.phi)

    @property
    def dim(self) -> int:
        """Return d."""
        return self.phi.shape[-1]

    def weigh(self, law: Law) -> Expectation:
        """Return posterior weights under a law and its log-likelihood relative to R."""
        return expectation(-self.log_reference, law.log_prob(self.phi))

    def score(self, law: Law) -> Tensor:
        """Return log p_law(y_i) - log p_R(y_i) of each individual, (N,)."""
        if isinstance(law, DiscreteLaw):
            return self.points.score(law)
        return self.weigh(law).log_likelihood

    @property
    def points(self) -> Seen:
        """What the data say at points, or an error."""
        if self.seen is None:
            raise ModelError("A discrete law needs the data; a cloud of known parameters has none.")
        return self.seen

    def subset(self, index: Tensor) -> "Cloud":
        """Return the cloud of the individuals at these positions."""
        seen = None if self.seen is None else self.seen.subset(index)
        return Cloud(self.phi[index], self.log_reference[index], seen)

    def thinned(self, n: int) -> "Cloud":
        """Return the cloud with n draws per individual (all when fewer), evenly spaced."""
        last = self.phi.shape[1] - 1
        keep = torch.linspace(0, last, min(n, last + 1)).round().long()
        return Cloud(self.phi[:, keep], self.log_reference[:, keep], self.seen)


def broad_reference(law: Law, gaussian: GaussianLaw) -> Law:
    """Return a reference that covers what other laws may want: 60 % law, 40 % wider Gaussian."""
    weights = torch.tensor([0.6, 0.4], dtype=torch.float64)
    return StackedLaw((law, gaussian.inflated(1.5)), weights)


def make_cloud(
    problem: Problem,
    particles: Particles,
    state: State,
    reference: Law,
    n: int,
    random: torch.Generator,
) -> Cloud:
    """Resample n posterior draws per individual under the reference law."""
    ratio = particles.log_ratio(problem, state.sigma)
    step = expectation(ratio, reference.log_prob(particles.phi))
    phi = posterior_draws(particles.phi, step.weights, n, random)
    order = torch.argsort(torch.rand(phi.shape[:2], generator=random), dim=1)
    phi = phi.gather(1, order[..., None].expand_as(phi))
    seen = Seen(problem, state.beta, state.sigma, step.log_likelihood)
    return Cloud(phi, reference.log_prob(phi), seen)


def climb(
    law: Law, cloud: Cloud, iterations: int, tolerance: float = 1e-4, share: Tensor | None = None
) -> tuple[Law, float]:
    """Run EM of a law on a cloud; return the law and its log-likelihood relative to R.

    It ends when two iterations in a row change the penalised log-likelihood by less than `tolerance`.

    share (N,): what each individual counts for; one each when None.
    """
    one = cloud.phi.new_ones(len(cloud)) if share is None else share
    accelerator, small = Anderson(), 0
    step = cloud.weigh(law)
    value = float(one @ step.log_likelihood) + log_prior(law)
    for _ in range(iterations):
        plain = law.update(cloud.phi, one[:, None] * step.weights)
        moved = accelerator.law(law, plain)[0]
        trial = cloud.weigh(moved)
        new = float(one @ trial.log_likelihood) + log_prior(moved)
        if moved is not plain and not new > value - tolerance:
            accelerator.forget()
            moved, trial = plain, cloud.weigh(plain)
            new = float(one @ trial.log_likelihood) + log_prior(moved)
        small = small + 1 if abs(new - value) < tolerance else 0
        law, step, value = moved, trial, new
        if small == 2:
            break
    return law, float(one @ step.log_likelihood)
