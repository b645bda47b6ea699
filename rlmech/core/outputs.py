"""Which output of a module is the scores and which the value: told, known by its name, or asked for; never guessed.

A module that returns scores `[batch action]`, or a tuple of them and the value `[batch]`, runs as it is. Any other runs
inside a `ScoredModule`, which calls it and returns its scores and its value. Cost: a few forward passes on wrap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rlmech.core.calls import Run, call_of
from rlmech.core.choices import Choices, Shape
from rlmech.core.output_leaves import BATCHES, KNOWN_SCORES, Leaves, Selector, last_key, value_at
from rlmech.core.points import OutputKind
from rlmech.errors import ConfigError

if TYPE_CHECKING:
    from gymnasium import spaces

Read = Callable[[Callable[[], Any], Any], Any]
"""From what the module returns, computed when it is asked for, and the observation, to scores or a value."""

NETWORK = "network"
"""Name of the user's own module inside a `ScoredModule`."""


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

    def forward(self, obs: object) -> tuple[Tensor, ...]:
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
    samples: Callable[[int], object],
    *,
    scores: Selector | Sequence[Selector] | None = None,
    value: Selector | None = None,
    kind: OutputKind | None = None,
    action_space: spaces.Space | None = None,
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
        leaves = Leaves.of(network, outputs)
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
    kind, width = _kind_and_width(chosen, shapes, kind or leaves.kind_at(str(chosen[0])), action_space)
    if choices is None and (kind == "mean_action" or not _is_box(action_space)):
        _check_width(type(network).__name__, shapes[0][0] if width is None else width, action_space)
    paths = [str(part) for part in chosen] + ([] if value is None else [str(value)])
    as_it_is = paths == list(leaves.tensors) and paths in ([""], ["0"], ["0", "1"])
    if call.plain and as_it_is and choices is None and width is None:
        return Scored(module=network, kind=kind)
    reading = replace(reading, choices=choices, choice=choice, width=width)
    told = (tuple(chosen), value, choices and (choices.sizes, choices.binary), choice, width, call.plain)
    names = tuple(part for part in chosen if isinstance(part, str)) if listed is not None else ()
    return Scored(
        module=ScoredModule(network, reading, told=told),
        root=NETWORK,
        kind=kind,
        choices=choices,
        names=names if choices is not None and len(names) == len(chosen) else (),
    )


def _is_box(space: spaces.Space | None) -> bool:
    return hasattr(space, "low")


def _called(network: nn.Module, run: Run, obs: object) -> object:
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


def _part(network: nn.Module, path: str) -> Any:
    """A part or method of a module, by its path; None where there is none that can be called."""
    found: Any = network
    for key in path.split("."):
        found = getattr(found, key, None) if found is not None else None
    return found if callable(found) else None


def _read(network: nn.Module, selector: Selector, outputs: Sequence[object], leaves: Leaves, argument: str) -> Read:
    """How to read what a selector selects."""
    if callable(selector):
        function = selector
        return lambda output, _: function(output())
    path = str(selector)
    if outputs and isinstance(value_at(outputs[0], path), Tensor):
        return lambda output, _: value_at(output(), path)
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


def _check_width(network: str, width: int, space: Any) -> None:
    """Refuse scores of which the action space says that they are too many or too few."""
    n_actions = int(np.prod(space.shape or ())) if _is_box(space) else getattr(space, "n", None)
    if n_actions is None or int(n_actions) == width:
        return
    raise ConfigError(
        f"The {network} does not give a score for each action of the action space.",
        given=f"scores [batch {width}] for {space}",
        expected=f"[batch {int(n_actions)}]",
        fix="scores= the output, or the part of it, that is them: of a mean beside a deviation "
        f"scores=lambda out: out[..., :{int(n_actions)}]; or the environment's own action_space",
    )


def _kind_and_width(
    chosen: Sequence[Selector], shapes: Sequence[Shape], kind: OutputKind | None, space: spaces.Space | None
) -> tuple[OutputKind | None, int | None]:
    """What the scores are, as far as it is told; and how many of RLlib's inputs of a Gaussian are its mean."""
    name = last_key(str(chosen[0]))
    if name != "action_dist_inputs" or space is None or not _is_box(space):
        known: OutputKind | None = "mean_action" if _is_box(space) else None
        return kind or KNOWN_SCORES.get(name) or known, None
    size = int(np.prod(space.shape or ()))
    return kind or "mean_action", size if shapes[0] == (2 * size,) else None
