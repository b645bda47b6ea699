"""The weights in what a checkpoint holds: a state dict, or several by name, beside optimisers and counters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from rlmech.errors import CheckpointError

Weights = dict[str, Tensor]
WRAPPED = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the names of a network's own weights."""
NAMED_AT_MOST = 6


def weights_in(values: object, *, name: str) -> dict[str, Weights]:
    """The state dicts that a file holds.

    Args:
        values: What was read.
        name: What to call the file in errors.

    Returns:
        By their key; a bare state dict under "".

    Raises:
        CheckpointError: The file holds no state dict.
    """
    if not isinstance(values, Mapping):
        raise _no_weights(name, f"a {type(values).__name__}")
    if values and all(isinstance(value, Tensor) for value in values.values()):
        return {"": _plain(values)}
    found = {
        str(key): _plain(value)
        for key, value in values.items()
        if isinstance(value, Mapping) and value and all(isinstance(part, Tensor) for part in value.values())
    }
    if not found:
        raise _no_weights(name, f"entries {', '.join(list(map(str, values))[:NAMED_AT_MOST]) or 'none'}")
    return found


def _no_weights(name: str, given: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is not a state dict, and holds no state dict.",
        given=given,
        expected="a mapping from names to tensors, or mappings of that kind by name",
        fix="save net.state_dict()",
    )


def _plain(weights: Mapping[object, Tensor]) -> Weights:
    names = [str(key) for key in weights]
    for prefix in WRAPPED:
        if all(key.startswith(prefix) for key in names):
            return _plain({key.removeprefix(prefix): weights[whole] for key, whole in zip(names, weights, strict=True)})
    return dict(zip(names, weights.values(), strict=True))


def weights_for(module: nn.Module, found: Mapping[str, Weights]) -> Weights:
    """Those of the state dicts that are a module's; the nearest where none is."""
    wanted = set(module.state_dict())
    candidates = [*found.values(), joined(found)]
    fitting = [weights for weights in candidates if set(weights) == wanted]
    return fitting[0] if fitting else max(candidates, key=lambda weights: len(wanted & set(weights)))


def joined(found: Mapping[str, Weights]) -> Weights:
    """Several state dicts as one: `{"actor": {"0.weight": ...}}` is `actor.0.weight`."""
    return {f"{key}.{name}" if key else name: value for key, part in found.items() for name, value in part.items()}
