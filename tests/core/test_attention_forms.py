"""Attention in every form that people write: its parts are those of the network's own equations, or plain points."""

import pytest
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import nn

import rlmech as rlm
from rlmech.core.attention_nodes import LEARNED, NOT_A_PRODUCT, SHARED
from rlmech.errors import AttentionError

N, H, D = 5, 2, 4
"""Rows of an observation, heads, and size of a head."""


class Net(nn.Module):
    """Rows of seven numbers, embedded; `mix` gives what is read of them, and may keep its parts for the test."""

    def __init__(self, mix):
        super().__init__()
        self.mix = mix
        self.e, self.q, self.k, self.v, self.o = nn.Linear(7, 8), *(nn.Linear(8, 8) for _ in range(4))
        self.one, self.two, self.head = nn.Linear(8, 1), nn.Linear(8, 2), nn.LazyLinear(3)
        self.learned, self.heads_mixed = nn.Parameter(torch.randn(H, D)), nn.Parameter(torch.randn(H, H))

    def forward(self, x):
        y = self.e(x).relu()
        return self.head(self.mix(self, y, x).flatten(1))


def rows(t):
    """[b n (h d)] as [b n h d]."""
    return t.unflatten(-1, (H, D))


def heads(t):
    """[b n (h d)] as [b h n d]."""
    return rows(t).transpose(1, 2)


def folded(t):
    """[b n (h d)] as [(h b) n d], heads outside."""
    return rows(t).permute(2, 0, 1, 3).flatten(0, 1)


def hidden(x):
    return x[..., 0] < 0.5


def one_query(s, y, x, *, scale=0.5, fill=-torch.inf):
    q, k, v = rows(s.q(y[:, :1])), rows(s.k(y)), rows(s.v(y))
    scores = einsum(q, k, "b q h d, b k h d -> b h q k") * scale
    return {"q": q, "k": k, "v": v, "attn_scores": scores}


def every_query(s, y, x, *, scale=0.5):
    q, k, v = rows(s.q(y)), rows(s.k(y)), rows(s.v(y))
    return {"q": q, "k": k, "v": v, "attn_scores": einsum(q, k, "b q h d, b k h d -> b h q k") * scale}


def learned_query(s, y, x):
    k = rows(s.k(y))
    return {"k": k, "v": rows(s.v(y)), "attn_scores": einsum(s.learned, k, "h d, b k h d -> b h k")[:, :, None] * 0.5}


def without_heads(parts):
    def of(s, y, x):
        found = dict(zip(("q", "k", "v"), (s.q(y), s.k(y), s.v(y)), strict=True))
        found = {role: value[:, :, None] for role, value in found.items()}
        return found | {"attn_scores": einsum(found["q"], found["k"], "b q h d, b k h d -> b h q k") * parts}

    return of


def only_scores(scores, value=lambda s, y: s.v(y)):
    return lambda s, y, x: {"v": value(s, y)[:, :, None], "attn_scores": scores(s, y)}


def bahdanau(s, y):
    return s.one(torch.tanh(s.q(y[:, :1]) + s.k(y)))


FORMS = {
    "einsum, one query": (
        lambda s, y, x: torch.einsum(
            "bhe,behd->bhd",
            (torch.einsum("bhd,behd->bhe", rows(s.q(y[:, 0])), rows(s.k(y))) / 2).softmax(-1),
            rows(s.v(y)),
        ),
        one_query,
        {},
    ),
    "product and sum, one query": (
        lambda s, y, x: (((rows(s.q(y[:, :1])) * rows(s.k(y))).sum(-1) / 2).softmax(1)[..., None] * rows(s.v(y))).sum(
            1
        ),
        one_query,
        {},
    ),
    "product and sum, axes kept": (
        lambda s, y, x: (
            ((rows(s.q(y[:, :1])) * rows(s.k(y))).sum(-1, keepdim=True) / 2).softmax(1) * rows(s.v(y))
        ).sum(1, keepdim=True),
        one_query,
        {},
    ),
    "einsum, learned query": (
        lambda s, y, x: torch.einsum(
            "bhe,behd->bhd",
            (torch.einsum("hd,behd->bhe", s.learned, rows(s.k(y))) / 2).softmax(-1),
            rows(s.v(y)),
        ),
        learned_query,
        {"q": LEARNED},
    ),
    "matmul, learned query": (
        lambda s, y, x: (s.learned[:, None] @ heads(s.k(y)).mT / 2).softmax(-1) @ heads(s.v(y)),
        learned_query,
        {"q": LEARNED},
    ),
    "bmm, query axis squeezed": (
        lambda s, y, x: torch.bmm(
            torch.bmm(s.q(y[:, :1]), s.k(y).transpose(1, 2)).squeeze(1).softmax(-1).unsqueeze(1), s.v(y)
        ).squeeze(1),
        lambda s, y, x: {
            role: value[:, :1] if role == "q" else value[:, :, :1] if role == "attn_scores" else value
            for role, value in without_heads(1.0)(s, y, x).items()
        },
        {},
    ),
    "keys first": (
        lambda s, y, x: (
            s.v(y).transpose(1, 2) @ ((s.k(y) @ s.q(y[:, 0])[..., None]).squeeze(-1) / 3).softmax(-1)[..., None]
        ).squeeze(-1),
        lambda s, y, x: {
            role: value[:, :1] if role == "q" else value[:, :, :1] if role == "attn_scores" else value
            for role, value in without_heads(1 / 3)(s, y, x).items()
        },
        {},
    ),
    "softmax over the first of two axes": (
        lambda s, y, x: (s.k(y) @ s.q(y).transpose(1, 2) / 3).softmax(-2).transpose(1, 2) @ s.v(y),
        without_heads(1 / 3),
        {},
    ),
    "heads folded before the batch": (
        lambda s, y, x: (
            ((folded(s.q(y)) @ folded(s.k(y)).mT / 2).softmax(-1) @ folded(s.v(y)))
            .unflatten(0, (H, -1))
            .transpose(0, 1)
        ),
        every_query,
        {},
    ),
    "axes of einsum in another order": (
        lambda s, y, x: torch.einsum(
            "bhqk,bkhd->bqhd",
            (torch.einsum("bqhd,bkhd->bhqk", rows(s.q(y)), rows(s.k(y))) / 2).softmax(-1),
            rows(s.v(y)),
        ),
        every_query,
        {},
    ),
    "additive scores": (
        lambda s, y, x: bahdanau(s, y).squeeze(-1).softmax(-1).unsqueeze(1) @ s.v(y),
        only_scores(lambda s, y: rearrange(bahdanau(s, y), "b k 1 -> b 1 1 k")),
        {"q": NOT_A_PRODUCT, "k": NOT_A_PRODUCT},
    ),
    "additive scores, product and sum": (
        lambda s, y, x: (bahdanau(s, y).softmax(1) * s.v(y)).sum(1),
        only_scores(lambda s, y: rearrange(bahdanau(s, y), "b k 1 -> b 1 1 k")),
        {"q": NOT_A_PRODUCT, "k": NOT_A_PRODUCT},
    ),
    "pooling": (
        lambda s, y, x: (s.one(y).softmax(1) * y).sum(1),
        only_scores(lambda s, y: rearrange(s.one(y), "b k 1 -> b 1 1 k"), lambda s, y: y),
        {"q": NOT_A_PRODUCT, "k": NOT_A_PRODUCT},
    ),
    "pooling by two learned queries": (
        lambda s, y, x: s.two(y).softmax(1).transpose(1, 2) @ y,
        only_scores(lambda s, y: rearrange(s.two(y), "b k q -> b 1 q k"), lambda s, y: y),
        {"q": NOT_A_PRODUCT, "k": NOT_A_PRODUCT},
    ),
    "pairs, as in graph attention": (
        lambda s, y, x: F.leaky_relu(s.one(s.q(y)) + s.one(s.k(y)).transpose(1, 2), 0.2).softmax(-1) @ s.v(y),
        only_scores(lambda s, y: F.leaky_relu(s.one(s.q(y)) + s.one(s.k(y)).transpose(1, 2), 0.2)[:, None]),
        {"q": NOT_A_PRODUCT, "k": NOT_A_PRODUCT},
    ),
    "keys and values shared by the heads": (
        lambda s, y, x: (heads(s.q(y)) @ s.k(y)[:, None, :, :D].mT / 2).softmax(-1) @ s.v(y)[:, None, :, :D],
        lambda s, y, x: {
            "q": rows(s.q(y)),
            "attn_scores": einsum(rows(s.q(y)), s.k(y)[..., :D], "b q h d, b k d -> b h q k") / 2,
        },
        {"k": SHARED, "v": SHARED},
    ),
}
MASKED = {
    "einsum": lambda s, y, x: torch.einsum(
        "bhe,behd->bhd",
        (torch.einsum("bhd,behd->bhe", rows(s.q(y[:, 0])), rows(s.k(y))) / 2)
        .masked_fill(hidden(x)[:, None], -1e9)
        .softmax(-1),
        rows(s.v(y)),
    ),
    "product and sum": lambda s, y, x: (
        ((rows(s.q(y[:, :1])) * rows(s.k(y))).sum(-1) / 2).masked_fill(hidden(x)[..., None], -1e9).softmax(1)[..., None]
        * rows(s.v(y))
    ).sum(1),
    "additive": lambda s, y, x: (bahdanau(s, y).masked_fill(hidden(x)[..., None], -1e9).softmax(1) * s.v(y)).sum(1),
}


def states(n, seed=0):
    x = torch.rand(n, N, 7, generator=torch.Generator().manual_seed(seed))
    x[..., 0] = (x[..., 0] > 0.3).float()
    x[:, 0, 0] = 1
    return x


def made(mix):
    torch.manual_seed(0)
    net = Net(mix).eval()
    net(states(2))
    return net, rlm.HookedPolicy(net, states(3))


@pytest.mark.parametrize("form", FORMS)
def test_the_parts_are_those_of_the_networks_own_equations(form):
    mix, equations, missing = FORMS[form]
    net, policy = made(mix)
    block, obs = policy.attention[""], states(6, seed=1)
    assert not [name for name in policy.hook_dict if "softmax" in name]
    with torch.no_grad():
        scores, cache = policy.run_with_cache(obs)
        expected = equations(net, net.e(obs).relu(), obs)
    torch.testing.assert_close(scores, net(obs).detach())
    expected["pattern"] = expected["attn_scores"].softmax(-1)
    for role, value in expected.items():
        torch.testing.assert_close(cache[block.names[role]], value, rtol=1e-4, atol=1e-5, msg=role)
    if "v" in expected:
        z = einsum(expected["pattern"], expected["v"], "b h q k, b k h d -> b q h d")
        torch.testing.assert_close(cache[block.names["z"]], z, rtol=1e-4, atol=1e-5)
    for role, reason in missing.items():
        assert block.reasons[role] == reason
        with pytest.raises(AttentionError, match=r"the same for every|not a product|shared by all"):
            block.names[role]
    n_heads = expected["pattern"].shape[1]
    assert block.n_heads == n_heads
    assert len(policy.sites(block.names["pattern"], over="key")) == N


@pytest.mark.parametrize("form", FORMS)
def test_every_part_can_be_read_changed_and_swept(form):
    _, policy = made(FORMS[form][0])
    obs, other = states(6, seed=1), states(6, seed=2)
    with torch.no_grad():
        before = policy(obs)
        for name in policy.attention[""].names.values():
            torch.testing.assert_close(
                policy.run_with_hooks(obs, fwd_hooks=[(name, lambda tensor, hook: None)]), before
            )
            after = policy.run_with_hooks(obs, fwd_hooks=[(name, lambda tensor, hook: tensor.flip(0) * 1.7 + 0.1)])
            assert not torch.allclose(after, before), name
    names = [policy.attention[""].names[role] for role in ("pattern", "z")]
    sites = [site for name in names for site in policy.sites(name, over="head")]
    swept = rlm.activation_patching(policy, clean=obs, corrupt=other, sites=sites, metric=rlm.metrics.action_gap(0, 1))
    source = policy.run_with_cache(obs, names)[1]
    for site, row in zip(sites, swept.patched.values, strict=True):
        mask = site.mask(policy.hook_dict[site.name])
        put = lambda tensor, hook, mask=mask, s=source[site.name]: torch.where(mask, s, tensor)  # noqa: E731
        found = policy.run_with_hooks(other, fwd_hooks=[(site.name, put)]).detach()
        torch.testing.assert_close(torch.tensor(row), (found[:, 0] - found[:, 1]).double(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", MASKED)
def test_a_mask_says_which_keys_are_hidden(form):
    _, policy = made(MASKED[form])
    block, obs = policy.attention[""], states(6, seed=1)
    point = policy.hook_dict[block.names["mask"]]
    _, cache = policy.run_with_cache(obs)
    found = cache[point.name]
    for axis in [axis for axis in point.axes if axis not in ("batch", "key")]:
        assert point.size(axis) == 1
    torch.testing.assert_close(found.reshape(6, N), hidden(obs))
    pattern = cache[block.names["pattern"]]
    assert not pattern[hidden(obs)[:, None, None].expand_as(pattern)].any()


def plain_forms():
    yield (
        "a soft choice of experts",
        lambda s, y, x: (s.two(y[:, 0]).softmax(-1)[..., None] * torch.stack([s.q(y[:, 0]), s.k(y[:, 0])], 1)).sum(1),
    )
    yield (
        "heads mixed after the softmax",
        lambda s, y, x: (
            torch.einsum("hg,bgqk->bhqk", s.heads_mixed, (heads(s.q(y)) @ heads(s.k(y)).mT / 2).softmax(-1))
            @ heads(s.v(y))
        ),
    )
    yield "a softmax over features", lambda s, y, x: s.q(y).softmax(-1) * s.k(y)
    yield "a softmax over heads", lambda s, y, x: (heads(s.q(y)) @ heads(s.k(y)).mT / 2).softmax(1) @ heads(s.v(y))
    yield "memory of the network's own", lambda s, y, x: (s.q(y) @ s.o.weight.T).softmax(-1) @ s.v.weight


@pytest.mark.parametrize(("form", "mix"), list(plain_forms()), ids=[name for name, _ in plain_forms()])
def test_what_is_no_attention_is_an_activation_with_numbered_axes(form, mix):
    _, policy = made(mix)
    assert not policy.attention
    (name,) = [name for name in policy.hook_dict if "softmax" in name]
    point = policy.hook_dict[name]
    assert point.kind == "activation"
    assert not {"head", "query", "key", "d_head"} & set(point.axes)


def test_heads_mixed_before_the_softmax_leave_a_pattern_and_no_queries():
    def mix(s, y, x):
        scores = torch.einsum("hg,bgqk->bhqk", s.heads_mixed, heads(s.q(y)) @ heads(s.k(y)).mT / 2)
        return scores.softmax(-1) @ heads(s.v(y))

    _, policy = made(mix)
    assert not policy.attention or {"q", "k"} & set(policy.attention[""].reasons)


class Matrices(nn.Module):
    """Self-attention by `torch.addmm` on rows folded into the batch, with its factors."""

    def __init__(self, *, beta=1.0, alpha=1.0):
        super().__init__()
        self.factors = {"beta": beta, "alpha": alpha}
        self.q, self.k, self.v, self.o = nn.Linear(7, 8), nn.Linear(7, 8), nn.Linear(7, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def matrix(self, layer, x):
        made = torch.addmm(layer.bias, x.flatten(0, 1), layer.weight.T, **self.factors)
        return made.view(x.shape[0], N, -1)

    def forward(self, x):
        q, k, v = (heads(self.matrix(layer, x)) for layer in (self.q, self.k, self.v))
        z = (q @ k.mT / 2).softmax(-1) @ v
        return self.head(self.matrix(self.o, z.transpose(1, 2).flatten(2)).sum(1))


def test_weights_and_biases_of_addmm_are_each_heads_own():
    torch.manual_seed(0)
    net, obs = Matrices().eval(), states(4, seed=1)
    policy = rlm.HookedPolicy(net, states(3))
    block = policy.attention[""]
    for weight, bias, layer in (
        (block.W_Q, block.b_Q, net.q),
        (block.W_K, block.b_K, net.k),
        (block.W_V, block.b_V, net.v),
    ):
        assert torch.equal(weight, layer.weight.unflatten(0, (H, D)).mT)
        assert torch.equal(bias, layer.bias.unflatten(0, (H, D)))
    assert torch.equal(block.W_O, net.o.weight.T.unflatten(0, (H, D)))
    assert torch.equal(block.b_O, net.o.bias)
    _, cache = policy.run_with_cache(obs)
    torch.testing.assert_close(cache["hook_q"], einsum(obs, block.W_Q, "b e m, h m d -> b e h d") + block.b_Q)
    torch.testing.assert_close(cache["hook_result"].sum(2) + block.b_O, cache["hook_attn_out"], rtol=1e-4, atol=1e-5)


def test_addmm_with_other_factors_is_no_projection_and_says_so():
    torch.manual_seed(0)
    block = rlm.HookedPolicy(Matrices(beta=0.5, alpha=2.0).eval(), states(3)).attention[""]
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        with pytest.raises(AttentionError, match="scales its product or its bias"):
            getattr(block, name)


class MultiHead(nn.Module):
    """`nn.MultiheadAttention` in one of its forms, from the first row to all."""

    def __init__(self, *, batch_first=True, wide=False, call=None, **keywords):
        super().__init__()
        sizes = {"kdim": 6, "vdim": 5} if wide else {}
        self.wide, self.batch_first, self.call = wide, batch_first, call or (lambda x: {})
        self.e, self.k, self.v = nn.Linear(7, 8), nn.Linear(7, 6 if wide else 8), nn.Linear(7, 5 if wide else 8)
        self.attention = nn.MultiheadAttention(8, H, batch_first=batch_first, **sizes, **keywords)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.e(x[:, :1]), self.k(x), self.v(x)
        if not self.batch_first:
            q, k, v = (value.transpose(0, 1) for value in (q, k, v))
        z = self.attention(q, k, v, **self.call(x))[0]
        return self.head(z.sum(1 if self.batch_first else 0))


CALLS = {
    "plain": {},
    "sequence first": {"batch_first": False},
    "own sizes of keys and values": {"wide": True},
    "own sizes, sequence first": {"wide": True, "batch_first": False},
    "without bias": {"bias": False},
    "with a bias row": {"add_bias_kv": True},
    "with a zero row": {"add_zero_attn": True},
    "padding, boolean": {"call": lambda x: {"key_padding_mask": hidden(x)}},
    "padding, float": {"call": lambda x: {"key_padding_mask": torch.zeros(x.shape[:2]).masked_fill(hidden(x), -1e9)}},
    "attn_mask, boolean": {"call": lambda x: {"attn_mask": torch.tensor([[False, True, False, True, False]])}},
    "attn_mask, float": {"call": lambda x: {"attn_mask": torch.tensor([[0.0, -1.0, 0.5, -torch.inf, 0.0]])}},
    "attn_mask of each head": {
        "call": lambda x: {"attn_mask": hidden(x).repeat_interleave(H, 0)[:, None]},
    },
    "weights of each head": {"call": lambda x: {"average_attn_weights": False}},
    "no weights": {"call": lambda x: {"need_weights": False}},
}


@pytest.mark.parametrize("form", CALLS)
def test_multihead_attention_in_every_form_obeys_its_equations(form):
    torch.manual_seed(0)
    net = MultiHead(**CALLS[form]).eval()
    policy, obs = rlm.HookedPolicy(net, torch.rand(3, N, 7) + 0.5), states(6, seed=1)
    block = policy.attention["attention"]
    scores, cache = policy.run_with_cache(obs)
    torch.testing.assert_close(scores, net(obs), rtol=1e-4, atol=1e-5)
    parts = {role: cache[name] for role, name in block.names.items()}
    n_keys = N + (form in ("with a bias row", "with a zero row"))
    assert parts["pattern"].shape == parts["attn_scores"].shape == (6, H, 1, n_keys)
    assert parts["k"].shape == parts["v"].shape == (6, n_keys, H, D)
    torch.testing.assert_close(parts["attn_scores"].softmax(-1), parts["pattern"])
    torch.testing.assert_close(
        einsum(parts["pattern"], parts["v"], "b h q k, b k h d -> b q h d"), parts["z"], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(parts["result"].sum(2) + (0 if block.b_O is None else block.b_O), parts["attn_out"])
    with torch.no_grad():
        arguments = (net.e(obs[:, :1]), net.k(obs), net.v(obs))
        if not net.batch_first:
            arguments = tuple(value.transpose(0, 1) for value in arguments)
        given = {**net.call(obs), "need_weights": True, "average_attn_weights": False}
        weights = net.attention(*arguments, **given)[1]
    torch.testing.assert_close(parts["pattern"], weights, rtol=1e-4, atol=1e-5)
    if n_keys == N:
        made = einsum(net.k(obs), block.W_K, "b e m, h m d -> b e h d") + (0 if block.b_K is None else block.b_K)
        torch.testing.assert_close(made, parts["k"], rtol=1e-4, atol=1e-5)


def test_keys_carry_the_names_of_the_rows_they_stand_for():
    spec = rlm.PolicySpec(
        entities=("ego", "v1", "v2", "v3", "v4"), features=tuple(rlm.FeatureSpec(name=f"f{i}") for i in range(7))
    )
    for form in ("einsum, one query", "product and sum, one query", "pooling", "additive scores"):
        torch.manual_seed(0)
        net = Net(FORMS[form][0]).eval()
        net(states(2))
        policy = rlm.HookedPolicy(net, states(3), spec=spec)
        assert policy.hook_dict["hook_pattern"].labels["key"] == spec.entities, form
        (site,) = [site for site in policy.sites("hook_pattern", over="key") if "v2" in repr(site)]
        mask = site.mask(policy.hook_dict["hook_pattern"])
        assert mask[..., 2].all()
        assert mask.sum() == mask[..., 2].numel()
