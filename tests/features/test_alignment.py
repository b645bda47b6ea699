"""Alignment: the planted subspace is found, nothing is found where nothing stands, and what cannot be asked is said."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import scipy.linalg
import torch

import rlmech as rlm
from rlmech.errors import ConfigError, MetricError, ObservationError
from rlmech.features import AlignedSubspace, InterchangePairs, align_subspace, interchange_pairs
from rlmech.testbed import KnownSubspace, planted_subspace
from tests.probes.test_fit import Balancing


@pytest.fixture(scope="module")
def known() -> KnownSubspace:
    return planted_subspace()


def of(known: KnownSubspace, **more: object) -> InterchangePairs:
    return InterchangePairs(base=known.base, source=known.source, expected=known.expected, **more)


@pytest.fixture(scope="module")
def found(known: KnownSubspace) -> AlignedSubspace:
    return align_subspace(known.policy, of(known), site=known.site, sizes=[1, 2, 3])


def angle(found: AlignedSubspace, known: KnownSubspace) -> float:
    return float(np.rad2deg(scipy.linalg.subspace_angles(found.basis.T.numpy(), known.basis.T.numpy())).max())


def test_the_planted_subspace_and_its_dimension_are_found(known: KnownSubspace, found: AlignedSubspace) -> None:
    assert found.basis.shape == (2, 12)
    assert angle(found, known) < 5
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(2, dtype=torch.float64))
    assert found.says == "moves the variable, better than every control"


def test_what_is_reported_is_the_interchange_of_pairs_that_taught_nothing(
    known: KnownSubspace, found: AlignedSubspace
) -> None:
    accuracy = found.result["accuracy"]
    assert float(accuracy.sel(control="aligned")) > 0.95
    assert float(accuracy.sel(control="arbitrary_labels")) < 0.5
    assert float(accuracy.sel(control="untrained")) < 0.7
    assert float(accuracy.sel(control="unchanged")) < 0.6
    told = found.result.attrs
    assert told["n_fitted"] + told["n_choosing"] + told["n_tested"] == len(known.base)
    source = known.policy.run_with_cache(known.source, "hidden.hook_out")[1]
    with known.policy.edited(found.edit(source)):
        done = known.policy(known.base).argmax(1)
    assert float((done == known.expected).double().mean()) > 0.95


def test_actions_may_be_told_by_name_or_by_observations_that_are_asked_about(known: KnownSubspace) -> None:
    names = [("SLOWER", "IDLE", "FASTER")[i] for i in known.expected.tolist()]
    by_name = InterchangePairs(base=known.base, source=known.source, expected=names)
    asked = InterchangePairs(base=known.base, source=known.source, counterfactual=known.counterfactual)
    for pairs in (by_name, asked):
        assert pairs.actions(known.policy).tolist() == known.expected.tolist()


def test_episodes_are_never_split(known: KnownSubspace) -> None:
    pairs = of(known, clusters=np.arange(2000) // 100)
    result = align_subspace(known.policy, pairs, site=known.site, sizes=[2], n_steps=5, n_controls=1).result
    assert [result.attrs[name] for name in ("n_fitted", "n_choosing", "n_tested")] == [1000, 500, 500]
    assert result.attrs["n_clusters"] == 5


def test_pairs_of_a_recording_are_of_one_episode_and_half_of_them_matter() -> None:
    policy = rlm.HookedPolicy(Balancing(), torch.rand(2, 4))
    env = gym.make("CartPole-v1", max_episode_steps=60)
    recording = rlm.record(policy, env, seeds=range(16), progress=False)

    def angle_of(base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return torch.cat([base[:, :2], source[:, 2:3], base[:, 3:]], dim=1)

    pairs = interchange_pairs(policy, recording, change=angle_of, n_pairs=400)
    same = pairs.actions(policy) == policy(pairs.base).argmax(1)
    assert float(same.double().mean()) == pytest.approx(0.5, abs=0.01)
    episodes = recording.steps["episode"].to_numpy()
    rows = {tuple(row): episode for row, episode in zip(recording.observations.tolist(), episodes, strict=True)}
    for run in (pairs.base, pairs.source):
        assert [rows[tuple(row)] for row in run.tolist()] == pairs.clusters.tolist()
    with pytest.raises(ConfigError, match="changes an action"):
        interchange_pairs(policy, recording, change=lambda base, source: base)
    with pytest.raises(ConfigError, match="an observation for each pair"):
        interchange_pairs(policy, recording, change=lambda base, source: base[:3])


def test_what_cannot_be_aligned_is_refused_in_words(known: KnownSubspace) -> None:
    with pytest.raises(ConfigError, match="different episodes"):
        align_subspace(known.policy, of(known, clusters=np.zeros(2000)), site=known.site)
    with pytest.raises(ConfigError, match="fewer than the site has numbers"):
        align_subspace(known.policy, of(known), site=known.site, sizes=[12])
    with pytest.raises(ConfigError, match="fewer than the site has numbers"):
        align_subspace(known.policy, of(known), site=known.site, sizes=[0, 2])
    same = InterchangePairs(base=known.base, source=known.base, expected=known.expected)
    with pytest.raises(ConfigError, match="changes nothing at"):
        align_subspace(known.policy, same, site=known.site)
    with pytest.raises(ConfigError, match="said once"):
        InterchangePairs(base=known.base, source=known.source)
    with pytest.raises(ObservationError, match="do not pair up"):
        InterchangePairs(base=known.base, source=known.source[:5], expected=known.expected)
    unknown = InterchangePairs(base=known.base, source=known.source, expected=["BRAKE"] * 2000)
    with pytest.raises(MetricError):
        align_subspace(known.policy, unknown, site=known.site)
    steering = rlm.HookedPolicy(torch.nn.Linear(3, 1), torch.rand(2, 3), output_kind="mean_action")
    pairs = InterchangePairs(base=torch.rand(8, 3), source=torch.rand(8, 3), expected=[0] * 8)
    with pytest.raises(ConfigError, match="continuous actions"):
        align_subspace(steering, pairs, site="hook_obs")
