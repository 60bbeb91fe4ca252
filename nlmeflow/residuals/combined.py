"""Additive and proportional error together."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nlmeflow.errors import ModelError
from nlmeflow.numerics import LOG_2PI
from nlmeflow.residuals.censoring import Bounds
from nlmeflow.residuals.residual import IMPOSSIBLE, Residual, Summary, given_or_none, noise

ROUNDING = 1e-6  # of the largest response: a smaller one is zero, as numbers in single precision are written


@dataclass(frozen=True)
class Predicted(Summary):
    """Squared predictions and squared errors of every time, and which were observed: (..., n)."""

    size: Tensor
    squares: Tensor
    mask: Tensor

    def finite(self) -> "Predicted":
        lost = ~(torch.isfinite(self.size) & torch.isfinite(self.squares))
        size, squares = self.size.masked_fill(lost, 0.0), self.squares.masked_fill(lost, IMPOSSIBLE)
        return Predicted(size, squares, self.mask)


@dataclass(frozen=True)
class Combined(Residual):
    """Additive and proportional error, y = f + sqrt(a^2 + b^2 f^2) e.

    a in the response's unit, b without unit (the form `combined2` of Monolix). Give both or none.

    Raises
    ------
    ModelError : one of a and b is given and the other not, or is not positive and finite.

    """

    a: float | None = None
    b: float | None = None
    names: ClassVar[tuple[str, ...]] = ("a", "b")

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", given_or_none(self.a, "a"))
        object.__setattr__(self, "b", given_or_none(self.b, "b"))
        if (self.a is None) != (self.b is None):
            raise ModelError("Combined() takes both a and b, or neither to estimate them.")

    @property
    def given(self) -> bool:
        return self.a is not None

    def unusable(self, response: Tensor, zero: Tensor) -> Tensor:
        """Return zeros of the curve where all responses are zero too, but for rounding.

        The likelihood rises as a falls.
        """
        bounded = self.given or bool((zero & (response.abs() > ROUNDING * response.abs().max())).any())
        return torch.zeros_like(zero) if bounded else zero

    def unbounded(self, response: Tensor, vanished: Tensor) -> Tensor:
        """Return zeros when a has vanished: the likelihood rises as predictions near them do."""
        return (response == 0) & vanished[0]

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

    def score(
        self,
        response: Tensor,
        prediction: Tensor,
        sigma: Tensor,
        mask: Tensor,
        bounds: Bounds | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return r = (e + c (e^2 - 1)) / k and s = k / v^(1/2), c = b^2 f / v^(1/2), k^2 = 1 + 2 c^2.

        v = a^2 + b^2 f^2.
        """
        error, slope = self.working(response, prediction, sigma)
        bend = sigma[1] ** 2 * prediction * slope
        more = (1 + 2 * bend.square()).sqrt()
        return (error + bend * (error.square() - 1)) / more, slope * more

    def summary(
        self, response: Tensor, prediction: Tensor, mask: Tensor, bounds: Bounds | None = None
    ) -> Predicted:
        return Predicted(prediction.square(), (response - prediction).square_(), mask.expand_as(prediction))

    def log_likelihood(self, summary: Predicted, sigma: Tensor) -> Tensor:
        variance = sigma[0] ** 2 + sigma[1] ** 2 * summary.size
        terms = -0.5 * (LOG_2PI + variance.log() + summary.squares / variance)
        value = terms.masked_fill(~summary.mask, 0.0).sum(-1)
        return torch.where(torch.isfinite(value), value, -torch.inf)

    def update(self, summary: Predicted, weights: Tensor, sigma: Tensor) -> Tensor:
        """Fisher scoring in (a^2, b^2): weighted least squares of e^2 on (1, f^2), step-halved.

        A few steps, each at least as likely as the last; the next M-step goes on from there. Where one of the
        two falls to nothing the step of the other is its own: the joint one is that to a square below zero.
        """
        if self.given:
            return sigma
        weight = weights[..., None] * summary.mask
        size, squares = (torch.where(weight > 0, x, 0.0) for x in (summary.size, summary.squares))

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
            falls = theta + step < theta / 16
            tried = torch.maximum(theta + step, theta / 16)
            new = loss(tried)
            while new > value and step.abs().max() > 1e-12 * theta.max():
                step = step / 4
                tried = torch.maximum(theta + step, theta / 16)
                new = loss(tried)
            if not new < value - 1e-10 * value.abs() and falls.any():
                alone = (right - left.flip(1).diagonal() * (theta / 16).flip(0)) / left.diagonal()
                tried = torch.where(falls, theta / 16, torch.maximum(alone, theta / 16))
                new = loss(tried)
            if not new < value - 1e-10 * value.abs():
                break
            theta, value = tried, new
        return theta.sqrt()

    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        return prediction + self._variance(prediction, sigma).sqrt() * noise(prediction, random)
