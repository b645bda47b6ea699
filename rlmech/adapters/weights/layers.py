"""Networks that the names and shapes of their weights tell: linear layers one after the other.

`0.weight, 2.weight, 4.weight` are layers with one module without weights between each two: an activation, which no
state dict tells, so that it is asked for. Several stacks are an actor and a critic. What stands after the last layer
has no weights either; it is taken that nothing does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rlmech.core.points import OutputKind
from rlmech.errors import CheckpointError, ConfigError, nearest

ACTORS: dict[str, OutputKind] = {
    "actor": "logits",
    "policy": "logits",
    "pi": "logits",
    "actor_mean": "mean_action",
    "q_network": "q_values",
    "q_net": "q_values",
    "network": "q_values",
    "": "q_values",
}
"""Names of a stack that gives the scores -> what they are."""
CRITICS = ("critic", "value", "vf", "v")
SPREADS = ("actor_logstd", "log_std", "logstd")
"""Names of a parameter that says how widely actions are drawn around their mean."""
_LAYER = re.compile(r"(?:(.*)\.)?(\d+)\.(weight|bias)|(.+)\.(weight|bias)")
ALONE = -1
"""The place of a layer that is a stack by itself: `actor.weight`."""


class Stacks(nn.Module):
    """An actor and, where there is one, its critic: observation -> scores, or (scores, value).

    Args:
        stacks: By name; the first is the actor, the second the critic.
        rest: Parameters beside them.
    """

    def __init__(self, stacks: Mapping[str, nn.Module], rest: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, stack in stacks.items():
            self.add_module(name, stack)
        for name, value in rest.items():
            self.register_parameter(name, nn.Parameter(value.clone()))
        self.names = tuple(stacks)

    def forward(self, obs: Tensor) -> Any:
        """The scores, and the value."""
        actor, *critic = (self.get_submodule(name)(obs) for name in self.names)
        return (actor, *critic) if critic else actor


def build(weights: Mapping[str, Tensor], *, activation: object, name: str) -> tuple[nn.Module, OutputKind]:
    """The network of some weights, and what its scores are.

    Args:
        weights: A state dict.
        activation: A name in `torch.nn`, in any case, or a class: what stands between the layers.
        name: What to call the file in errors.

    Raises:
        CheckpointError: The weights do not tell the network.
        ConfigError: The activation is not given, or has no such name in torch.nn.
    """
    stacks: dict[str, dict[int, dict[str, Tensor]]] = {}
    rest: dict[str, Tensor] = {}
    for key, value in weights.items():
        found = _LAYER.fullmatch(key)
        if found is None:
            rest[key] = value
        else:
            stack, place = (found[4], ALONE) if found[2] is None else (found[1] or "", int(found[2]))
            stacks.setdefault(stack, {}).setdefault(place, {})[found[3] or found[5]] = value
    actors = [stack for stack in stacks if stack in ACTORS]
    critics = [stack for stack in stacks if stack in CRITICS]
    known = len(actors) == 1 and len(critics) <= 1 and len(stacks) == len(actors) + len(critics)
    if not known or any(key not in SPREADS for key in rest):
        raise _untold(name, weights, "names other than those of one stack of layers, or of an actor and a critic")
    for stack, layers in stacks.items():
        _check(stack, layers, weights, name)
    sizes = {stack: _widths(layers) for stack, layers in stacks.items()}
    bends = any(len(layers) > 1 for layers in stacks.values())
    make = _activation(activation, name, sizes=sizes) if bends else nn.Identity
    built = {stack: _built(stacks[stack], make) for stack in (*actors, *critics)}
    kind: OutputKind = "mean_action" if rest else ACTORS[actors[0]]
    return (built[""] if list(built) == [""] else Stacks(built, rest)), kind


def _check(stack: str, layers: Mapping[int, Mapping[str, Tensor]], weights: Mapping[str, Tensor], name: str) -> None:
    places = sorted(layers)
    if any("weight" not in layers[place] or layers[place]["weight"].ndim != 2 for place in places):
        raise _untold(
            name, weights, "weights that are no matrices: convolutions do not tell their strides, norms their kind"
        )
    if any(after - before != 2 for before, after in itertools.pairwise(places)) or places[0] > 1:
        raise _untold(
            name, weights, f"layers {', '.join(map(str, places))}, of which it is not told what stands between"
        )
    pairs = itertools.pairwise(places)
    if any(layers[a]["weight"].shape[0] != layers[b]["weight"].shape[1] for a, b in pairs):
        raise _untold(name, weights, f"layers of {stack or 'the stack'!r} whose sizes do not follow each other")


def _widths(layers: Mapping[int, Mapping[str, Tensor]]) -> list[int]:
    places = sorted(layers)
    return [int(layers[places[0]]["weight"].shape[1]), *(int(layers[place]["weight"].shape[0]) for place in places)]


def _untold(name: str, weights: Mapping[str, Tensor], given: str) -> CheckpointError:
    shown = ", ".join(list(weights)[:4])
    return CheckpointError(
        f"{name} holds weights, and what network they are of is not told by their names and shapes.",
        given=f"{given}: {shown}{', ...' if len(weights) > 4 else ''}",
        expected="linear layers one after the other, a network of rl-agents, or the network itself",
        fix="build the network and give it: rlmech.load(path, module=net)",
    )


def _activation(given: object, name: str, *, sizes: Mapping[str, list[int]]) -> type[nn.Module]:
    kinds = {
        key.lower(): kind
        for key, kind in vars(nn).items()
        if isinstance(kind, type) and kind.__module__ == "torch.nn.modules.activation"
    } | {"identity": nn.Identity}
    if isinstance(given, type) and issubclass(given, nn.Module):
        return given
    if isinstance(given, str) and given.rpartition(".")[2].lower() in kinds:
        return kinds[given.rpartition(".")[2].lower()]
    shown = "; ".join(f"{stack or 'layers'} {'-'.join(map(str, widths))}" for stack, widths in sizes.items())
    if given is None:
        raise ConfigError(
            f"{name} does not tell the activation between its layers: every one has the same weights.",
            given=f"no activation, for {shown}",
            expected="the name of one in torch.nn",
            fix="rlmech.load(path, activation='ReLU'), or whichever it was: CleanRL's PPO has Tanh, its DQN ReLU",
        )
    close = nearest(str(given).lower(), kinds)
    raise ConfigError(
        f"torch.nn has no activation {given!r}.",
        given=f"activation={given!r}",
        expected="a name like 'ReLU' or 'Tanh', or a class",
        fix=f"did you mean {kinds[close[0]].__name__!r}?" if close else "give the class itself",
    )


def _built(layers: Mapping[int, Mapping[str, Tensor]], activation: type[nn.Module]) -> nn.Module:
    """The stack with its layers at the places that they had; an odd first place had a `Flatten` before it."""
    places = sorted(layers)
    if places == [ALONE]:
        n_out, n_in = layers[ALONE]["weight"].shape
        return nn.Linear(n_in, n_out, bias="bias" in layers[ALONE])
    parts: list[nn.Module] = [nn.Flatten()] if places[0] == 1 else []
    for place in places:
        n_out, n_in = layers[place]["weight"].shape
        parts += [nn.Linear(n_in, n_out, bias="bias" in layers[place])]
        parts += [activation()] if place != places[-1] else []
    return nn.Sequential(*parts)
