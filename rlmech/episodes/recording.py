"""A recording on disk: a directory with a manifest and shards of finished episodes; see `rlmech.episodes.shards`.

    manifest.json   versions, policy, spec, environment, seeds, hooks and their axes, edits, lanes
    shards/         tables (Parquet) and arrays (safetensors)

Opening reads one row an episode; tables and arrays are read when asked for, and only the rows selected: `where` and
`episode` select, `parts` goes through what does not fit into memory, `dataset` is for Arrow, DuckDB or polars.
"""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from jaxtyping import Float, Shaped, UInt8

from rlmech.episodes.episode_tables import FINAL
from rlmech.episodes.filters import Filter, filter_of
from rlmech.episodes.manifest import read_manifest
from rlmech.episodes.shards import Shard, shards_in
from rlmech.errors import RecordingError, nearest
from rlmech.spec import PolicySpec
from rlmech.untyped import JsonObject

if TYPE_CHECKING:
    from rlmech.core.policy import HookedPolicy

OBSERVATION, ACTION, SCORES, FRAMES = "observation", "action", "scores", "frames"
ACTIVATION = "activation/"
_INDEX = ("episode", "seed", "length", "shard", "start")
Rows = slice | np.ndarray


class Recording:
    """Episodes of a policy, as `record` wrote them.

    Rows of `steps`, `observations`, `actions`, `scores`, `frames` and `activation(name)` belong together.

    Args:
        path: The recording's directory.

    Attributes:
        path: The recording's directory.
        manifest: How it was made: versions, policy, environment, seeds, edits.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> recording = rlm.record(policy, rlm.make_env("CartPole-v1"), seeds=range(3), progress=False)
        >>> len(recording), recording.scores.shape[1], list(recording.episodes["seed"])
        (3, 2, [0, 1, 2])
        >>> recording.where(step_below=4).scores.shape
        (12, 2)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest: JsonObject = read_manifest(self.path)
        self._shards = shards_in(self.path)
        self._index = _index(self._shards)
        self._filter: Filter | None = None
        self._hits: dict[object, np.ndarray] = {}  # by shard, the rows that the filter lets through
        self._holder: TemporaryFolder | None = None

    @classmethod
    def load(cls, path: str | Path) -> Recording:
        """Open a recording; of an interrupted one, the finished episodes.

        Raises:
            RecordingError: There is no recording at that path, or it is damaged or of another format.
        """
        return cls(path)

    def __len__(self) -> int:
        return len(self._index)

    def __repr__(self) -> str:
        rows = "" if self._filter is None else f", of which the steps where {self._filter}"
        return f"Recording of {len(self)} episodes of {self.manifest['env']['id']} at {self.path}{rows}"

    @property
    def spec(self) -> PolicySpec:
        """What observations and actions mean."""
        return PolicySpec.from_json(self.manifest["spec"])

    @property
    def missing_seeds(self) -> list[int]:
        """Seeds that were asked for and whose episodes were not finished."""
        done = set(self._index["seed"])
        return [seed for seed in self.manifest["seeds"] if seed not in done]

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row a decision: episode, seed, step, action (where discrete), reward, terminated, truncated.

        `edited` tells whether edits were at work, `action_changed` whether the unedited policy would have done
        something else in that very state. Beside these what the simulator tells of the scene when the decision was made
        and of what the action led to: of highway-env's environments the distance to the nearest vehicle in m and the
        shortest time to a collision in s (`distance`, `ttc`), then crashed, speed in m/s and, where there is a goal,
        arrived; of MiniGrid's the agent's `x`, `y`, `direction`, what it is `carrying`, `goal_distance`, then success.
        """
        return self._table("steps").to_pandas()

    @cached_property
    def entities(self) -> pd.DataFrame:
        """Who is there: one row an entity and scene; empty where the simulator tells of nobody.

        Columns: episode, seed, step, and the simulator's `entity_columns`: of highway-env's environments those of
        `rlmech.simulators.highway.measures.VEHICLE_COLUMNS`, of MiniGrid's those of
        `rlmech.simulators.minigrid.objects.OBJECT_COLUMNS`. The scene after the last action is there too, as one more
        step. Where nobody is told of there is no such file, and this has no columns.
        """
        if not all(shard.has("entities") for shard in self._shards):
            return pd.DataFrame()
        entities = self._table("entities").to_pandas()
        if self._filter is None:
            return entities
        return entities.merge(self.steps[["episode", "step"]], on=["episode", "step"])

    @property
    def vehicles(self) -> pd.DataFrame:
        """The entities of a road, which are its vehicles and obstacles; empty for environments without a road."""
        return self.entities if "vehicle" in self.entities else pd.DataFrame()

    @cached_property
    def episodes(self) -> pd.DataFrame:
        """One row an episode, all of its steps counted: episode, seed, length, return.

        Of highway-env's environments also crashed, mean speed in m/s and, where there is a goal, arrived; of MiniGrid's
        success and the `layout` of walls; and the outcomes that were asked for.
        """
        return self._index.drop(columns=["shard", "start"]).reset_index(drop=True)

    @cached_property
    def observations(self) -> Shaped[np.ndarray, "step ..."] | dict[str, Shaped[np.ndarray, "step ..."]]:
        """What the policy saw, `[step, ...]`; by key for dictionary observations."""
        return self._by_key(OBSERVATION)

    @cached_property
    def final_observations(self) -> Shaped[np.ndarray, "episode ..."] | dict[str, Shaped[np.ndarray, "episode ..."]]:
        """What the policy would have seen after its last action, `[episode, ...]`; by key for dictionaries."""
        return self._by_key(FINAL)

    @cached_property
    def actions(self) -> Shaped[np.ndarray, "step ..."]:
        """What it did, `[step]`, or `[step, component]` for continuous actions."""
        return self._array(ACTION)

    @cached_property
    def scores(self) -> Float[np.ndarray, "step *choice action"]:
        """How it scored the actions, `[step, action]`.

        Raises:
            RecordingError: It came from elsewhere, without scores.
        """
        if not self.manifest["policy"]:
            raise RecordingError(
                "The recording has no scores.",
                given=f"episodes imported from {self.manifest.get('origin', 'elsewhere')}",
                expected="a recording of a policy",
                fix="score the observations with a policy: policy(recording.observations)",
            )
        return self._array(SCORES)

    @property
    def frames(self) -> UInt8[np.ndarray, "step height width channel"]:
        """Pictures of the scenes decided in, `[step, height, width, channel]`, uint8.

        Raises:
            RecordingError: Recorded without frames.
        """
        if not self.manifest["frames"]:
            raise RecordingError(
                "The recording has no frames.",
                given="frames=False",
                expected="frames=True when it was recorded",
                fix="record again with frames=True and an environment of render_mode='rgb_array'",
            )
        return self._array(FRAMES)

    def activation(self, name: str) -> Shaped[np.ndarray, "step ..."]:
        """The values at a hook point, `[step, ...]`, with `axes(name)`.

        Raises:
            RecordingError: Nothing of that name was recorded.
        """
        self.axes(name)
        return self._array(ACTIVATION + name)

    def axes(self, name: str) -> tuple[str, ...]:
        """Axis names of an activation, `step` first.

        Raises:
            RecordingError: Nothing of that name was recorded.
        """
        recorded: dict[str, list[str]] = self.manifest["activations"]
        if name not in recorded:
            close = nearest(name, recorded)
            raise RecordingError(
                f"The recording holds no activation {name!r}.",
                given=repr(name),
                expected=f"one of {list(recorded)}" if recorded else "none: it was recorded without names",
                fix=f"did you mean {close[0]!r}?" if close else f"record again with names=[{name!r}]",
            )
        return tuple(recorded[name])

    def episode(self, seed: int) -> Recording:
        """The episode of one seed, as a recording of its own.

        Raises:
            RecordingError: No finished episode has that seed.
        """
        return self.of_seeds([seed])

    def of_seeds(self, seeds: Iterable[int]) -> Recording:
        """The episodes of some seeds, in the recording's order.

        Raises:
            RecordingError: No finished episode has one of them.
        """
        wanted, known = list(seeds), set(self._index["seed"])
        for seed in wanted:
            if seed not in known:
                listed = sorted(known)
                raise RecordingError(
                    f"The recording has no episode of seed {seed}.",
                    given=seed,
                    expected=f"one of {listed[:10]}{'...' if len(listed) > 10 else ''}",
                    fix="recording.episodes lists them all",
                )
        return self._view(self._index[self._index["seed"].isin(wanted)], self._filter, self._hits)

    def where(self, expression: pc.Expression | None = None, **conditions: Any) -> Recording:
        """The steps that meet all of some conditions, as a recording of those rows.

        Args:
            expression: An Arrow expression over the columns of `steps`, e.g. `pyarrow.compute.field("ttc") < 2`.
            **conditions: By column of `steps`: `crashed=True`, `action=[0, 2]` (one of them), `ttc_below=2.0`,
                `speed_above=8.0`.

        Returns:
            A recording whose rows are those steps, in all its tables and arrays; its episodes are those that have one.

        Raises:
            RecordingError: There is no such column, or a value is not of its type.
        """
        chosen = filter_of(expression, conditions, schema=self._schema("steps"), earlier=self._filter)
        hits = {number: chosen.rows(self._shards[number]) for number in np.unique(self._index["shard"])}
        n_hits = pd.Series(0, index=self._index.index)
        for number, own in self._index.groupby("shard"):
            start, stop = own["start"].to_numpy(), (own["start"] + own["length"]).to_numpy()
            n_hits[own.index] = np.searchsorted(hits[number], stop) - np.searchsorted(hits[number], start)
        return self._view(self._index[n_hits > 0], chosen, hits)

    def parts(self, *, n_steps: int = 50_000) -> Iterator[Recording]:
        """Go through the recording in pieces that fit into memory.

        Args:
            n_steps: Steps in a piece, at most, unless one episode has more.
        """
        ends, first = np.cumsum(self._index["length"].to_numpy()), 0
        while first < len(ends):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + n_steps, side="right")))
            yield self._view(self._index.iloc[first:last], self._filter, self._hits)
            first = last

    def dataset(self, table: str = "steps") -> ds.Dataset:
        """A table as an Arrow dataset, for DuckDB, polars or Arrow itself; nothing is read yet.

        Args:
            table: `steps`, `entities` (of a road `vehicles`, too) or `episodes`. Of a recording made by `where`,
                `entities` are those of its episodes, at all steps.
        """
        asked, table = table, "entities" if table == "vehicles" else table
        told = table != "entities" or all(shard.has(table) for shard in self._shards)
        if not told or (asked == "vehicles" and "vehicle" not in self._schema(table).names):
            raise RecordingError(
                f"The recording has no table of {asked}.",
                given=f"episodes of {self.manifest['env']['id']}",
                expected="an environment whose simulator tells who is there: highway-env's or MiniGrid's",
                fix="use the tables 'steps' and 'episodes'",
            )
        files = [str(shard.file(f"{table}.parquet")) for shard in self._used_shards() or self._shards[:1]]
        found = ds.dataset(files, format="parquet", schema=self._schema(table))
        chosen = pc.field("episode").isin(pa.array(self._index["episode"].to_numpy()))
        if self._filter is not None and table == "steps":
            chosen &= self._filter.expression
        return found.filter(chosen)

    def check_policy(self, policy: HookedPolicy) -> None:
        """Check that the recording was made with a policy.

        Raises:
            RecordingError: It was made with another one.
        """
        made_with = self.manifest["policy"].get("fingerprint")
        if made_with != policy.fingerprint:
            raise RecordingError(
                "The recording is of another policy.",
                given=f"a policy of fingerprint {policy.fingerprint}",
                expected=f"the one recorded, {made_with}" if made_with else "a recording of a policy, not an import",
                fix="load the policy that was recorded, or record this one to another path",
            )

    def equals(self, other: Recording) -> bool:
        """Whether both hold the same tables and arrays, bit for bit, and the same manifest.

        An environment's identity aside, which may tell of more than makes the episodes.
        """
        tables = ((getattr(one, name) for one in (self, other)) for name in ("episodes", "steps", "entities"))
        ours, theirs = ({**one.manifest, "identity": None} for one in (self, other))
        if ours != theirs or not all(ours.equals(theirs) for ours, theirs in tables):
            return False
        names = [OBSERVATION, FINAL, ACTION, *([SCORES] if self.manifest["policy"] else [])]
        names += [FRAMES] if self.manifest["frames"] else []
        names += [ACTIVATION + name for name in self.manifest["activations"]]
        return all(_same(self._by_key(name), other._by_key(name)) for name in names)

    def hold(self, folder: TemporaryFolder) -> Recording:
        """Keep a temporary folder until this recording, and all parts of it, are gone."""
        self._holder = folder
        return self

    # ---- which rows

    def _view(self, index: pd.DataFrame, chosen: Filter | None, hits: dict[object, np.ndarray]) -> Recording:
        view = Recording.__new__(Recording)
        view.path, view.manifest, view._shards, view._holder = self.path, self.manifest, self._shards, self._holder
        view._index, view._filter, view._hits = index, chosen, hits
        return view

    def _schema(self, table: str) -> pa.Schema:
        """The columns of a table in all shards: some are there only where something happened that they tell of."""
        found = [shard.schema(table) for shard in self._shards]
        return pa.unify_schemas(found, promote_options="permissive") if found else pa.schema([])

    def _used_shards(self) -> list[Shard]:
        return [self._shards[number] for number in np.unique(self._index["shard"])]

    def _rows(self) -> Iterator[tuple[Shard, Rows]]:
        """For each shard, the rows of this recording there; neighbouring episodes in one slice."""
        for number, own in self._index.groupby("shard", sort=True):
            start, stop = own["start"].to_numpy(), (own["start"] + own["length"]).to_numpy()
            shard = self._shards[int(number)]  # type: ignore[arg-type]
            whole = bool(np.array_equal(stop[:-1], start[1:]))
            if self._filter is None and whole:
                yield shard, slice(int(start[0]), int(stop[-1]))
                continue
            rows = np.concatenate([np.arange(a, b) for a, b in zip(start, stop, strict=True)])
            yield shard, rows if self._filter is None else np.intersect1d(self._hits[number], rows, assume_unique=True)

    # ---- reading

    def _table(self, name: str) -> pa.Table:
        tables: list[pa.Table] = []
        for shard, rows in self._rows():
            table = shard.table(name)
            if name != "steps":
                table = table.filter(pc.field("episode").isin(pa.array(self._index["episode"].to_numpy())))
            elif isinstance(rows, slice):
                table = table.slice(rows.start, rows.stop - rows.start)
            else:
                table = table.take(rows)
            tables.append(table)
        if not tables and self._shards:
            return self._shards[0].table(name).slice(0, 0)
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})

    def _array(self, name: str) -> np.ndarray:
        if name == FINAL or name.startswith(f"{FINAL}/"):
            own = self._index.groupby("shard", sort=True)["episode"]
            parts = [self._shards[i].array(name, np.asarray(e) - self._shards[i].first) for i, e in own]  # type: ignore[index]
        else:
            parts = [shard.array(name, rows) for shard, rows in self._rows()]
        if not parts and not self._shards:
            raise RecordingError(
                "The recording has no finished episode.",
                given=self.path,
                expected="at least one",
                fix="record again to the same path: what is missing is redone",
            )
        return np.concatenate(parts) if parts else self._shards[0].array(name, slice(0, 0))

    def _by_key(self, name: str) -> np.ndarray | dict[str, np.ndarray]:
        keys: list[str] = self.manifest["observation_keys"] if name in (OBSERVATION, FINAL) else []
        return {key: self._array(f"{name}/{key}") for key in keys} if keys else self._array(name)


class TemporaryFolder:
    """A folder that goes, without a word, when nobody refers to it any more.

    Attributes:
        path: The folder.
    """

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="rlmech-recording-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _index(shards: list[Shard]) -> pd.DataFrame:
    """One row an episode, with its shard and where its rows begin there."""
    if not shards:
        return pd.DataFrame({name: pd.Series(dtype="int64") for name in _INDEX})
    tables = [shard.table("episodes") for shard in shards]
    index = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    index["shard"] = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    ends = index.groupby("shard")["length"].cumsum()
    return index.assign(start=ends - index["length"])


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, dict):
        return all(_same(ours[key], theirs[key]) for key in ours)
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()
