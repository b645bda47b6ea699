"""Reading weights without running anything: what is not plain tensors is refused.

`torch.load(weights_only=True)` restores tensors and containers and rejects every other object in a pickle, so that
nothing a file holds is ever called.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rlmech.errors import CheckpointError

NAMED_AT_MOST = 6


def read_weights(file: IO[bytes] | Path, *, name: str, trust_pickle: bool = False) -> object:
    """Read what `torch.save` wrote, refusing anything but tensors and plain containers.

    Args:
        file: The file, or its path.
        name: What to call it in errors.
        trust_pickle: Whether to unpickle arbitrary objects, which runs code of whoever wrote the file.

    Raises:
        CheckpointError: The file is damaged, or holds more than tensors.
    """
    source = io.BytesIO(file.read_bytes() if isinstance(file, Path) else file.read())
    try:
        return torch.load(source, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{name} holds more than tensors, and opening it would run its code: nothing was run.",
            given=_first_line(error),
            expected="tensors, numbers, strings and containers of them",
            fix="save the state dict alone, torch.save({'state_dict': net.state_dict()}, path); "
            "or, if you trust whoever wrote the file, load(..., trust_pickle=True)",
        ) from error
    except Exception as error:  # torch raises many types on damaged files, none of its own
        raise CheckpointError(
            f"{name} cannot be read: the file is damaged or incomplete.",
            given=_first_line(error),
            expected="a file written by torch.save",
            fix="copy or download it again, and compare its size with the original's",
        ) from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} cannot be read: the file is damaged or incomplete.",
            given=_first_line(error),
            expected="a whole safetensors file",
            fix="copy or download it again, and compare its size with the original's",
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    reasons = [line.strip() for line in text if "Unsupported global" in line or "WeightsUnpickler error" in line]
    line = (reasons or text or [""])[0].split(" was not an allowed")[0]  # torch goes on to advise allowing it
    return line[:200] or type(error).__name__


def as_tensors(values: object, *, name: str) -> dict[str, Tensor]:
    """Check that what was read is a state dict.

    Raises:
        CheckpointError: It is something else.
    """
    if isinstance(values, Mapping) and values and all(isinstance(value, Tensor) for value in values.values()):
        return {str(key): value for key, value in values.items()}
    raise CheckpointError(
        f"{name} is not a state dict.",
        given=_content(values),
        expected="a mapping from names to tensors",
        fix="save net.state_dict()",
    )


def _content(values: object) -> str:
    if isinstance(values, Mapping):
        kinds = sorted({type(value).__name__ for value in values.values()})
        return f"{len(values)} entries of type {', '.join(kinds)}" if kinds else "an empty mapping"
    return type(values).__name__


def fit_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, name: str, fix: str) -> None:
    """Put tensors into a module, all of them and nothing else, or say which do not fit.

    Tensors that the module holds under several names may come under any one of them.

    Raises:
        CheckpointError: Tensors are missing, unexpected, or of other shapes.
    """
    wanted = module.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = {}
    for key, value in wanted.items():
        aliases.setdefault(id(value), []).append(key)
    given = dict(tensors)
    for names in aliases.values():
        present = [key for key in names if key in tensors]
        for key in names if present else ():
            given.setdefault(key, tensors[present[0]])
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    reshaped = [key for key, value in wanted.items() if key in given and given[key].shape != value.shape]
    if missing or unexpected or reshaped:
        raise CheckpointError(
            f"The weights of {name} do not fit the network that its configuration describes.",
            given=_listed({"unexpected": unexpected, "of other shape": reshaped}, given) or "too few tensors",
            expected=_listed({"missing": missing, "of shape": reshaped}, wanted) or "none but the others",
            fix=fix,
        )
    module.load_state_dict(given)


def _listed(kinds: Mapping[str, list[str]], tensors: Mapping[str, Tensor]) -> str:
    texts: list[str] = []
    for kind, names in kinds.items():
        shown = ", ".join(f"{name} {list(tensors[name].shape)}" for name in names[:NAMED_AT_MOST])
        more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
        texts += [f"{kind}: {shown}{more}"] if names else []
    return "; ".join(texts)
