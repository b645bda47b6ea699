"""`load`: one call for every kind of trained policy on disk, recognised by content, never unpickled.

A file that starts like a zip is SB3's where it has a `policy.pth`, else torch's; safetensors is this package's own;
anything else is handed to torch, which takes tensors and refuses the rest. `zoo:name` is a policy shipped here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
from gymnasium import spaces
from torch import nn

from rlmech.adapters import native, rl_agents
from rlmech.adapters.environment import check_spaces, read_spec
from rlmech.adapters.rl_agents.config import read_config
from rlmech.arguments import explain_misuse
from rlmech.core.policy import HookedPolicy
from rlmech.errors import CheckpointError, ConfigError, nearest

Kind = Literal["sb3", "rl_agents", "native"]
ConfigSource = Mapping[str, Any] | str | Path


@explain_misuse
def load(
    path: str | Path,
    *,
    config: ConfigSource | None = None,
    env_config: ConfigSource | None = None,
    env: gym.Env[Any, Any] | None = None,
    features_extractor_class: type[nn.Module] | None = None,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    vecnormalize: Any = None,
    trust_pickle: bool = False,
    device: str = "cpu",
) -> HookedPolicy:
    """Open a trained policy.

    Nothing that a file holds is run, unless `trust_pickle` allows it.

    Args:
        path: An SB3 `.zip`, an rl-agents `.tar` or `.pt`, a file of `save_policy` or the directory of one, or
            `"zoo:name"` or `"zoo:name@checkpoint"`.
        config: For rl-agents the agent's configuration; for SB3 entries of `policy_kwargs` that the zip does not have
            in clear. Values, or the path to a JSON file.
        env_config: The environment's configuration, for names, units and shapes. Values, or the path to a JSON file.
        env: The environment itself, instead.
        features_extractor_class: For SB3: the class of a features extractor that is not SB3's or this package's.
        observation_space: The observation space, where neither the file nor the environment tells it.
        action_space: For SB3: likewise the action space.
        vecnormalize: For SB3: the statistics of VecNormalize: a path to its pickle, which is read as data, or to an npz
            with `mean` and `var`, or a live one. By default those beside the zip; False for none.
        trust_pickle: Whether to unpickle, which runs code of whoever wrote the file.
        device: Where to put the network.

    Returns:
        The policy, with a spec where the environment or its configuration gives one.

    Raises:
        CheckpointError: There is no such file, it is damaged or unsafe, or it does not fit its configuration.
        ConfigError: A configuration is missing, malformed or not enough, or an argument is not for this kind of file.
        EnvironmentFitError: The environment is not one for this policy.

    Example:
        >>> import rlmech as rlm
        >>> policy = rlm.load("zoo:intersection-ego-attention")
        >>> policy.spec.actions
        ('SLOWER', 'IDLE', 'FASTER')
    """
    file = _find(path)
    environment = None if env_config is None else read_config(env_config, name="env_config")
    kind = _recognise(file)
    asked = {
        "config": config,
        "features_extractor_class": features_extractor_class,
        "observation_space": observation_space,
        "action_space": action_space,
        "vecnormalize": vecnormalize,
    }
    _check_use(
        file, "trusted" if kind == "sb3" and trust_pickle else kind, [key for key in asked if asked[key] is not None]
    )
    match kind:
        case "sb3":
            from rlmech.adapters import sb3  # takes a second to import

            given = None if config is None else read_config(config)
            return sb3.open_zip(
                file,
                policy_kwargs=given and given.get("policy_kwargs", given),
                env_config=environment,
                env=env,
                features_extractor_class=features_extractor_class,
                observation_space=observation_space,
                action_space=action_space,
                vecnormalize=vecnormalize,
                trust_pickle=trust_pickle,
                device=device,
            )
        case "rl_agents":
            return rl_agents.open_checkpoint(
                file,
                config=config,
                env_config=environment,
                env=env,
                observation_space=observation_space,
                trust_pickle=trust_pickle,
                device=device,
            )
        case "native":
            spec = None if env is None and environment is None else read_spec(env, environment)
            policy = native.open_file(file, spec=spec, device=device)
            if env is not None and policy.observation_space is not None and policy.action_space is not None:
                check_spaces(env, policy.observation_space, policy.action_space)
            return policy


USED = {
    "sb3": ("config", "features_extractor_class", "observation_space", "action_space", "vecnormalize"),
    "rl_agents": ("config", "observation_space"),
    "native": (),
    "trusted": ("vecnormalize",),
}
MADE_BY = {
    "sb3": "Stable-Baselines3",
    "rl_agents": "rl-agents",
    "native": "save_policy",
    "trusted": "Stable-Baselines3",
}


def _check_use(file: Path, kind: str, given: Sequence[str]) -> None:
    """Refuse arguments that would be ignored."""
    unused = [argument for argument in given if argument not in USED[kind]]
    if unused:
        raise ConfigError(
            f"{file.name} is a file of {MADE_BY[kind]}, for which {unused[0]} means nothing.",
            given=", ".join(f"{argument}=" for argument in given),
            expected=" or ".join(USED[kind]) or "none of them: the file itself says everything",
            fix=f"leave out {', '.join(unused)}",
        )


def _find(path: str | Path) -> Path:
    """The file that a path stands for."""
    if isinstance(path, str) and path.startswith("zoo:"):
        return _find_in_zoo(path.removeprefix("zoo:"))
    file = Path(path).expanduser()
    for candidate in (file / native.FILE_NAME, file, file.with_name(f"{file.name}.zip")):  # SB3 leaves out .zip
        if candidate.is_file():
            return candidate
    beside = [str(other) for other in file.parent.iterdir()] if file.parent.is_dir() else []
    close = nearest(str(file), beside)
    raise CheckpointError(
        f"There is no policy at {file}." if not file.is_dir() else f"The directory {file} holds no policy.",
        given=repr(str(path)),
        expected="a file" if not file.is_dir() else f"a directory with {native.FILE_NAME}",
        fix=f"did you mean {close[0]!r}?" if close and not file.is_dir() else "check the path",
    )


def _find_in_zoo(name: str) -> Path:
    policy, _, checkpoint = name.partition("@")
    zoo = Path(str(resources.files("rlmech") / "zoo"))
    shipped = sorted(file.parent.name.replace("_", "-") for file in zoo.glob(f"*/{native.FILE_NAME}"))
    if policy.replace("_", "-") not in shipped:
        close = nearest(policy, shipped)
        raise CheckpointError(
            f"The zoo has no policy {policy!r}.",
            given=f"zoo:{name}",
            expected=f"one of {', '.join(shipped)}" if shipped else "a policy; none is installed",
            fix=f"did you mean 'zoo:{close[0]}'?" if close else "rlmech.zoo.list() shows what there is",
        )
    folder = zoo / policy.replace("-", "_")
    if not checkpoint:
        return folder / native.FILE_NAME
    steps = sorted(file.stem for file in (folder / "ladder").glob("*.safetensors"))
    if checkpoint not in steps:
        close = nearest(checkpoint, steps)
        raise CheckpointError(
            f"The policy {policy!r} of the zoo has no checkpoint {checkpoint!r}.",
            given=f"zoo:{name}",
            expected=f"one of {', '.join(steps)}" if steps else "no checkpoint: it has none",
            fix=f"did you mean 'zoo:{policy}@{close[0]}'?" if close else f"'zoo:{policy}' is the trained policy",
        )
    return folder / "ladder" / f"{checkpoint}.safetensors"


def _recognise(file: Path) -> Kind:
    """Tell the kind of a file by its content."""
    with file.open("rb") as stream:
        start = stream.read(9)
    if start == b"version h" and b"git-lfs" in _header(file):
        raise CheckpointError(
            f"{file.name} is a pointer of Git LFS: the policy itself was not downloaded.",
            given=f"a text of {file.stat().st_size} bytes",
            expected="the file that it points to",
            fix="git lfs pull, in the repository that it comes from",
        )
    if start[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(file) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            raise CheckpointError(
                f"{file.name} starts like a zip and does not end like one: it is damaged or incomplete.",
                given=f"{file.stat().st_size} bytes; {error}",
                expected="a whole file, written by model.save(path) or torch.save",
                fix="copy or download it again, and compare its size with the original's",
            ) from error
        if any("/code/" in name and name.endswith(".py") for name in names):
            raise CheckpointError(
                f"{file.name} is TorchScript: compiled code, whose inside has no modules to hook.",
                given=f"an archive with {next(name for name in names if '/code/' in name)}",
                expected="weights, of a network that Python builds",
                fix="wrap the nn.Module that it was made from: HookedPolicy(module, example_obs)",
            )
        if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
            return "rl_agents"
        return "sb3"
    if start[8:9] == b"{":
        return "native"
    if start[:1] == b"\x80" or b"ustar" in _header(file):
        return "rl_agents"  # a bare pickle, or torch's oldest format: torch reads tensors and refuses the rest
    raise CheckpointError(
        f"{file.name} is not a policy that rlmech knows.",
        given=f"a file of {file.stat().st_size} bytes that starts with {start!r}",
        expected="an SB3 zip, an rl-agents .tar or .pt, or a file of save_policy",
        fix="build the network and load its weights, then HookedPolicy(module, example_obs)",
    )


def _header(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(512)
