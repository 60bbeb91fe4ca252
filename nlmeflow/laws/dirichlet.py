"""The Dirichlet-process mixture: a Gaussian mixture whose number of components is part of the posterior.

Ferguson, Annals of Statistics 1973; Escobar and West, Journal of the American Statistical Association 1995.
Sampled by the blocked Gibbs sampler of Ishwaran and James, Journal of the American Statistical Association
2001, with sticks broken off up to a largest number of components.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from nlmeflow.errors import check_whole, number
from nlmeflow.laws.affine import Affine
from nlmeflow.laws.draws import PosteriorDraws, TrainingSet
from nlmeflow.laws.gaussian import population
from nlmeflow.laws.mixture import MixtureLaw
from nlmeflow.laws.specification import Specification
from nlmeflow.numerics import TINY
from nlmeflow.seeds import Stream, derive

SHARE = 0.25  # expected covariance of a component, as a share of the population's
PRECISION = 0.1  # of a component's mean around the population's, in individuals
FREEDOM = 3  # degrees of freedom of a covariance's prior, beyond d
CONCENTRATION = (2.0, 2.0)  # shape and rate of the Gamma prior of the concentration
NEGLIGIBLE = 1e-4  # weight under which a component of one sweep is left out


@dataclass(frozen=True, eq=False)
class DirichletLaw(MixtureLaw):
    """The posterior mean of the density: the components of many sweeps, each with a share of its weight."""

    title: ClassVar[str] = "Dirichlet-process mixture"
    counted: ClassVar[bool] = False


@dataclass(frozen=True)
class DirichletProcess(Specification):
    r"""Specification: a Dirichlet-process mixture of Gaussians, sampled on the posterior draws.

        phi_i ~ sum_k w_k N(m_k, Omega_k),   w_k = v_k prod_{j<k} (1 - v_j),   v_k ~ Beta(1, a),
        Omega_k ~ IW(d + 3, .5 S),   m_k | Omega_k ~ N(m, Omega_k / .1),   a ~ Gamma(2, rate 2),

    m and S the mean and covariance of the Gaussian fit, so that a component is expected to be half as wide as
    the population. phi_i is one of the individual's posterior draws, taken anew in each sweep with weights
    p(phi_im) / R(phi_im), R the law under which they were drawn. The law is the mean of the density over the
    sweeps kept. A posterior mean is no maximum, so that there are no bootstrap, bands and standard errors.

    components : at most, K; the last takes the rest of the stick. sweeps : of the sampler, of which the first
        third is left out. kept : of the others, evenly spaced.

    Raises
    ------
    ModelError : an option is outside its range.

    """

    name: ClassVar[str] = "dirichlet process"
    maximised: ClassVar[bool] = False
    components: int = 15
    sweeps: int = 450
    kept: int = 30

    def __post_init__(self) -> None:
        check_whole(self, 1, "components", "kept")
        check_whole(self, 3, "sweeps")
        number("kept", self.kept, 0, self.sweeps - self.sweeps // 3 + 1)

    def learn(self, training: TrainingSet) -> DirichletLaw:
        """Return the posterior mean of the density."""
        random = np.random.default_rng(derive(training.seed, Stream.DIRICHLET))
        gaussian = population(training.draws)
        place, first = Affine(gaussian.mean, gaussian.factor), self.sweeps // 3
        after = np.linspace(first, self.sweeps - 1, self.kept).round()
        training.report("dirichlet process")
        sampled = enumerate(self._sampled(training.draws, place, random))
        found = [one for sweep, one in sampled if sweep in after]
        weights, means, factors = (torch.cat(parts) for parts in zip(*found, strict=True))
        seen = weights > NEGLIGIBLE
        weights, means, factors = weights[seen], means[seen], factors[seen]
        floor = 1e-3 * place.factor
        return DirichletLaw(weights / weights.sum(), place(means), place.factor @ factors, floor)

    def _sampled(
        self, draws: PosteriorDraws, place: Affine, random: np.random.Generator
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield weights (K,), means (K, d) and factors (K, d, d) of each sweep, in the Gaussian's units."""
        z = place.standardise(draws.phi)
        size, flat, unit = self.components, z.flatten(0, 1), torch.eye(draws.dim, dtype=z.dtype)
        concentration, member = 1.0, random.integers(size, size=len(draws))
        phi = z[:, 0].numpy()
        for _ in range(self.sweeps):
            weights, concentration = broken(np.bincount(member, minlength=size), concentration, random)
            means, factors = components(phi, member, size, random)
            drawn = [torch.from_numpy(values) for values in (weights, means, factors)]
            law = MixtureLaw(drawn[0], drawn[1], drawn[2], unit)
            joint = law.log_joint(flat).reshape(size, *z.shape[:2]) - draws.log_reference
            choice = chosen(joint.permute(1, 2, 0).flatten(1), random)
            which, member = choice // size, choice % size
            phi = z[np.arange(len(draws)), which].numpy()
            yield law.weights, law.means, law.factors


def chosen(log_weights: Tensor, random: np.random.Generator) -> np.ndarray:
    """Return one position for each row of log-weights (N, n), with probabilities that follow them: (N,)."""
    cumulated = log_weights.softmax(1).cumsum(1).numpy()
    places = random.random((len(cumulated), 1)) * cumulated[:, -1:]
    return np.asarray((cumulated < places).sum(1))


def broken(counts: np.ndarray, concentration: float, random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return weights (K,) of the sticks given how many individuals each has, and a new concentration."""
    later = counts[::-1].cumsum()[::-1] - counts
    v = random.beta(1 + counts[:-1], concentration + later[:-1])
    rest = np.log1p(-v.clip(max=1 - 1e-12))
    weights = np.append(v, 1.0) * np.exp(np.append(0.0, rest.cumsum()))
    shape, rate = CONCENTRATION
    concentration = float(random.gamma(shape + len(v), 1 / (rate - rest.sum())))
    return weights.clip(min=TINY), max(concentration, 1e-3)


def components(
    phi: np.ndarray, member: np.ndarray, size: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return means (K, d) and lower factors (K, d, d) given phi (N, d) and whose component each one has.

    The normal-inverse-Wishart posterior, with m = 0 and S = I; covariances by Bartlett's decomposition.
    """
    dim = phi.shape[1]
    of = np.eye(size)[member]
    counts, sums = of.sum(0), of.T @ phi
    precision, freedom = PRECISION + counts, dim + FREEDOM + counts
    centre = sums / precision[:, None]
    scatter = np.einsum("nk,na,nb->kab", of, phi, phi) - precision[:, None, None] * (
        centre[:, :, None] * centre[:, None, :]
    )
    prior = SHARE * (FREEDOM - 1) * np.eye(dim)
    whitener = np.linalg.cholesky(np.linalg.inv(prior + scatter))
    bartlett = np.tril(random.standard_normal((size, dim, dim)), -1)
    k = np.arange(dim)
    bartlett[:, k, k] = np.sqrt(random.chisquare(freedom[:, None] - k))
    inverse = np.linalg.inv(whitener @ bartlett)  # covariance = inverse' inverse
    factors = np.linalg.cholesky(inverse.mT @ inverse)
    noise = random.standard_normal((size, dim))
    means = centre + np.einsum("kab,kb->ka", factors, noise) / np.sqrt(precision)[:, None]
    return means, factors
