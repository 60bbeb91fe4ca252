"""A cloud: a few posterior draws per individual, from which every law can be learned.

Draws phi_im come from each individual's posterior under a broad reference law R. For any law p

    log p_p(y_i) - log p_R(y_i) = log E_R[p(phi) / R(phi) | y_i] ~ log mean_m p(phi_im) / R(phi_im),

so that laws are fitted and compared without likelihood, curve or data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nlmeflow.estimation.particles import Expectation, Particles, expectation, posterior_draws
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.laws.stacked import StackedLaw


@dataclass(frozen=True)
class Cloud:
    """phi (N, m, d) and log R(phi) (N, m)."""

    phi: Tensor
    log_reference: Tensor

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
        return self.weigh(law).log_likelihood

    def subset(self, index: Tensor) -> "Cloud":
        """Return the cloud of the individuals at these positions."""
        return Cloud(self.phi[index], self.log_reference[index])

    def thinned(self, n: int) -> "Cloud":
        """Return the cloud with n draws per individual (all when fewer), evenly spaced."""
        last = self.phi.shape[1] - 1
        keep = torch.linspace(0, last, min(n, last + 1)).round().long()
        return Cloud(self.phi[:, keep], self.log_reference[:, keep])


def broad_reference(law: Law, gaussian: GaussianLaw) -> Law:
    """Return a reference that covers what other laws may want: 60 % law, 40 % wider Gaussian."""
    weights = torch.tensor([0.6, 0.4], dtype=torch.float64)
    return StackedLaw((law, gaussian.inflated(1.5)), weights)


def make_cloud(
    problem: Problem,
    particles: Particles,
    sigma: Tensor,
    reference: Law,
    n: int,
    random: torch.Generator,
) -> Cloud:
    """Resample n posterior draws per individual under the reference law."""
    ratio = particles.log_ratio(problem, sigma)
    step = expectation(ratio, reference.log_prob(particles.phi))
    phi = posterior_draws(particles.phi, step.weights, n, random)
    order = torch.argsort(torch.rand(phi.shape[:2], generator=random), dim=1)
    phi = phi.gather(1, order[..., None].expand_as(phi))
    return Cloud(phi, reference.log_prob(phi))


def climb(
    law: Law, cloud: Cloud, iterations: int, tolerance: float = 1e-4, share: Tensor | None = None
) -> tuple[Law, float]:
    """Run EM of a law on a cloud; return the law and its log-likelihood relative to R.

    share (N,): what each individual counts for; one each when None.
    """
    value = -torch.inf
    one = cloud.phi.new_ones(len(cloud)) if share is None else share
    for _ in range(iterations):
        step = cloud.weigh(law)
        new = float(one @ step.log_likelihood)
        if new - value < tolerance:
            break
        value = new
        law = law.update(cloud.phi, one[:, None] * step.weights)
    return law, float(one @ cloud.score(law))
