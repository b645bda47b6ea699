"""Attention is found wherever it stands, and what is offered has been verified."""

from __future__ import annotations

import pytest
import torch
from einops import einsum
from torch import nn

import rlmech as rlm
from rlmech.errors import AttentionError
from rlmech.nets import EgoAttentionNetwork
from tests import networks as nets

CASES = {
    "ego": (lambda: EgoAttentionNetwork(7, 3), "attention_layer"),
    "one head": (lambda: EgoAttentionNetwork(7, 3, n_heads=1), "attention_layer"),
    "transformer": (nets.Transformer, "encoder.layers.1.self_attn"),
    "padded transformer": (lambda: nets.Transformer(padding=True), "encoder.layers.0.self_attn"),
    "multi-head": (nets.MultiHead, "attention"),
    "fused": (nets.FusedAttention, ""),
    "interleaved": (lambda: nets.FusedAttention(interleaved=True), ""),
    "scaled queries": (nets.ScaledQueries, ""),
}


@pytest.fixture(params=CASES, scope="module")
def found(request):
    torch.manual_seed(0)
    make, path = CASES[request.param]
    policy = rlm.HookedPolicy(make().eval(), nets.scenes(3), spec=nets.SPEC)
    with torch.no_grad():
        _, cache = policy.run_with_cache(nets.scenes(5, seed=3))
    return policy, policy.attention[path], cache


def test_every_part_of_the_block_obeys_its_equation(found):
    _, block, cache = found
    q, k, v, z = (cache[block.names[role]] for role in ("q", "k", "v", "z"))
    scores, pattern = cache[block.names["attn_scores"]], cache[block.names["pattern"]]
    torch.testing.assert_close(torch.softmax(scores, -1), pattern)
    torch.testing.assert_close(einsum(pattern, v, "b h q k, b k h d -> b q h d"), z, rtol=1e-4, atol=1e-5)
    product = einsum(q, k, "b q h d, b k h d -> b h q k") * block.scale
    visible = scores > -1e8
    torch.testing.assert_close(product[visible], scores[visible], rtol=1e-4, atol=1e-5)
    assert block.scale == pytest.approx(block.d_head**-0.5)
    if "mask" in block.names:
        hidden = cache[block.names["mask"]]
        if hidden.ndim == 2:
            hidden = hidden[:, None, None, :]
        assert torch.equal(hidden.expand_as(visible), ~visible)


def test_heads_sum_to_the_attentions_output(found):
    _, block, cache = found
    result = einsum(cache[block.names["z"]], block.W_O, "b q h d, h d m -> b q h m")
    torch.testing.assert_close(cache[block.names["result"]], result, rtol=1e-4, atol=1e-5)
    total = result.sum(2) if block.b_O is None else result.sum(2) + block.b_O
    torch.testing.assert_close(cache[block.names["attn_out"]], total, rtol=1e-4, atol=1e-5)


def test_weights_per_head_make_queries_keys_and_values(found):
    _, block, cache = found
    n = block.n_heads
    assert block.W_Q.shape == block.W_K.shape == (n, block.d_model, block.d_head)
    assert block.W_V.shape == (n, block.W_V.shape[1], block.d_head)
    assert block.W_O.shape[:2] == (n, block.d_head)
    source = {name: value for name, value in cache.items() if value.ndim == 3 and value.shape[-1] == block.W_K.shape[1]}
    made = {
        name: einsum(value, block.W_K, "b e m, h m d -> b e h d") + (0 if block.b_K is None else block.b_K)
        for name, value in source.items()
        if value.shape[1] == cache[block.names["k"]].shape[1]
    }
    if made:
        keys = cache[block.names["k"]]
        assert any(torch.allclose(value, keys, atol=1e-5) for value in made.values()) or "attention_layer" in block.path


def test_weights_are_the_modules_present_ones():
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), nets.scenes(2))
    block = policy.attention["attention_layer"]
    weight = policy.module.attention_layer.query_ego.weight
    assert torch.equal(block.W_Q[1], weight[16:32].T)
    assert torch.equal(block.W_O[1], policy.module.attention_layer.attention_combine.weight[:, 16:32].T)
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(block.W_Q[1], weight[16:32].T)
    block.W_Q.sum().backward()
    assert weight.grad.eq(1).all()


def test_interleaved_heads_get_their_own_columns():
    module = nets.FusedAttention(interleaved=True)
    block = rlm.HookedPolicy(module, nets.scenes(2)).attention[""]
    assert (block.n_heads, block.d_head) == (2, 4)
    assert torch.equal(block.W_Q[1], module.q.weight[1::2].T)
    assert torch.equal(block.b_Q[1], module.q.bias[1::2])
    assert block.b_K is None


def test_scrambled_self_attention_has_patterns_but_no_output_per_head_and_says_why():
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3, self_attention_heads=2), nets.scenes(2), spec=nets.SPEC)
    block = policy.attention["self_attention_layer"]
    assert block.W_V.shape == (2, 64, 32)
    assert "self_attention_layer.hook_pattern" in policy.hook_dict
    assert "self_attention_layer.hook_result" not in policy.hook_dict
    with pytest.raises(AttentionError, match="mixes heads and entities"):
        _ = block.W_O
    assert policy.hook_dict["attention_layer.hook_k"].labels == {}, "past the mixing no row is one vehicle's"
    single = rlm.HookedPolicy(EgoAttentionNetwork(7, 3, self_attention_heads=1), nets.scenes(2))
    assert single.attention["self_attention_layer"].W_O.shape == (1, 64, 64)


def test_asking_for_attention_that_is_not_there_is_an_error_with_the_nearest():
    policy = rlm.HookedPolicy(EgoAttentionNetwork(7, 3), nets.scenes(2))
    with pytest.raises(AttentionError, match=r"did you mean 'attention_layer'\?"):
        policy.attention["atention_layer"]
    with pytest.raises(AttentionError, match="no attention was found"):
        rlm.HookedPolicy(nets.mlp(4, 3), torch.rand(2, 4)).attention["any"]


class NoLinearQueries(nn.Module):
    """Queries that no single linear layer makes."""

    def __init__(self):
        super().__init__()
        self.k, self.v, self.head = nn.Linear(7, 6), nn.Linear(7, 6), nn.Linear(6, 3)

    def forward(self, x):
        n, e, _ = x.shape
        q = torch.tanh(x[..., :6]).view(n, e, 3, 2).transpose(1, 2)
        k, v = (layer(x).view(n, e, 3, 2).transpose(1, 2) for layer in (self.k, self.v))
        z = torch.softmax(q @ k.mT / 2**0.5, -1) @ v
        return self.head(z.transpose(1, 2).reshape(n, e, 6)[:, 0])


def test_queries_without_a_linear_layer_are_points_without_weights():
    block = rlm.HookedPolicy(NoLinearQueries(), nets.scenes(2)).attention[""]
    assert block.W_K.shape == (3, 7, 2)
    with pytest.raises(AttentionError, match="they come from 'tanh'"):
        _ = block.W_Q


def test_a_softmax_that_is_no_attention_is_an_activation():
    module = nn.Sequential(nn.Linear(4, 6), nn.Softmax(-1), nn.Linear(6, 3))
    policy = rlm.HookedPolicy(module, torch.rand(2, 4))
    assert not policy.attention
    assert policy.hook_dict["1.hook_out"].kind == "activation"


def test_the_fast_path_of_the_running_process_is_left_as_it_was():
    before = torch.backends.mha.get_fastpath_enabled()
    rlm.HookedPolicy(nets.Transformer(), nets.scenes(2))
    assert torch.backends.mha.get_fastpath_enabled() == before


@pytest.mark.parametrize(
    "make", [lambda: EgoAttentionNetwork(7, 3), nets.FusedAttention, nets.MultiHead, nets.ScaledQueries]
)
def test_what_is_put_in_at_any_point_reaches_the_scores(make):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(make().eval(), nets.scenes(3))
    obs = nets.scenes(6, seed=5)
    with torch.no_grad():
        before = policy(obs)
        for name, point in policy.hook_dict.items():
            if point.kind == "mask":
                continue
            after = policy.run_with_hooks(obs, fwd_hooks=[(name, lambda tensor, hook: tensor.flip(0) * 1.7)])
            assert not torch.allclose(after, before), name
