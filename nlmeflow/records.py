"""What a file of a fit can hold: dataclasses, tensors, numbers, words; nothing that could run."""

from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from nlmeflow.errors import DataError, ModelError

Tensors = dict[str, Tensor]


class Saved:
    """Base of the dataclasses that can be saved: each is found again by its name, by being defined."""

    classes: ClassVar[dict[str, type["Saved"]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        Saved.classes[cls.__name__] = cls

    @classmethod
    def restored(cls, **values: Any) -> Self:
        """Return the object of these fields as `decode` finds them; a network comes as its weights."""
        return cls(**values)


def encode(value: Any, place: str, tensors: Tensors) -> Any:
    """Return what JSON must say of a value; its tensors go into `tensors`, by names from `place` on.

    Raises
    ------
    ModelError : the value, or something in it, is not of a kind that a file can hold.

    """
    if isinstance(value, Tensor):
        tensors[place] = value
        return {"tensor": place}
    if isinstance(value, nn.Module):
        tensors |= {f"{place}.{name}": weight for name, weight in value.named_parameters()}
        return {"weights": place}
    if isinstance(value, Saved) and is_dataclass(value):
        inner = {f.name: encode(getattr(value, f.name), f"{place}.{f.name}", tensors) for f in fields(value)}
        return {"class": type(value).__name__, **inner}
    if isinstance(value, tuple | list):
        return [encode(part, f"{place}.{k}", tensors) for k, part in enumerate(value)]
    if isinstance(value, np.generic | np.ndarray) and value.ndim == 0:
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ModelError(f"A {type(value).__name__} cannot be saved ({place}).")


def decode(about: Any, tensors: Tensors) -> Any:
    """Return the value that `encode` put away.

    Raises
    ------
    DataError : a class that nothing has defined.

    """
    if isinstance(about, list):
        return tuple(decode(part, tensors) for part in about)
    if not isinstance(about, dict):
        return about
    if "class" not in about:
        if "tensor" in about:
            return tensors[about["tensor"]]
        start = f"{about['weights']}."
        return {name.removeprefix(start): w for name, w in tensors.items() if name.startswith(start)}
    if about["class"] not in Saved.classes:
        raise DataError(f"Unknown '{about['class']}' in the file; import what defines it before loading.")
    values = {name: decode(part, tensors) for name, part in about.items() if name != "class"}
    return Saved.classes[about["class"]].restored(**values)
