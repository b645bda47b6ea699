"""rlmech's own format: one safetensors file with the weights and, as JSON, what the network is built from.

The metadata entry `rlmech` holds `{"format": 1, "adapter": "sb3" | "rl_agents", "plan": {...}, "spec": {...}}` and, as
`graph`, the traced graph, which is taken where it is still what tracing would give. Nothing in it can run. Tensors
that a module holds under several names are written once. Writing is atomic, and a checksum over the whole file is
compared when it is opened.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rlmech.adapters import rl_agents
from rlmech.adapters.rl_agents.plan import RlAgentsPlan
from rlmech.adapters.safe import fit_weights
from rlmech.arguments import explain_misuse
from rlmech.core.graph_file import offered
from rlmech.core.points import NORMALIZATION
from rlmech.core.policy import HookedPolicy
from rlmech.errors import CheckpointError
from rlmech.files import DamagedError, parse_json, read_sealed, write_sealed
from rlmech.spec import PolicySpec
from rlmech.untyped import JsonObject, Settings

FORMAT = 1
FILE_NAME = "policy.safetensors"


@explain_misuse
def save_policy(policy: HookedPolicy, path: str | Path) -> Path:
    """Write a policy as one safetensors file that `load` opens again.

    The file appears whole or not at all; one that stood there stays until then.

    Args:
        policy: A policy of DQN, PPO or A2C, or a network of rl-agents or `rlmech.nets`.
        path: The file, or a directory that takes `policy.safetensors`.

    Returns:
        The path of the file.

    Raises:
        CheckpointError: The policy's architecture is of a class of its own, or the file cannot be written.

    Example:
        >>> import torch, rlmech as rlm
        >>> from rlmech.nets import MultiLayerPerceptron
        >>> policy = rlm.HookedPolicy(MultiLayerPerceptron(4, (8,), d_out=2), torch.rand(2, 4))
        >>> path = rlm.save_policy(policy, "policy.safetensors")
        >>> rlm.load(path).fingerprint == policy.fingerprint
        True
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    adapter, plan = _describe(policy)
    spec, graph = policy.spec.to_json(), policy.stored_graph
    content = {"format": FORMAT, "adapter": adapter, "plan": plan, "spec": spec, "graph": graph}
    tensors = _unique_tensors(policy.module)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed(path, tensors, metadata={"rlmech": json.dumps(content)})
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror or error}.",
            given=f"{len(tensors)} tensors",
            expected="a folder that can be written to, with room for them",
            fix="make room or choose another place; what stood there is untouched",
        ) from error
    return path


def _describe(policy: HookedPolicy) -> tuple[str, dict[str, object]]:
    if "stable_baselines3" in sys.modules:  # a module of SB3 cannot be there before SB3 is
        from rlmech.adapters import sb3

        plan = sb3.plan_of(policy.module)
        if plan is not None:
            return "sb3", plan.to_json()
    shape = next((point.shape for name, point in policy.hook_dict.items() if name == "hook_obs"), ())
    return "rl_agents", RlAgentsPlan.of(
        policy.module, observation_shape=tuple(size or 0 for size in shape[1:])
    ).to_json()


def _unique_tensors(module: nn.Module) -> dict[str, Tensor]:
    unique: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        unique.setdefault(id(tensor), (name, tensor))
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in unique.values()}
    foreign = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and tensor.dtype != torch.float32 and name.split(".")[0] != NORMALIZATION
    ]  # VecNormalize keeps its statistics in float64
    if foreign:
        raise CheckpointError(
            "Only float32 policies are saved: others would be rounded when they are opened.",
            given=f"{foreign[0]} of type {tensors[foreign[0]].dtype}",
            expected="torch.float32",
            fix="save the policy as it was trained, before .double() or .half()",
        )
    return tensors


def open_file(path: Path, *, spec: PolicySpec | None = None, device: str = "cpu") -> HookedPolicy:
    """Open a file that `save_policy` wrote.

    Args:
        path: The file.
        spec: Names and units, instead of the file's own.
        device: Where to put the network.

    Raises:
        CheckpointError: The file is damaged, or was not written by `save_policy`.
    """
    content, tensors = _read(path)
    spec = spec or _spec(content, path)
    with offered(content.get("graph")):
        return _open(content, tensors, path, spec=spec, device=device)


def _open(
    content: Mapping[str, object], tensors: dict[str, Tensor], path: Path, *, spec: PolicySpec, device: str
) -> HookedPolicy:
    plan = content.get("plan")
    match content.get("adapter"):
        case "sb3" if isinstance(plan, dict):
            from rlmech.adapters import sb3
            from rlmech.adapters.sb3.plan import SB3Plan

            return sb3.open_plan(SB3Plan.from_json(plan), tensors, spec=spec, device=device, name=path.name)
        case "rl_agents" if isinstance(plan, dict):
            network_plan = RlAgentsPlan.from_json(plan)
            network = network_plan.build()
            fit_weights(network, tensors, name=path.name, fix="write the file again with save_policy")
            return rl_agents.open_plan(network_plan, network.to(device), spec=spec)
        case adapter:
            raise _malformed(path, f"adapter {adapter!r}, plan of type {type(plan).__name__}")


def _read(path: Path) -> tuple[JsonObject, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata, n_tensors = file.metadata() or {}, len(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if "rlmech" not in metadata:
        raise CheckpointError(
            f"{path.name} holds weights, but not the network that they belong to.",
            given=f"a safetensors file with {n_tensors} tensors and no entry 'rlmech' in its metadata",
            expected="a file that save_policy wrote",
            fix="give the network, load(path, module=net), or for plain layers their activation, load(path, "
            "activation='ReLU')",
        )
    try:
        tensors, metadata = read_sealed(path)
    except (DamagedError, OSError) as error:
        raise _damaged(path, error) from error
    try:
        content = parse_json(metadata["rlmech"])
    except DamagedError as error:
        raise _malformed(path, str(error)) from error
    if not isinstance(content, dict):
        raise _malformed(path, f"a {type(content).__name__}")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path.name} was written in another format.",
            given=f"format {content.get('format')!r}",
            expected=f"format {FORMAT}",
            fix="open it with the version of rlmech that wrote it, or a newer one",
        )
    return content, tensors


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path.name} cannot be read: the file is damaged or incomplete.",
        given=f"{path.stat().st_size} bytes; {error}",
        expected="a whole safetensors file, bit for bit as save_policy wrote it",
        fix="copy or download it again, and compare its size with the original's",
    )


def _spec(content: Settings, path: Path) -> PolicySpec:
    try:
        return PolicySpec.from_json(content["spec"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(path, f"spec {content.get('spec')!r}") from error


def _malformed(path: Path, given: str) -> CheckpointError:
    return CheckpointError(
        f"The metadata of {path.name} is not what save_policy writes.",
        given=given,
        expected="JSON with format, adapter, plan and spec",
        fix="write the file again with save_policy",
    )
