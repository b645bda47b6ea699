"""A feature that one of two policies holds is found in that one alone, and all that both hold in both."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import ConfigError
from rlmech.similarity import joint_dictionary

N, WIDTH = 6, 10
EXTRA = N - 1


def holding(features: int, seed: int) -> tuple[rlm.HookedPolicy, torch.Tensor]:
    """A policy whose layer holds the first numbers of the observation, each along a direction of its own."""
    directions = torch.linalg.qr(torch.randn(WIDTH, N, generator=torch.Generator().manual_seed(seed))).Q
    net = nn.Sequential(nn.Linear(N, WIDTH, bias=False), nn.Linear(WIDTH, 2))
    with torch.no_grad():
        net[0].weight.copy_(directions)
        net[0].weight[:, features:] = 0
    return rlm.HookedPolicy(net, torch.rand(2, N)), directions


def sparse(n: int) -> torch.Tensor:
    """Numbers that are there or not by themselves: else one would foretell the others, in both policies."""
    generator = torch.Generator().manual_seed(2)
    there = torch.rand(n, N, generator=generator) < 0.12
    return there * (torch.rand(n, N, generator=generator) + 0.5)


def test_the_feature_that_only_one_policy_holds_is_found_there_and_the_others_in_both():
    (a, in_a), (b, in_b) = holding(EXTRA, 0), holding(N, 1)
    found = joint_dictionary(a, b, sparse(2000), site="0.hook_out", n_features=N, k=3, n_steps=600)
    alive = found.isel(feature=found["density"].values > 0.02)
    near_b = torch.as_tensor(alive["direction_b"].values)
    near_b = torch.nn.functional.normalize(near_b, dim=1) @ in_b
    own = near_b.argmax(1)
    assert (near_b.amax(1) > 0.9).all()
    assert set(own.tolist()) == set(range(N))
    for place, feature in enumerate(own.tolist()):
        assert str(alive["held_by"].values[place]) == ("b" if feature == EXTRA else "both")
        if feature != EXTRA:
            direction = torch.as_tensor(alive["direction_a"].values[place])
            assert float(torch.nn.functional.normalize(direction, dim=0) @ in_a[:, feature]) > 0.9
    assert float(found["explained_a"]) > 0.9
    assert float(found["explained_b"]) > 0.9
    turned = joint_dictionary(b, a, sparse(2000), site="0.hook_out", n_features=N, k=3, n_steps=600)
    assert (turned["held_by"].values == "a").sum() == 1


def test_what_no_joint_dictionary_can_be_made_of_is_refused_in_words():
    (a, _), (b, _) = holding(N, 0), holding(N, 1)
    with pytest.raises(ConfigError, match="wider than its data"):
        joint_dictionary(a, b, sparse(20), site="0.hook_out", n_features=64)
    with pytest.raises(ConfigError, match="active in each state"):
        joint_dictionary(a, b, sparse(50), site="0.hook_out", n_features=8, k=9)
    with pytest.raises(ConfigError, match="says nothing"):
        joint_dictionary(holding(0, 0)[0], b, sparse(50), site="0.hook_out", n_features=8, k=2)
