"""What a module returns, leaf by leaf with its path; and which leaf the scores are, where its name or form says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributions import Distribution

from rlmech.core.choices import Choices, Shape
from rlmech.core.points import OutputKind
from rlmech.errors import ConfigError
from rlmech.untyped import JsonObject

Selector = str | int | Callable[[Any], Any]
"""A key, an index, or a path of both (`"1.logits"`) into what the module returns; the path of a part or method of the
module that takes the observation (`"actor"`); or a function of what the module returns."""


BATCHES = (2, 3)


KNOWN_SCORES: dict[str, OutputKind] = {
    "action_dist_inputs": "logits",  # RLlib
    "action_value": "q_values",  # TorchRL's QValueActor
    "q_values": "q_values",
    "logits": "logits",
    "loc": "mean_action",  # TorchRL's NormalParamExtractor
}


KNOWN_VALUES = ("vf_preds", "state_value")


NOTHING = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaves:
    """What a module returns.

    Attributes:
        network: Its class.
        parts: Names of its parts.
        tensors: Path -> shape without the batch axis, of the floating-point tensors that have a row per observation.
        others: Path -> what it is, of everything else that is not None.
    """

    network: str
    parts: tuple[str, ...]
    tensors: dict[str, Shape]
    others: dict[str, str]

    @classmethod
    def of(cls, network: nn.Module, outputs: Sequence[Any]) -> Leaves:
        """The leaves of the outputs for batches of `BATCHES`."""
        found = [_flat(output) for output in outputs]
        tensors: dict[str, Shape] = {}
        others: dict[str, str] = {}
        for path, first in (found[0] if found else {}).items():
            second = found[1].get(path)
            if isinstance(first, Tensor) and isinstance(second, Tensor) and first.is_floating_point() and first.ndim:
                sizes = tuple(second.shape[1:])
                if (first.shape[0], second.shape[0]) == BATCHES and tuple(first.shape[1:]) == sizes:
                    tensors[path] = sizes
                    continue
            others[path] = f"{list(first.shape)} {first.dtype}" if isinstance(first, Tensor) else type(first).__name__
        parts = tuple(name for name, _ in network.named_children())
        return cls(network=type(network).__name__, parts=parts, tensors=tensors, others=others)

    def scores_and_value(self, choices: Choices | None, *, value_told: bool) -> tuple[list[Selector], str | None]:
        """The scores by their known name, or by the form of what is returned; and the value that stands beside them."""
        known = [path for path in self.tensors if last_key(path) in KNOWN_SCORES]
        if len(known) == 1:
            return [known[0]], None
        shapes = list(self.tensors.items())
        if len(shapes) == 1:
            return [shapes[0][0]], None
        if choices is not None and [shape for _, shape in shapes] == [(size,) for size in choices.sizes]:
            return [path for path, _ in shapes], None
        pair = [path for path, _ in shapes] == ["0", "1"]
        if pair and not value_told and shapes[0][1] not in ((), (1,)) and shapes[1][1] in ((), (1,)):
            return ["0"], "1"
        raise self._question()

    def kind_at(self, path: str) -> OutputKind | None:
        """What is selected of a distribution, or stands beside a standard deviation; None where neither tells."""
        for place, what in self.others.items():
            part = path.removeprefix(place).lstrip(".")
            if what in DISTRIBUTIONS and path.startswith(place) and part:
                return "logits" if last_key(part) == "logits" else "mean_action" if last_key(part) in _MEANS else None
        parent, _, name = path.rpartition(".")
        beside = {last_key(other) for other in (*self.tensors, *self.others) if other.rpartition(".")[0] == parent}
        return "mean_action" if name in _MEANS and not beside.isdisjoint(_DEVIATIONS) else None

    def known_value(self) -> str | None:
        """The path of the value by its known name; None where no output, or more than one, has such a name."""
        known = [path for path in self.tensors if last_key(path) in KNOWN_VALUES]
        return known[0] if len(known) == 1 else None

    def shown(self) -> str:
        """All leaves in words."""
        texts = [
            f"{path or 'a tensor'} [{' '.join(('batch', *map(str, shape)))}]" for path, shape in self.tensors.items()
        ]
        return (
            ", ".join([*texts, *(f"{path or 'a'} {what}".strip() for path, what in self.others.items())]) or "nothing"
        )

    def _question(self) -> ConfigError:
        if not self.tensors:
            distribution = next((path for path, what in self.others.items() if what in DISTRIBUTIONS), None)
            if distribution is None:
                returns = "returns nothing that" if self.others else "has no forward, and nothing that"
                return ConfigError(
                    f"The {self.network} {returns} could be action scores.",
                    given=self.shown(),
                    expected="a floating-point tensor [batch action]"
                    + (f", or one of its parts: {', '.join(self.parts)}" if self.parts else ""),
                    fix="name the part or method that gives them, e.g. scores='actor', or a function of the output",
                )
            name = DISTRIBUTIONS[self.others[distribution]]
            return ConfigError(
                f"The {self.network} returns a distribution over actions, of which the scores are one part.",
                given=self.shown(),
                expected="to be told which",
                fix=f"HookedPolicy(module, example_obs, scores={f'{distribution}.{name}'.lstrip('.')!r})",
            )
        values = [path for path, shape in self.tensors.items() if shape in ((), (1,))]
        first = next((path for path in self.tensors if path not in values), next(iter(self.tensors)))
        value = next((f", value={_shown(path)}" for path in values if path != first), "")
        return ConfigError(
            f"The {self.network} returns several tensors, and which of them the action scores are is not said.",
            given=self.shown(),
            expected="scores=, and value= where one of them is the state value",
            fix=f"HookedPolicy(module, example_obs, scores={_shown(first)}{value}), or whichever they are; "
            "several choices are a list of them",
        )


DISTRIBUTIONS = {
    "Categorical": "logits",
    "Bernoulli": "logits",
    "OneHotCategorical": "logits",
    "Normal": "mean",
    "Independent": "mean",
    "MultivariateNormal": "mean",
    "TransformedDistribution": "base_dist.mean",
    "TanhTransformedDistribution": "base_dist.mean",
    "SquashedNormal": "base_dist.mean",
    "Beta": "mean",
}
"""A distribution's class -> its attribute that scores the actions, or is the mean one."""


_MEANS = ("mean", "mu", "loc", "mode", "mean_action", "mean_actions", "action_mean")
_DEVIATIONS = ("log_std", "logstd", "std", "stddev", "scale", "sigma", "log_scale", "log_sigma", "action_std")


def _flat(output: Any, path: str = "") -> JsonObject:
    """Everything in what a module returns, by path; None and empty containers are nothing."""
    if output is None:
        return {}
    if isinstance(output, Tensor | Distribution):
        return {path: output}
    if isinstance(output, Mapping):
        items = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, tuple) and (names := getattr(output, "_fields", None)):
        items = list(zip(names, output, strict=True))
    elif isinstance(output, list | tuple):
        items = [(str(place), value) for place, value in enumerate(output)]
    elif is_dataclass(output) and not isinstance(output, type):
        items = [(entry.name, getattr(output, entry.name)) for entry in fields(output)]
    else:
        return {path: output}
    found: JsonObject = {}
    for key, value in items:
        found |= _flat(value, f"{path}.{key}" if path else key)
    return found


def last_key(path: str) -> str:
    """The last step of a path."""
    return path.rpartition(".")[2]


def _shown(path: str) -> str:
    return path if path.isdigit() else repr(path)


def _step(value: Any, key: str) -> Any:
    """One step of a path: a key, a place in a sequence, or an attribute; `NOTHING` where the value has no such part."""
    if isinstance(value, Mapping):
        found = next((value[own] for own in value if str(own) == key), NOTHING)
        return getattr(value, key, NOTHING) if found is NOTHING and key.isidentifier() else found
    if isinstance(value, list | tuple) and key.isdigit():
        return value[int(key)] if int(key) < len(value) else NOTHING
    return getattr(value, key, NOTHING) if key.isidentifier() else NOTHING


def value_at(value: object, path: str) -> object:
    """What stands at a path; `NOTHING` where nothing does. A key may have dots in it."""
    if not path:
        return value
    whole = _step(value, path)
    if whole is not NOTHING:
        return whole
    key, _, rest = path.partition(".")
    below = _step(value, key)
    return NOTHING if below is NOTHING or not rest else value_at(below, rest)
