"""`load`: one call for every kind of trained policy on disk, recognised by content, never unpickled.

A file that starts like a zip is SB3's where it has a `policy.pth`, else torch's; safetensors is this package's own;
anything else is handed to torch, which takes tensors and refuses the rest. `zoo:name` is a policy shipped here.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import gymnasium as gym
from gymnasium import spaces
from torch import nn

from rlmech.adapters import native, rl_agents
from rlmech.adapters.environment import check_spaces, read_spec
from rlmech.adapters.rl_agents.config import read_config
from rlmech.adapters.safe import read_safetensors, read_weights
from rlmech.adapters.weights import open_weights
from rlmech.arguments import explain_misuse
from rlmech.core.output_leaves import Selector
from rlmech.core.points import OutputKind
from rlmech.core.policy import HookedPolicy
from rlmech.errors import CheckpointError, ConfigError, nearest
from rlmech.untyped import Settings

Kind = Literal["sb3", "weights", "safetensors", "native"]
ConfigSource = Settings | str | Path


class Untold(TypedDict, total=False):
    """What a file of another library may not say itself; `load` takes each as a keyword.

    Attributes:
        features_extractor_class: For SB3: the class of a features extractor that is not SB3's or this package's, or its
            name, `"module:Class"` or `"path/to/file.py:Class"`.
        vecnormalize: For SB3: the statistics of VecNormalize: a path to its pickle, which is read as data, or to an npz
            with `mean` and `var`, or a live one. By default those beside the zip; False for none.
        module: For weights alone: the network that they are of.
        activation: For weights alone: the name in `torch.nn` of what stands between their layers, or its class.
        output_kind: For weights alone: what the scores are.
        scores: For weights alone: which output is the scores, as `HookedPolicy` takes it.
        value: For weights alone: which output is the value.
        observation_space: The observation space, where neither the file nor the environment tells it.
        action_space: Likewise the action space.
    """

    features_extractor_class: type[nn.Module] | str | None
    vecnormalize: object
    module: nn.Module | None
    activation: object
    output_kind: OutputKind | None
    scores: Selector | Sequence[Selector] | None
    value: Selector | None
    observation_space: spaces.Space | None
    action_space: spaces.Space | None


@explain_misuse
def load(
    path: str | Path,
    *,
    config: ConfigSource | None = None,
    env_config: ConfigSource | None = None,
    env: gym.Env | None = None,
    trust_pickle: bool = False,
    device: str = "cpu",
    **untold: Unpack[Untold],
) -> HookedPolicy:
    """Open a trained policy.

    Nothing that a file holds is run, unless `trust_pickle` allows it.

    Args:
        path: An SB3 `.zip`, an rl-agents `.tar`, weights that `torch.save` or safetensors wrote, a file of
            `save_policy`; the directory of one of these; or `"zoo:name"` or `"zoo:name@checkpoint"`.
        config: For rl-agents the agent's configuration; for SB3 entries of `policy_kwargs` that the zip does not have
            in clear. Values, or the path to a JSON file.
        env_config: The environment's configuration, for names, units and shapes. Values, or the path to a JSON file.
        env: The environment itself, instead.
        trust_pickle: Whether to unpickle, which runs code of whoever wrote the file.
        device: Where to put the network.
        **untold: What the file does not say itself: `features_extractor_class`, `vecnormalize`, `module`, `activation`,
            `output_kind`, `scores`, `value`, `observation_space`, `action_space`; see `Untold`.

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
    given = {key: value for key, value in untold.items() if value is not None}
    if kind == "native" and {"module", "activation"} & set(given):
        kind = "safetensors"  # whoever says what network they are of has weights alone
    if kind in ("sb3", "native"):
        told = [*given, *(("config",) if config is not None else ())]
        _check_use(file, "trusted" if kind == "sb3" and trust_pickle else kind, told)
    known: Any = {"env_config": environment, "env": env, "device": device, **given}
    match kind:
        case "sb3":
            from rlmech.adapters import sb3  # takes a second to import

            read = None if config is None else read_config(config)
            kwargs = read and read.get("policy_kwargs", read)
            return sb3.open_zip(file, policy_kwargs=kwargs, trust_pickle=trust_pickle, **known)
        case "weights" | "safetensors":
            values = (
                read_safetensors(file)
                if kind == "safetensors"
                else read_weights(file, name=file.name, trust_pickle=trust_pickle)
            )
            if "module" not in given and (rl_agents.owns(values) or config is not None):
                _check_use(file, "rl_agents", list(given))
                return rl_agents.open_checkpoint(file, values, config=config, **known)
            _check_use(file, "weights", list(given))
            return open_weights(values, name=file.name, **known)
        case "native":
            spec = None if env is None and environment is None else read_spec(env, environment)
            policy = native.open_file(file, spec=spec, device=device)
            if env is not None and policy.observation_space is not None and policy.action_space is not None:
                check_spaces(env, policy.observation_space, policy.action_space)
            return policy


USED = {
    "sb3": ("config", "features_extractor_class", "observation_space", "action_space", "vecnormalize"),
    "rl_agents": ("config", "observation_space"),
    "weights": ("module", "activation", "output_kind", "scores", "value", "observation_space", "action_space"),
    "native": (),
    "trusted": ("vecnormalize",),
}
MADE_BY = {
    "sb3": "Stable-Baselines3",
    "rl_agents": "rl-agents",
    "weights": "weights alone",
    "native": "save_policy",
    "trusted": "Stable-Baselines3",
}
INSIDE_A_FOLDER = ("*.zip", "*.tar", "*.safetensors", "*.pt", "*.pth")
"""What a folder may hold as its policy, the likeliest first."""


def _check_use(file: Path, kind: str, given: Sequence[str]) -> None:
    """Refuse arguments that would be ignored, or that there are none of."""
    wrong = next((argument for argument in given if argument not in (*Untold.__annotations__, "config")), None)
    if wrong is not None:
        close = nearest(wrong, Untold.__annotations__)
        raise ConfigError(
            f"load takes no argument {wrong!r}.",
            given=f"{wrong}=",
            expected=f"path, config, env_config, env, trust_pickle, device, {', '.join(Untold.__annotations__)}",
            fix=f"did you mean {close[0]!r}?" if close else "leave it out",
        )
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
    inside = _inside(file) if file.is_dir() else []
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise CheckpointError(
            f"The directory {file} holds several policies.",
            given=", ".join(other.name for other in inside[:6]),
            expected="one, or the file that is meant",
            fix=f"load({str(inside[0])!r}), or whichever it is",
        )
    beside = [str(other) for other in file.parent.iterdir()] if file.parent.is_dir() else []
    close = nearest(str(file), beside)
    raise CheckpointError(
        f"There is no policy at {file}." if not file.is_dir() else f"The directory {file} holds no policy.",
        given=repr(str(path)),
        expected="a file" if not file.is_dir() else f"a directory with {native.FILE_NAME}, or with one policy in it",
        fix=f"did you mean {close[0]!r}?" if close and not file.is_dir() else "check the path",
    )


def _inside(folder: Path) -> list[Path]:
    """The policies in a folder as others publish them: one kind of file, SB3's zips before weights alone."""
    for pattern in INSIDE_A_FOLDER:
        found = sorted(folder.glob(pattern))
        if pattern == "*.zip":  # there are zips of logs and videos beside them
            found = [file for file in found if zipfile.is_zipfile(file) and _holds(file, "policy.pth")]
        found = [file for file in found if "optimizer" not in file.stem]
        if found:
            return found
    return []


def _holds(file: Path, member: str) -> bool:
    with zipfile.ZipFile(file) as archive:
        return member in archive.namelist()


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
            return "weights"
        return "sb3"
    if start[8:9] == b"{":
        return "native"
    if start[:1] == b"\x80" or b"ustar" in _header(file):
        return "weights"  # a bare pickle, or torch's oldest format: torch reads tensors and refuses the rest
    raise CheckpointError(
        f"{file.name} is not a policy that rlmech knows.",
        given=f"a file of {file.stat().st_size} bytes that starts with {start!r}",
        expected="an SB3 zip, an rl-agents .tar, weights of torch or safetensors, or a file of save_policy",
        fix="build the network and load its weights, then HookedPolicy(module, example_obs)",
    )


def _header(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(512)
