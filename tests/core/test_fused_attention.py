"""Fused attention is taken apart with every keyword that it has, and gives what the fused operation gives."""

import pytest
import torch
import torch.nn.functional as F
from einops import einsum
from torch import nn

import rlmech as rlm

KEYWORDS = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.3},
    "not scaled": {"scale": 1.0},
    "boolean mask": {"mask": "bool"},
    "float mask": {"mask": "float"},
    "float mask of -inf": {"mask": "inf"},
    "grouped": {"enable_gqa": True},
    "grouped and causal": {"enable_gqa": True, "is_causal": True},
}


class Fused(nn.Module):
    """Self-attention of the rows by the fused operation; the first feature says which are there."""

    def __init__(self, *, mask=None, **keywords):
        super().__init__()
        groups = 2 if keywords.get("enable_gqa") else 4
        self.q, self.k, self.v = nn.Linear(5, 16), nn.Linear(5, 4 * groups), nn.Linear(5, 4 * groups)
        self.out, self.mask, self.keywords = nn.Linear(16, 3), mask, keywords

    def forward(self, x):
        q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x)))
        present = (x[..., 0] > 0.5)[:, None, None].expand(-1, 1, x.shape[1], -1)
        masks = {
            None: None,
            "bool": present,
            "float": torch.where(present, 0.3, -1e9),
            "inf": torch.zeros(present.shape).masked_fill(~present, -torch.inf),
        }
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[self.mask], **self.keywords)
        return self.out(z.transpose(1, 2).flatten(2)).sum(1)


def scenes(n, *, seed=0):
    x = torch.rand(n, 6, 5, generator=torch.Generator().manual_seed(seed))
    x[..., 0] = (x[..., 0] > 0.3).float()
    x[0, :, 0] = 0  # nobody is there at all
    return x


@pytest.mark.parametrize("keywords", KEYWORDS.values(), ids=KEYWORDS)
def test_fused_attention_obeys_its_equations_and_its_parts_reach_the_scores(keywords):
    torch.manual_seed(0)
    module = Fused(**keywords).eval()
    policy, x = rlm.HookedPolicy(module, torch.rand(3, 6, 5)), scenes(7)
    block = policy.attention[""]
    scores, cache = policy.run_with_cache(x)
    q, k, v, s, p, z = (cache[block.names[r]] for r in ("q", "k", "v", "attn_scores", "pattern", "z"))
    assert q.shape == k.shape == v.shape == (7, 6, 4, 4)
    torch.testing.assert_close(scores, module(x))
    torch.testing.assert_close(einsum(p, v, "b h q k, b k h d -> b q h d"), z)
    if "mask" not in keywords:
        seen = ~s.isneginf()
        torch.testing.assert_close((einsum(q, k, "b q h d, b k h d -> b h q k") * block.scale)[seen], s[seen])
    assert (s.isneginf().any() and not p.triu(1).any()) if keywords.get("is_causal") else True
    weights = einsum(x, block.W_K, "b e m, h m d -> b e h d") + block.b_K
    torch.testing.assert_close(weights, k)
    for name, point in policy.hook_dict.items():
        if point.kind == "mask":
            continue
        same = policy.run_with_hooks(x, fwd_hooks=[(name, lambda tensor, hook: None)])
        torch.testing.assert_close(same, scores, msg=name)
        moved = policy.run_with_hooks(x, fwd_hooks=[(name, lambda tensor, hook: tensor.flip(0) * 1.7)])
        assert not torch.allclose(moved[1:], scores[1:]), name


@pytest.mark.parametrize("mask", ["bool", "inf"])
def test_where_every_key_is_hidden_the_pattern_is_zero_in_caches_hooks_and_sweeps(mask):
    torch.manual_seed(0)
    policy, x = rlm.HookedPolicy(Fused(mask=mask).eval(), torch.rand(3, 6, 5)), scenes(7)
    pattern = policy.run_with_cache(x)[1]["hook_pattern"]
    assert not pattern[0].any()
    torch.testing.assert_close(pattern[1:].sum(-1), torch.ones(6, 4, 6))
    other = scenes(7, seed=1)
    for name in ("hook_pattern", "hook_attn_scores", "hook_z", "hook_v"):
        sites, source = policy.sites(name, over="head"), policy.run_with_cache(x, name)[1][name]
        swept = rlm.activation_patching(
            policy, clean=x, corrupt=other, sites=sites, metric=rlm.metrics.action_gap(0, 1)
        )
        for site, row in zip(sites, swept.patched.values, strict=True):
            mask = site.mask(policy.hook_dict[name])
            put = lambda tensor, hook, mask=mask, source=source: torch.where(mask, source, tensor)  # noqa: E731
            scores = policy.run_with_hooks(other, fwd_hooks=[(name, put)]).detach()
            torch.testing.assert_close(torch.tensor(row), (scores[:, 0] - scores[:, 1]).double(), atol=1e-5, rtol=1e-4)
