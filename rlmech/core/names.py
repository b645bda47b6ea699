"""Hook names chosen by name, glob, list or function; what matches nothing is an error with the nearest names."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence

from rlmech.core.hook_point import HookPoint
from rlmech.errors import SiteError, nearest

Names = str | Sequence[str] | Callable[[str], bool] | None


class HookPoints(dict[str, HookPoint]):
    """A policy's hook points by name; asking for one that is not there is an error with the nearest names."""

    def __init__(self, network: str, *, left_out: Mapping[str, str]) -> None:
        super().__init__()
        self.network, self.left_out = network, left_out

    def __missing__(self, name: object) -> HookPoint:
        raise NameChooser(self.network, list(self), left_out=self.left_out).no_match(name)


class NameChooser:
    """Chooses among a policy's hook names; what was chosen once is remembered.

    Args:
        network: Name of the network, for messages.
        known: All hook names, in order.
        left_out: Names of what cannot be shown, and why.
    """

    def __init__(self, network: str, known: Sequence[str], *, left_out: Mapping[str, str]) -> None:
        self.network, self.known, self.left_out = network, tuple(known), left_out
        self._chosen: dict[object, tuple[str, ...]] = {None: self.known}

    def __call__(self, names: Names) -> tuple[str, ...]:
        """The names that match, in the policy's order.

        Raises:
            SiteError: One of them, or the function, matches nothing.
        """
        if not (names is None or callable(names) or isinstance(names, str | list | tuple)):
            raise self.no_match(names)
        if callable(names):
            chosen = tuple(name for name in self.known if names(name))
            if not chosen:
                raise self.no_match(names)
            return chosen
        key = tuple(names) if isinstance(names, list) else names
        if key not in self._chosen:
            patterns = [names] if isinstance(names, str) else list(names or ())
            found = {name for pattern in patterns for name in self._matching(pattern)}
            self._chosen[key] = tuple(name for name in self.known if name in found)
        return self._chosen[key]

    def no_match(self, given: object) -> SiteError:
        """The error for a name that matches nothing."""
        close = nearest(given, self.known) if isinstance(given, str) else []
        reason = self.left_out.get(given) if isinstance(given, str) else None
        return SiteError(
            f"{self.network} has no hook point {given!r}" + (f": {reason}." if reason else "."),
            given=repr(given),
            expected=f"one of {len(self.known)} names" + (f", e.g. {close[0]!r}" if close else ""),
            fix=(f"did you mean {close[0]!r}? " if close else "") + "policy.hook_dict lists them all",
        )

    def _matching(self, pattern: str) -> list[str]:
        if pattern in self.known:
            return [pattern]
        matching = fnmatch.filter(self.known, pattern)
        if not matching:
            raise self.no_match(pattern)
        return matching
