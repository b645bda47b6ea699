"""How a module is called with an observation, by the libraries' own conventions.

Most take it as their one argument. Those with several (`critic(obs, action)`) take a dict of that many arrays by name.
CleanRL's agents have no `forward`, TorchRL's modules read and write keys, skrl's models compute from a dict.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import UnflattenedModule

from rlmech.core.points import OutputKind
from rlmech.errors import ConfigError

Run = Callable[[Any], Any]

PARTS: dict[str, tuple[str, OutputKind]] = {
    "actor": ("logits", "logits"),
    "actor_mean": ("loc", "mean_action"),
    "q_network": ("q_values", "q_values"),
}
"""What CleanRL's agents call the part that scores -> the known name of its output, and what it is."""
SKRL: dict[str, tuple[str, OutputKind]] = {
    "CategoricalMixin": ("logits", "logits"),
    "MultiCategoricalMixin": ("logits", "logits"),
    "GaussianMixin": ("loc", "mean_action"),
    "MultivariateGaussianMixin": ("loc", "mean_action"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A way to call a module.

    Attributes:
        run: From an observation to what the module returns; None where only parts of it can be called.
        plain: Whether that is the module's own call.
    """

    run: Run | None
    plain: bool = False


def call_of(network: nn.Module, obs: object) -> Call:
    """How to call a module with observations like one.

    Raises:
        ConfigError: It takes more than observations, and they are not given by name.
    """
    bases = [f"{base.__module__}.{base.__name__}" for base in type(network).__mro__]
    if any(base.startswith("skrl.models.") for base in bases) and hasattr(network, "compute"):
        return Call(run=_skrl(network, [base.rpartition(".")[2] for base in bases]))
    if any(base.startswith(("tensordict.", "torchrl.")) for base in bases) and hasattr(network, "out_keys"):
        return Call(run=_by_keys(network))
    if type(network).forward is nn.Module.forward:
        return Call(run=_cleanrl(network))
    if isinstance(network, UnflattenedModule):  # its forward takes *args, which torch would not export again as it is
        return Call(run=lambda batch: network(batch))
    names = _several_inputs(network, obs)
    return Call(run=network, plain=True) if names is None else Call(run=lambda batch: network(**batch))


def _several_inputs(network: nn.Module, obs: object) -> tuple[str, ...] | None:
    """The names of the inputs that the observation's keys stand for; None for one input."""
    try:
        parameters = list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):
        return None
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    needed = [p.name for p in named if p.default is p.empty]
    keys = tuple(obs) if isinstance(obs, Mapping) else ()
    if len(keys) > 1 and set(needed) <= set(keys) <= {p.name for p in named}:
        return keys
    if len(needed) > 1:
        raise ConfigError(
            f"The {type(network).__name__} takes several inputs, and it is not said which is which.",
            given=f"forward({', '.join(needed)}), and {f'the keys {list(keys)}' if keys else 'one array'}",
            expected="a dict with an array for each of them, by its name",
            fix=f"HookedPolicy(module, {{{', '.join(f'{name!r}: ...' for name in needed)}}})",
        )
    return None


def _by_keys(network: Any) -> Run:
    """A TensorDictModule: called with the arrays of its `in_keys`, it gives those of its `out_keys`."""
    inputs, outputs = (
        list(network.in_keys),
        [".".join([key] if isinstance(key, str) else key) for key in network.out_keys],
    )

    def run(obs: Any) -> dict[str, Tensor]:
        given = [obs[key] for key in inputs] if isinstance(obs, Mapping) else [obs]
        result = network(*given)
        return dict(zip(outputs, result if isinstance(result, tuple) else (result,), strict=True))

    return run


def _skrl(network: Any, bases: list[str]) -> Run:
    """A model of skrl: `compute` gives what its distribution is made of, then `act` would draw from it."""
    name = next((SKRL[base][0] for base in bases if base in SKRL), None)
    role = "policy" if name is not None else getattr(network, "_role", "") or "policy"

    def run(obs: Any) -> Any:
        result = network.compute(obs if isinstance(obs, dict) else {"states": obs, "observations": obs}, role)
        return {name: result[0]} if name is not None else result

    return run


def _cleanrl(network: Any) -> Run | None:
    """An agent of CleanRL's: its `actor` as `get_action_and_value` calls it, and its `get_value`."""
    if all(hasattr(network, name) for name in ("network", "atoms", "n", "n_atoms", "get_action")):
        return lambda obs: {"q_values": _mean_of_atoms(network, obs)}
    parts = [name for name in PARTS if isinstance(getattr(network, name, None), nn.Module)]
    if len(parts) != 1:
        return None
    part, method = parts[0], getattr(type(network), "get_action_and_value", None)
    if method is not None:
        _check_memory(method, type(network).__name__)

    def run(obs: Any) -> dict[str, Tensor]:
        scores = getattr(network, part)(obs) if method is None else _within(network, method, part, obs)
        value = network.get_value(obs) if hasattr(network, "get_value") else None
        return {PARTS[part][0]: scores} | ({} if value is None else {"state_value": value})

    return run


def _check_memory(method: Callable[..., object], network: str) -> None:
    needed = [p.name for p in list(inspect.signature(method).parameters.values())[2:] if p.default is p.empty]
    if needed:
        raise ConfigError(
            f"The {network} needs more than an observation to act.",
            given=f"get_action_and_value(obs, {', '.join(needed)})",
            expected="a policy whose scores follow from the observation, or one that declares its state",
            fix="give a module whose forward takes the observation alone, or takes and returns its state",
        )


def _mean_of_atoms(network: Any, obs: Any) -> Tensor:
    """CleanRL's C51: the mean return over the atoms of each action."""
    logits = _within(network, type(network).get_action, "network", obs)
    chances = torch.softmax(logits.view(logits.shape[0], network.n, network.n_atoms), dim=2)
    return (chances * network.atoms).sum(2)


class _Reached(Exception):
    """A part has been called: what it gave is at hand, and the method need not go on (it would draw an action)."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class _StandIn:
    """An agent for one call of one of its methods, which ends when the method calls a part.

    The method runs with this in the place of `self`, so that nothing of the agent changes meanwhile.
    """

    def __init__(self, agent: Any, part: str) -> None:
        self.__dict__.update(_agent=agent, _part=part)

    def __getattr__(self, name: str) -> object:
        found = getattr(self.__dict__["_agent"], name)
        if name != self.__dict__["_part"]:
            return found

        def call(*args: Any, **kwargs: Any) -> None:
            raise _Reached(found(*args, **kwargs))

        return call


def _within(agent: Any, method: Callable[..., Any], part: str, obs: Any) -> Tensor:
    """What a part of an agent gives when a method of the agent calls it."""
    try:
        method(_StandIn(agent, part), obs)
    except _Reached as reached:
        return reached.output
    raise ConfigError(
        f"{type(agent).__name__}.{method.__name__} does not call its {part!r} itself.",
        given=f"a {type(agent).__name__} without a forward",
        expected="the part or the method that gives the scores",
        fix=f"HookedPolicy(module, example_obs, scores={part!r}), if it takes the observation as it is",
    )
