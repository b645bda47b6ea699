"""LEACE: afterwards the value and the targets do not covary, by the least change, which goes along what they share."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import ConfigError
from rlmech.probes import erase_targets, fit_probe


@pytest.fixture(scope="module")
def policy() -> rlm.HookedPolicy:
    torch.manual_seed(0)
    return rlm.HookedPolicy(nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 2)), torch.rand(2, 4))


@pytest.fixture(scope="module")
def recording(policy: rlm.HookedPolicy) -> rlm.Recording:
    return rlm.record(policy, gym.make("CartPole-v1"), seeds=range(20), progress=False)


TARGETS = {
    "angle": lambda r: r.observations[:, 2].astype(float),
    "speed": lambda r: 1e-3 * r.observations[:, 1].astype(float),  # of tiny spread: erased all the same
    "side": lambda r: np.select([r.observations[:, 0] < 0, r.observations[:, 3] < 0], ["left", "slow"], "fast"),
}


def at(policy: rlm.HookedPolicy, recording: rlm.Recording, edit: rlm.Edit) -> np.ndarray:
    with policy.edited(edit):
        _, cache = policy.run_with_cache(torch.as_tensor(recording.observations), "1.hook_out")
    return cache["1.hook_out"].detach().double().numpy()


def test_no_linear_probe_finds_any_of_several_targets_after_their_erasure(policy, recording):
    value = at(policy, recording, erase_targets(policy, recording, target=TARGETS, site="1.hook_out"))
    side = TARGETS["side"](recording)
    columns = [TARGETS[name](recording) for name in ("angle", "speed")] + [side == name for name in np.unique(side)]
    for column in columns:
        z = (column - column.mean()) / column.std()
        assert np.abs((value - value.mean(0)).T @ z / len(z)).max() < 1e-4 * value.std(0).max()
    assert value.std(0).max() > 0.01  # something is left


def test_one_column_is_erased_as_by_the_probes_pattern(policy, recording):
    """The covariance of value and target is what the least change goes along, whatever its readout's slope is."""
    edit = erase_targets(policy, recording, target={"angle": TARGETS["angle"]}, site="1.hook_out")
    _, cache = policy.run_with_cache(torch.as_tensor(recording.observations), "1.hook_out")
    before, after = cache["1.hook_out"].detach().double().numpy(), at(policy, recording, edit)
    moved = after - before
    together = (before - before.mean(0)).T @ (TARGETS["angle"](recording) - TARGETS["angle"](recording).mean())
    along = moved @ together / np.linalg.norm(together)
    np.testing.assert_allclose(np.abs(along), np.linalg.norm(moved, axis=1), rtol=1e-3, atol=1e-6)


def test_what_the_site_does_not_hold_is_refused_in_words(policy, recording):
    with pytest.raises(ConfigError, match="one value a step"):
        erase_targets(policy, recording, target=lambda r: r.observations[:, :2], site="1.hook_out")
    with pytest.raises(ConfigError, match="constant"):
        erase_targets(policy, recording, target=lambda r: np.ones(len(r.steps)), site="1.hook_out")
    found = fit_probe(policy, recording, target={"angle": TARGETS["angle"]}, sites="1.hook_out", n_untrained=1)
    assert found.probe().score["trained"] > 0.1  # what was erased above was there
