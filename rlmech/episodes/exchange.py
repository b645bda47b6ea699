"""Recordings as Minari datasets, and Minari datasets of others as recordings.

Minari holds, of every episode, n actions and n + 1 observations: the last one is what the last action led to. Both ways
go through a bounded number of steps at a time and copy values bit for bit; images stay uncompressed. What a dataset
cannot hold (activations, entities, pictures) stays behind, and what it lacks (scores) is not made up.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
from gymnasium import spaces
from jaxtyping import Bool, Float, Shaped

from rlmech.arguments import explain_misuse
from rlmech.episodes import manifest as manifests
from rlmech.episodes import recording as store
from rlmech.episodes.episode_tables import FINAL, Episodes
from rlmech.episodes.origin import environment_of, spaces_of
from rlmech.episodes.recording import Recording
from rlmech.episodes.shards import Writer
from rlmech.errors import ConfigError, MissingPackageError, RecordingError
from rlmech.simulators.choice import simulator_of
from rlmech.simulators.identity import differences, listed
from rlmech.spec import PolicySpec
from rlmech.untyped import JsonObject, Settings

if TYPE_CHECKING:
    from minari import MinariDataset

Observations = Shaped[np.ndarray, "..."] | dict[str, Shaped[np.ndarray, "..."]]
DECIDED = ("step", "action", "reward", "terminated", "truncated")
LEFT_BEHIND = ("activations", "frames", "lanes")
MOST_SEED = 2**63  # a recording's seeds are 64-bit integers with a sign


@dataclass(frozen=True, slots=True, kw_only=True)
class _Episode:
    """What a recording and a Minari dataset both hold of an episode of n steps."""

    seed: int | None
    observations: Observations  # n + 1 of them
    actions: Shaped[np.ndarray, "step ..."]
    rewards: Float[np.ndarray, " step"]
    terminations: Bool[np.ndarray, " step"]
    truncations: Bool[np.ndarray, " step"]
    infos: dict[str, Shaped[np.ndarray, "step ..."]]  # of the decision and of what it led to


@explain_misuse
def to_minari(
    recording: Recording, dataset_id: str, *, root: str | Path | None = None, description: str | None = None
) -> Any:
    """Write a recording as a Minari dataset.

    Args:
        recording: Whole episodes.
        dataset_id: Minari's id, e.g. `intersection/ego-attention-v0`.
        root: Directory of datasets; None for Minari's own, where `minari.load_dataset(dataset_id)` finds it.
        description: What it is, for the dataset's metadata.

    Returns:
        The `minari.MinariDataset`. Episodes keep their seeds. Their `infos` hold one value a decision: the columns of
        `recording.steps`, and the policy's `scores`. Its metadata hold, under `rlmech`, the recording's manifest: the
        policy's fingerprint, the environment's configuration, versions, edits.

    Raises:
        MissingPackageError: Minari is not installed.
        RecordingError: The recording has no episode or parts of some only, the dataset exists, or the environment that
            Gymnasium makes of the recording's id, keywords and configuration is not the one recorded.
        ConfigError: The id is not one of Minari's.

    Source:
        Minari, https://minari.farama.org; its dataset standards.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=[7], progress=False)
        >>> to_minari(recording, "cartpole/linear-v0").total_episodes  # doctest: +SKIP
        1
    """
    minari = _minari()
    _check_whole(recording)
    folder = _folder(minari, dataset_id, root)
    env = environment_of(recording)
    _check_same(recording, env)
    observed, acted = spaces_of(recording, env)
    metadata = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "algorithm_name": f"rlmech {recording.manifest['policy'].get('fingerprint', 'import')}",
        "requirements": [f"{name}=={version}" for name, version in recording.manifest["versions"].items()],
        "rlmech": {key: value for key, value in recording.manifest.items() if key not in LEFT_BEHIND},
    }
    try:
        folder.mkdir(parents=True)
        storage = minari.dataset.minari_storage.MinariStorage.new(
            folder, observation_space=observed, action_space=acted, env_spec=env and env.spec, jpeg_encoding=False
        )
        storage.update_metadata(metadata | ({"description": description} if description else {}))
        storage.update_episodes(_buffer(minari, episode) for episode in _recorded(recording))
    except BaseException:
        shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    return minari.MinariDataset(storage)


@explain_misuse
def from_minari(dataset: MinariDataset | str | Path, *, path: str | Path | None = None) -> Recording:
    """Make a recording of a Minari dataset, by whomever.

    Args:
        dataset: A `minari.MinariDataset`, the id of one that is on this machine, or the path to one.
        path: Directory to write; None for a temporary one that goes when the recording does.

    Returns:
        The recording: observations, actions and, in `steps`, rewards, ends and whatever single numbers its infos hold.
        It has no scores, activations or entities; a policy scores `recording.observations`. Where the dataset lacks
        seeds, repeats one or has one beyond 64 bits, all its episodes are numbered from 0 instead; the manifest says
        so under `minari`.

    Raises:
        MissingPackageError: Minari is not installed.
        RecordingError: There is no such dataset, it has no episode, or observations or actions that no recording
            holds; or the path is taken or cannot be written to.

    Example:
        >>> recording = from_minari("D4RL/door/human-v2")  # doctest: +SKIP
        >>> recording.steps["reward"].sum(), len(recording.observations)  # doctest: +SKIP
    """
    opened = _opened(_minari(), dataset)
    _check_spaces(opened)
    seeds, numbered = _seeds(opened)
    folder = store.TemporaryFolder() if path is None else None
    path = folder.path / "recording" if folder else Path(path or "")
    manifest = _manifest(opened, seeds, numbered=numbered)
    manifests.create(path, manifest)
    writer = Writer(path)
    try:
        for number, episode in enumerate(_collected(opened, seeds)):
            writer.add(_episodes(number, episode, manifest["outcomes"]))
        writer.close()
    except BaseException:
        writer.abandon()
        raise
    recording = Recording.load(path)
    return recording if folder is None else recording.hold(folder)


# ---- out


def _recorded(recording: Recording) -> Iterator[_Episode]:
    scored = bool(recording.manifest["policy"])
    for part in recording.parts():
        finals = part.final_observations
        infos = {
            name: values.to_numpy()
            for name, values in part.steps.items()
            if name not in ("episode", "seed", *DECIDED) and values.dtype.kind in "biuf"
        }
        infos |= {"scores": part.scores} if scored else {}
        steps = {name: part.steps[name].to_numpy() for name in ("reward", "terminated", "truncated")}
        stop = 0
        for number, (seed, length) in enumerate(part.episodes[["seed", "length"]].itertuples(index=False)):
            rows = slice(stop, stop := stop + int(length))
            yield _Episode(
                seed=int(seed),
                observations=_with_final(part.observations, finals, rows, number),
                actions=part.actions[rows],
                rewards=steps["reward"][rows],
                terminations=steps["terminated"][rows],
                truncations=steps["truncated"][rows],
                infos={str(name): values[rows] for name, values in infos.items()},
            )


def _with_final(observations: Observations, finals: Any, rows: slice, number: int) -> Observations:
    if isinstance(observations, dict):
        return {key: np.concatenate([o[rows], finals[key][number, None]]) for key, o in observations.items()}
    return np.concatenate([observations[rows], finals[number, None]])


def _buffer(minari: ModuleType, episode: _Episode) -> object:
    return minari.data_collector.EpisodeBuffer(
        seed=episode.seed,
        observations=episode.observations,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=episode.terminations,
        truncations=episode.truncations,
        infos=episode.infos,
    )


def _check_whole(recording: Recording) -> None:
    n_rows = recording.steps.groupby("episode").size() if len(recording) else []
    if not len(recording) or list(n_rows) != list(recording.episodes["length"]):
        raise RecordingError(
            "A dataset is made of whole episodes.",
            given=f"{len(recording)} episodes" + (", with some of their steps" if len(recording) else ""),
            expected="at least one episode, with all of its steps",
            fix="export the recording itself, or recording.of_seeds(...), not one filtered by where(...)",
        )


def _check_same(recording: Recording, env: gym.Env | None) -> None:
    """Check that the environment that a dataset would name is the one that was recorded."""
    identity: dict[str, str] = recording.manifest["identity"]
    if env is None or not identity:
        return
    if different := differences(identity, simulator_of(env).identity(env)):
        raise RecordingError(
            "The recorded environment is not the one that a dataset can name.",
            given=f"{recording.manifest['env']['id']}, recorded and made anew: they differ in {listed(different)}",
            expected="an environment that gymnasium.make makes of its id, keywords and configuration alone",
            fix="register the environment with its wrappers and changes under an id of its own, and record that",
        )


def _folder(minari: ModuleType, dataset_id: str, root: str | Path | None) -> Path:
    try:
        namespace = minari.dataset.minari_dataset.parse_dataset_id(dataset_id)[0]
    except ValueError as error:
        raise ConfigError(
            "This is no id of a Minari dataset.",
            given=repr(dataset_id),
            expected="(namespace/)name(-v0)",
            fix="name it e.g. 'intersection/ego-attention-v0'",
        ) from error
    if root is None and namespace is not None and namespace not in minari.namespace.list_local_namespaces():
        minari.namespace.create_namespace(namespace)
    folder = Path(root) / dataset_id if root is not None else minari.storage.get_dataset_path(dataset_id)
    if folder.exists():
        raise RecordingError(
            "There is a dataset of that id already.",
            given=folder,
            expected="an id that is free",
            fix="count the version up, e.g. '...-v1', or remove the dataset",
        )
    return folder / "data"


# ---- in


def _collected(dataset: MinariDataset, seeds: list[int]) -> Iterator[_Episode]:
    for seed, found in zip(seeds, dataset.iterate_episodes(), strict=True):
        n_steps = len(found.rewards)
        yield _Episode(
            seed=seed,
            observations=found.observations,
            actions=np.asarray(found.actions),
            rewards=np.asarray(found.rewards, dtype=np.float64).reshape(n_steps),
            terminations=np.asarray(found.terminations, dtype=bool),
            truncations=np.asarray(found.truncations, dtype=bool),
            infos=dict(_numbers(found.infos or {}, n_steps)),
        )


def _numbers(infos: Mapping[str, object], n_steps: int) -> Iterator[tuple[str, Shaped[np.ndarray, " step"]]]:
    """Single numbers of each step; of n + 1, as Minari's collector writes them, the first is of the reset."""
    for name, values in infos.items():
        array = np.asarray(values) if not isinstance(values, Mapping) else np.empty(0)
        if array.ndim == 1 and len(array) in (n_steps, n_steps + 1) and array.dtype.kind in "biuf":
            yield name, array[len(array) - n_steps :]


def _episodes(number: int, episode: _Episode, outcomes: Sequence[Settings]) -> Episodes:
    n_steps, head = len(episode.rewards), {"episode": number, "seed": episode.seed}
    observed = episode.observations if isinstance(episode.observations, dict) else {"": episode.observations}
    arrays: dict[str, np.ndarray] = {store.ACTION: episode.actions}
    for key, values in observed.items():
        ending = f"/{key}" if key else ""
        arrays[store.OBSERVATION + ending], arrays[FINAL + ending] = values[:-1], values[-1:]
    columns = {name: np.full(n_steps, value, dtype=np.int64) for name, value in head.items()}
    columns["step"] = np.arange(n_steps)
    if episode.actions.ndim == 1:
        columns["action"] = episode.actions
    columns |= {"reward": episode.rewards, "terminated": episode.terminations, "truncated": episode.truncations}
    columns |= {name: values for name, values in episode.infos.items() if name not in columns}
    summary: JsonObject = {"return": float(episode.rewards.sum()), "length": n_steps}
    for outcome in outcomes:
        if outcome["name"] in columns:
            own = columns[outcome["name"]]
            summary[outcome["name"]] = bool(own[-1]) if outcome["kind"] == "share" else float(own.mean())
    return Episodes(
        episodes=pa.Table.from_pylist([head | summary]),
        steps=pa.table(columns),
        entities=None,
        arrays=arrays,
    )


def _seeds(dataset: Any) -> tuple[list[int], bool]:
    """Seeds of the episodes, and whether they had to be numbered instead."""
    found = [episode.get("seed") for episode in dataset.storage.get_episode_metadata(dataset.episode_indices)]
    if None in found or len(set(found)) < len(found) or max(found) >= MOST_SEED:
        return list(range(len(found))), True
    return [int(seed) for seed in found], False


def _manifest(dataset: MinariDataset, seeds: list[int], *, numbered: bool) -> JsonObject:
    metadata = dataset.storage.metadata
    ours: JsonObject = metadata.get("rlmech") or {}
    env = None if dataset.spec.env_spec is None else dataset.spec.env_spec
    env_id = ours.get("env", {}).get("id") or (env.id if env else None)
    config = ours.get("env", {}).get("config") or (env.kwargs.get("config", {}) if env else {})
    space = dataset.spec.observation_space
    manifest = {
        "format": manifests.FORMAT,
        "versions": {"rlmech": importlib.metadata.version("rlmech"), "minari": dataset.spec.minari_version},
        "policy": {},
        "edits": [],
        "origin": f"the Minari dataset {dataset.spec.dataset_id}",
        "minari": {
            "dataset_id": dataset.spec.dataset_id,
            "algorithm_name": metadata.get("algorithm_name"),
            "seeds": "numbered from 0: the dataset's are missing, repeated or beyond 64 bits" if numbered else "kept",
            "rlmech": ours,
        },
        "spec": ours.get("spec") or PolicySpec(env_id=env_id).to_json(),
        "env": {**ours.get("env", {}), "id": env_id, "config": config},
        "identity": ours.get("identity", {}),
        "outcomes": ours.get("outcomes", []),
        "seeds": seeds,
        "activations": {},
        "observation_keys": list(space.keys()) if isinstance(space, spaces.Dict) else [],
        "frames": False,
        "lanes": [],
    }
    return json.loads(json.dumps(manifest, default=str))


def _opened(minari: ModuleType, dataset: Any) -> MinariDataset:
    if isinstance(dataset, minari.MinariDataset):
        found = dataset
    else:
        place = Path(dataset)
        inside = place / "data" if (place / "data").is_dir() else place
        try:
            found = minari.MinariDataset(inside) if inside.is_dir() else minari.load_dataset(str(dataset))
        except (OSError, ValueError, KeyError) as error:
            raise RecordingError(
                "There is no such Minari dataset on this machine.",
                given=f"{dataset}: {error}",
                expected="a MinariDataset, the id of a local one, or its directory",
                fix=f"minari download {dataset}; minari list local tells what is there",
            ) from error
    if found.total_episodes == 0:
        raise RecordingError(
            "The dataset has no episode.",
            given=found.spec.dataset_id,
            expected="at least one episode",
            fix="collect some, or loosen the filter",
        )
    return found


def _check_spaces(dataset: MinariDataset) -> None:
    observed, acted = dataset.spec.observation_space, dataset.spec.action_space
    parts = list(observed.values()) if isinstance(observed, spaces.Dict) else [observed]
    plain = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    if not all(isinstance(space, plain) for space in [*parts, acted]):
        raise RecordingError(
            "A recording does not hold this dataset's observations or actions.",
            given=f"observations in {observed}, actions in {acted}",
            expected="arrays, or one dictionary of arrays for observations; actions are arrays or numbers",
            fix="flatten them with gymnasium.spaces.utils.flatten and collect the dataset again",
        )


def _minari() -> ModuleType:
    try:
        for part in ("data_collector", "dataset.minari_dataset", "dataset.minari_storage", "namespace", "storage"):
            import_module(f"minari.{part}")
        return import_module("minari")
    except ImportError as error:
        raise MissingPackageError(
            "Datasets are exchanged through Minari, which is not installed, or without its files' format.",
            given=f"no package {error.name!r}",
            expected="minari 0.5 or later, with hdf5",
            fix='pip install "rlmech[minari]"',
        ) from error
