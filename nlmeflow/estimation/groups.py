"""Two levels: individuals within groups, plants of a genotype or occasions of a subject.

    phi_gp = mu_g + X_gp gamma + b_gp,   mu_g ~ p, any law,   b_gp ~ N(0, diag(omega^2)).

The law is that of the groups. Particles stand for mu_g, and the likelihood of a group at a particle is a
product over its individuals,

    p(y_g | mu) = prod_p E_b[p(y_gp | mu + b)]
                ~ prod_p mean_k p(y_gp | mu + b_k) N(b_k; 0, omega^2) / q(b_k | mu),

where q(b | mu) is mostly a little wider than the conditional distribution of b in the model linearised at
the individual's mode, under which all ratios would be equal if the curve were linear. All this is hidden
behind the interface of `Problem` and of its error model, whose parameters are then sigma and omega: the
engine and the laws do not know of it.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.estimation.laplace import GaussianStart, Laplace, gaussian_starts, linearise, modes, redamped
from nlmeflow.estimation.particles import NARROW
from nlmeflow.estimation.problem import Problem
from nlmeflow.laws.affine import independent_log_prob, normal_log_prob, safe_cholesky
from nlmeflow.laws.gaussian import Gaussian, GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.numerics import log_mean
from nlmeflow.residuals.censoring import Bounds
from nlmeflow.residuals.residual import Residual, Summary
from nlmeflow.seeds import derive, generator, sobol

CONDITIONAL, FREE = 6, 2  # draws of b from its conditional distribution, and from N(0, omega^2)
NEWTON = 25  # steps to the modes, at most


@dataclass(frozen=True)
class WithinSummary(Summary):
    """Deviations b (P, L, K, w), log q(b | mu) (P, L, K), and what the inner error model needs of each.

    known : the residual parameters for which `WithinResidual.log_ratios` was asked last, and the ratios: EM
        asks for them to weigh particles, and again to weigh deviations.
    """

    deviation: Tensor
    log_proposal: Tensor
    inner: Summary

    @cached_property
    def known(self) -> list[Tensor]:
        return []

    def finite(self) -> "WithinSummary":
        return WithinSummary(self.deviation, self.log_proposal, self.inner.finite())


@dataclass(frozen=True)
class WithinResidual(Residual):
    """The error model of groups: that of an individual, its deviations b integrated out.

    Its parameters are sigma, then the standard deviations omega. member (P,): the group of each individual;
    parameters: names of those that vary within groups.
    """

    inner: Residual
    member: Tensor
    size: int
    parameters: tuple[str, ...]
    given: ClassVar[bool] = False

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Sigma, then "within tau" and the like."""
        return self.inner.names + tuple(f"within {name}" for name in self.parameters)

    def split(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return sigma and omega."""
        return sigma[: len(self.inner.names)], sigma[len(self.inner.names) :]

    def start(self, response: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        return self.inner.start(response, prediction, mask)

    def working(
        self, response: Tensor, prediction: Tensor, sigma: Tensor, bounds: Bounds | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.inner.working(response, prediction, self.split(sigma)[0], bounds)

    def score(
        self,
        response: Tensor,
        prediction: Tensor,
        sigma: Tensor,
        mask: Tensor,
        bounds: Bounds | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self.inner.score(response, prediction, self.split(sigma)[0], mask, bounds)

    def summary(
        self, response: Tensor, prediction: Tensor, mask: Tensor, bounds: Bounds | None = None
    ) -> Summary:
        return self.inner.summary(response, prediction, mask, bounds)

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        return self.inner.sample(prediction, self.split(sigma)[0], random)

    def log_ratios(self, summary: WithinSummary, sigma: Tensor) -> Tensor:
        """Return log p(y_gp | mu + b) + log N(b; 0, omega^2) - log q(b | mu), (P, L, K)."""
        kept = not torch.is_grad_enabled()
        if kept and summary.known and summary.known[0] is sigma:
            return summary.known[1]
        inner, omega = self.split(sigma)
        seen = self.inner.log_likelihood(summary.inner, inner).reshape(summary.log_proposal.shape)
        ratios = seen + independent_log_prob(summary.deviation, omega) - summary.log_proposal
        if kept:
            summary.known[:] = [sigma, ratios]
        return ratios

    def log_likelihood(self, summary: WithinSummary, sigma: Tensor) -> Tensor:
        """Return log p(y_g | mu) of groups, (G, L)."""
        each = log_mean(self.log_ratios(summary, sigma))
        return each.new_zeros(self.size, each.shape[1]).index_add(0, self.member, each)

    def weights(self, summary: WithinSummary, weights: Tensor, sigma: Tensor) -> Tensor:
        """Return weights of each individual's own draws, (P, L, K), from those of its group (G, L)."""
        share = self.log_ratios(summary, sigma).softmax(-1)
        above = weights[self.member][..., None]
        return torch.where(above > 0, above * share, 0.0)

    def update(self, summary: WithinSummary, weights: Tensor, sigma: Tensor) -> Tensor:
        own = self.weights(summary, weights, sigma)
        new = self.inner.update(summary.inner, own.flatten(1), self.split(sigma)[0])
        spread = (own[..., None] * summary.deviation.square()).sum((0, 1, 2)) / len(self.member)
        return torch.cat([new, spread.sqrt()])


@dataclass(frozen=True)
class Local:
    """Where deviations are drawn: mostly b | mu ~ N(b_hat - gain (mu - mu_hat), NARROW^2 L L').

    mu (G, d), the modes of the groups; of individuals place (P, d), the mode of the group, deviation (P, w),
    gain (P, w, d), factor (P, w, w); spread (d,) of the law and omega (w,).
    """

    mu: Tensor
    place: Tensor
    deviation: Tensor
    gain: Tensor
    factor: Tensor
    spread: Tensor
    omega: Tensor

    def draw(self, mu: Tensor) -> tuple[Tensor, Tensor]:
        """Return deviations b (P, L, K, w) and log q(b | mu) (P, L, K) for mu (P, L, d).

        The same mu has always the same deviations, so that the likelihood of frozen particles is a
        function; the shift of the Sobol points comes from the digits of mu, so that those of different
        particles are independent.
        """
        moved = mu - self.place[:, None]
        mean = self.deviation[:, None] - moved @ self.gain.mT
        count, width = CONDITIONAL + FREE, len(self.omega)
        mixing = torch.rand(mu.shape[-1], width, generator=generator(0), dtype=mu.dtype) + 0.5
        turns = 1e5 * (moved / self.spread) @ mixing
        offset = torch.rand(len(mu), 1, width, generator=generator(1), dtype=mu.dtype)
        points = sobol(count, width, 0) + (turns + offset)[..., None, :]
        noise = torch.special.ndtri(points.remainder_(1.0).clamp_(1e-12, 1 - 1e-12))
        wide = NARROW * self.factor[:, None]
        near = mean[..., None, :] + noise[..., :CONDITIONAL, :] @ wide.mT
        b = torch.cat([near, noise[..., CONDITIONAL:, :] * self.omega], -2)
        logs = (normal_log_prob(b, mean, wide), independent_log_prob(b, self.omega))
        shares = torch.tensor([CONDITIONAL / count, FREE / count], dtype=mu.dtype).log()
        return b, torch.logaddexp(logs[0] + shares[0], logs[1] + shares[1])


@dataclass(frozen=True)
class GroupedProblem(Problem):
    """The problem of groups; `data` are those of the individuals, in groups given by `member` (P,)."""

    member: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    groups: tuple[Hashable, ...] = ()
    within: tuple[str, ...] = ()
    local: Local | None = None

    @classmethod
    def of(cls, problem: Problem, within: tuple[str, ...]) -> "GroupedProblem":
        """Return the problem of the groups of a problem's individuals.

        Raises
        ------
        ModelError : the data name no groups, or `within` names a parameter that does not vary.

        """
        column = problem.data.group
        if column is None:
            raise ModelError(
                f"The model varies {', '.join(within)} within groups, and the data have none: name the "
                "column of groups when reading the table, LongitudinalData.from_frame(..., group=...)."
            )
        wrong = [name for name in within if name not in problem.random]
        if wrong:
            raise ModelError(f"within names '{wrong[0]}'; it is one of {', '.join(problem.random)}.")
        code, labels = problem.data.grouped()
        return cls._with(problem, torch.from_numpy(code), tuple(labels), within, None)

    @classmethod
    def _with(
        cls,
        problem: Problem,
        member: Tensor,
        groups: tuple[Hashable, ...],
        within: tuple[str, ...],
        local: Local | None,
    ) -> "GroupedProblem":
        inner = problem.residual
        return cls(
            problem.data,
            problem.curve,
            WithinResidual(inner, member, len(groups), within),
            problem.random,
            problem.fixed,
            problem.inputs,
            problem.effects,
            problem.design,
            member,
            groups,
            within,
            local,
        )

    @property
    def error(self) -> WithinResidual:
        """Return the error model of groups."""
        assert isinstance(self.residual, WithinResidual)
        return self.residual

    @property
    def individuals(self) -> Problem:
        inner = self.error.inner
        data, random, fixed = self.data, self.random, self.fixed
        return Problem(data, self.curve, inner, random, fixed, self.inputs, self.effects, self.design)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def labels(self) -> tuple[Hashable, ...]:
        return self.groups

    @property
    def common(self) -> int:
        """All of beta: effects of covariates are those of individuals, and move them in their group."""
        return len(self.fixed) + len(self.effects)

    @cached_property
    def between(self) -> Tensor:
        """Which effects on random parameters are the same for all individuals of each group, (q,)."""
        design = self.individuals.random_design
        return (design == self._of_groups(design)[self.member]).all(1).all(0)

    @cached_property
    def through(self) -> int:
        """All of beta when an effect differs within groups on a parameter that does not; else as without."""
        people = self.individuals
        if not self.effects:
            return people.common
        moving = people.random_design[:, :, ~self.between].abs().sum((0, 2)) > 0
        settled = set(torch.nonzero(moving)[:, 0].tolist()) <= set(self.varying)
        return people.common if settled else self.common

    def _of_groups(self, values: Tensor) -> Tensor:
        """Return values (P, ...) of the last individual of each group, (G, ...)."""
        last = torch.zeros(len(self), dtype=torch.long)
        last[self.member] = torch.arange(len(self.member))
        return values[last]

    def effects_step(self, law: Law, sigma: Tensor, phi: Tensor, summary: Summary, weights: Tensor) -> Tensor:
        """Return regressions: of mu on what differs between groups only, of b on what differs within."""
        assert isinstance(summary, WithinSummary)
        design, between = self.individuals.random_design, self.between
        step = design.new_zeros(len(between))
        if not bool(between.all()):
            precision = self.error.split(sigma)[1].square().reciprocal()
            own = self.error.weights(summary, weights, sigma)
            mean = (own[..., None] * summary.deviation).sum((1, 2))
            x = design[:, self.varying][:, :, ~between]
            left = torch.einsum("pwq,w,pwr->qr", x, precision, x)
            step[~between] = torch.linalg.solve(left, torch.einsum("pwq,w,pw->q", x, precision, mean))
        if bool(between.any()):
            step[between] = law.shift_step(phi, weights, self._of_groups(design)[:, :, between])
        return step

    def carried(self, phi: Tensor, summary: Summary, change: Tensor) -> tuple[Tensor, Summary]:
        """Return particles after a change of effects: each individual's parameters stay, mu and b move."""
        assert isinstance(summary, WithinSummary)
        design, between = self.individuals.random_design, self.between
        own = design[:, self.varying][:, :, ~between] @ change[~between]
        whole = self._of_groups(design)[:, :, between] @ change[between]
        moved = replace(summary, deviation=summary.deviation - own[:, None, None])
        return phi - whole[:, None], moved

    def predicted_again(self, phi: Tensor, summary: Summary, beta: Tensor) -> WithinSummary:
        assert isinstance(summary, WithinSummary)
        own = self.moved(phi[self.member][:, :, None], summary.deviation).flatten(1, 2)
        return replace(summary, inner=self.individuals.summary(own, beta))

    def own_sigma(self, sigma: Tensor) -> Tensor:
        return self.error.split(sigma)[0]

    @property
    def varying(self) -> list[int]:
        """Positions in phi of the parameters that vary within groups."""
        return [self.random.index(name) for name in self.within]

    def shift(self, beta: Tensor) -> Tensor:
        return beta.new_zeros(len(self), self.dim)

    def subset(self, index: Tensor) -> "GroupedProblem":
        """Return the problem of the groups at these positions."""
        chosen = [torch.nonzero(self.member == int(g))[:, 0] for g in index]
        people = torch.cat(chosen)
        member = torch.repeat_interleave(torch.arange(len(chosen)), torch.tensor([len(c) for c in chosen]))
        groups = tuple(self.groups[int(g)] for g in index)
        local = None
        if self.local is not None:
            parts = {k: getattr(self.local, k)[people] for k in ("place", "deviation", "gain", "factor")}
            local = replace(self.local, mu=self.local.mu[index], **parts)
        return self._with(self.individuals.subset(people), member, groups, self.within, local)

    def near(self, law: GaussianLaw, beta: Tensor, sigma: Tensor) -> "GroupedProblem":
        """Return the problem with deviations drawn around the modes of a Gaussian population."""
        start = law.mean.expand(len(self), -1) if self.local is None else self.local.mu
        return replace(self, local=_local(self, law, beta, sigma, start, NEWTON)[0])

    def moved(self, phi: Tensor, deviation: Tensor) -> Tensor:
        """Return mu + b of individuals: phi (P, ..., d), deviations (P, ..., w)."""
        everywhere = torch.zeros(len(self.within), self.dim, dtype=phi.dtype)
        everywhere[torch.arange(len(self.within)), self.varying] = 1.0
        return phi + deviation @ everywhere

    def summary(self, phi: Tensor, beta: Tensor) -> WithinSummary:
        """Return deviations, their log-density, and the predictions' summary, for mu (G, L, d)."""
        assert self.local is not None, "deviations are drawn near a state"
        mu = phi[self.member]
        deviation, log_proposal = self.local.draw(mu)
        own = self.moved(mu[:, :, None], deviation).flatten(1, 2)
        return WithinSummary(deviation, log_proposal, self.individuals.summary(own, beta))

    def of_individuals(
        self, phi: Tensor, summary: Summary, weights: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(summary, WithinSummary)
        own = self.error.weights(summary, weights, sigma).flatten(1)
        return self.moved(phi[self.member][:, :, None], summary.deviation).flatten(1, 2), own

    def simulated(self, law: Law, sigma: Tensor, n: int, seed: int) -> Tensor:
        size, omega = len(self.member), self.error.split(sigma)[1]
        mu = law.sample(len(self) * n, derive(seed, 0)).reshape(len(self), n, -1)[self.member]
        noise = torch.randn(size, n, len(omega), generator=generator(derive(seed, 1)), dtype=mu.dtype)
        return self.moved(mu, noise * omega)


def _local(
    problem: GroupedProblem, law: GaussianLaw, beta: Tensor, sigma: Tensor, start: Tensor, steps: int
) -> tuple[Local, Laplace]:
    """Climb to the modes of (mu_g, b_gp) together, by damped Gauss-Newton steps; linearise there.

    The curvature of a group is an arrow: individuals meet in mu only, so that their b are eliminated first.
    """
    member, varying = problem.member, problem.varying
    people = problem.individuals
    sigma, omega = problem.error.split(sigma)
    precision, ridge = torch.cholesky_inverse(law.factor), omega.square().reciprocal()
    width = len(omega)

    def objective(mu: Tensor, b: Tensor) -> Tensor:
        phi = problem.moved(mu[member], b)
        each = people.log_likelihood(phi[:, None], beta, sigma)[:, 0] - 0.5 * b.square() @ ridge
        return law.log_prob(mu).index_add(0, member, each)

    def solve(mu: Tensor, b: Tensor, damping: Tensor) -> tuple[Tensor, ...]:
        linear = linearise(people, problem.moved(mu[member], b), beta, sigma)
        slope = linear.slope[..., : problem.dim]
        whole = slope.mT @ slope
        pull = (slope.mT @ linear.residual[..., None]).squeeze(-1)
        inner = whole[:, varying][:, :, varying] + ridge.diag()
        lift = damping[member][:, None] * inner.diagonal(dim1=-2, dim2=-1)
        cross, inner_pull = whole[:, varying], pull[:, varying] - b * ridge
        right = torch.cat([cross, inner_pull[..., None]], -1)
        solved = torch.linalg.solve(inner + torch.diag_embed(lift), right)
        gain, step = solved[..., :-1], solved[..., -1]
        curvature = precision.expand(len(mu), -1, -1).index_add(0, member, whole - cross.mT @ gain)
        gradient = -(mu - law.mean) @ precision
        reduced = pull - (cross.mT @ step[..., None]).squeeze(-1)
        gradient = gradient.index_add(0, member, reduced)
        return curvature, gradient, gain, step, inner

    mu, b = start.clone(), start.new_zeros(len(member), width)
    damping, value = mu.new_full((len(mu),), 1e-6), objective(mu, b)
    for _ in range(steps):
        curvature, gradient, gain, step, _ = solve(mu, b, damping)
        lift = damping[:, None] * curvature.diagonal(dim1=-2, dim2=-1)
        move = torch.linalg.solve(curvature + torch.diag_embed(lift), gradient)
        tried_mu = mu + move
        tried_b = b + step - (gain @ move[member][..., None]).squeeze(-1)
        new = objective(tried_mu, tried_b)
        better = new >= value - 1e-9
        change = float(torch.where(better, new - value, torch.inf).max())
        mu = torch.where(better[:, None], tried_mu, mu)
        b = torch.where(better[member][:, None], tried_b, b)
        value = torch.where(better, new, value)
        damping = redamped(damping, better)
        if change < 1e-3:
            break
    curvature, _, gain, _, inner = solve(mu, b, torch.zeros_like(damping))
    factor = safe_cholesky(torch.linalg.inv(inner))
    local = Local(mu, mu[member], b, gain, factor, law.sd, omega)
    return local, Laplace(mu, safe_cholesky(torch.linalg.inv(curvature)))


@modes.register
def group_modes(
    problem: GroupedProblem, law: GaussianLaw, beta: Tensor, sigma: Tensor, start: Tensor, steps: int = 8
) -> Laplace:
    """Return the modes of the groups' mu, found together with the deviations."""
    return _local(problem, law, beta, sigma, start, steps)[1]


@gaussian_starts.register
def group_starts(
    problem: GroupedProblem, firsts: list[dict[str, float]], specification: Gaussian
) -> list[GaussianStart]:
    """Fit the individuals as one population, then split its variances as those of their modes are split."""
    wholes = gaussian_starts(problem.individuals, firsts, specification)
    return [_split(problem, whole, specification) for whole in wholes]


def _split(problem: GroupedProblem, whole: GaussianStart, specification: Gaussian) -> GaussianStart:
    """Return the start of groups from that of individuals."""
    mode, varying = whole.laplace.mode, problem.varying
    counts = problem.member.bincount(minlength=len(problem)).to(mode.dtype)
    means = mode.new_zeros(len(problem), problem.dim).index_add(0, problem.member, mode) / counts[:, None]
    inside = (mode - means[problem.member]).square().sum(0) / max(len(mode) - len(problem), 1)
    share = (inside / mode.var(0)).clamp(0.1, 0.9)[varying]
    kept = mode.new_ones(problem.dim)
    kept[varying] = (1 - share).sqrt()
    law = GaussianLaw(
        whole.law.mean, kept.diag() @ whole.law.factor, specification.covariance, whole.law.prior
    )
    sigma = torch.cat([whole.sigma, whole.law.sd[varying] * share.sqrt()])
    laplace = modes(problem, law, whole.beta, sigma, means, NEWTON)
    return GaussianStart(law, whole.beta, sigma, laplace, whole.settled)
