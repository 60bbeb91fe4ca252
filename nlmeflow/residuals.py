"""Error models: how an observation scatters around its curve.

Each model splits its log-density into a summary that depends on the prediction only (kept with the
particle) and the residual parameters, so that these are updated without calling the curve again.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from nlmeflow.errors import ModelError

LOG_2PI = 1.8378770664093453
Bounds = tuple[Tensor, Tensor]  # of censored observations, see `LongitudinalData`


@runtime_checkable
class Residual(Protocol):
    """The error model y = f + error, f the prediction, with residual parameters `sigma` (r,)."""

    names: ClassVar[tuple[str, ...]]

    @property
    def given(self) -> bool:
        """Whether the user fixed the residual parameters."""

    def check(self, response: Tensor, mask: Tensor) -> None:
        """Raise ModelError when the responses are outside the model's domain."""

    def start(self, response: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Return first residual parameters from pooled predictions, shape (r,)."""

    def working(
        self, response: Tensor, prediction: Tensor, sigma: Tensor, bounds: Bounds | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the standardised residual and minus its derivative in the prediction.

        Of censored observations the conditional mean of the residual: it has the same derivative.
        """

    def summary(
        self, response: Tensor, prediction: Tensor, mask: Tensor, bounds: Bounds | None = None
    ) -> tuple[Tensor, ...]:
        """Return what the likelihood needs of predictions (..., n)."""

    def log_likelihood(self, summary: tuple[Tensor, ...], sigma: Tensor) -> Tensor:
        """Return log p(y_i | phi), summed over times: (...)."""

    def update(self, summary: tuple[Tensor, ...], weights: Tensor, sigma: Tensor) -> Tensor:
        """Return the residual parameters of highest weighted log-likelihood, shape (r,)."""

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        """Draw responses around predictions, any shape."""


def _positive_or_none(value: float | None, name: str) -> None:
    if value is not None and not 0 < value < float("inf"):
        raise ModelError(f"{name} must be positive and finite, got {value!r}; None estimates it.")


def _censored(bounds: Bounds) -> Tensor:
    return torch.isfinite(bounds[0]) | torch.isfinite(bounds[1])


def _scaled(bound: Tensor, sigma: Tensor) -> Tensor:
    """Return bound / sigma; where the bound is infinite, with a derivative in sigma of zero, not NaN."""
    finite = torch.isfinite(bound)
    return torch.where(finite, torch.where(finite, bound, 0.0) / sigma, bound)


def _log_between(low: Tensor, high: Tensor) -> Tensor:
    """Return log P(low < e < high), e standard normal, accurate in the tails; differentiable.

    Both tails are the same by symmetry: the interval is mirrored when it lies above zero.
    """
    mirrored = low > 0
    a, b = torch.where(mirrored, -high, low), torch.where(mirrored, -low, high)
    finite = torch.isfinite(a)
    log_b = torch.special.log_ndtr(b.clamp_max(40.0))
    log_a = torch.special.log_ndtr(torch.where(finite, a, -1.0))
    share = torch.where(finite, (log_a - log_b).clamp_max(-1e-15), -1.0)
    return log_b + torch.where(finite, torch.log(-torch.expm1(share)), 0.0)


def _truncated(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[e] and E[e^2] of a standard normal e between low and high; zero and one without bounds."""
    log_mass = _log_between(low, high)

    def share(x: Tensor) -> tuple[Tensor, Tensor]:
        finite = torch.isfinite(x)
        inside = torch.where(finite, x, 0.0)
        density = torch.exp(-0.5 * inside.square() - 0.5 * LOG_2PI - log_mass)
        density = torch.where(finite, density, 0.0)
        return density, inside * density

    (at_low, low_times), (at_high, high_times) = share(low), share(high)
    mean = at_low - at_high
    square = (1 + low_times - high_times).clamp_min(0.0)
    return mean, torch.maximum(square, mean.square())


@dataclass(frozen=True)
class _OneScale:
    """Shared by the models with one scale: error e(y, f) ~ N(0, sigma^2), log-Jacobian j(y, f).

    log p(y | f) = sum_j [ -log(2 pi sigma^2)/2 - e_j^2 / (2 sigma^2) + j_j ].
    """

    sigma: float | None = None
    names: ClassVar[tuple[str, ...]] = ("sigma",)

    def __post_init__(self) -> None:
        _positive_or_none(self.sigma, "sigma")

    @property
    def given(self) -> bool:
        return self.sigma is not None

    def check(self, response: Tensor, mask: Tensor) -> None:
        """Accept every real response."""

    def error(self, response: Tensor, prediction: Tensor) -> Tensor:
        raise NotImplementedError

    def log_jacobian(self, response: Tensor, prediction: Tensor) -> Tensor | None:
        """Return log |de/dy|, or None where it is zero."""
        return None

    def slope(self, response: Tensor, prediction: Tensor) -> Tensor:
        """Return -de/df with the scale held at the current prediction (Fisher scoring)."""
        raise NotImplementedError

    def start(self, response: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        if self.sigma is not None:
            return response.new_tensor([self.sigma])
        error = self.error(response, prediction)[mask]
        error = error[torch.isfinite(error)]
        return error.square().mean().sqrt().reshape(1)

    def working(
        self, response: Tensor, prediction: Tensor, sigma: Tensor, bounds: Bounds | None = None
    ) -> tuple[Tensor, Tensor]:
        error = self.error(response, prediction) / sigma[0]
        if bounds is not None:
            low, high = (side / sigma[0] for side in self._ends(bounds, prediction))
            error = torch.where(_censored(bounds), _truncated(low, high)[0], error)
        return error, self.slope(response, prediction) / sigma[0]

    def _ends(self, bounds: Bounds, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Return the errors at the bounds of censored observations, infinite where there is none."""
        low, high = bounds
        at_low = torch.where(torch.isfinite(low), self.error(low, prediction), -torch.inf)
        return at_low, torch.where(torch.isfinite(high), self.error(high, prediction), torch.inf)

    def summary(
        self, response: Tensor, prediction: Tensor, mask: Tensor, bounds: Bounds | None = None
    ) -> tuple[Tensor, ...]:
        if bounds is None:
            return self._observed(response, prediction, mask)
        known = self._observed(response, prediction, mask & ~_censored(bounds))
        return *known, *self._ends(bounds, prediction)

    def _observed(self, response: Tensor, prediction: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        error = self.error(response, prediction)
        squares = error.square_().masked_fill_(~mask, 0.0).sum(-1)
        count = mask.sum(-1).to(squares.dtype).expand_as(squares)
        jacobian = self.log_jacobian(response, prediction)
        if jacobian is None:
            return squares, count
        return squares, count, jacobian.masked_fill(~mask, 0.0).sum(-1)

    def log_likelihood(self, summary: tuple[Tensor, ...], sigma: Tensor) -> Tensor:
        squares, count, *rest = summary
        value = squares * (-0.5 / sigma[0] ** 2) - count * (LOG_2PI / 2 + sigma[0].log())
        if len(rest) % 2:  # the Jacobian
            value = value + rest[0]
        if len(rest) > 1:  # errors at the ends of censored observations
            value = value + _log_between(_scaled(rest[-2], sigma[0]), _scaled(rest[-1], sigma[0])).sum(-1)
        return torch.where(torch.isfinite(value), value, -torch.inf)

    def update(self, summary: tuple[Tensor, ...], weights: Tensor, sigma: Tensor) -> Tensor:
        if self.given:
            return sigma
        squares, count = torch.where(weights > 0, summary[0], 0.0), summary[1]
        if len(summary) > 3:
            low, high = summary[-2] / sigma[0], summary[-1] / sigma[0]
            hidden = torch.isfinite(low) | torch.isfinite(high)
            expected = torch.where(hidden & (weights > 0)[..., None], _truncated(low, high)[1], 0.0)
            squares, count = squares + sigma[0] ** 2 * expected.sum(-1), count + hidden.sum(-1)
        return ((weights * squares).sum() / (weights * count).sum()).sqrt().reshape(1)


class Additive(_OneScale):
    """Additive error, y = f + sigma e, e standard normal; sigma in the response's unit."""

    def error(self, response: Tensor, prediction: Tensor) -> Tensor:
        return response - prediction

    def slope(self, response: Tensor, prediction: Tensor) -> Tensor:
        return torch.ones_like(prediction)

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        noise = torch.randn(prediction.shape, generator=random, dtype=prediction.dtype)
        return prediction + sigma[0] * noise


class Proportional(_OneScale):
    """Proportional error, y = f (1 + sigma e), e standard normal; sigma has no unit."""

    def error(self, response: Tensor, prediction: Tensor) -> Tensor:
        return (response - prediction) / prediction

    def log_jacobian(self, response: Tensor, prediction: Tensor) -> Tensor:
        return -prediction.abs().log()

    def slope(self, response: Tensor, prediction: Tensor) -> Tensor:
        return 1 / prediction

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        noise = torch.randn(prediction.shape, generator=random, dtype=prediction.dtype)
        return prediction * (1 + sigma[0] * noise)


class LogAdditive(_OneScale):
    """Additive error of the logarithm, log y = log f + sigma e; responses and curve positive.

    The log-likelihood is that of y, not of log y: the Jacobian -sum_j log y_j is included, so that
    it may be compared with other error models.
    """

    def check(self, response: Tensor, mask: Tensor) -> None:
        wrong = torch.nonzero(mask & (response <= 0))
        if len(wrong):
            row, column = wrong[0].tolist()
            raise ModelError(
                f"The log-additive error needs positive responses; individual number {row + 1} has "
                f"{response[row, column]:g}. Leave such rows out, or use Additive() or Combined()."
            )

    def error(self, response: Tensor, prediction: Tensor) -> Tensor:
        return response.clamp_min(torch.finfo(response.dtype).tiny).log() - prediction.log()

    def log_jacobian(self, response: Tensor, prediction: Tensor) -> Tensor:
        return -response.clamp_min(torch.finfo(response.dtype).tiny).log().expand_as(prediction)

    def slope(self, response: Tensor, prediction: Tensor) -> Tensor:
        return 1 / prediction

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        noise = torch.randn(prediction.shape, generator=random, dtype=prediction.dtype)
        return prediction * (sigma[0] * noise).exp()


@dataclass(frozen=True)
class Combined:
    """Additive and proportional error, y = f + sqrt(a^2 + b^2 f^2) e.

    a in the response's unit, b without unit (the form `combined2` of Monolix). Give both or none.
    """

    a: float | None = None
    b: float | None = None
    names: ClassVar[tuple[str, ...]] = ("a", "b")

    def __post_init__(self) -> None:
        _positive_or_none(self.a, "a")
        _positive_or_none(self.b, "b")
        if (self.a is None) != (self.b is None):
            raise ModelError("Combined() takes both a and b, or neither to estimate them.")

    @property
    def given(self) -> bool:
        return self.a is not None

    def check(self, response: Tensor, mask: Tensor) -> None:
        """Accept every real response."""

    def start(self, response: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        if self.a is not None and self.b is not None:
            return response.new_tensor([self.a, self.b])
        error = (response - prediction)[mask]
        scale = error.square().mean().sqrt()
        size = prediction[mask].square().mean().sqrt()
        return torch.stack([scale / 2**0.5, scale / size / 2**0.5])

    @staticmethod
    def _variance(prediction: Tensor, sigma: Tensor) -> Tensor:
        return sigma[0] ** 2 + (sigma[1] * prediction).square()

    def working(
        self, response: Tensor, prediction: Tensor, sigma: Tensor, bounds: Bounds | None = None
    ) -> tuple[Tensor, Tensor]:
        scale = self._variance(prediction, sigma).sqrt()
        return (response - prediction) / scale, 1 / scale

    def summary(
        self, response: Tensor, prediction: Tensor, mask: Tensor, bounds: Bounds | None = None
    ) -> tuple[Tensor, ...]:
        return prediction.square(), (response - prediction).square_(), mask.expand_as(prediction)

    def log_likelihood(self, summary: tuple[Tensor, ...], sigma: Tensor) -> Tensor:
        size, squares, mask = summary
        variance = sigma[0] ** 2 + sigma[1] ** 2 * size
        terms = -0.5 * (LOG_2PI + variance.log() + squares / variance)
        value = terms.masked_fill(~mask, 0.0).sum(-1)
        return torch.where(torch.isfinite(value), value, -torch.inf)

    def update(self, summary: tuple[Tensor, ...], weights: Tensor, sigma: Tensor) -> Tensor:
        """Fisher scoring in (a^2, b^2): weighted least squares of e^2 on (1, f^2), step-halved.

        A few steps, each at least as likely as the last; the next M-step goes on from there.
        """
        if self.given:
            return sigma
        size, squares, mask = summary
        weight = weights[..., None] * mask
        size, squares = torch.where(weight > 0, size, 0.0), torch.where(weight > 0, squares, 0.0)

        def loss(theta: Tensor) -> Tensor:
            variance = theta[0] + theta[1] * size
            return (weight * (variance.log() + squares / variance)).sum()

        theta = sigma.square()
        value = loss(theta)
        for _ in range(10):
            precision = weight / (theta[0] + theta[1] * size).square()
            moments = [(precision * size**k).sum() for k in range(3)]
            left = torch.stack([moments[0], moments[1], moments[1], moments[2]]).reshape(2, 2)
            right = torch.stack([(precision * squares).sum(), (precision * squares * size).sum()])
            step = torch.linalg.solve(left, right) - theta
            tried = torch.maximum(theta + step, theta / 16)
            new = loss(tried)
            while new > value and step.abs().max() > 1e-12 * theta.max():
                step = step / 4
                tried = torch.maximum(theta + step, theta / 16)
                new = loss(tried)
            if not new < value - 1e-10 * value.abs():
                break
            theta, value = tried, new
        return theta.sqrt()

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        noise = torch.randn(prediction.shape, generator=random, dtype=prediction.dtype)
        return prediction + self._variance(prediction, sigma).sqrt() * noise


RESIDUALS: dict[str, type] = {kind.__name__: kind for kind in (Additive, Proportional, Combined, LogAdditive)}
