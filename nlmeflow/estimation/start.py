"""First values: one curve through all the data, found without asking for starting values.

Candidates for each parameter are built from the sizes of time and response, so that changing their
units changes nothing; the best of a quasi-random sample of combinations is polished by
Levenberg-Marquardt steps, several at a time. Where several curves are equally near to all the data, as at
two times, all of them are returned.
"""

from dataclasses import fields, replace

import torch
from torch import Tensor

from nlmeflow.curves import Parameter
from nlmeflow.errors import EstimationError, ModelError
from nlmeflow.estimation.problem import Problem
from nlmeflow.numerics import TINY
from nlmeflow.seeds import sobol

N_COMBINATIONS = 4096
N_LOOKED_AT = 200
N_POLISHED = 12
N_INDIVIDUALS = 40
POOR = 0.5  # share of the spread of the responses that a start should leave unexplained at most
SWEEPS = 3
BEYOND = 1e10  # times the largest unit: a parameter has run off
EQUALLY = 1e-3  # share by which a sum of squares may be larger and its curve be as near to the data
APART = 0.2  # share of a parameter by which two curves differ
STEPS = (1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)


def pooled_starts(
    problem: Problem, given: dict[str, float], seed: int, thorough: bool = False
) -> list[dict[str, float]]:
    """Return first values of all structural parameters on the unconstrained scale, best first.

    More than one where curves with other parameters are equally near to the data.

    thorough : also try every candidate of each parameter in turn, which otherwise is done where the best
        start explains little.

    Raises
    ------
    EstimationError : the curve is finite at no candidate.
    ModelError : the curve is zero where the error model cannot use it.

    """
    names = problem.curve.names
    pooled = whole = replace(problem, random=names, fixed=(), effects=(), design=None)
    if len(problem) > N_INDIVIDUALS:
        random = torch.Generator().manual_seed(seed)
        pooled = pooled.subset(torch.randperm(len(problem), generator=random)[:N_INDIVIDUALS])
    choices = [_choices(problem, problem.curve[name], given.get(name)) for name in names]
    points = _combinations(choices, seed)
    losses = _losses(pooled, points)
    if not bool(torch.isfinite(losses).any()):
        raise EstimationError(_no_start(problem, points))
    check_zeros(whole, points[torch.isfinite(losses)][:5], points.new_zeros(0))
    found = _sought(pooled, choices, points, losses, thorough)
    if problem.residual.logarithmic:
        logged = _Logged.of(pooled)
        losses = _losses(logged, points)
        poor = not float(_losses(logged, found[:1])) <= POOR * _spread(logged)
        if poor and bool(torch.isfinite(losses).any()):
            found = _sought(logged, choices, points, losses, thorough)
    natural = problem.curve.natural(found)
    values = [
        problem.curve.usual({name: float(natural[name][k]) for name in names}) for k in range(len(found))
    ]
    return [
        {
            name: float(problem.curve[name].scale.unconstrained(torch.tensor(value, dtype=torch.float64)))
            for name, value in psi.items()
        }
        for psi in _distinct(values)
    ]


def _distinct(values: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the parameters of curves that differ from all before them."""
    kept: list[dict[str, float]] = []
    for psi in values:
        if all(_differ(psi, other) for other in kept):
            kept.append(psi)
    return kept


def _differ(psi: dict[str, float], other: dict[str, float]) -> bool:
    """Return whether some parameter of two curves differs by more than a share `APART`."""
    return any(abs(psi[name] - other[name]) > APART * max(abs(psi[name]), abs(other[name])) for name in psi)


class _Logged(Problem):
    """The problem on the logarithmic scale of response and curve, where a tail counts as much as a peak."""

    @classmethod
    def of(cls, problem: Problem) -> "_Logged":
        """Return the logarithm of a problem."""
        parts = {field.name: getattr(problem, field.name) for field in fields(problem)}
        data = problem.data
        low, high = data.bounds or (data.response, data.response)
        bounds = None if data.bounds is None else (low.clamp_min(0.0).log(), high.clamp_min(0.0).log())
        response = torch.where(data.mask, data.response.log(), 0.0)
        return cls(**parts | {"data": replace(data, response=response, bounds=bounds)})

    def predict(self, phi: Tensor, beta: Tensor, rows: slice = slice(None)) -> Tensor:
        return super().predict(phi, beta, rows).log()


def _sought(
    problem: Problem, choices: list[Tensor], points: Tensor, losses: Tensor, thorough: bool
) -> Tensor:
    """Return the best points, after polishing the most promising ones, and, where poor, those of a sweep."""
    best, limits = _promising(problem, points, losses), _limits(choices)
    polished, reached = _polish(problem, points[best], losses[best], limits)
    if thorough or float(reached.min()) > POOR * _spread(problem):
        points, losses = _swept(problem, choices, points, losses)
        best = _promising(problem, points, losses)
        more, losses = _polish(problem, points[best], losses[best], limits)
        polished, reached = torch.cat([polished, more]), torch.cat([reached, losses])
    order = reached.argsort()
    near = reached[order] <= (1 + EQUALLY) * reached.min() + TINY
    return polished[order[near]]


def check_zeros(problem: Problem, points: Tensor, beta: Tensor) -> None:
    """Raise ModelError where the curve is zero whatever its parameters and the error model cannot use that.

    points (K, d): parameters at which the curve is looked at.
    """
    prediction = problem.predict(points.expand(len(problem), *points.shape), beta)
    zero = (prediction == 0).all(1) & problem.data.mask
    wrong = torch.nonzero(problem.residual.unusable(problem.data.response, zero))
    if len(wrong):
        example = problem.data.about(*wrong[0].tolist())
        raise ModelError(
            f"The curve is exactly zero for {len(wrong)} observations, for example {example}: "
            f"nf.{type(problem.residual).__name__}() gives them no likelihood, or an unbounded one. Leave "
            "these rows out, or take nf.Additive()."
        )


def _choices(problem: Problem, parameter: Parameter, given: float | None) -> Tensor:
    """Return candidate values of one parameter on the unconstrained scale."""
    value = parameter.start if given is None else given
    if value is not None:
        parameter.scale.check(parameter.name, value)
        return parameter.scale.unconstrained(torch.tensor([float(value)], dtype=torch.float64))
    lower, upper = parameter.scale.lower, parameter.scale.upper
    if lower > -torch.inf and upper < torch.inf:
        return torch.linspace(-2.5, 2.5, 7, dtype=torch.float64)
    time, response = problem.data.time[problem.data.mask], problem.data.response[problem.data.mask]
    scales = (_units(problem, parameter.kind)[:, None] * torch.tensor(STEPS, dtype=time.dtype)).flatten()
    if lower == 0:
        return parameter.scale.unconstrained(scales)
    levels = torch.linspace(0, 1, 7, dtype=time.dtype)
    seen = {"time": [time], "level": [response], None: [time, response]}[parameter.kind]
    places = torch.cat([values.quantile(levels) for values in seen])
    both = torch.cat([places, places, places, scales, -scales, scales.new_zeros(1)])
    if parameter.scale.name == "identity":
        return both
    inside = both[(both > lower) & (both < upper)]
    return parameter.scale.unconstrained(inside)


def _units(problem: Problem, kind: str | None = None) -> Tensor:
    """Return sizes that a parameter of the curve may have, from those of time, response and inputs.

    kind : as of `Parameter`.
    """
    time, response = problem.data.time[problem.data.mask], problem.data.response[problem.data.mask]
    span, size = (time.max() - time.min()).clamp_min(1e-300), response.abs().max().clamp_min(1e-300)
    if kind is not None:
        return torch.stack([span if kind == "time" else size])
    units = [span, 1 / span, size, size / span, torch.ones_like(span)]
    for x in problem.inputs.values():
        units += [x.abs().mean() / size, x.abs().mean() / (size * span)]
    return torch.stack(units)


def reach(problem: Problem) -> float:
    """Return a value, far beyond all first values, that no parameter has in these data's units."""
    farthest = problem.data.time[problem.data.mask].abs().max()
    return BEYOND * float(torch.cat([_units(problem), farthest[None]]).max())


def _combinations(choices: list[Tensor], seed: int) -> Tensor:
    """Return quasi-random combinations of candidates, (S, number of parameters)."""
    count = 1
    for choice in choices:
        count *= len(choice)
    if count <= N_COMBINATIONS:
        return torch.cartesian_prod(*choices).reshape(count, len(choices))
    place = sobol(N_COMBINATIONS, len(choices), seed).float()
    columns = [c[(place[:, k] * len(c)).long().clamp(max=len(c) - 1)] for k, c in enumerate(choices)]
    return torch.stack(columns, 1)


def _spread(problem: Problem) -> float:
    """Return the sum of squares of the responses around their mean."""
    seen = problem.data.response[problem.data.mask]
    return float((seen - seen.mean()).square().sum())


def _swept(problem: Problem, choices: list[Tensor], points: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Try every candidate of each parameter in turn, the others as in the best points so far."""
    for _ in range(SWEEPS):
        for k, choice in enumerate(choices):
            kept = losses.argsort()[:N_POLISHED]
            moved = points[kept].repeat_interleave(len(choice), 0)
            moved[:, k] = choice.repeat(len(kept))
            points = torch.cat([points[kept], moved])
            losses = torch.cat([losses[kept], _losses(problem, moved)])
    return points, losses


def _promising(problem: Problem, points: Tensor, losses: Tensor) -> Tensor:
    """Return positions of the best combinations that differ and can be polished.

    A curve that some parameter does not move (a step between two times) is left out: it may fit well, and
    leads nowhere.
    """
    order = losses.argsort()[:N_LOOKED_AT]
    order = order[torch.isfinite(losses[order])]
    _, slopes = problem.jacobian(points[order].expand(len(problem), len(order), -1), points.new_zeros(0))
    slopes = torch.where(problem.data.mask[:, None, :, None], slopes, 0.0)
    moves = (slopes.square().sum((0, 2)) > 0).all(-1)
    distinct = torch.ones_like(moves)
    distinct[1:] = losses[order].diff() > 1e-9 * losses[order][1:]
    kept = order[moves & distinct]
    return (kept if len(kept) else order)[:N_POLISHED]


def _residuals(problem: Problem, prediction: Tensor) -> Tensor:
    return torch.where(problem.data.mask[:, None], problem.nearest(prediction) - prediction, 0.0)


def _losses(problem: Problem, points: Tensor) -> Tensor:
    """Return the pooled sum of squares of each combination, infinite where the curve fails."""
    phi = points.expand(len(problem), *points.shape)
    beta = points.new_zeros(0)
    losses = _residuals(problem, problem.predict(phi, beta)).square().sum((0, 2))
    return torch.where(torch.isfinite(losses), losses, torch.inf)


def _limits(choices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return how far a start may go: as the candidates do, any way where one value was given."""
    many = torch.tensor([len(choice) > 1 for choice in choices])
    lowest, highest = torch.stack([c.min() for c in choices]), torch.stack([c.max() for c in choices])
    return lowest.where(many, -torch.inf), highest.where(many, torch.inf)


def _polish(
    problem: Problem, points: Tensor, losses: Tensor, limits: tuple[Tensor, Tensor], steps: int = 40
) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on several starts at once, inside limits: beyond them a parameter moves nothing."""
    damping = torch.full_like(losses, 1e-2)
    beta = points.new_zeros(0)
    for _ in range(steps):
        prediction, slopes = problem.jacobian(points.expand(len(problem), *points.shape), beta)
        slopes = torch.where(problem.data.mask[:, None, :, None] & torch.isfinite(slopes), slopes, 0.0)
        hessian = torch.einsum("isjk,isjl->skl", slopes, slopes)
        gradient = torch.einsum("isjk,isj->sk", slopes, _residuals(problem, prediction))
        scale = hessian.diagonal(dim1=-2, dim2=-1).clamp_min(TINY).rsqrt()  # of parameters of any unit
        system = hessian * scale[:, :, None] * scale[:, None]
        lift = (damping + 1e-12)[:, None].expand_as(scale)
        step = scale * torch.linalg.solve_ex(system + torch.diag_embed(lift), scale * gradient)[0]
        tried = (points + torch.where(torch.isfinite(step), step, 0.0)).clamp(*limits)
        tried_losses = _losses(problem, tried)
        better = tried_losses < losses
        gain = torch.where(better, 1 - tried_losses / losses, 0.0)
        points = torch.where(better[:, None], tried, points)
        losses = torch.where(better, tried_losses, losses)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-12, 1e12)
        if not bool((gain > 1e-6).any()) and bool((damping > 1e3).all() or (gain.max() > 0)):
            break
    return points, losses


def _no_start(problem: Problem, points: Tensor) -> str:
    shown = problem.curve.natural(points[0])
    values = ", ".join(f"{name} = {float(value):g}" for name, value in shown.items())
    return (
        f"The curve returns no finite prediction at any of the {len(points)} starts tried, for "
        f"example at {values}. Give first values with Parameter(..., start=...) or "
        "fit(..., start={...}), or check that the curve is finite at the data's times."
    )
