"""What was worked out for the last few questions: a dict that forgets what was not asked for longest."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Values by their keys, at most `most` of them, the last used ones.

    The last key is compared before it is hashed: hashing some thousand sites takes longer than finding them identical.
    Threads may share one; at worst a value is made twice.

    Args:
        most: How many values are kept, 1 or more.

    Example:
        >>> squares = Recent(2)
        >>> [squares.get(n, lambda n=n: n * n) for n in (1, 2, 1, 3)], len(squares)
        ([1, 4, 1, 9], 2)
        >>> squares.get(1, lambda: "made again"), squares.get(2, lambda: "made again")
        (1, 'made again')
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[K, V] = {}
        self._last: tuple[K, V] | None = None

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The key's value, made where it is not kept."""
        last = self._last
        if last is not None and last[0] == key:
            return last[1]
        try:
            value = self._kept.pop(key)  # put back as the last below
        except KeyError:
            value = make()
        surplus = len(self._kept) - self._most + 1
        if surplus > 0:
            for oldest in list(self._kept)[:surplus]:
                self._kept.pop(oldest, None)
        self._kept[key] = value
        self._last = (key, value)
        return value

    def clear(self) -> None:
        """Forget all values."""
        self._kept.clear()
        self._last = None

    def __len__(self) -> int:
        return len(self._kept)
