"""Error models with one scale: additive, proportional, additive of the logarithm."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from nlmeflow.numerics import LOG_2PI
from nlmeflow.residuals.censoring import Bounds, Interpolated, censored, log_between, scaled, truncated
from nlmeflow.residuals.residual import IMPOSSIBLE, Residual, Summary, given_or_none, noise


@dataclass(frozen=True)
class Squares(Summary):
    """Sums over the observed times (...): squared errors, their number, log-Jacobian.

    low, high : errors at the ends of censored observations (..., n), infinite where there is none.
    hidden : their probability by interpolation in sigma, or None.
    """

    squares: Tensor
    count: Tensor
    log_jacobian: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None
    hidden: Interpolated | None = None

    def finite(self) -> "Squares":
        lost = ~torch.isfinite(self.squares)
        jacobian, low, high = self.log_jacobian, self.low, self.high
        if low is not None and high is not None:
            nowhere = low.isnan() | high.isnan()
            lost = lost | nowhere.any(-1)
            low, high = low.masked_fill(nowhere, -torch.inf), high.masked_fill(nowhere, torch.inf)
        if jacobian is not None:
            lost = lost | ~torch.isfinite(jacobian)
            jacobian = jacobian.masked_fill(lost, 0.0)
        return Squares(self.squares.masked_fill(lost, IMPOSSIBLE), self.count, jacobian, low, high)


@dataclass(frozen=True)
class OneScale(Residual):
    """Shared by the models with one scale: error e(y, f) ~ N(0, sigma^2), log-Jacobian j(y, f).

    log p(y | f) = sum_j [ -log(2 pi sigma^2)/2 - e_j^2 / (2 sigma^2) + j_j ].

    Raises
    ------
    ModelError : sigma is not positive and finite.

    """

    sigma: float | None = None
    names: ClassVar[tuple[str, ...]] = ("sigma",)
    takes_bounds: ClassVar[bool] = True
    sums_up: ClassVar[bool] = True
    moves_scale: ClassVar[bool] = True  # whether the scale of the error depends on the prediction

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", given_or_none(self.sigma, "sigma"))

    @property
    def given(self) -> bool:
        return self.sigma is not None

    @abstractmethod
    def error(self, response: Tensor, prediction: Tensor) -> Tensor:
        """Return e(y, f)."""

    def log_jacobian(self, response: Tensor, prediction: Tensor) -> Tensor | None:
        """Return log |de/dy|, or None where it is zero."""
        return None

    @abstractmethod
    def slope(self, response: Tensor, prediction: Tensor) -> Tensor:
        """Return -de/df with the scale held at the current prediction (Fisher scoring)."""

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
            error = torch.where(censored(bounds), self._between(prediction, sigma, bounds)[0], error)
        return error, self.slope(response, prediction) / sigma[0]

    def score(
        self,
        response: Tensor,
        prediction: Tensor,
        sigma: Tensor,
        mask: Tensor,
        bounds: Bounds | None = None,
    ) -> tuple[Tensor, Tensor]:
        if not self.moves_scale:
            return self.working(response, prediction, sigma, bounds)
        return super().score(response, prediction, sigma, mask, bounds)

    def left_open(self, prediction: Tensor, sigma: Tensor, bounds: Bounds) -> Tensor:
        mean, square = self._between(prediction, sigma, bounds)
        return torch.where(censored(bounds), square - mean.square(), 0.0)

    def _between(self, prediction: Tensor, sigma: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
        """Return the first two moments of the standardised error between bounds."""
        low, high = (side / sigma[0] for side in self._ends(bounds, prediction))
        return truncated(low, high)

    def _ends(self, bounds: Bounds, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Return the errors at the bounds of censored observations, infinite where there is none."""
        low, high = (self._at(bound, prediction) for bound in bounds)
        return low, high

    def _at(self, bound: Tensor, prediction: Tensor) -> Tensor:
        """Return the errors at bounds; where one is infinite, with derivatives of zero, not NaN."""
        finite = torch.isfinite(bound)
        return torch.where(finite, self.error(torch.where(finite, bound, 1.0), prediction), bound)

    def summary(
        self, response: Tensor, prediction: Tensor, mask: Tensor, bounds: Bounds | None = None
    ) -> Squares:
        if bounds is not None:
            mask = mask & ~censored(bounds)
        squares = self.error(response, prediction).square_().masked_fill_(~mask, 0.0).sum(-1)
        count = mask.sum(-1).to(squares.dtype).expand_as(squares)
        jacobian = self.log_jacobian(response, prediction)
        if jacobian is not None:
            jacobian = jacobian.masked_fill(~mask, 0.0).sum(-1)
        low, high = (None, None) if bounds is None else self._ends(bounds, prediction)
        return Squares(squares, count, jacobian, low, high)

    def prepared(self, summary: Squares) -> Squares:
        if summary.low is None or summary.high is None or self.given:
            return summary
        return replace(summary, hidden=Interpolated(summary.low, summary.high))

    def log_likelihood(self, summary: Squares, sigma: Tensor) -> Tensor:
        value = summary.squares * (-0.5 / sigma[0] ** 2) - summary.count * (LOG_2PI / 2 + sigma[0].log())
        if summary.log_jacobian is not None:
            value = value + summary.log_jacobian
        if summary.hidden is not None and (found := summary.hidden.at(float(sigma[0]))):
            value = value + found[0]
        elif summary.low is not None and summary.high is not None:
            value = value + log_between(scaled(summary.low, sigma[0]), scaled(summary.high, sigma[0])).sum(-1)
        return torch.where(torch.isfinite(value), value, -torch.inf)

    def update(self, summary: Squares, weights: Tensor, sigma: Tensor) -> Tensor:
        if self.given:
            return sigma
        squares, count = torch.where(weights > 0, summary.squares, 0.0), summary.count
        if summary.low is not None and summary.high is not None:
            hidden = censored((summary.low, summary.high))
            count = count + hidden.sum(-1)
            if summary.hidden is not None and (found := summary.hidden.at(float(sigma[0]))):
                expected = hidden.sum(-1) + found[1]  # E e^2 - 1 is the derivative in log sigma
                expected = torch.where(weights > 0, expected, 0.0)
            else:
                each = truncated(summary.low / sigma[0], summary.high / sigma[0])[1]
                expected = torch.where(hidden & (weights > 0)[..., None], each, 0.0).sum(-1)
            squares = squares + sigma[0] ** 2 * expected
        return ((weights * squares).sum() / (weights * count).sum()).sqrt().reshape(1)


class Additive(OneScale):
    """Additive error, y = f + sigma e, e standard normal; sigma in the response's unit."""

    moves_scale: ClassVar[bool] = False

    def error(self, response: Tensor, prediction: Tensor) -> Tensor:
        return response - prediction

    def slope(self, response: Tensor, prediction: Tensor) -> Tensor:
        return torch.ones_like(prediction)

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        return prediction + sigma[0] * noise(prediction, random)


class Proportional(OneScale):
    """Proportional error, y = f + sigma |f| e, e standard normal; sigma has no unit.

    Under a response of zero the likelihood is unbounded: it rises as f falls to zero.
    """

    domain: ClassVar[str] = (
        "The proportional error needs responses other than zero (mark those below a limit as censored)"
    )

    def outside(self, response: Tensor) -> Tensor:
        return response == 0

    def unusable(self, response: Tensor, zero: Tensor) -> Tensor:
        return zero

    def error(self, response: Tensor, prediction: Tensor) -> Tensor:
        return (response - prediction) / prediction.abs()

    def log_jacobian(self, response: Tensor, prediction: Tensor) -> Tensor:
        return -prediction.abs().log()

    def slope(self, response: Tensor, prediction: Tensor) -> Tensor:
        return 1 / prediction.abs()

    def score(
        self,
        response: Tensor,
        prediction: Tensor,
        sigma: Tensor,
        mask: Tensor,
        bounds: Bounds | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return r = (e + c (e^2 - 1)) / k and s = k / (sigma |f|), c = sigma sign(f), k^2 = 1 + 2 sigma^2.

        Of censored observations with the conditional moments of e.
        """
        error, slope = self.working(response, prediction, sigma, bounds)
        square = error.square()
        if bounds is not None:
            square = torch.where(censored(bounds), self._between(prediction, sigma, bounds)[1], square)
        more = (1 + 2 * sigma[0] ** 2).sqrt()
        return (error + sigma[0] * prediction.sign() * (square - 1)) / more, slope * more

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        return prediction + sigma[0] * prediction.abs() * noise(prediction, random)


class LogAdditive(OneScale):
    """Additive error of the logarithm, log y = log f + sigma e; responses and curve positive.

    The log-likelihood is that of y, not of log y: the Jacobian -sum_j log y_j is included, so that
    it may be compared with other error models.
    """

    domain: ClassVar[str] = "The log-additive error needs positive responses"
    logarithmic: ClassVar[bool] = True
    moves_scale: ClassVar[bool] = False

    def outside(self, response: Tensor) -> Tensor:
        return response <= 0

    def unusable(self, response: Tensor, zero: Tensor) -> Tensor:
        return zero

    def error(self, response: Tensor, prediction: Tensor) -> Tensor:
        return response.clamp_min(torch.finfo(response.dtype).tiny).log() - prediction.log()

    def log_jacobian(self, response: Tensor, prediction: Tensor) -> Tensor:
        return -response.clamp_min(torch.finfo(response.dtype).tiny).log().expand_as(prediction)

    def slope(self, response: Tensor, prediction: Tensor) -> Tensor:
        return 1 / prediction

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        return prediction * (sigma[0] * noise(prediction, random)).exp()
