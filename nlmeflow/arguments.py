"""Arguments of public functions: each is what its annotation says, or it is refused in words."""

import contextlib
import functools
import inspect
import reprlib
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from nlmeflow.errors import ModelError, is_number

P = ParamSpec("P")
T = TypeVar("T")
WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", type(None): "None"}
WORDS[np.ndarray] = "an array"
_hints: Callable[[Any], dict[str, Any]] = functools.cache(get_type_hints)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Refuse arguments that are not what their annotation says; a whole number such as 1e3 becomes an int.

    Raises
    ------
    ModelError : of the first such argument, with what would be accepted.

    """
    signature = inspect.signature(function)
    some = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    single = [p.name for p in signature.parameters.values() if p.kind not in some]

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        bound = None
        with contextlib.suppress(TypeError):  # Python's own words, below, have the function's name
            bound = signature.bind(*args, **kwargs)
        if bound is None:
            return function(*args, **kwargs)
        hints = _hints(function)
        for name in single:
            if name in bound.arguments and name in hints:
                bound.arguments[name] = taken(name, bound.arguments[name], hints[name])
        return function(*bound.args, **bound.kwargs)

    return call


def check_fields(owner: Any) -> None:
    """Raise ModelError unless the fields of a frozen dataclass are what their annotations say."""
    hints = _hints(type(owner))
    for name in (field.name for field in fields(owner)):
        object.__setattr__(owner, name, taken(name, getattr(owner, name), hints[name]))


def taken(name: str, value: object, hint: Any) -> Any:
    """Return an argument, or raise ModelError unless it is what an annotation says."""
    if type(value) is hint and hint not in (int, float):  # of laws, which are made by the thousand
        return value
    if not _fits(value, hint):
        plain = isinstance(value, str | int | float | list | tuple | None)
        shown = reprlib.repr(value) if plain else _article(value)
        raise ModelError(f"{name} is {_words(hint)}, got {shown}.")
    return int(value) if hint is int else value  # type: ignore[call-overload]


def names_of(name: str, value: object) -> tuple[str, ...]:
    """Return an argument that holds one name or several as a tuple, or raise ModelError."""
    return (value,) if isinstance(value, str) else tuple(taken(name, value, tuple[str, ...] | list[str]))


def column(ours: str, longer: str, theirs: Collection[str]) -> str:
    """Return what a column of ours is called beside the user's parameters: longer where one is called so."""
    return longer if ours in theirs else ours


def _fits(value: object, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if hint in (int, float):
        return is_number(value) and (hint is float or value == int(value))  # type: ignore[call-overload]
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if origin is type:
        return isinstance(value, type) and issubclass(value, inner[0])
    if origin is None or issubclass(origin, Callable):  # type: ignore[arg-type]
        return hint is Any or isinstance(value, origin or hint)
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(each, inner[1]) for each in value.values())
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        return False
    if origin is tuple and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return getattr(value, "ndim", 1) > 0 and all(_fits(each, inner[0]) for each in value)


def _words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_words, inner)))
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is None:
        return WORDS.get(hint) or _article(hint)
    if origin is type:
        return f"the class of {_words(inner[0])}"
    if issubclass(origin, Mapping):
        return f"a mapping of names, each to {_words(inner[1])}"
    if origin is tuple and inner[-1] is not ...:
        return f"{len(inner)} values ({', '.join(map(_words, inner))})"
    return "a function" if issubclass(origin, Callable) else f"a list, each {_words(inner[0])}"  # type: ignore[arg-type]


def _article(thing: object) -> str:
    name = (thing if isinstance(thing, type) else type(thing)).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
