"""Shapley values: laws, known games, the short way beside the plain one, estimates beside exact values."""

import itertools
import math
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.attribution import coalitions, shapley_interactions, shapley_values
from rlmech.attribution.games import EntityGame, game_of
from rlmech.attribution.masked_attention import MaskedAttention
from rlmech.errors import AttentionError, ConfigError, ObservationError
from rlmech.metrics import action_score, state_value
from rlmech.nets import EgoAttentionNetwork
from tests import networks

EXACT = {"rtol": 0, "atol": 1e-10}


def attention(n_entities=6, **options):
    torch.manual_seed(0)
    spec = rlm.PolicySpec(
        entities=networks.SPEC.entities[:n_entities],
        features=networks.SPEC.features,
        actions=networks.SPEC.actions,
        presence="presence",
    )
    return rlm.HookedPolicy(EgoAttentionNetwork(7, 3, **options).double(), states(2, n_entities), spec=spec)


def states(n, n_entities=6, *, present=0.7):
    generator = torch.Generator().manual_seed(n)
    obs = torch.rand(n, n_entities, 7, generator=generator, dtype=torch.float64) * 2 - 1
    obs[..., 0] = (torch.rand(n, n_entities, generator=generator) < present).double()
    obs[:, 0, 0] = 1
    return obs * obs[..., :1]


class Table(nn.Module):
    """Scores that are a known function of a table of four entities with a presence and one feature."""

    def __init__(self, function):
        super().__init__()
        self.function, self.scale = function, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, obs):
        first = self.scale * self.function(obs)
        return torch.stack([first, torch.zeros_like(first)], 1)


def known(function):
    spec = rlm.PolicySpec(
        entities=("ego", "a", "b", "c"),
        features=(rlm.FeatureSpec(name="presence"), rlm.FeatureSpec(name="x")),
        presence="presence",
    )
    example = torch.ones(2, 4, 2, dtype=torch.float64)
    return rlm.HookedPolicy(Table(function), example, spec=spec)


def brute_force(worths, n):
    values = np.zeros((len(worths), n))
    for order in itertools.permutations(range(n)):
        inside = 0
        for player in order:
            values[:, player] += worths[:, inside | 1 << player] - worths[:, inside]
            inside |= 1 << player
    return values / math.factorial(n)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_exact_values_are_the_mean_over_all_orders_of_joining(n):
    worths = np.random.default_rng(n).normal(size=(3, 1 << n))
    np.testing.assert_allclose(coalitions.exact_shares(worths, n).values, brute_force(worths, n), **EXACT)


def test_the_values_sum_to_what_all_vehicles_change_and_the_score_is_the_policys():
    policy, obs = attention(), states(9)
    found = shapley_values(policy, obs, metric=action_score("FASTER"))
    np.testing.assert_allclose(found.value.sum("entity"), found.total, **EXACT)
    np.testing.assert_allclose(found.none + found.total, policy(obs)[:, 2].detach(), **EXACT)
    alone = torch.where(torch.arange(6)[:, None] == 0, obs, 0)
    np.testing.assert_allclose(found.none, policy(alone)[:, 2].detach(), **EXACT)
    assert found.attrs["scheme"] == "what stands behind the attention"


def test_a_vehicle_that_is_not_there_or_changes_nothing_has_exactly_zero():
    policy, obs = attention(), states(9)
    absent = (obs[:, 1:, 0] < 0.5).numpy()
    assert absent.any()
    assert (shapley_values(policy, obs).value.values[absent] == 0).all()
    blind = known(lambda obs: obs[:, 1, 1] * obs[:, 2, 1])
    found = shapley_values(blind, torch.rand(5, 4, 2, dtype=torch.float64) + 0.5, metric=action_score(0))
    assert (found.value.sel(entity="c") == 0).all()
    assert (found.value.sel(entity="a") != 0).all()


def test_vehicles_that_do_the_same_have_the_same_value_and_an_and_is_shared_and_is_an_interaction():
    both = known(lambda obs: 6 * obs[:, 1, 0] * obs[:, 2, 0] + obs[:, 3, 1])
    obs = torch.ones(1, 4, 2, dtype=torch.float64)
    obs[:, 3, 1] = 5
    found = shapley_values(both, obs, metric=action_score(0))
    np.testing.assert_allclose(found.value[0], [3, 3, 5], **EXACT)
    together = shapley_interactions(both, obs, metric=action_score(0))
    assert [*zip(together["first"].values, together["second"].values, strict=True)] == [
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    np.testing.assert_allclose(together.interaction[0], [6, 0, 0], **EXACT)


def test_interactions_are_the_second_differences_averaged_over_the_others():
    worths = np.random.default_rng(0).normal(size=(1, 8))
    v = lambda *players: worths[0, sum(1 << p for p in players)]  # noqa: E731
    wanted = [
        (v(i, j) - v(i) - v(j) + v()) / 2 + (v(i, j, k) - v(i, k) - v(j, k) + v(k)) / 2
        for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    ]
    np.testing.assert_allclose(coalitions.exact_interactions(worths, 3)[0], wanted, **EXACT)


@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["softmax spread out", "softmax saturated"])
def test_behind_the_attention_every_coalition_is_worth_what_the_whole_policy_says(scale):
    policy, obs = attention(), states(4, present=1.0)
    with torch.no_grad():
        policy.module.attention_layer.query_ego.weight.mul_(scale)
    short = game_of(policy, obs, players="entities")
    assert isinstance(short, EntityGame)
    assert short.fast is not None
    with mock.patch.object(MaskedAttention, "of", return_value=None):
        whole = game_of(policy, obs, players="entities")
    rows, players = np.arange(4), np.tile(np.arange(5), (4, 1))
    every = coalitions.all_coalitions(5)
    np.testing.assert_allclose(short.worth(rows, players, every), whole.worth(rows, players, every), atol=1e-9)


class Counting(EgoAttentionNetwork):
    """Beside the attention it counts who is there."""

    def forward(self, obs):
        return super().forward(obs) + obs[..., 0].sum(1, keepdim=True) * torch.tensor([1.0, 0.0, 2.0]).to(obs)


@pytest.mark.parametrize("options", [{"self_attention_heads": 1}, {}], ids=["entities mix before", "a count beside"])
def test_where_vehicles_act_past_the_attention_the_whole_policy_runs(options):
    torch.manual_seed(0)
    policy = attention(**options)
    if not options:
        policy = rlm.HookedPolicy(Counting(7, 3).double(), states(2), spec=policy.spec)
    obs = states(3)
    found = shapley_values(policy, obs, metric=action_score(2))
    assert found.attrs["scheme"] == "the policy"
    np.testing.assert_allclose(found.none + found.total, policy(obs)[:, 2].detach(), **EXACT)


class Valued(EgoAttentionNetwork):
    """Gives a state value beside its scores."""

    def forward(self, obs):
        scores = super().forward(obs)
        return scores, scores.exp().mean(1)


def test_the_state_value_is_shared_out_too():
    policy = rlm.HookedPolicy(Valued(7, 3).double(), states(2), spec=attention().spec)
    obs = states(3)
    found = shapley_values(policy, obs, metric=state_value())
    assert found.attrs["scheme"] == "what stands behind the attention"
    np.testing.assert_allclose(found.none + found.total, policy.module(obs)[1].detach(), **EXACT)


@pytest.mark.parametrize("method", ["permutation", "kernel"])
def test_an_estimate_sums_to_the_total_and_its_error_covers_the_exact_value(method):
    policy, obs = attention(9), states(40, 9, present=1.0)
    exact = shapley_values(policy, obs)
    found = shapley_values(policy, obs, method=method, n_samples=640, seed=1)
    np.testing.assert_allclose(found.value.sum("entity"), exact.total, **EXACT)
    off = ((found.value - exact.value) / found.error).values
    assert 0.5 < np.sqrt((off**2).mean()) < 1.6
    finer = shapley_values(policy, obs, method=method, n_samples=16 * 640, seed=1)
    assert abs(finer.value - exact.value).mean() < abs(found.value - exact.value).mean() / 2


def test_more_than_fifteen_players_are_estimated_and_a_linear_policy_is_estimated_without_error():
    policy = rlm.HookedPolicy(nn.Linear(20, 2).double(), torch.rand(2, 20, dtype=torch.float64))
    obs, reference = torch.rand(3, 20, dtype=torch.float64), torch.rand(4, 20, dtype=torch.float64)
    wanted = (policy.module.weight[1] * (obs - reference.mean(0))).detach()
    for method in ("auto", "kernel"):
        given = {"players": "features", "metric": action_score(1), "reference": reference, "method": method}
        found = shapley_values(policy, obs, n_samples=200, **given)
        np.testing.assert_allclose(found.value, wanted, **EXACT)
        assert (found.error < 1e-9).all()


def test_the_presence_is_no_feature_and_what_is_absent_stays_as_it_is():
    policy, obs = attention(), states(5)
    seen = []
    with policy.hooks(fwd_hooks=[("hook_obs", lambda value, hook: seen.append(value.clone()))]):
        found = shapley_values(policy, obs, players="features", reference=states(3))
    assert list(found.feature.values) == list(networks.FEATURES[1:])
    masks = {tuple(row) for row in obs[..., 0].tolist()} | {tuple(row) for row in states(3)[..., 0].tolist()}
    for value in seen:
        assert {tuple(row) for row in value[..., 0].tolist()} <= masks
        assert (value[value[..., 0] < 0.5] == 0).all()
    np.testing.assert_allclose(found.value.sum("feature"), found.total, **EXACT)


def test_heads_are_shared_out_over_every_order_of_ablating_them():
    policy, obs = attention(), states(5)
    metric = action_score(0)
    found = shapley_values(policy, obs, players="heads", metric=metric)
    sites = policy.sites("attention_layer.hook_z", over="head")
    worths = np.empty((5, 16))
    for number, inside in enumerate(coalitions.all_coalitions(4)):
        out = [rlm.mean_ablation(site, reference=obs) for site, there in zip(sites, inside, strict=True) if not there]
        with policy.edited(out):
            worths[:, number] = policy(obs)[:, 0].detach()
    np.testing.assert_allclose(found.value, brute_force(worths, 4), **EXACT)


@pytest.mark.parametrize(
    ("error", "given"),
    [
        (ConfigError, {"players": "vehicles"}),
        (ConfigError, {"players": "entities", "reference": states(2)}),
        (ConfigError, {"players": "entities", "ablation": "zero"}),
        (ConfigError, {"players": "heads", "ablation": "resample"}),
        (ConfigError, {"method": "sampling"}),
        (ConfigError, {"n_samples": 0}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else " ".join(f"{k}" for k in value),
)
def test_an_option_that_players_have_no_use_for_is_refused(error, given):
    with pytest.raises(error, match=r"."):
        shapley_values(attention(), states(2), **given)


def test_players_that_are_not_there_are_refused_in_words():
    policy = rlm.HookedPolicy(nn.Linear(20, 2), torch.rand(2, 20))
    with pytest.raises(ObservationError, match="have no entities"):
        shapley_values(policy, torch.rand(2, 20))
    with pytest.raises(AttentionError, match="no attention heads"):
        shapley_values(policy, torch.rand(2, 20), players="heads")
    with pytest.raises(ConfigError, match="too many"):
        shapley_values(policy, torch.rand(2, 20), players="features", method="exact")
    with pytest.raises(ConfigError, match="too many"):
        shapley_interactions(policy, torch.rand(2, 20), players="features")
    with pytest.raises(ObservationError, match="nothing to share"):
        shapley_values(policy, torch.rand(0, 20), players="features")
    unnamed = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), torch.rand(2, 6, 7))
    with pytest.raises(ObservationError):
        shapley_values(unnamed, torch.rand(2, 6, 7))
