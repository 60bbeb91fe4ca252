"""The part of a model that does not know the law: data, curve, error model, fixed parameters."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from nlmeflow.covariates import Effect, design, plain_numbers
from nlmeflow.curves import Curve
from nlmeflow.curves.probe import SHAPE
from nlmeflow.data import LongitudinalData
from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.laws.gaussian import GaussianLaw
from nlmeflow.laws.law import Law
from nlmeflow.numerics import TINY
from nlmeflow.residuals.censoring import Bounds, censored
from nlmeflow.residuals.residual import Residual, Summary

CHUNK = 4_000_000  # predictions held at a time
AT_END = 30.0  # value on a scale with two ends, as good as at one of them
RAGGED = 2.5  # times the mean length: a longest series that is computed apart


@dataclass(frozen=True)
class Problem:
    """Everything that turns individual parameters into likelihoods.

    random, fixed : names of the parameters in phi (d) and in beta (p), in the curve's order.
    inputs : covariates that the curve takes, each (N,).
    effects : of covariates on the location of parameters, those on fixed parameters first; `design` X
        (N, d + p, q) is what each adds to phi and to the fixed parameters. beta holds the p fixed
        parameters, then the q effects. Everywhere in estimation phi stands for eta = phi - X gamma,
        whose law is the population law: individuals are moved by their covariates when the curve
        is called, and nowhere else.
    """

    data: LongitudinalData
    curve: Curve
    residual: Residual
    random: tuple[str, ...]
    fixed: tuple[str, ...]
    inputs: Mapping[str, Tensor]
    effects: tuple[Effect, ...] = ()
    design: Tensor | None = None

    @classmethod
    def build(
        cls,
        data: LongitudinalData,
        curve: Curve,
        residual: Residual,
        fixed: Sequence[str],
        effects: Sequence[Effect] = (),
    ) -> "Problem":
        """Check that data, curve and error model fit together.

        Raises
        ------
        ModelError : no parameter varies; a response, censoring, doses or a covariate that the model cannot
            take.

        """
        for name in fixed:
            curve[name]
        random = tuple(name for name in curve.names if name not in fixed)
        if not random:
            raise ModelError("Every parameter is fixed; a mixed-effects model needs a random one.")
        wrong = torch.nonzero(data.mask & _outside(data, residual))
        if len(wrong):
            raise ModelError(
                f"{residual.domain}; {data.about(*wrong[0].tolist())}. Leave such rows out, or take "
                "nf.Additive()."
            )
        if data.bounds is not None and not residual.takes_bounds:
            raise ModelError(
                "Censored observations are accepted with nf.Additive(), nf.Proportional() or "
                f"nf.LogAdditive(), not with nf.{type(residual).__name__}()."
            )
        _check_doses(data, curve)
        given = () if data.doses is None else (curve.dose, curve.duration)
        inputs = {name: _input(data, name) for name in curve.inputs if name not in given}
        _check_amounts(data, curve, inputs)
        kept = tuple(name for name in curve.names if name in fixed)
        ordered = tuple(sorted(effects, key=lambda effect: effect.parameter in random))
        matrix = design(ordered, random + kept, data.covariates) if ordered else None
        return cls(data, curve, residual, random, kept, inputs, ordered, matrix)

    def probe(self) -> None:
        """Raise ModelError when a curve of one's own misbehaves at these data's times, or their inputs."""
        n, _, m = SHAPE
        seen = self.data.time[self.data.mask]
        if len(seen) and len(self):
            levels = torch.linspace(0, 1, n * m, dtype=seen.dtype).square()  # not symmetric
            times = seen.sort().values[(levels * (len(seen) - 1)).round().long()].reshape(n, 1, m)
            some = torch.linspace(0, len(self) - 1, n).round().long()
            self.curve.probe_at(times, {k: x[some].reshape(n, 1, 1) for k, x in self.inputs.items()})

    def __len__(self) -> int:
        return len(self.data)

    @property
    def dim(self) -> int:
        """Return d, the dimension of phi."""
        return len(self.random)

    @property
    def common(self) -> int:
        """Entries of beta that act on fixed parameters: these and the effects on them."""
        return len(self.fixed) + sum(effect.parameter in self.fixed for effect in self.effects)

    @property
    def through(self) -> int:
        """Entries of beta, the first of them, that the curve must be called for when they move."""
        return self.common

    @property
    def beta_names(self) -> tuple[str, ...]:
        """What the entries of beta are."""
        return self.fixed + tuple(effect.name for effect in self.effects)

    @property
    def random_design(self) -> Tensor:
        """Return what the effects on random parameters add to phi, (N, d, q) of these alone."""
        assert self.design is not None
        return self.design[:, : self.dim, self.common - len(self.fixed) :]

    @property
    def labels(self) -> tuple[Hashable, ...]:
        """The names of those whose particles are drawn: individuals, or groups where there are two levels."""
        return self.data.labels

    @property
    def individuals(self) -> "Problem":
        """The problem of individuals, each by itself."""
        return self

    def own_sigma(self, sigma: Tensor) -> Tensor:
        """Return the residual parameters of an individual's observations among all of sigma."""
        return sigma

    @cached_property
    def without_curve(self) -> Tensor:
        """Residual parameters (r,) under a constant, the mean of what was observed.

        Limits say how far the constant is from what was not; those of any size may leave it free.
        """
        response, mask = self.data.response, self.data.mask
        known = mask & ~self.data.censored
        constant = response[known if bool(known.any()) else mask].mean().expand_as(response)
        return self.residual.start(self.nearest(constant), constant, mask)

    def near(self, law: GaussianLaw, beta: Tensor, sigma: Tensor) -> "Problem":
        """Return the problem made ready for particles near a state; the law is a Gaussian summary of its."""
        return self

    def of_individuals(
        self, phi: Tensor, summary: Summary, weights: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return particles of individuals (P, M, d) and their weights (P, M)."""
        return phi, weights

    def effects_step(self, law: Law, sigma: Tensor, phi: Tensor, summary: Summary, weights: Tensor) -> Tensor:
        """Return the M-step of the effects after the first `through` entries of beta, from particles."""
        return law.shift_step(phi, weights, self.random_design)

    def carried(self, phi: Tensor, summary: Summary, change: Tensor) -> tuple[Tensor, Summary]:
        """Return particles after a change of these effects: each individual's parameters stay, eta moves."""
        return phi - (self.random_design @ change)[:, None], summary

    def predicted_again(self, phi: Tensor, summary: Summary, beta: Tensor) -> Summary:
        """Return the summary of predictions at the same particles under another beta."""
        return self.summary(phi, beta)

    def simulated(self, law: Law, sigma: Tensor, n: int, seed: int) -> Tensor:
        """Draw the parameters, without what covariates add, of n new populations like this one: (P, n, d)."""
        return law.sample(len(self) * n, seed).reshape(len(self), n, -1)

    def shift(self, beta: Tensor) -> Tensor:
        """Return X gamma of each individual's random parameters, (N, d)."""
        if self.design is None:
            return beta.new_zeros(len(self), self.dim)
        return self.random_design @ beta[self.common :]

    def check_ends(self, beta: Tensor) -> None:
        """Raise EstimationError when a fixed parameter has run to an end of a scale that has two."""
        for name, value in zip(self.fixed, beta.tolist(), strict=False):
            scale = self.curve[name].scale
            if scale.has_ends and abs(value) > AT_END:
                raise EstimationError(self.curve[name].at_end(scale.upper if value > 0 else scale.lower))

    def subset(self, index: Tensor) -> "Problem":
        """Return the problem of the individuals at these positions."""
        inputs = {name: values[index] for name, values in self.inputs.items()}
        matrix = None if self.design is None else self.design[index]
        return replace(self, data=self.data.subset(index), inputs=inputs, design=matrix)

    def natural(self, phi: Tensor, beta: Tensor, rows: slice = slice(None)) -> dict[str, Tensor]:
        """Return natural parameters of phi (N, ..., d) and of beta (..., p + q)."""
        fixed = beta[..., : len(self.fixed)]
        if self.design is not None:
            moved = torch.einsum("ncq,...q->n...c", self.design[rows], beta[..., len(self.fixed) :])
            extra = phi.ndim - moved.ndim
            moved = moved.reshape(len(moved), *[1] * extra, *moved.shape[1:])
            phi, fixed = phi + moved[..., : self.dim], fixed + moved[..., self.dim :]
        return self.curve.natural(phi, self.random) | self.curve.natural(fixed, self.fixed)

    def predict(self, phi: Tensor, beta: Tensor, rows: slice = slice(None)) -> Tensor:
        """Return f(t_i; phi): phi (N, d) -> (N, n), or (N, M, d) -> (N, M, n)."""
        extra = phi.ndim - 2
        psi = {k: v[..., None] for k, v in self.natural(phi, beta, rows).items()}
        time = self.data.time[rows]
        time = time.reshape(len(time), *[1] * extra, time.shape[-1])
        x = {k: v[rows].reshape(-1, *[1] * (extra + 1)) for k, v in self.inputs.items()}
        value = self.curve(time, psi, x) if self.data.doses is None else self._superposed(time, psi, x, rows)
        return value.expand(*phi.shape[:-1], time.shape[-1])

    def _superposed(self, time: Tensor, psi: dict[str, Tensor], x: dict[str, Tensor], rows: slice) -> Tensor:
        """Return the sum of the curves of all doses, each from its own time on until it is reset.

        At the time of a dose the curve counts what was given before; at that of the first, time zero, and of
        one at steady state it counts this dose too, as the curve of a single dose does.
        """
        assert self.data.doses is not None
        doses, total, extra = self.data.doses[rows], torch.zeros_like(time), time.ndim - 1
        for k in range(doses.time.shape[1]):
            start, amount, duration, interval, until = (
                part[:, k].reshape(-1, *[1] * extra) for part in vars(doses).values()
            )
            given = {self.curve.dose: amount, self.curve.duration: duration.clamp_min(TINY)}
            inputs = x | {name: values for name, values in given.items() if name}
            since, steady = (time - start).clamp_min(0.0), interval > 0
            value = self.curve(since, psi, inputs)
            if bool(steady.any()):
                lasting = self.curve(since, psi, inputs, interval.where(steady, 1.0))
                value = torch.where(steady, lasting, value)
            counts = ((time > start) | (steady | (start == 0)) & (time == start)) & (time < until)
            total = total + torch.where(counts, value, 0.0)
        return total

    def jacobian(
        self, phi: Tensor, beta: Tensor, rows: slice = slice(None), only_beta: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return predictions (..., n) and derivatives (..., n, d + p + q) in phi (..., d) and beta.

        Forward differentiation, all directions in one call: each has its own copy of (phi, beta).
        `only_beta` leaves out the first d derivatives.
        """
        directions = torch.eye(self.dim + len(beta), dtype=phi.dtype)
        directions = directions[self.dim :] if only_beta else directions
        size = len(directions)
        copies = phi.unsqueeze(-2).expand(*phi.shape[:-1], size, self.dim).contiguous()
        d_phi = directions[:, : self.dim].expand_as(copies).contiguous()
        betas = beta.expand(size, -1).contiguous()
        d_beta = directions[:, self.dim :].contiguous()

        def predict(phi: Tensor, beta: Tensor) -> Tensor:
            return self.predict(phi, beta, rows)

        value, slopes = torch.func.jvp(predict, (copies, betas), (d_phi, d_beta))[:2]
        return value[..., 0, :], slopes.mT

    def standardised(
        self,
        prediction: Tensor,
        slopes: Tensor,
        sigma: Tensor,
        rows: slice = slice(None),
        exact: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return residuals (..., n) and slopes (..., n, k) in units of the error's scale, zero where unseen.

        prediction (N, n) or (N, M, n) with its derivatives: the linear model whose errors have variance one.
        exact : the products of slopes and residuals are the derivatives of the log-likelihood, also where the
            scale of the error depends on the prediction.
        """
        extra = prediction.ndim - 2
        response, mask = (
            part[rows].reshape(-1, *[1] * extra, part.shape[1])
            for part in (self.data.response, self.data.mask)
        )
        bounds = self.bounds(rows, extra)
        if exact:
            residual, scale = self.residual.score(response, prediction, sigma, mask, bounds)
        else:
            residual, scale = self.residual.working(response, prediction, sigma, bounds)
        slope = slopes * scale[..., None]
        residual = torch.where(mask & torch.isfinite(residual), residual, 0.0)
        return residual, torch.where(mask[..., None] & torch.isfinite(slope), slope, 0.0)

    def chunks(self, width: int) -> list[slice]:
        """Return slices of individuals small enough that `width` particles each fit in memory."""
        size = max(1, CHUNK // (width * self.data.time.shape[1]))
        return [slice(start, start + size) for start in range(0, len(self), size)]

    @cached_property
    def by_length(self) -> list[tuple[Tensor, "Problem"]]:
        """Individuals with series of about the same length together, where some are much longer than others.

        Empty where they are not: all are one padded table, in which the longest series sets the price.
        """
        counts = self.data.counts.clamp_min(1)
        even = float(counts.max()) < RAGGED * float(counts.double().mean())
        if even or not self.residual.sums_up or self.data.bounds is not None:
            return []
        size = counts.double().log2().floor()
        groups = [torch.nonzero(size == value)[:, 0] for value in size.unique()]
        return [(index, self.subset(index)) for index in groups]

    def summary(self, phi: Tensor, beta: Tensor) -> Summary:
        """Return the error model's summary of predictions at particles (N, M, d), in chunks."""
        if self.by_length:
            found = Summary.joined([part.summary(phi[index], beta) for index, part in self.by_length])
            back = torch.cat([index for index, _ in self.by_length]).argsort()
            return found.map(lambda values: values[back])
        parts = []
        for rows in self.chunks(phi.shape[1]):
            prediction = self.predict(phi[rows], beta, rows)
            response, mask = self.data.response[rows, None], self.data.mask[rows, None]
            parts.append(self.residual.summary(response, prediction, mask, self.bounds(rows, 1)))
        return Summary.joined(parts)

    def bounds(self, rows: slice = slice(None), extra: int = 0) -> Bounds | None:
        """Return the bounds of censored observations, with axes for particles, or None."""
        if self.data.bounds is None:
            return None
        low, high = (side[rows].reshape(-1, *[1] * extra, side.shape[1]) for side in self.data.bounds)
        return low, high

    def nearest(self, prediction: Tensor) -> Tensor:
        """Return what the data allow nearest to predictions (N, ..., n): the response where observed."""
        extra = prediction.dim() - 2
        response = self.data.response.reshape(len(self.data), *[1] * extra, -1)
        if (bounds := self.bounds(extra=extra)) is None:
            return response
        return torch.where(censored(bounds), prediction.clamp(*bounds), response)

    def log_likelihood(self, phi: Tensor, beta: Tensor, sigma: Tensor) -> Tensor:
        """Return log p(y_i | phi): (N, M, d) -> (N, M)."""
        return self.residual.log_likelihood(self.summary(phi, beta), sigma)


def _outside(data: LongitudinalData, residual: Residual) -> Tensor:
    """Return which responses an error model cannot take; a censored one where it can take no value of it."""
    outside = residual.outside(data.response)
    if data.bounds is None:
        return outside
    impossible = residual.outside(data.bounds[1]) if residual.logarithmic else torch.zeros_like(outside)
    return torch.where(censored(data.bounds), impossible, outside)


def _check_doses(data: LongitudinalData, curve: Curve) -> None:
    """Raise ModelError when the curve cannot take the doses of the data."""
    if data.doses is None:
        return
    if curve.dose is None:
        raise ModelError(
            "The data have several doses, infusions or steady states, of which the curve "
            f"'{curve.title}' knows nothing; take a curve that superposes them, "
            'nf.curves.oral("AMT"), nf.curves.infusion("AMT", "TINF"), or nf.Curve(..., dose="AMT").'
        )
    infused = (data.doses.duration > 0) & (data.doses.amount > 0)
    if curve.duration is None and bool(infused.any()):
        raise ModelError('The data have infusions; take nf.curves.infusion("AMT", "TINF").')
    if curve.duration is not None and not bool(infused[data.doses.amount > 0].all()):
        raise ModelError("The curve is an infusion, and a dose of the data has no RATE or TINF.")
    if curve.steady is None and bool((data.doses.interval > 0).any()):
        raise ModelError(
            f"The data have doses at steady state (SS), and the curve '{curve.title}' does not say what it is"
            ' then; take nf.curves.oral("AMT"), nf.curves.infusion("AMT", "TINF"), or nf.Curve(steady=...).'
        )


def _check_amounts(data: LongitudinalData, curve: Curve, inputs: Mapping[str, Tensor]) -> None:
    """Raise ModelError for a negative dose, or a duration that is not positive, in a column."""
    for name, values in inputs.items():
        what, accepted, wrong = "dose", "from 0", (values < 0) & (name == curve.dose)
        if name == curve.duration:
            what, accepted, wrong = "duration", "above 0", values <= 0
        for row in torch.nonzero(wrong)[:, 0].tolist():
            raise ModelError(
                f"The {what} '{name}' is {float(values[row]):g} for '{data.labels[row]}'; accepted are "
                f"numbers {accepted}."
            )


def _input(data: LongitudinalData, name: str) -> Tensor:
    if name not in data.covariates.columns:
        raise ModelError(
            f"The curve needs the covariate '{name}': name it when reading the table, covariates=['{name}']."
        )
    column = data.covariates[name]
    try:
        values = torch.tensor(plain_numbers(column))
    except (TypeError, ValueError):
        raise ModelError(
            f"The curve needs numbers in covariate '{name}', which is {column.iloc[0]!r} for "
            f"'{data.labels[0]}'."
        ) from None
    if len(wrong := torch.nonzero(~torch.isfinite(values))):
        row = int(wrong[0])
        raise ModelError(
            f"The curve needs finite numbers in covariate '{name}', which is {column.iloc[row]} for "
            f"'{data.labels[row]}'."
        )
    return values
