"""The Gaussian law, what everybody assumes: phi ~ N(mu, Omega)."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from nlmeflow.arguments import check_fields
from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.laws.affine import Affine, check_factors, normal_log_prob, safe_cholesky
from nlmeflow.laws.draws import PosteriorDraws, TrainingSet
from nlmeflow.laws.em import CARE, climb
from nlmeflow.laws.law import Components, Law
from nlmeflow.laws.specification import Specification
from nlmeflow.seeds import Seed, generator

Covariance = Literal["full", "diagonal"]


def check_prior(prior: float) -> None:
    """Raise ModelError unless the exponent of a prior is usable."""
    if not 0 <= prior < 100:
        raise ModelError(f"prior lies between 0 and 100, got {prior!r}.")


@dataclass(frozen=True, eq=False)
class GaussianLaw(Law):
    """N(mean, L L'), mean (d,), lower factor L (d, d)."""

    title: ClassVar[str] = "Gaussian"
    mean: Tensor
    factor: Tensor
    structure: Covariance = "full"
    prior: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_factors(self.mean, self.factor)

    @classmethod
    def of(
        cls, phi: Tensor, weights: Tensor, structure: Covariance = "full", prior: float = 0.0
    ) -> "GaussianLaw":
        """Return the Gaussian of highest weighted log-density: phi (..., d), weights (...)."""
        flat, weight = phi.reshape(-1, phi.shape[-1]), weights.reshape(-1)
        total = float(weight.sum())
        weight = weight / total
        mean = weight @ flat
        centred = flat - mean
        return cls.of_moments(mean, (weight[:, None] * centred).mT @ centred, total, structure, prior)

    @classmethod
    def of_moments(
        cls, mean: Tensor, covariance: Tensor, n: float, structure: Covariance, prior: float
    ) -> "GaussianLaw":
        """Return the law of the mean and covariance of n individuals; n / (n - 2 c) times with a prior c."""
        covariance = covariance / max(1 - 2 * prior / n, 0.5)
        diagonal = structure == "diagonal"
        factor = covariance.diagonal().sqrt().diag() if diagonal else safe_cholesky(covariance)
        return cls(mean, factor, structure, prior)

    @classmethod
    def like(cls, law: Law) -> "GaussianLaw":
        """Return the Gaussian of the same mean and covariance as another law.

        Raises
        ------
        EstimationError : they are not finite.

        """
        if law.normal is not None:
            return cls(law.normal.mean, law.normal.factor)
        mean, covariance = law.two_moments
        if not bool(torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise EstimationError(
                "A law has no finite mean and covariance: it bends so freely that it reaches any distance. "
                "Take a simpler one, such as nf.Gaussian() or nf.Mixture()."
            )
        return cls(mean, safe_cholesky(covariance))

    @property
    def dim(self) -> int:
        return self.mean.shape[-1]

    @property
    def n_parameters(self) -> int:
        """Return d means and d (d + 1) / 2 covariances (d when diagonal)."""
        return self.dim + (self.dim if self.structure == "diagonal" else self.dim * (self.dim + 1) // 2)

    @property
    def normal(self) -> Affine:
        return Affine(self.mean, self.factor)

    @property
    def components(self) -> Components:
        return self.mean.new_ones(1), self.mean[None], self.factor[None]

    def with_components(self, weights: Tensor, means: Tensor, factors: Tensor) -> Self:
        return replace(self, mean=means[0], factor=factors[0])

    @property
    def covariance(self) -> Tensor:
        """Omega, (d, d)."""
        return self.factor @ self.factor.mT

    @property
    def sd(self) -> Tensor:
        """Standard deviations, (d,)."""
        return self.covariance.diagonal().sqrt()

    @property
    def correlation(self) -> Tensor:
        """Correlations, (d, d)."""
        return self.covariance / (self.sd[:, None] * self.sd)

    def mean_and_covariance(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.covariance

    def log_prob(self, phi: Tensor) -> Tensor:
        return normal_log_prob(self._rows(phi), self.mean, self.factor).reshape(phi.shape[:-1])

    def sample(self, n: int, seed: Seed) -> Tensor:
        noise = torch.randn(n, self.dim, generator=generator(seed), dtype=self.mean.dtype)
        return self.normal(noise)

    def update(self, phi: Tensor, weights: Tensor) -> "GaussianLaw":
        """Return the exact maximiser."""
        return GaussianLaw.of(phi, weights, self.structure, self.prior)

    def shift_step(self, phi: Tensor, weights: Tensor, design: Tensor) -> Tensor:
        """Return the exact step: generalised least squares of conditional means, with an intercept."""
        precision = torch.cholesky_inverse(self.factor)
        mean = (weights[..., None] * phi).sum(1)
        mean, design = mean - mean.mean(0), design - design.mean(0)
        left = torch.einsum("ncq,cd,ndr->qr", design, precision, design)
        step: Tensor = torch.linalg.solve(left, torch.einsum("ncq,cd,nd->q", design, precision, mean))
        return step

    def inflated(self, factor: float) -> "GaussianLaw":
        """Return the law with standard deviations multiplied by `factor`."""
        return GaussianLaw(self.mean, self.factor * factor, self.structure, self.prior)

    @property
    def log_prior(self) -> float:
        """Return c log |Omega|."""
        return 2 * self.prior * float(self.normal.log_volume) if self.prior else 0.0


@dataclass(frozen=True)
class Gaussian(Specification):
    """Specification: a Gaussian law with `covariance` "full" (default) or "diagonal".

    On the log scale of a parameter this is the log-normal law, on the logit scale the logit-normal.

    prior : 0 (default) is maximum likelihood. With c > 0 the likelihood is multiplied by |Omega|^c,
        which keeps the covariance off its boundary (a variance of zero, a correlation of one), where
        maximum likelihood ends in one replicate of many when data are sparse (Chung, Gelman,
        Rabe-Hesketh, Liu, Dorie, J. Educ. Behav. Stat. 2015).

    Raises
    ------
    ModelError : an option is none of those accepted, or outside its range.

    """

    name: ClassVar[str] = "gaussian"
    by_em: ClassVar[bool] = True
    bounded: ClassVar[bool] = True
    covariance: Covariance = "full"
    prior: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_prior(self.prior)

    def learn(self, training: TrainingSet) -> GaussianLaw:
        """Return the Gaussian of highest likelihood on the draws, unless it is so thin that few are in it.

        There the draws say nothing of its likelihood, nor of that of individuals held out: the law is kept
        off its boundary.
        """
        draws = training.draws
        law = population(draws, self)
        if self.prior or not draws.few_in(law):
            return law
        return population(draws, replace(self, prior=CAREFUL.prior))


CAREFUL = Gaussian(prior=CARE)  # what starts, scales and surrounds other laws is not singular


def population(draws: PosteriorDraws, law: Gaussian = CAREFUL) -> GaussianLaw:
    """Return the Gaussian law of draws by EM; kept off the boundary unless another is asked for."""
    first = GaussianLaw.of(draws.phi, draws.equal, law.covariance, law.prior)
    return climb(first, draws, 200, tolerance=1e-4)[0]
