"""Which output of a module is the scores and which the value: told, known by its name, or asked for; never guessed.

A module that returns scores `[batch action]`, or a tuple of them and the value `[batch]`, runs as it is. Any other runs
inside a `ScoredModule`, which calls it and returns its scores and its value. Cost: a few forward passes on wrap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from rlmech.core.calls import Run, call_of
from rlmech.core.choices import Choices, Shape
from rlmech.core.points import OutputKind
from rlmech.errors import ConfigError

if TYPE_CHECKING:
    from gymnasium import spaces

Selector = str | int | Callable[[Any], Any]
"""A key, an index, or a path of both (`"1.logits"`) into what the module returns; the path of a part or method of the
module that takes the observation (`"actor"`); or a function of what the module returns."""
Read = Callable[[Callable[[], Any], Any], Any]
"""From what the module returns, computed when it is asked for, and the observation, to scores or a value."""

NETWORK = "network"
"""Name of the user's own module inside a `ScoredModule`."""
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


class ScoredModule(nn.Module):
    """A module, called so that it returns its scores first and its value, where it has one, second.

    Args:
        network: The user's own module, whose parameters these are.
        read: From an observation to the scores and the value.
        told: What tells `read` from another one for the same module: a graph that was kept is found again by it.
    """

    def __init__(self, network: nn.Module, read: Callable[[Any], tuple[Tensor, ...]], *, told: tuple[Any, ...]) -> None:
        super().__init__()
        self.add_module(NETWORK, network)
        self._read, self.told = read, told

    def forward(self, obs: Any) -> tuple[Tensor, ...]:
        """The scores, and the value where there is one."""
        return self._read(obs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """How a module is run.

    Attributes:
        module: What is run: the module itself, or a `ScoredModule` around it.
        root: Path of the user's module inside it.
        kind: What the scores are, where it is told or the module's own names tell; else None.
        choices: The choices, where there are several.
        names: Their names, where the scores were given as a list of names.
    """

    module: nn.Module
    root: str = ""
    kind: OutputKind | None = None
    choices: Choices | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What a `ScoredModule` reads."""

    run: Run | None
    scores: tuple[Read, ...]
    value: Read | None = None
    choices: Choices | None = None
    choice: int | None = None
    width: int | None = None

    def parts(self, obs: Any) -> tuple[list[Any], Any]:
        """What is read as scores, and as the value."""
        output = functools.cache(lambda: self.run(obs) if self.run is not None else None)
        return [read(output, obs) for read in self.scores], None if self.value is None else self.value(output, obs)

    def __call__(self, obs: Any) -> tuple[Tensor, ...]:
        parts, value = self.parts(obs)
        if self.choices is None:
            scores = parts[0] if self.width is None else parts[0][..., : self.width]
        elif self.choice is None:
            scores = self.choices.joined(parts)
        else:
            scores = self.choices.one(parts, self.choice)
        return (scores,) if value is None else (scores, value)


def find_outputs(
    network: nn.Module,
    samples: Callable[[int], Any],
    *,
    scores: Selector | Sequence[Selector] | None = None,
    value: Selector | None = None,
    kind: OutputKind | None = None,
    action_space: spaces.Space[Any] | None = None,
    choice: int | None = None,
) -> Scored:
    """Find the scores and the value of a module that is in eval mode.

    Args:
        network: The module.
        samples: Observations by their number, as the module takes them.
        scores: Which output is the scores; a list of several for several choices; None to know it by name or form.
        value: Which is the state value; None likewise.
        kind: What the scores are, where that is told.
        action_space: The environment's, if known: it says how many choices there are, and how wide a mean action is.
        choice: The one choice that is wanted, of several.

    Raises:
        ConfigError: It cannot be told, or there is no such output.
    """
    listed = scores if isinstance(scores, list | tuple) else None
    continuous = kind == "mean_action" or _is_box(action_space)
    choices = None if continuous else Choices.of_space(action_space)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        call = call_of(network, samples(1))
        outputs = [] if call.run is None else [_called(network, call.run, samples(n)) for n in BATCHES]
        leaves = _Leaves.of(network, outputs)
        if scores is None:
            chosen, by_form = leaves.scores_and_value(choices, value_told=value is not None)
            value = by_form if value is None else value
        else:
            chosen = [cast(Selector, scores)] if listed is None else list(listed)
        value = leaves.known_value() if value is None else value
        reading = _Reading(
            run=call.run,
            scores=tuple(_read(network, selector, outputs, leaves, "scores") for selector in chosen),
            value=None if value is None else _read(network, value, outputs, leaves, "value"),
        )
        shapes, value_shape = _shapes(reading, samples, type(network).__name__)
    if choices is None and listed is not None and len(chosen) > 1:
        choices = Choices(sizes=tuple(shape[0] for shape in shapes))
    _check_shapes(type(network).__name__, shapes, value_shape, choices)
    kind, width = _kind_and_width(chosen, shapes, kind, action_space)
    paths = [str(part) for part in chosen] + ([] if value is None else [str(value)])
    as_it_is = paths == list(leaves.tensors) and paths in ([""], ["0"], ["0", "1"])
    if call.plain and as_it_is and choices is None and width is None:
        return Scored(module=network, kind=kind)
    reading = replace(reading, choices=choices, choice=choice, width=width)
    told = (tuple(chosen), value, choices and (choices.sizes, choices.binary), choice, width)
    names = tuple(part for part in chosen if isinstance(part, str)) if listed is not None else ()
    return Scored(
        module=ScoredModule(network, reading, told=told),
        root=NETWORK,
        kind=kind,
        choices=choices,
        names=names if choices is not None and len(names) == len(chosen) else (),
    )


def _is_box(space: spaces.Space[Any] | None) -> bool:
    return hasattr(space, "low")


def _called(network: nn.Module, run: Run, obs: Any) -> Any:
    try:
        return run(obs)
    except RuntimeError as error:
        if "Expected input at" not in str(error):  # torch.export's own check of an exported program's input
            raise
        raise ConfigError(
            "The exported program takes batches of one size alone, and analyses run batches of any.",
            given=str(error).splitlines()[0][:200],
            expected="a program whose first axis is dynamic",
            fix="torch.export.export(module, (obs,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))",
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaves:
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
    def of(cls, network: nn.Module, outputs: Sequence[Any]) -> _Leaves:
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
        known = [path for path in self.tensors if _last(path) in KNOWN_SCORES]
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

    def known_value(self) -> str | None:
        """The path of the value by its known name; None where there is none."""
        known = [path for path in self.tensors if _last(path) in KNOWN_VALUES]
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


def _flat(output: Any, path: str = "") -> dict[str, Any]:
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
    found: dict[str, Any] = {}
    for key, value in items:
        found |= _flat(value, f"{path}.{key}" if path else key)
    return found


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _shown(path: str) -> str:
    return path if path.isdigit() else repr(path)


def _step(value: Any, key: str) -> Any:
    """One step of a path: a key, a place in a sequence, or an attribute; `NOTHING` where there is none."""
    if isinstance(value, Mapping):
        found = next((value[own] for own in value if str(own) == key), NOTHING)
        return getattr(value, key, NOTHING) if found is NOTHING and key.isidentifier() else found
    if isinstance(value, list | tuple) and key.isdigit():
        return value[int(key)] if int(key) < len(value) else NOTHING
    return getattr(value, key, NOTHING) if key.isidentifier() else NOTHING


def _follow(value: Any, path: str) -> Any:
    """What stands at a path; `NOTHING` where nothing does. A key may have dots in it."""
    if not path:
        return value
    whole = _step(value, path)
    if whole is not NOTHING:
        return whole
    key, _, rest = path.partition(".")
    below = _step(value, key)
    return NOTHING if below is NOTHING or not rest else _follow(below, rest)


def _part(network: nn.Module, path: str) -> Any:
    """A part or method of a module, by its path; None where there is none that can be called."""
    found: Any = network
    for key in path.split("."):
        found = getattr(found, key, None) if found is not None else None
    return found if callable(found) else None


def _read(network: nn.Module, selector: Selector, outputs: Sequence[Any], leaves: _Leaves, argument: str) -> Read:
    """How to read what a selector selects."""
    if callable(selector):
        function = selector
        return lambda output, _: function(output())
    path = str(selector)
    if outputs and isinstance(_follow(outputs[0], path), Tensor):
        return lambda output, _: _follow(output(), path)
    if isinstance(selector, str) and _part(network, path) is not None:
        return lambda _, obs: _part(network, path)(obs)
    raise ConfigError(
        f"The {leaves.network} has no output {selector!r} that could be its {argument}, and no such part.",
        given=f"{argument}={selector!r}; it returns {leaves.shown()}"
        if outputs
        else f"{argument}={selector!r}; it has no forward",
        expected=f"a key, an index or a path of what it returns, or one of its parts: {', '.join(leaves.parts)}",
        fix=f"{argument}= one of these, or a function of what it returns",
    )


def _shapes(reading: _Reading, samples: Callable[[int], Any], network: str) -> tuple[list[Shape], Shape | None]:
    """The shapes of scores and value without their batch axes."""
    n = BATCHES[1]
    parts, value = reading.parts(samples(n))
    for what, tensor in (*(("scores", part) for part in parts), *((("value", value),) if value is not None else ())):
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.shape[:1] != (n,):
            given = f"{list(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ConfigError(
                f"What is given as the {what} of the {network} has no row of numbers for each observation.",
                given=f"{given} for {n} observations",
                expected=f"floating-point numbers [batch{' action' if what == 'scores' else ''}]",
                fix=f"{what}= another output, or a function of what the module returns",
            )
    return [tuple(part.shape[1:]) for part in parts], None if value is None else tuple(value.shape[1:])


def _check_shapes(network: str, shapes: Sequence[Shape], value: Shape | None, choices: Choices | None) -> None:
    if value not in (None, (), (1,)):
        raise ConfigError(
            f"What is given as the value of the {network} is not one number for each observation.",
            given=f"[batch {' '.join(map(str, value or ()))}]",
            expected="[batch] or [batch 1]",
            fix="value= another output, or a function of what the module returns",
        )
    if choices is not None:
        choices.check(shapes)
    elif len(shapes[0]) == 2:
        raise ConfigError(
            f"The {network} gives a row of numbers for each action: a distribution over returns, or several choices.",
            given=f"scores [batch {shapes[0][0]} {shapes[0][1]}]",
            expected="one score for each action, [batch action]",
            fix="of probabilities over a support: scores=lambda p: (p * support).sum(-1); of quantiles: "
            "scores=lambda q: q.mean(-1); of choices: action_space=gymnasium.spaces.MultiDiscrete([...])",
        )
    elif len(shapes[0]) != 1:
        raise ConfigError(
            "The module does not return action scores.",
            given=f"an output of {len(shapes[0]) + 1} axes",
            expected="a tensor [batch action], or a tuple of it and the value [batch]",
            fix="say which output they are, scores='name', or give a function of the output that returns them",
        )


def _kind_and_width(
    chosen: Sequence[Selector], shapes: Sequence[Shape], kind: OutputKind | None, space: spaces.Space[Any] | None
) -> tuple[OutputKind | None, int | None]:
    """What the scores are, as far as it is told; and how many of RLlib's inputs of a Gaussian are its mean."""
    name = _last(str(chosen[0]))
    if name != "action_dist_inputs" or space is None or not _is_box(space):
        return kind or KNOWN_SCORES.get(name), None
    size = int(np.prod(space.shape or ()))
    return kind or "mean_action", size if shapes[0] == (2 * size,) else None
