"""The experiment of the same name: what it calls felt is what the simulator does, and it runs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

import rlmech as rlm

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "05_which_head_avoids_crashes"


@pytest.fixture(scope="module")
def modules() -> Generator[dict[str, ModuleType]]:
    """The experiment's own modules, gone from the interpreter afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for file in FOLDER.glob("*.py"):
            patch.delitem(sys.modules, file.stem, raising=False)
        yield {name: importlib.import_module(name) for name in ("analysis", "drive")}
        for file in FOLDER.glob("*.py"):
            sys.modules.pop(file.stem, None)


@pytest.fixture(scope="module")
def policy(modules: dict[str, ModuleType]) -> rlm.HookedPolicy:
    return rlm.load(modules["drive"].POLICY)


@pytest.fixture(scope="module")
def recording(policy: rlm.HookedPolicy) -> rlm.Recording:
    return rlm.record(policy, rlm.make_env("intersection-v2"), seeds=(2, 5, 6), progress=False)


def test_what_an_action_commands_is_what_the_car_then_tracks(
    modules: dict[str, ModuleType], recording: rlm.Recording
) -> None:
    ego = recording.vehicles[recording.vehicles["vehicle"] == 0].set_index(["episode", "step"])
    steps = recording.steps
    now, then = (ego.loc[list(zip(steps["episode"], steps["step"] + ahead, strict=True))] for ahead in (0, 1))
    state = {"speed": now["speed"].to_numpy(), "target": now["target_speed"].to_numpy()}
    commanded = modules["analysis"].commanded(steps["action"].to_numpy(), **state)
    assert set(steps["action"]) > {0}
    np.testing.assert_allclose(commanded, then["target_speed"])


def test_flips_are_felt_bolder_or_more_timid_and_nothing_else(
    modules: dict[str, ModuleType], policy: rlm.HookedPolicy, recording: rlm.Recording
) -> None:
    rows = modules["analysis"].decisions(
        policy, recording, [rlm.zero_ablation(modules["drive"].site_of(policy, (0, 1)))]
    )
    assert np.array_equal(rows["plain"], recording.actions)
    assert rows["flip"].sum() > 0
    assert (rows["felt"] == (rows["bolder"] ^ rows["timid"])).all()
    assert not (rows["felt"] & ~rows["flip"]).any()
    nothing = modules["analysis"].decisions(policy, recording, [])
    assert not nothing["flip"].any()


def test_every_head_and_every_pair_is_a_condition(modules: dict[str, ModuleType], policy: rlm.HookedPolicy) -> None:
    _, reference = policy.run_with_cache(np.zeros((2, 15, 7), dtype=np.float32), "*.hook_z")
    names = list(modules["drive"].conditions_of(policy, reference))
    assert sum("+" in name for name in names) == 6
    assert sum(name.endswith("zero") for name in names) == 4
    assert len(names) == 14


def test_the_last_felt_change_before_a_crash(modules: dict[str, ModuleType]) -> None:
    rows = pd.DataFrame(
        {"seed": [1, 1, 1, 2, 2], "step": [0, 1, 2, 0, 1], "felt": [True, True, False, True, True], "bolder": True}
    )
    found = modules["analysis"].felt_before(rows, {1})
    assert found["steps_before"].to_dict() == {1: 1}


@pytest.mark.slow
def test_the_smoke_run_writes_the_page(tmp_path: Path) -> None:
    given = ["--smoke", "--out", str(tmp_path), "--recordings", str(tmp_path / "r"), "--workers", "1"]
    subprocess.run([sys.executable, str(FOLDER / "run.py"), *given], capture_output=True, text=True, check=True)
    numbers = json.loads((tmp_path / "numbers.json").read_text(encoding="utf-8"))
    assert len(numbers["conditions"]) == 14
    for row in numbers["conditions"]:
        assert row["offline_felt"][0] <= row["offline_flip"][0]
        assert row["bolder"][0] + row["timid"][0] == pytest.approx(row["offline_felt"][0], abs=2e-4)
    assert (tmp_path / "index.html").read_text(encoding="utf-8").count("<article") > 2
