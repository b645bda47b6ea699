"""Errors that say what was given, what was expected and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlmechError(Exception):
    """The root of all errors of this package.

    Args:
        problem: One sentence: what is wrong.
        given: What the caller gave.
        expected: What would have been right.
        fix: How to mend it.

    Example:
        >>> error = RlmechError("The door is shut.", given="a push", expected="a pull", fix="pull")
        >>> print(error)
        The door is shut.
          given: a push   expected: a pull
          fix: pull
    """

    def __init__(self, problem: str, *, given: object, expected: object, fix: str) -> None:
        super().__init__(problem)
        self.problem, self.given, self.expected, self.fix = problem, str(given), str(expected), fix

    def __str__(self) -> str:
        return f"{self.problem}\n  given: {self.given}   expected: {self.expected}\n  fix: {self.fix}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.problem, self.given, self.expected, self.fix)


def _rebuild(cls: type[RlmechError], problem: str, given: str, expected: str, fix: str) -> RlmechError:
    return cls(problem, given=given, expected=expected, fix=fix)


class SiteError(RlmechError, LookupError):
    """A hook point, or a position on one, that the policy does not have."""


class HookError(RlmechError, RuntimeError):
    """A hook that returned what cannot stand in for the activation, or that never fired."""


class ObservationError(RlmechError, ValueError):
    """An observation of the wrong structure, shape, dtype or value."""


class StateError(RlmechError, ValueError):
    """A recurrent state of the wrong structure or shape, or one for a policy that has none."""


class ParityError(RlmechError, RuntimeError):
    """The hooked policy does not compute what the original module computes."""


class EngineError(RlmechError, RuntimeError):
    """Something needs the traced graph and the policy runs on the eager engine."""


class AttentionError(RlmechError, LookupError):
    """An attention structure that was not found, or failed its numerical check."""


class CacheError(RlmechError, ValueError):
    """A cache that cannot be stacked, saved, loaded, or was changed in place."""


class ShapeError(RlmechError, ValueError):
    """Matrices whose shapes do not go together."""


class IndexRangeError(ShapeError, IndexError):
    """An index beyond the dimension that it stands on."""


class EditError(RlmechError, ValueError):
    """An edit whose value does not fit its site."""


class MetricError(RlmechError, ValueError):
    """A metric that does not fit the policy, or returned the wrong shape or NaN."""


class CheckpointError(RlmechError, ValueError):
    """A checkpoint that is damaged, unsafe, or does not fit its configuration."""


class MissingFileError(CheckpointError, FileNotFoundError):
    """A file that is not there."""


class ConfigError(RlmechError, ValueError):
    """A configuration that is missing, malformed or contradictory."""


class EnvironmentFitError(RlmechError, ValueError):
    """An environment whose spaces do not fit the policy."""


class RecordingError(RlmechError, ValueError):
    """A recording that exists already, is incomplete, or cannot be read."""


class SceneError(RlmechError, ValueError):
    """A scene that cannot be captured, an edit that does not fit it, or an observation that it does not have."""


class CopyError(RlmechError, RuntimeError):
    """An environment that cannot be copied in the middle of an episode, or whose copy goes on differently."""


class WorkerError(RlmechError, RuntimeError):
    """Workers that died again and again."""


class ArgumentError(RlmechError, TypeError):
    """A call with an argument that the function does not have, one too many by place, or one left out."""


class UnknownNameError(RlmechError, AttributeError):
    """A name that an object or a package does not have."""


class MissingPackageError(RlmechError, ImportError):
    """An optional package that is not installed."""


def nearest(name: str, names: Iterable[str], *, n: int = 3) -> list[str]:
    """The names most like a given one, the best first.

    Of hook names the last part counts most, and their common `hook_` not at all: that is what people remember.

    Example:
        >>> nearest("hook_patern", ["attention_layer.hook_pattern", "hook_q_values", "hook_obs"])
        ['attention_layer.hook_pattern']
    """
    rated = sorted(((-_likeness(name, known), place, known) for place, known in enumerate(names)))
    return [known for rating, _, known in rated[:n] if -rating >= _ALIKE]


_ALIKE = 0.5
_LAST_PART = 0.75
"""Weight of a hook name's last part; the rest is the whole name's."""


def _likeness(given: str, known: str) -> float:
    whole = _ratio(given, known)
    if "hook_" not in known:
        return whole
    ends = (name.rpartition(".")[2].removeprefix("hook_") for name in (given, known))
    return _LAST_PART * _ratio(*ends) + (1 - _LAST_PART) * whole


def _ratio(given: str, known: str) -> float:
    return difflib.SequenceMatcher(None, given.lower(), known.lower()).ratio()
