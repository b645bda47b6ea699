"""The hooked policy is the module: same numbers, at every batch size, hooked or not, in every mode."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ObservationError, ParityError
from rlmech.nets import ConvolutionalNetwork, EgoAttentionNetwork, MultiLayerPerceptron
from tests import networks as nets


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


CASES = {
    "mlp": (lambda: nets.mlp(4, 8, 3), lambda n: rand(n, 4)),
    "tanh": (lambda: nets.mlp(4, 8, 3, activation=nn.Tanh), lambda n: rand(n, 4)),
    "in place": (nets.InPlace, lambda n: rand(n, 4) - 0.5),
    "called twice": (nets.CalledTwice, lambda n: rand(n, 4) - 0.5),
    "convolution": (nets.Convolutional, lambda n: rand(n, 2, 8, 8)),
    "dict and lstm": (nets.DictObservation, lambda n: {"track": rand(n, 6, 3), "camera": rand(n, 4)}),
    "transformer": (nets.Transformer, nets.scenes),
    "padded transformer": (lambda: nets.Transformer(padding=True), nets.scenes),
    "multi-head": (nets.MultiHead, nets.scenes),
    "fused": (nets.FusedAttention, nets.scenes),
    "interleaved heads": (lambda: nets.FusedAttention(interleaved=True), nets.scenes),
    "scaled queries": (nets.ScaledQueries, nets.scenes),
    "ego attention": (lambda: EgoAttentionNetwork(7, 3), nets.scenes),
    "self attention": (lambda: EgoAttentionNetwork(7, 3, self_attention_heads=2), nets.scenes),
    "rl-agents convolution": (lambda: ConvolutionalNetwork((2, 8, 8), 3, hidden=(5,)), lambda n: rand(n, 2, 8, 8)),
    "flattening": (lambda: MultiLayerPerceptron(105, (8,), d_out=3, flatten=True), nets.scenes),
}
FUSED = {"transformer", "padded transformer"}


def scores_of(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.fixture(params=CASES, scope="module")
def case(request):
    torch.manual_seed(0)
    make, example = CASES[request.param]
    module = make().eval()
    return request.param, module, example, HookedPolicy(module, example(3))


def test_a_row_of_every_activation_is_a_row_of_the_observation(case):
    _, _, example, policy = case
    obs = example(4)
    swapped = {k: v.flip(0) for k, v in obs.items()} if isinstance(obs, dict) else obs.flip(0)
    with torch.no_grad():
        cache, other = policy.run_with_cache(obs)[1], policy.run_with_cache(swapped)[1]
    for name in policy.hook_dict:
        torch.testing.assert_close(other[name].flip(0), cache[name], atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
def test_scores_are_the_modules_own_bit_for_bit(case, n):
    name, module, example, policy = case
    obs = example(n)
    with torch.no_grad():
        expected = scores_of(module(obs))
        given = policy(obs)
    assert policy.engine == "graph"
    if name in FUSED:  # the module takes its fused kernel here, which rounds otherwise
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(given, expected)


@pytest.mark.parametrize("n", [1, 5])
def test_every_point_is_cached_with_the_axes_and_shape_it_announces(case, n):
    _, _, example, policy = case
    with torch.no_grad():
        scores, cache = policy.run_with_cache(example(n))
    assert set(cache) == set(policy.hook_dict)
    assert torch.equal(scores, policy(example(n)))
    for name, point in policy.hook_dict.items():
        assert cache.axes(name) == point.axes
        assert len(point.axes) == len(point.shape) == cache[name].ndim
        assert tuple(cache[name].shape) == (n, *point.shape[1:])
        assert point.axes[0] == "batch"
        assert point.shape[0] is None


def test_replacing_an_activation_by_itself_changes_nothing(case):
    _, _, example, policy = case
    obs = example(4)
    with torch.no_grad():
        expected = policy(obs)
        for name in policy.hook_dict:
            scores = policy.run_with_hooks(obs, fwd_hooks=[(name, lambda tensor, hook: tensor)])
            torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)


def test_every_point_is_a_cut_that_an_edit_passes_through(case):
    """Values of another observation, put in at the inputs or at the output, give that observation's scores."""
    _, _, example, policy = case
    with torch.no_grad():
        one, other = example(4), example(4)
        if isinstance(other, dict):
            other = {key: value.flip(0) * 0.7 for key, value in other.items()}
        else:
            other = other.flip(0) * 0.7
        expected, cache = policy.run_with_cache(other)
        inputs = [name for name in policy.hook_dict if name.startswith("hook_obs")]
        with policy.edited([rlm.patch(name, source=cache) for name in inputs]):
            scores = policy(one)
        assert torch.equal(scores, expected)
        output = next(name for name, point in policy.hook_dict.items() if point.kind == "output")
        with policy.edited([rlm.patch(output, source=cache)]):
            assert torch.equal(policy(one), expected)


def test_gradients_reach_the_shared_parameters(case):
    _, module, example, policy = case
    module.zero_grad()
    policy(example(3)).sum().backward()
    given = {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }
    module.zero_grad()
    scores_of(module(example(3))).sum().backward()
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(given[name], parameter.grad, rtol=1e-4, atol=1e-5)
    assert given


def test_double_precision_follows_the_module(case):
    _, module, example, _ = case
    module = copy.deepcopy(module)
    policy = HookedPolicy(module, example(3))
    obs = example(3)
    obs = {k: v.double() for k, v in obs.items()} if isinstance(obs, dict) else obs.double()
    policy.double()
    with torch.no_grad():
        expected = scores_of(module(obs))
        assert expected.dtype == torch.float64
        torch.testing.assert_close(policy(obs), expected)
        _, cache = policy.run_with_cache(obs)
    assert all(value.dtype in (torch.float64, torch.bool) for value in cache.values())


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_independent_and_compute_the_same(case, how):
    _, _, example, policy = case
    obs = example(3)
    with policy.hooks(fwd_hooks=[(next(iter(policy.hook_dict)), lambda tensor, hook: None)]):
        policy(obs)
        if how == "deepcopy":
            other = copy.deepcopy(policy)
        elif how == "pickle":
            other = pickle.loads(pickle.dumps(policy))
        else:
            buffer = io.BytesIO()
            torch.save(policy, buffer)
            buffer.seek(0)
            other = torch.load(buffer, weights_only=False)
    assert torch.equal(other(obs), policy(obs))
    assert list(other.hook_dict) == list(policy.hook_dict)
    called = []
    name = next(iter(other.hook_dict))
    with other.hooks(fwd_hooks=[(name, lambda tensor, hook: called.append(hook))]):
        policy(obs)
        assert not called, "a copy's hooks must not hang on the original"
        other(obs)
    assert called == [other.hook_dict[name]]
    with torch.no_grad():
        before = policy(obs)
        for parameter in other.parameters():
            parameter.mul_(2)
        assert not torch.equal(other(obs), before)
        assert torch.equal(policy(obs), before)


def test_training_and_assigned_weights_are_seen_at_once():
    module = nets.mlp(4, 8, 3)
    policy = HookedPolicy(module, torch.rand(2, 4))
    obs = torch.rand(5, 4)
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.5)
    policy(obs).pow(2).sum().backward()
    optimiser.step()
    assert torch.equal(policy(obs), module(obs))
    module.load_state_dict({k: v * 3 for k, v in module.state_dict().items()}, assign=True)
    assert torch.equal(policy(obs), module(obs))
    assert list(policy.state_dict()) == list(module.state_dict())


def test_fingerprint_names_the_weights():
    module = nets.mlp(4, 8, 3)
    policy = HookedPolicy(module, torch.rand(2, 4))
    first = policy.fingerprint
    assert copy.deepcopy(policy).fingerprint == first
    with torch.no_grad():
        module[0].weight[0, 0] += 1
    assert policy.fingerprint != first


def test_wrapping_leaves_the_mode_as_it_was():
    module = nets.Convolutional().train()
    HookedPolicy(module, torch.rand(2, 2, 8, 8))
    assert module.training
    assert module.body[1].training
    assert int(module.body[1].num_batches_tracked) == 0


def test_dropout_made_inside_forward_is_refused_and_without_effect_is_not():
    with pytest.raises(ParityError, match="asked twice"):
        HookedPolicy(nets.LiveDropout(0.5), torch.rand(2, 4))
    HookedPolicy(nets.LiveDropout(0.0), torch.rand(2, 4))


def test_a_module_that_lies_about_its_scores_is_refused():
    class Drifting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.calls = nn.Linear(4, 2), 0

        def forward(self, x):
            self.calls += 1
            return self.layer(x) + self.calls

    with pytest.raises(ParityError, match="does not give"):
        HookedPolicy(Drifting(), torch.rand(2, 4))


@pytest.mark.parametrize(
    ("obs", "message"),
    [
        (torch.rand(4), r"add a batch axis: obs\[None\]"),
        (torch.rand(2, 5), r"\[batch 4\]"),
        (torch.rand(2, 4, 1), r"\[batch 4\]"),
        (torch.ones(2, 4, dtype=torch.int64), "dtype int64"),
        (torch.ones(2, 4, dtype=torch.bool), "dtype bool"),
        (np.array([["a"] * 4]), "expected: numbers"),
        ({"x": np.zeros((2, 4))}, "an array or a tensor"),
        (torch.full((3, 4), torch.nan), r"NaN in rows \[0, 1, 2\]"),
        (np.full((700, 4), np.nan), "NaN in rows"),
    ],
)
def test_a_wrong_observation_is_an_error_that_says_what_is_wrong(obs, message):
    policy = HookedPolicy(nets.mlp(4, 8, 3), torch.rand(2, 4))
    with pytest.raises(ObservationError, match=message):
        policy(obs)


def test_dict_observations_are_checked_key_by_key():
    policy = HookedPolicy(nets.DictObservation(), {"track": torch.rand(2, 6, 3), "camera": torch.rand(2, 4)})
    with pytest.raises(ObservationError, match=r"keys \['camera', 'track'\]"):
        policy({"track": torch.rand(2, 6, 3)})
    with pytest.raises(ObservationError, match="one batch size"):
        policy({"track": torch.rand(2, 6, 3), "camera": torch.rand(3, 4)})
    with pytest.raises(ObservationError, match="a dict of arrays"):
        policy(torch.rand(2, 4))


def test_numpy_and_tensor_observations_give_the_same_and_read_only_arrays_are_taken():
    policy = HookedPolicy(nets.mlp(4, 8, 3), torch.rand(2, 4))
    obs = np.random.default_rng(0).random((3, 4))
    obs.setflags(write=False)
    assert torch.equal(policy(obs), policy(torch.tensor(obs, dtype=torch.float32)))


def test_predict_takes_single_observations_and_batches():
    policy = HookedPolicy(nets.mlp(4, 8, 3), torch.rand(2, 4))
    obs = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    actions, state = policy.predict(obs, deterministic=True)
    assert actions.shape == (5,)
    assert state is None
    single, _ = policy.predict(obs[2])
    assert single.shape == ()
    assert int(single) == actions[2] == int(policy(obs)[2].argmax())


def test_a_module_whose_output_is_no_score_is_refused():
    with pytest.raises(rlm.RlmechError, match="nothing that could be action scores"):
        HookedPolicy(nn.Flatten(0), torch.rand(2, 4))
