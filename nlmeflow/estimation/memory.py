"""What was already computed, by key."""

from collections.abc import Callable
from typing import Any


class Memory:
    """Makes each thing once, so that what laws have in common is computed once."""

    def __init__(self) -> None:
        self._made: dict[Any, Any] = {}

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what `make` made the first time it was asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
