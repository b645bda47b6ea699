"""Comparisons paired by seed: laws, an environment whose answer is known, and what is said of mistakes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import chi2

import rlmech as rlm
from rlmech.errors import ConfigError, MetricError, RecordingError, SiteError
from rlmech.nets import EgoAttentionNetwork
from rlmech.simulators import make_env
from rlmech.statistics import bootstrap_mean

TOLD = ("return", "crashed", "arrived", "length", "speed")
NOTHING = [rlm.steer("hook_q_values", torch.zeros(3))]
SLOWER = [rlm.steer("hook_q_values", torch.tensor([100.0, 0.0, 0.0]))]
FASTER = [rlm.steer("hook_q_values", torch.tensor([0.0, 0.0, 100.0]))]


@pytest.fixture(scope="module")
def driver() -> rlm.HookedPolicy:
    torch.manual_seed(1)
    return rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))


def crossing() -> gym.Env:
    return make_env("intersection-v2", config={"simulation_frequency": 5, "duration": 8})


def compared(policy: rlm.HookedPolicy, **options: Any) -> xr.Dataset:
    given: dict[str, Any] = {"seeds": range(6), "progress": False}
    return rlm.compare_rollouts(policy, crossing(), **(given | options))


@pytest.fixture(scope="module")
def result(driver: rlm.HookedPolicy) -> xr.Dataset:
    late = rlm.Condition(edits=SLOWER, when=rlm.episodes.when.from_step(2))
    never = rlm.Condition(edits=SLOWER, when=rlm.episodes.when.vehicle_within(0.001))
    return compared(driver, conditions={"nothing": NOTHING, "slower": SLOWER, "later": late, "never": never})


def test_its_shape_is_the_contracts(result: xr.Dataset) -> None:
    assert list(result["condition"].values) == ["baseline", "nothing", "slower", "later", "never"]
    assert list(result["seed"].values) == list(range(6))
    for name in TOLD:
        assert result[name].dims == ("condition", "seed")
        assert result[name].attrs["units"]
        for end in ("", "_low", "_high", "_se", "_p", "_p_holm"):
            assert result[f"delta_{name}{end}"].dims == ("condition",)
    assert result.attrs["policy"]
    assert result.attrs["env"] == "intersection-v2"


@pytest.mark.parametrize("condition", ["baseline", "nothing", "never"])
def test_an_edit_that_changes_nothing_gives_zero_differences_on_every_seed(result: xr.Dataset, condition: str) -> None:
    own = result.sel(condition=condition)
    for name in TOLD:
        assert np.array_equal(own[name], result[name].sel(condition="baseline"))
        assert own[f"delta_{name}"] == 0
        seen = float(own[f"delta_{name}_high"]), -float(own[f"delta_{name}_low"])
        assert min(seen) == 0 if condition == "baseline" else min(seen) > 0, "six seeds do not show what a seventh does"
        assert own[f"delta_{name}_p"] == 1
    assert (own["agreement"] == 1).all()
    assert own["divergence"].isnull().all()


def test_differences_are_those_of_the_same_seed(result: xr.Dataset, driver: rlm.HookedPolicy) -> None:
    alone = rlm.record(driver, crossing(), seeds=range(6), edits=SLOWER, progress=False)
    assert np.array_equal(result["return"].sel(condition="slower"), alone.episodes["return"])
    assert np.array_equal(result["speed"].sel(condition="slower"), alone.episodes["speed"])
    difference = result["speed"].sel(condition="slower") - result["speed"].sel(condition="baseline")
    own = result.sel(condition="slower")
    assert float(own["delta_speed"]) == pytest.approx(float(difference.mean()))
    assert float(own["delta_speed_se"]) == pytest.approx(float(difference.std(ddof=1)) / np.sqrt(6))
    assert float(own["delta_speed_high"]) < 0, "going slower makes slower"
    assert float(own["delta_speed_p"]) == pytest.approx(2 / 2**6), "all signs alike: the least that six seeds can show"
    assert float(own["delta_speed_p_holm"]) >= float(own["delta_speed_p"])


def test_the_way_from_onset_to_change_and_crash(result: xr.Dataset) -> None:
    later = result.sel(condition="later")
    changed = later["divergence"].notnull()
    assert changed.any()
    assert (later["onset"][changed] == 2).all()
    assert (later["steps_to_change"][changed] == later["divergence"][changed] - 2).all()
    assert (later["steps_to_change"][changed] >= 0).all(), "nothing changes before the edit is at work"
    crashed = (later["crashed"] == 1) & (later["length"] > 2)
    assert (later["steps_to_crash"][crashed] == later["length"][crashed] - 1 - 2).all()
    assert result.sel(condition="slower")["edited"].min() == 1
    assert 0 < float(later["edited"].mean()) < 1


def test_a_condition_that_never_becomes_true_is_told(result: xr.Dataset) -> None:
    assert result["condition"].values[result["never_active"].values].tolist() == ["never"]
    assert rlm.episodes.comparison_table(result).loc["never", "episodes changed"] == "never at work"


def test_the_order_of_conditions_and_their_company_change_no_number(
    driver: rlm.HookedPolicy, result: xr.Dataset
) -> None:
    turned = compared(driver, conditions={"slower": SLOWER, "nothing": NOTHING})
    kept = [name for name in result if not name.endswith("_p_holm")]  # corrected for how many there are
    for name in ("slower", "nothing", "baseline"):
        ours, theirs = turned[kept].sel(condition=name), result[kept].sel(condition=name)
        assert all(np.array_equal(ours[k], theirs[k], equal_nan=True) for k in kept)


@pytest.mark.slow
def test_many_workers_give_the_same_table(driver: rlm.HookedPolicy) -> None:
    one = compared(driver, conditions={"slower": SLOWER})
    two = compared(driver, conditions={"slower": SLOWER}, workers=2)
    assert two.drop_attrs().identical(one.drop_attrs())


def test_a_paired_interval_is_narrower_than_an_unpaired_one() -> None:
    """On an environment where the seed decides most of the return and the edit a little of it."""
    linear = torch.nn.Linear(1, 2)
    torch.nn.init.zeros_(linear.bias)  # at the tie of Lottery's only observation the first action is taken
    policy = rlm.HookedPolicy(linear, torch.rand(2, 1))
    one = {"one": [rlm.steer("hook_q_values", torch.tensor([0.0, 500.0]))]}
    result = rlm.compare_rollouts(policy, Lottery(), conditions=one, seeds=range(40), progress=False)
    own = result.sel(condition="one")
    paired = float(own["delta_return_high"] - own["delta_return_low"])
    first, second = (bootstrap_mean(result["return"].sel(condition=[name]).values) for name in ("one", "baseline"))
    unpaired = np.hypot(first.high - first.low, second.high - second.low)
    assert paired < 0.3 * unpaired
    assert float(own["delta_return_low"]) <= 0.5 <= float(own["delta_return_high"])


class Lottery(gym.Env[np.ndarray, int]):
    """One step: the seed draws up to 100, the action adds one half or nothing, and a little chance adds its part."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.prize = self.np_random.integers(100)
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(self.prize) + 0.5 * action + (0.2 * self.np_random.normal() if action else 0.0)
        return np.zeros(1, np.float32), reward, True, False, {}


def test_policies_are_compared_with_each_other(driver: rlm.HookedPolicy) -> None:
    torch.manual_seed(9)
    other = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 15, 7))
    result = compared(driver, conditions={"other": other, "itself": driver}, seeds=range(3))
    alone = rlm.record(other, crossing(), seeds=range(3), progress=False)
    assert np.array_equal(result["return"].sel(condition="other"), alone.episodes["return"])
    agrees = driver.predict(alone.observations)[0] == alone.actions
    told = [agrees[alone.steps["seed"] == seed].mean() for seed in range(3)]
    assert result["agreement"].sel(condition="other").values == pytest.approx(told)
    assert (result["agreement"].sel(condition="itself") == 1).all()
    assert list(result["policy"].values) == [driver.fingerprint, other.fingerprint, driver.fingerprint]


def test_a_comparison_goes_on_with_more_seeds_and_conditions(driver: rlm.HookedPolicy, tmp_path: Path) -> None:
    compared(driver, conditions={"slower": SLOWER}, seeds=range(2), path=tmp_path / "c")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "c" / "slower").rglob("*.parquet")}
    more = compared(driver, conditions={"slower": SLOWER, "faster": FASTER}, seeds=range(2), path=tmp_path / "c")
    alone = rlm.Recording.load(tmp_path / "c" / "faster").steps
    assert more.attrs["simulated_share"] * more["length"].sum() == len(alone), "only what was missing is simulated"
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "c" / "slower").rglob("*.parquet")} == before
    fresh = compared(driver, conditions={"slower": SLOWER, "faster": FASTER}, seeds=range(2))
    assert more.drop_attrs().identical(fresh.drop_attrs())
    recordings = {name: rlm.Recording.load(tmp_path / "c" / name) for name in ("baseline", "slower", "faster")}
    again = rlm.episodes.compare_recordings(recordings)
    assert np.array_equal(again["delta_return"], more["delta_return"])
    shutil.rmtree(tmp_path / "c" / "slower")
    grown = compared(driver, conditions={"slower": SLOWER, "faster": FASTER}, seeds=[0, 1, 5], path=tmp_path / "c")
    whole = compared(driver, conditions={"slower": SLOWER, "faster": FASTER}, seeds=[0, 1, 5])
    assert grown.drop_attrs().identical(whole.drop_attrs())


def test_controls_stand_beside_what_they_control(driver: rlm.HookedPolicy) -> None:
    _, reference = driver.run_with_cache(torch.rand(30, 15, 7))
    site = rlm.Site("attention_layer.hook_z", head=2)
    result = compared(
        driver,
        conditions={"head 2": [rlm.mean_ablation(site, reference=reference)]},
        controls=("random_site", "random_direction"),
        n_controls=2,
        seeds=range(2),
    )
    names = list(result["condition"].values)
    assert names[2:] == [f"head 2, random {kind} {i}" for kind in ("site", "direction") for i in (1, 2)]
    assert list(result["control_of"].values) == ["", "", "head 2", "head 2", "head 2", "head 2"]
    elsewhere = [str(edits) for edits in result["edits"].values[2:4]]
    assert all("head=" in text and "head=2" not in text and "mean" in text for text in elsewhere)
    assert all("head=2" in text and "steer" in text for text in result["edits"].values[4:])
    assert result["delta_speed_p_holm"][1] == result["delta_speed_p"][1], "controls take nothing from what was asked"


def test_a_random_direction_is_as_long_as_what_it_controls(driver: rlm.HookedPolicy) -> None:
    from rlmech.episodes.controls import _pushed

    states = torch.rand(64, 15, 7)  # all vehicles present
    site = rlm.Site("attention_layer.hook_z", head=2)
    edit = rlm.zero_ablation(site)
    pushed = [_pushed(driver, edit, states, torch.Generator().manual_seed(i)) for i in range(2)]
    with torch.no_grad():
        z = driver.run_with_cache(states)[1]["attention_layer.hook_z"][:, :, 2]
    size = z.flatten(1).square().sum(1).mean().sqrt()
    for push in pushed:
        assert push.value is not None
        assert float(push.value.norm()) == pytest.approx(float(size), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(pushed[0].value.flatten(), pushed[1].value.flatten(), dim=0)  # type: ignore[union-attr]
    assert abs(float(cosine)) < 0.95


def test_the_dose_is_the_coordinate(driver: rlm.HookedPolicy) -> None:
    result = rlm.episodes.dose_response(
        driver,
        crossing(),
        site="hook_q_values",
        vector=torch.tensor([-1.0, 0.0, 1.0]),
        coefficients=(50.0, -50.0, 0.0),
        seeds=range(2),
        progress=False,
    )
    assert list(result["coefficient"].values) == [-50.0, 0.0, 50.0]
    assert list(result["condition"].values) == ["-50", "baseline", "+50"]
    assert result["mean_speed"][0] < result["mean_speed"][2]


def test_the_seeds_needed_are_those_of_the_largest_spread_that_the_seeds_leave_possible(result: xr.Dataset) -> None:
    needed = rlm.episodes.seeds_needed(result, "speed", half_width=0.1)
    spread = float((result["speed"][2] - result["speed"][0]).std(ddof=1))
    assert int(needed.sel(condition="slower")) == np.ceil((1.959964 * spread / 0.1) ** 2 * 5 / chi2.ppf(0.05, 5))
    assert int(rlm.episodes.seeds_needed(result, "speed", half_width=0.2).sel(condition="slower")) < int(needed[2])
    with pytest.raises(MetricError, match="no such precision") as caught:
        rlm.episodes.seeds_needed(result, "sped", half_width=0.1)
    assert "'speed'" in caught.value.fix


def test_a_table_to_read(result: xr.Dataset) -> None:
    table = rlm.episodes.comparison_table(result)
    assert list(table.index) == list(result["condition"].values)
    assert table.loc["slower", "speed"].startswith("-")
    assert "[" in table.loc["slower", "speed"]
    assert not table.loc["baseline", "speed"].startswith("+")


@pytest.mark.parametrize(
    ("conditions", "says"),
    [
        ({}, "other than the baseline"),
        ({"baseline": SLOWER}, "other than the baseline"),
        ({"a": "hook_z"}, "'a' holds nothing that can be driven"),
        ({"a b": SLOWER, "a_b": SLOWER}, "cannot be told apart"),
    ],
)
def test_bad_conditions_are_told(driver: rlm.HookedPolicy, conditions: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        compared(driver, conditions=conditions, path=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_an_edit_that_does_not_fit_runs_no_episode(driver: rlm.HookedPolicy, tmp_path: Path) -> None:
    with pytest.raises(SiteError):
        compared(driver, conditions={"a": [rlm.zero_ablation("hook_zz")]}, path=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_controls_that_cannot_be_made_are_told(driver: rlm.HookedPolicy) -> None:
    with pytest.raises(ConfigError, match="no control 'random'"):
        compared(driver, conditions={"a": SLOWER}, controls=("random",))
    with pytest.raises(ConfigError, match="no other site"):
        compared(driver, conditions={"a": SLOWER}, controls=("random_site",))
    with pytest.raises(ConfigError, match="There is no control for condition 'a'"):
        compared(driver, conditions={"a": [("hook_q_values", lambda t, hook: t)]}, controls=("random_site",))


def test_recordings_without_a_common_seed_are_not_compared(driver: rlm.HookedPolicy) -> None:
    one = rlm.record(driver, crossing(), seeds=[0], progress=False)
    two = rlm.record(driver, crossing(), seeds=[1], progress=False)
    with pytest.raises(RecordingError, match="no seed in common"):
        rlm.episodes.compare_recordings({"baseline": one, "other": two})
    with pytest.raises(ConfigError, match="nothing to compare"):
        rlm.episodes.compare_recordings({"one": one, "two": two})


def test_functions_on_hook_points_are_compared_where_no_controls_are_asked_for(driver: rlm.HookedPolicy) -> None:
    as_it_is = [("hook_obs", lambda value, hook: value)]
    assert (compared(driver, conditions={"as it is": as_it_is}, seeds=range(2))["delta_return"] == 0).all()
