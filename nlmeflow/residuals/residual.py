"""Error models: how an observation scatters around its curve.

Each model splits its log-density into a summary that depends on the prediction only (kept with the
particle) and the residual parameters, so that these are updated without calling the curve again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from nlmeflow.errors import ModelError, first_line, is_number
from nlmeflow.records import Saved
from nlmeflow.residuals.censoring import Bounds

IMPOSSIBLE = 1e30  # squared error in place of one that is not finite: no weight, and finite derivatives


@dataclass(frozen=True)
class Summary:
    """What the likelihood needs of predictions: named tensors (...) or (..., n), or None."""

    def finite(self) -> Self:
        """Return the summary with finite numbers, and next to no likelihood, where the data are impossible.

        Derivatives of a weight that is zero are zero then, and not NaN.
        """
        return self

    def map(self, change: Callable[..., Tensor], *others: Self) -> Self:
        """Return the summary with a change made to each tensor, given those of other summaries too."""
        return self._combined([self, *others], lambda parts: change(*parts))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the summaries of consecutive individuals as one."""
        return parts[0]._combined(parts, lambda tensors: torch.cat(list(tensors)))

    def _combined(self, all_of: Sequence[Self], change: Callable[[Sequence[Tensor]], Tensor]) -> Self:
        def one(name: str) -> Any:
            parts = [getattr(summary, name) for summary in all_of]
            if isinstance(parts[0], Summary):
                return parts[0]._combined(parts, change)
            return change(parts) if isinstance(parts[0], Tensor) else None

        return type(self)(**{field.name: one(field.name) for field in fields(self)})


class Residual(Saved, ABC):
    """The error model y = f + error, f the prediction, with residual parameters `sigma` (r,).

    takes_bounds : whether observations may be censored.
    sums_up : whether its summary of predictions has lost the axis of times.
    logarithmic : whether errors are differences of logarithms.
    """

    names: ClassVar[tuple[str, ...]]
    takes_bounds: ClassVar[bool] = False
    sums_up: ClassVar[bool] = False
    logarithmic: ClassVar[bool] = False

    @property
    @abstractmethod
    def given(self) -> bool:
        """Whether the user fixed the residual parameters."""

    domain: ClassVar[str] = ""

    def outside(self, response: Tensor) -> Tensor:
        """Return which responses are outside the model's domain, in words `domain`; here none is."""
        return torch.zeros_like(response, dtype=torch.bool)

    def unusable(self, response: Tensor, zero: Tensor) -> Tensor:
        """Return observations whose likelihood is unbounded, or none, because the curve is zero there.

        zero : where the curve is zero whatever its parameters. Here none.
        """
        return torch.zeros_like(zero)

    def unbounded(self, response: Tensor, vanished: Tensor) -> Tensor:
        """Return responses near which the likelihood rises without end once a parameter has vanished.

        vanished : (r,), which residual parameters are next to nothing. Here none.
        """
        return torch.zeros_like(response, dtype=torch.bool)

    @abstractmethod
    def start(self, response: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
        """Return first residual parameters from pooled predictions, shape (r,)."""

    @abstractmethod
    def working(
        self, response: Tensor, prediction: Tensor, sigma: Tensor, bounds: Bounds | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the standardised residual and minus its derivative in the prediction.

        Of censored observations the conditional mean of the residual: it has the same derivative.
        """

    def score(
        self,
        response: Tensor,
        prediction: Tensor,
        sigma: Tensor,
        mask: Tensor,
        bounds: Bounds | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return a residual r and a slope s: r s is the derivative of log p(y | f) in the prediction f.

        Where the scale of the error depends on f the residual of `working` lacks a part of it. s^2 is the
        information on f, or near to it. Here by differentiation.
        """
        with torch.enable_grad():
            at = prediction.detach().requires_grad_()
            value = self.log_likelihood(self.summary(response, at, mask, bounds), sigma)
            (found,) = torch.autograd.grad(value.sum(), at)
        slope = self.working(response, prediction, sigma, bounds)[1]
        return found / slope, slope

    def left_open(self, prediction: Tensor, sigma: Tensor, bounds: Bounds) -> Tensor:
        """Return the variance of the standardised error that bounds leave open, zero where observed."""
        return torch.zeros_like(prediction)

    @abstractmethod
    def summary(
        self, response: Tensor, prediction: Tensor, mask: Tensor, bounds: Bounds | None = None
    ) -> Summary:
        """Return what the likelihood needs of predictions (..., n)."""

    def prepared(self, summary: Any) -> Any:
        """Return a summary made ready for an ascent in which sigma moves and the predictions do not."""
        return summary

    @abstractmethod
    def log_likelihood(self, summary: Any, sigma: Tensor) -> Tensor:
        """Return log p(y_i | phi), summed over times: (...)."""

    @abstractmethod
    def update(self, summary: Any, weights: Tensor, sigma: Tensor) -> Tensor:
        """Return residual parameters (r,) of higher weighted log-likelihood.

        Exact for one scale; one EM step where observations are censored, a few scoring steps for two scales.
        """

    @abstractmethod
    def sample(self, prediction: Tensor, sigma: Tensor, random: torch.Generator) -> Tensor:
        """Draw responses around predictions, any shape."""

    def probe(self) -> None:
        """Call the methods on a few numbers, as fits do.

        Raises
        ------
        ModelError : one of them fails, does not return tensors of the right shape, or mixes individuals.

        """
        n, m, times = 3, 4, 5
        response = 1.1 + 0.8 * torch.linspace(0, 1, n * times, dtype=torch.float64).reshape(n, 1, times)
        prediction = 1.5 + 0.4 * torch.arange(n * m * times, dtype=torch.float64).sin().reshape(n, m, times)
        weights, mask = torch.full((n, m), 1 / m, dtype=torch.float64), torch.ones_like(response).bool()
        sigma = self._probed("start", (len(self.names),), response[:, 0], prediction[:, 0], mask[:, 0])
        self._probed("working", prediction.shape, response, prediction, sigma)
        self._probed("sample", prediction.shape, prediction, sigma, torch.Generator().manual_seed(0))
        one = self._probed("summary", None, response[1:2], prediction[1:2], mask[1:2])
        alone = self._probed("log_likelihood", (1, m), one, sigma)
        summary = self._probed("summary", None, response, prediction.clone(), mask)
        whole = self._probed("log_likelihood", (n, m), summary, sigma)
        self._probed("update", sigma.shape, summary, weights, sigma)
        if not torch.allclose(whole[1], alone[0], rtol=1e-6, equal_nan=True):
            raise ModelError(
                f"The error model '{type(self).__name__}' mixes individuals: one alone has another "
                "likelihood than among others. It may depend on its own responses and predictions only."
            )

    def _probed(self, method: str, shape: Sequence[int] | None, *arguments: Any) -> Any:
        """Return what a method returns, of several tensors the first, or raise ModelError."""
        try:
            found = getattr(self, method)(*arguments)
            parts = found if isinstance(found, tuple) else (found,)
            for part in parts if shape is not None else ():
                part.expand(shape)
        except Exception as error:
            raise ModelError(
                f"The error model '{type(self).__name__}' cannot be used: its {method} fails, or what it "
                f"returns is of another shape than that of the predictions ({first_line(error)}). Use torch "
                "functions of each response and prediction by itself, without means or sums."
            ) from error
        return parts[0]


def given_or_none(value: float | None, name: str) -> float | None:
    """Return a residual parameter, or None where it is left to be estimated.

    Raises
    ------
    ModelError : it is not positive and finite.

    """
    if value is not None and not (is_number(value) and value > 0):
        raise ModelError(f"{name} must be positive and finite, got {value!r}; None estimates it.")
    return None if value is None else float(value)


def noise(prediction: Tensor, random: torch.Generator) -> Tensor:
    """Draw a standard normal error for each prediction."""
    return torch.randn(prediction.shape, generator=random, dtype=prediction.dtype)
