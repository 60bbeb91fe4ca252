"""A curve of the catalogue from its name and arguments in a string, as a parameter of a notebook has it."""

import ast
import inspect

from nlmeflow.arguments import checked
from nlmeflow.curves.curve import LIBRARY, Curve
from nlmeflow.errors import ModelError


@checked
def named(text: str, time_unit: str = "", response_unit: str = "") -> Curve:
    """Return a curve of the catalogue, such as "logistic_senescence" or "change_point(smoothness=2)".

    Units are those of axes and tables; a curve without one of them leaves it aside.

    Raises
    ------
    ModelError : no curve of this name; arguments that are not constants given by name, or that it does not
        take, or that it needs and were not given.

    """
    name, arguments = _parsed(text)
    if name not in LIBRARY:
        raise ModelError(f"No curve '{name}'; the curves are {', '.join(sorted(LIBRARY))}.")
    make = LIBRARY[name]
    signature = inspect.signature(make)
    for unit, value in (("time_unit", time_unit), ("response_unit", response_unit)):
        if unit in signature.parameters and value:
            arguments.setdefault(unit, value)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        takes = ", ".join(signature.parameters)
        raise ModelError(f"The curve {name} takes {takes}; {error}.") from None
    return make(**arguments)


def _parsed(text: str) -> tuple[str, dict[str, object]]:
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            values = {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}
            return tree.func.id, values
    except (SyntaxError, ValueError):
        pass
    raise ModelError(f"A curve is a name, or name(argument=value, ...), got {text!r}.")
