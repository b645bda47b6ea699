"""Paths through the heads sum to the score, and each is the product of matrices that it is said to be."""

from functools import cache

import numpy as np
import pytest
import torch
from einops import einsum, rearrange
from torch import nn

import rlmech as rlm
from rlmech.circuits import expansion as module
from rlmech.circuits import ov_forms
from rlmech.circuits.expansion import path_expansion
from rlmech.errors import AttentionError, ConfigError, EngineError, MetricError, ObservationError
from rlmech.nets import EgoAttentionNetwork
from rlmech.testbed import nearest_vehicle
from tests import networks

FIRST, SECOND = "first", "second"


class TwoLayers(nn.Module):
    """Two biased attentions on a residual stream; a layer norm and a ReLU perceptron between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.readout = nn.Linear(7, 8), nn.Linear(8, 3)
        self.first = nn.MultiheadAttention(8, 2, batch_first=True)
        self.second = nn.MultiheadAttention(8, 4, batch_first=True)
        self.norm, self.inner, self.outer = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r = self.embed(x)
        r = r + self.first(r, r, r, need_weights=False)[0]
        r = self.norm(r)
        r = r + self.outer(torch.relu(self.inner(r)))
        r = r + self.second(r, r, r, need_weights=False)[0]
        return self.readout(r.mean(1))


def random_weights(network: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return network.double().eval()


def states(n: int, n_entities: int = 5) -> torch.Tensor:
    return networks.scenes(n, n_entities=n_entities, seed=n).double()


@cache
def two_layers() -> rlm.HookedPolicy:
    return rlm.HookedPolicy(random_weights(TwoLayers()), states(3))


@cache
def ego() -> rlm.HookedPolicy:
    return rlm.HookedPolicy(ego_network(), states(2, 15), spec=networks.SPEC)


def ego_network(**kwargs) -> EgoAttentionNetwork:
    sizes = {"d_model": 16, "n_heads": 4, "embedding": (16,), "output": (16,)}
    return random_weights(EgoAttentionNetwork(7, 3, **{**sizes, **kwargs}))


def summed(found) -> np.ndarray:
    return (found.features.sum("path") + found.bias.sum("path") + found.longer).values


NETWORKS = {
    "two layers": TwoLayers,
    "transformer": networks.Transformer,
    "transformer with padding": lambda: networks.Transformer(padding=True),
    "fused": networks.FusedAttention,
    "interleaved heads": lambda: networks.FusedAttention(interleaved=True),
    "multi-head": networks.MultiHead,
    "scaled queries": networks.ScaledQueries,
    "ego": ego_network,
    "ego after scrambled self-attention": lambda: ego_network(self_attention_heads=2),
}


@cache
def wrapped(name: str) -> rlm.HookedPolicy:
    return rlm.HookedPolicy(random_weights(NETWORKS[name]()), states(2))


@pytest.mark.parametrize("longest", [0, 1, 2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_paths_sum_to_the_policy_s_own_scores(name, longest):
    obs, policy = states(6), wrapped(name)
    found = path_expansion(policy, obs, longest=longest)
    np.testing.assert_allclose(found.total.values, policy(obs).detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(summed(found), found.total.values, atol=1e-10)
    assert bool((found.longer == 0).all()) == (longest >= len(policy.attention))
    assert list(found.n_heads.values) == sorted(found.n_heads.values)
    assert found.n_heads.values.max() == min(longest, len(policy.attention))


def test_paths_sum_to_the_scores_of_a_trained_policy_in_single_precision(seed_policy_dir):
    policy = rlm.load("zoo:intersection-ego-attention")
    obs = torch.as_tensor(np.load(seed_policy_dir / "observations.npy"))
    found = path_expansion(policy, obs, better="FASTER", worse="SLOWER")
    scores = policy(obs).detach().numpy()
    np.testing.assert_allclose(found.total.values[:, 0], scores[:, 2] - scores[:, 0], atol=1e-6)
    np.testing.assert_allclose(summed(found), found.total.values, atol=1e-5 * abs(scores).max())


# ---- each path is the product that it is said to be


def carried(policy: rlm.HookedPolicy, obs: torch.Tensor) -> dict:
    """Every part of the residual stream carried forward through `TwoLayers` by hand: (path, kind) -> scores."""
    net: TwoLayers = policy.module
    _, cache = policy.run_with_cache(obs)
    parts = {((), "features"): obs @ net.embed.weight.T, ((), "bias"): net.embed.bias.expand(*obs.shape[:2], -1)}

    def add(parts, key, value):
        parts[key] = parts.get(key, 0) + value

    def attend(path):
        block, pattern = policy.attention[path], cache[policy.attention[path].names["pattern"]]
        for (before, kind), part in list(parts.items()):
            for head in range(block.n_heads):
                value = pattern[:, head] @ part @ block.W_V[head] @ block.W_O[head]
                add(parts, ((*before, (path, head)), kind), value)
        for head in range(block.n_heads):
            add(parts, (((path, head),), "bias"), block.b_V[head] @ block.W_O[head])
        add(parts, ((), "bias"), block.b_O)

    attend(FIRST)
    stream = sum(parts.values())
    scale = (stream.var(-1, unbiased=False, keepdim=True) + net.norm.eps) ** -0.5
    parts = {key: (part - part.mean(-1, keepdim=True)) * scale * net.norm.weight for key, part in parts.items()}
    add(parts, ((), "bias"), net.norm.bias)
    gates = (sum(parts.values()) @ net.inner.weight.T + net.inner.bias > 0).double()
    for key, part in list(parts.items()):
        parts[key] = part + (part @ net.inner.weight.T * gates) @ net.outer.weight.T
    add(parts, ((), "bias"), (net.inner.bias * gates) @ net.outer.weight.T + net.outer.bias)
    attend(SECOND)
    scores = {key: part.mean(1) @ net.readout.weight.T for key, part in parts.items()}
    add(scores, ((), "bias"), net.readout.bias)
    return scores


def test_two_layers_of_heads_agree_with_every_part_carried_forward_by_hand():
    policy, obs = two_layers(), states(5)
    found, by_hand = path_expansion(policy, obs), carried(policy, obs)
    assert found.sizes["path"] == 1 + 2 + 4 + 8
    for (path, kind), scores in by_hand.items():
        name = " > ".join(f"{block} head {head}" for block, head in path) or "direct"
        np.testing.assert_allclose(found[kind].sel(path=name).values, scores.detach().numpy(), atol=1e-10, err_msg=name)
    assert len(by_hand) == 2 * found.sizes["path"]


def test_an_ego_network_s_paths_are_its_heads_ov_forms_and_its_halved_skip():
    policy, obs = ego(), states(7, 15)
    found = path_expansion(policy, obs)
    _, cache = policy.run_with_cache(obs)
    forms = torch.as_tensor(ov_forms(policy, obs).values)
    x = torch.cat((obs, torch.ones_like(obs[..., :1])), -1)
    weighted = einsum(
        cache["attention_layer.hook_pattern"],
        x,
        forms,
        "batch head query entity, batch entity feature, batch head query entity feature action -> "
        "batch head feature action",
    )
    heads = [f"head {head}" for head in range(4)]
    np.testing.assert_allclose(found.features.sel(path=heads).values, weighted[:, :, :-1].sum(2).detach(), atol=1e-10)
    np.testing.assert_allclose(found.bias.sel(path=heads).values, weighted[:, :, -1].detach(), atol=1e-10)

    net = policy.module
    (first,), layer = net.ego_embedding.layers, net.output_layer.layers[0]
    open_first = (obs[:, 0] @ first.weight.T + first.bias > 0).double()
    open_layer = (cache["output_layer.relu_0.hook_out"] > 0).double()

    def onward(part):
        return (part / 2 @ layer.weight.T * open_layer) @ net.output_layer.predict.weight.T

    skip = onward(obs[:, 0] @ first.weight.T * open_first)
    constants = onward(first.bias * open_first) + (layer.bias * open_layer) @ net.output_layer.predict.weight.T
    np.testing.assert_allclose(found.features.sel(path="direct").values, skip.detach(), atol=1e-10)
    np.testing.assert_allclose(
        found.bias.sel(path="direct").values, (constants + net.output_layer.predict.bias).detach(), atol=1e-10
    )
    assert abs(2 * skip - skip).mean() > 0.01  # a skip that is not halved misses


def test_the_head_that_decides_carries_the_gap_and_the_decoy_nothing():
    known = nearest_vehicle()
    found = path_expansion(known.policy, known.clean, better="SLOWER", worse="FASTER")
    slower = known.policy(known.clean)[:, 0].detach().numpy()
    np.testing.assert_allclose(found.features.sel(path="head 0").values[:, 0], slower, atol=1e-10)
    assert slower.max() > 1
    assert not found.features.sel(path=["head 1", "direct"]).any()
    np.testing.assert_allclose(found.bias.sel(path="direct").values, -3, atol=1e-10)
    assert list(found.action.values) == ["SLOWER - FASTER"]


# ---- laws


def test_a_gap_is_the_difference_of_two_actions():
    policy, obs = ego(), states(4, 15)
    gap, every = path_expansion(policy, obs, better="FASTER", worse=0), path_expansion(policy, obs)
    for name in ("features", "bias", "longer", "total"):
        difference = every[name].sel(action="FASTER") - every[name].sel(action="SLOWER")
        np.testing.assert_allclose(gap[name].values[..., 0], difference.values, atol=1e-12)
    assert (gap.attrs["metric"], every.attrs["metric"]) == ("action gap", "action score")


def test_shorter_paths_are_the_same_and_the_others_are_gathered():
    policy, obs = two_layers(), states(4)
    every, short = path_expansion(policy, obs), path_expansion(policy, obs, longest=1)
    both = every.features + every.bias
    np.testing.assert_allclose(short.longer.values, both.sel(path=both.n_heads == 2).sum("path").values, atol=1e-10)
    np.testing.assert_allclose(short.features.values, every.features.sel(path=short.path).values, atol=1e-12)


def test_states_one_by_one_give_the_same(monkeypatch):
    policy, obs = two_layers(), states(5)
    together = path_expansion(policy, obs)
    monkeypatch.setattr(module, "_STATES_AT_ONCE", 2)
    for name, values in path_expansion(policy, obs).items():
        np.testing.assert_allclose(values.values, together[name].values, atol=1e-12)
    alone = path_expansion(policy, obs[3:4])
    np.testing.assert_allclose(alone.features.values[0], together.features.values[3], atol=1e-12)


def test_heads_permuted_with_their_weights_permute_the_paths():
    order, obs = [2, 0, 3, 1], states(4, 15)
    network = ego_network()
    attention = network.attention_layer
    for layer in (attention.query_ego, attention.key_all, attention.value_all):
        rows = rearrange(layer.weight.data, "(head d_head) d_model -> head d_head d_model", head=4)
        layer.weight.data = rearrange(rows[order], "head d_head d_model -> (head d_head) d_model")
    columns = rearrange(attention.attention_combine.weight.data, "d_model (head d_head) -> head d_model d_head", head=4)
    attention.attention_combine.weight.data = rearrange(columns[order], "head d_model d_head -> d_model (head d_head)")
    permuted = path_expansion(rlm.HookedPolicy(network, obs[:2], spec=networks.SPEC), obs)
    want = path_expansion(ego(), obs).features.values[:, [0, *(1 + head for head in order)]]
    np.testing.assert_allclose(permuted.features.values, want, atol=1e-12)


def test_other_vehicles_permuted_change_no_path():
    obs, order = states(4, 15), [0, 3, 1, 2, *range(14, 3, -1)]
    before, after = path_expansion(ego(), obs), path_expansion(ego(), obs[:, order])
    np.testing.assert_allclose(after.features.values, before.features.values, atol=1e-10)


def test_it_leaves_no_gradients_behind():
    policy = ego()
    policy.zero_grad()
    path_expansion(policy, states(4, 15))
    assert all(parameter.grad is None for parameter in policy.module.parameters())


def test_most_of_a_raw_score_is_common_to_all_actions_and_the_gap_is_free_of_it(seed_policy_dir):
    policy = rlm.load("zoo:intersection-ego-attention")
    obs = torch.as_tensor(np.load(seed_policy_dir / "observations.npy"))
    shares = path_expansion(policy, obs)
    raw = (shares.features + shares.bias).std("batch")
    common = (shares.features + shares.bias).mean("action").std("batch")
    assert float((common / raw.mean("action")).mean()) > 0.8
    shifted = shares.bias.sel(path="direct") + 1000.0
    gap = path_expansion(policy, obs, better="FASTER", worse="SLOWER").bias.sel(path="direct")
    difference = (shifted.sel(action="FASTER") - shifted.sel(action="SLOWER")).values
    np.testing.assert_allclose(gap.values[:, 0], difference, atol=1e-3)


class ActorCritic(nn.Module):
    """Scores and a state value, each with an attention of its own; the value's way bends."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = (nn.MultiheadAttention(7, 1, batch_first=True) for _ in range(2))
        self.head, self.value = nn.Linear(7, 3), nn.Linear(7, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.tanh(x)
        score = self.head(torch.relu(self.actor(x, x, x, need_weights=False)[0]).mean(1))
        return score, self.value(self.critic(y, y, y, need_weights=False)[0].mean(1))


def test_an_attention_that_only_the_state_value_reads_is_on_no_path():
    policy = rlm.HookedPolicy(random_weights(ActorCritic()), states(2), output_kind="logits")
    found = path_expansion(policy, states(4))
    assert list(found.path.values) == ["direct", "actor head 0"]
    np.testing.assert_allclose(summed(found), policy(states(4)).detach().numpy(), atol=1e-12)
    assert found.features.attrs["units"] == "nat"


# ---- what is refused


class Bent(TwoLayers):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r = torch.tanh(self.embed(x))
        return self.readout((r + self.first(r, r, r, need_weights=False)[0]).mean(1))


class Causal(nn.Module):
    """An attention that the core offers, and behind it a fused causal one."""

    def __init__(self) -> None:
        super().__init__()
        self.listed, self.head = nn.MultiheadAttention(7, 1, batch_first=True), nn.Linear(7, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.listed(x, x, x, need_weights=False)[0][:, None]
        return self.head(nn.functional.scaled_dot_product_attention(y, y, y, is_causal=True)[:, 0].mean(1))


class Normalised(Causal):
    """The same, with a softmax behind it that is no attention."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.softmax(self.listed(x, x, x, need_weights=False)[0], -1).mean(1))


def test_curves_act_by_their_tangents_and_the_remainder_is_rounding():
    policy, obs = rlm.HookedPolicy(random_weights(Bent()), states(2)), states(3)
    found = path_expansion(policy, obs)
    np.testing.assert_allclose(summed(found), policy(obs).detach().numpy(), atol=1e-9)
    np.testing.assert_allclose(found.remainder, found.total - summed(found), atol=1e-12)
    assert found.attrs["completeness_error"] == float(abs(found.remainder).max()) < 1e-9
    step = 1e-6 * torch.randn(obs.shape, generator=torch.Generator().manual_seed(0)).double()
    moved = path_expansion(policy, obs + step)
    assert float(abs(moved.features.sel(path="direct") - found.features.sel(path="direct")).max()) < 1e-4


def test_a_softmax_that_is_no_attention_is_refused_by_name():
    policy = rlm.HookedPolicy(random_weights(Normalised()), states(2))
    with pytest.raises(AttentionError, match="no linear path") as caught:
        path_expansion(policy, states(3))
    assert caught.value.given == "operations softmax"


def test_the_paths_through_a_fused_causal_attention_sum_to_the_scores():
    policy, obs = rlm.HookedPolicy(random_weights(Causal()), states(2)), states(3)
    np.testing.assert_allclose(summed(path_expansion(policy, obs)), policy(obs).detach().numpy(), atol=1e-9)


def test_a_policy_without_attention_is_refused():
    policy = rlm.HookedPolicy(networks.mlp(4, 8, 3), torch.rand(2, 4))
    with pytest.raises(AttentionError, match="no attention, hence no paths"):
        path_expansion(policy, torch.rand(2, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"better": "FASTER"}, "between two actions"),
        ({"better": 1, "worse": 1}, "between two actions"),
        ({"better": "FASTER", "worse": "BRAKE"}, "no action 'BRAKE'"),
        ({"better": 0, "worse": 3}, "no action 3"),
        ({"longest": -1}, "no fewer than 0"),
    ],
)
def test_a_gap_needs_two_actions_of_the_policy(arguments, message):
    with pytest.raises((ConfigError, MetricError), match=message):
        path_expansion(ego(), states(2, 15), **arguments)


def test_train_mode_with_dropout_is_refused():
    policy = rlm.HookedPolicy(networks.Transformer(), networks.scenes(2))
    policy.train()
    with pytest.raises(EngineError, match="eager"):
        path_expansion(policy, networks.scenes(2))


def test_observations_that_are_no_real_numbers_are_refused():
    class Integers(networks.MultiHead):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x / 255)

    obs = torch.randint(0, 255, (3, 5, 7))
    with pytest.raises(ObservationError, match="starts from real numbers"):
        path_expansion(rlm.HookedPolicy(Integers(), obs), obs)
