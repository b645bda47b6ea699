"""What an export cannot see: attributes, plain tensors, switches, hooks and train mode of the wrapped module."""

from __future__ import annotations

import copy
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

import rlmech as rlm
from rlmech.errors import EngineError, ParityError
from tests import networks as nets

OBS = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
SCALE = 1.0


class Stateful(nn.Module):
    """Reads a value of every kind that an export bakes in."""

    offset = 0.0

    def __init__(self):
        super().__init__()
        self.score, self.tail = nn.Linear(4, 3), nn.Sequential(nn.LeakyReLU(0.1))
        self.tau, self.mean, self.bonus = 1.0, torch.zeros(4), False
        self.weights, self.table = [1.0, 1.0, 1.0], {"gain": 1.0}
        self.shift = np.zeros(3, np.float32)
        self.config = types.SimpleNamespace(sharpness=1.0)
        self.calls, self.last = 0, None

    def forward(self, x):
        self.calls += 1
        scores = self.score(x - self.mean) / self.tau * self.config.sharpness * self.table["gain"] * SCALE
        scores = scores * torch.tensor(self.weights) + torch.as_tensor(self.shift) + self.offset
        self.last = scores.detach()
        return self.tail(scores + x[:, :3] if self.bonus else scores)


class Noisy(nn.Module):
    """A layer whose noise its own forward switches."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 3)

    def forward(self, x):
        return self.score(x) + (torch.randn(3) if self.training else 0.0)


class FunctionalDropout(nn.Module):
    """Dropout as a function."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 3)

    def forward(self, x):
        return self.score(F.dropout(x, 0.5, training=self.training))


def mode_of(module):
    return 1.0 if module.training else 0.0


class AsksElsewhere(nn.Module):
    """Whether it trains is read outside the class."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 3)

    def forward(self, x):
        return self.score(x) + mode_of(self)


def double_output(module, args, output):
    return output * 2


CHANGES = {
    "tau": lambda m: setattr(m, "tau", 0.1),
    "mean": lambda m: m.mean.add_(0.5),
    "bonus": lambda m: setattr(m, "bonus", True),
    "weights": lambda m: m.weights.append(m.weights.pop() + 1),
    "table": lambda m: m.table.update(gain=3.0),
    "shift": lambda m: m.shift.__iadd__(1),
    "config.sharpness": lambda m: setattr(m.config, "sharpness", 2.0),
    "offset": lambda m: setattr(m, "offset", 1.0),
    "tail.0.negative_slope": lambda m: setattr(m.tail[0], "negative_slope", 0.7),
    "the forward hooks of score": lambda m: m.score.register_forward_hook(double_output),
    "tail.0": lambda m: m.tail.__setitem__(0, nn.LeakyReLU(0.1)),
}


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Stateful()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    "use",
    [
        lambda policy: policy(OBS),
        lambda policy: policy.run_with_cache(OBS),
        lambda policy: policy.run_with_hooks(OBS, fwd_hooks=[("score.hook_out", lambda tensor, hook: None)]),
        lambda policy: rlm.ablation_sweep(policy, OBS, sites=["score.hook_out"], kind="zero"),
        lambda policy: policy.check_unchanged(),
    ],
)
def test_a_change_that_the_graph_does_not_see_is_named(module, name, use):
    policy = rlm.HookedPolicy(module, OBS[:2])
    CHANGES[name](module)
    with pytest.raises(EngineError, match=name.replace(".", r"\.")):
        use(policy)


def test_a_global_that_forward_reads_is_noticed_when_an_analysis_begins(module, monkeypatch):
    policy = rlm.HookedPolicy(module, OBS[:2])
    monkeypatch.setattr(f"{__name__}.SCALE", 2.0)
    with pytest.raises(EngineError, match="a global, a class attribute or a closure"):
        rlm.ablation_sweep(policy, OBS, sites=["score.hook_out"], kind="zero")


def test_a_hook_taken_away_is_named():
    torch.manual_seed(0)
    net = nets.mlp(4, 8, 3)
    handle = net[1].register_forward_hook(double_output)
    policy = rlm.HookedPolicy(net, OBS[:2])
    torch.testing.assert_close(policy(OBS), net(OBS))
    handle.remove()
    with pytest.raises(EngineError, match="the forward hooks of 1"):
        policy(OBS)


def test_what_changes_nothing_and_what_forward_itself_writes_is_no_difference(module):
    policy = rlm.HookedPolicy(module, OBS[:2])
    for step in range(3):
        module(OBS)  # writes `calls` and `last`
        module.note = step
        module.tail[0].register_forward_hook(lambda module, args, output: None)
        with torch.no_grad():
            module.score.weight.mul_(1.5)
        torch.testing.assert_close(policy(OBS), module(OBS))
    assert policy._wrapped.record.is_current()


def test_a_value_set_back_is_as_it_was(module):
    policy = rlm.HookedPolicy(module, OBS[:2])
    right = policy(OBS)
    module.tau = 0.1
    with pytest.raises(EngineError):
        policy(OBS)
    module.tau = 1.0
    assert torch.equal(policy(OBS), right)


def test_on_the_eager_engine_the_live_module_runs_and_nothing_can_differ():
    class Branching(nets.Branching):
        tau = 1.0

        def forward(self, x):
            return super().forward(x) / self.tau

    module = Branching()
    policy = rlm.HookedPolicy(module, torch.tensor([[1.0] * 4, [-1.0] * 4]))
    module.tau = 0.5
    assert policy.engine == "eager"
    assert torch.equal(policy(OBS), module(OBS))


@pytest.mark.parametrize("make", [Noisy, FunctionalDropout, AsksElsewhere])
def test_a_modules_own_train_mode_runs_on_the_live_module(make):
    torch.manual_seed(0)
    module = make().train()
    policy = rlm.HookedPolicy(module, OBS[:2])
    policy.coerce(OBS)  # an analysis begins
    assert policy.engine == "eager"
    assert policy.couples_rows
    torch.manual_seed(5)
    expected = module(OBS)
    torch.manual_seed(5)
    assert torch.equal(policy(OBS), expected)
    policy.eval()
    policy.coerce(OBS)
    assert policy.engine == "graph"
    assert torch.equal(policy(OBS), module(OBS))


def test_comparing_does_not_draw_from_torchs_generator():
    module = Noisy().train()
    policy = rlm.HookedPolicy(module, OBS[:2])
    before = torch.get_rng_state()
    policy.check_unchanged()
    assert torch.equal(torch.get_rng_state(), before)


class Returns(nn.Module):
    """As Tianshou writes networks: the second thing returned carries nothing, and `len` gives the batch size."""

    def __init__(self, pack):
        super().__init__()
        self.score, self.pack = nn.Linear(4, 6), pack

    def forward(self, obs, state=None, info=None):
        return self.pack(self.score(obs).view(len(obs), 3, 2).sum(-1), state)


@pytest.mark.parametrize(
    "pack",
    [
        lambda scores, state: scores,
        lambda scores, state: (scores, state),
        lambda scores, state: (scores, None, {"steps": 3}),
        lambda scores, state: {"logits": scores, "state": state},
    ],
)
def test_an_empty_state_and_len_do_not_cost_the_graph(pack):
    policy = rlm.HookedPolicy(Returns(pack), OBS[:2])
    assert policy.engine == "graph", policy.engine_reason
    for n in (1, 2, 6):
        assert policy(OBS[:n]).shape == (n, 3)
    assert len(OBS) == 6


def test_nan_weights_are_called_that():
    net = nets.mlp(4, 8, 3)
    net[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ParityError, match=r"parameter 0\.weight holds NaN"):
        rlm.HookedPolicy(net, OBS[:2])


class Padded(nn.Module):
    """A transformer whose padding can hide every entity."""

    def __init__(self, *, pool):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=pool)
        self.embed, self.head, self.pool = nn.Linear(7, 8), nn.Linear(8, 3), pool

    def forward(self, x):
        hidden = self.encoder(self.embed(x), src_key_padding_mask=x[..., 0] < 0.5)
        return self.head(hidden.mean(1) if self.pool else hidden[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("pool", [False, True])
def test_torchs_fused_path_is_named_where_it_gives_other_numbers(pool):
    torch.manual_seed(0)
    module, obs = Padded(pool=pool).eval(), nets.scenes(3)
    with pytest.raises(ParityError, match="torch's fused path"):
        rlm.HookedPolicy(module, obs)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        policy = rlm.HookedPolicy(module, obs)
        nobody = torch.zeros_like(obs)
        with torch.no_grad():
            torch.testing.assert_close(policy(nobody), module(nobody), equal_nan=True)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    if not pool:
        obs[:, :, 0] = 0
        with pytest.raises(ParityError, match="torch's fused path"):
            policy.check_unchanged((obs,))


def test_a_policy_follows_its_network_into_another_precision_and_back():
    torch.manual_seed(0)
    net = nets.mlp(4, 8, 3)
    policy, wide = rlm.HookedPolicy(net, OBS[:2]), OBS.double()
    net.double()
    torch.testing.assert_close(policy(wide), net(wide))
    assert rlm.ablation_sweep(policy, wide).effect.dtype == np.float64
    net.float()
    torch.testing.assert_close(policy(OBS), net(OBS))
    assert policy.run_with_cache(OBS)[1]["0.hook_out"].dtype == torch.float32


WEIGHTS_GONE = {
    "pruned": lambda layer: torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    "normed": lambda layer: torch.nn.utils.parametrizations.weight_norm(layer),
}


@pytest.mark.parametrize("how", WEIGHTS_GONE)
def test_a_weight_that_was_taken_away_is_named(how):
    net = nets.mlp(4, 8, 3)
    policy = rlm.HookedPolicy(net, OBS[:2])
    WEIGHTS_GONE[how](net[0])
    for use in (policy, lambda obs: rlm.ablation_sweep(policy, obs)):
        with pytest.raises(EngineError, match=r"it has no '0\.weight' any more"):
            use(OBS)


def test_gradients_under_inference_mode_are_refused_in_words_and_scores_are_not():
    net = nets.mlp(4, 8, 3)
    policy = rlm.HookedPolicy(net, OBS[:2])
    with torch.inference_mode():
        torch.testing.assert_close(policy(OBS).clone(), net(OBS))
        rlm.ablation_sweep(policy, OBS)
        with pytest.raises(EngineError, match="inference_mode"):
            rlm.attribution.local_affine(policy, OBS)
        made_there = nets.mlp(4, 8, 3)
    with pytest.raises(EngineError, match="inference_mode"):
        rlm.attribution.local_affine(rlm.HookedPolicy(made_there, OBS[:2]), OBS)


def test_a_cache_that_gradients_go_through_is_copied():
    policy = rlm.HookedPolicy(nets.mlp(4, 8, 3), OBS[:2])
    scores, cache = policy.run_with_cache(OBS)
    assert scores.requires_grad
    again = copy.deepcopy(cache)
    assert all(torch.equal(again[name], cache[name]) for name in cache)
