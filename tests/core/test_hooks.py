"""Hooks: they run, compose, are checked, and are gone afterwards, whatever happened."""

from __future__ import annotations

import pytest
import torch

import rlmech as rlm
from rlmech.errors import HookError, SiteError
from tests import networks as nets


@pytest.fixture
def policy():
    torch.manual_seed(0)
    return rlm.HookedPolicy(nets.mlp(4, 8, 3), torch.rand(2, 4))


@pytest.fixture
def obs():
    return torch.rand(5, 4, generator=torch.Generator().manual_seed(1))


def nothing_attached(policy):
    return policy._registry.is_idle and not policy._registry.active()


def test_a_hook_gets_the_activation_and_its_point_and_what_it_returns_counts(policy, obs):
    seen = []

    def double(tensor, hook):
        seen.append((hook, tensor.clone()))
        return tensor * 2

    scores = policy.run_with_hooks(obs, fwd_hooks=[("1.hook_out", double)])
    hidden = torch.relu(policy.module[0](obs))
    assert seen[0][0] is policy.hook_dict["1.hook_out"]
    assert torch.equal(seen[0][1], hidden)
    torch.testing.assert_close(scores, policy.module[2](hidden * 2))
    assert nothing_attached(policy)


def test_a_hook_may_change_its_tensor_in_place_and_only_this_activation_changes(policy, obs):
    def silence(tensor, hook):
        tensor[:] = 0

    with policy.hooks(fwd_hooks=[("1.hook_out", silence)]):
        scores, cache = policy.run_with_cache(obs)
    torch.testing.assert_close(scores, policy.module[2].bias.expand(5, 3))
    assert torch.equal(cache["0.hook_out"], policy.module[0](obs))
    assert not cache["1.hook_out"].any()


def test_an_in_place_hook_on_a_view_leaves_what_it_is_a_view_of():
    policy = rlm.HookedPolicy(nets.FusedAttention(), nets.scenes(2))
    obs = nets.scenes(3)
    before = policy.run_with_cache(obs)[1]["q.hook_out"].clone()
    with policy.hooks(fwd_hooks=[("hook_q", lambda tensor, hook: tensor.zero_())]):
        _, cache = policy.run_with_cache(obs)
    assert torch.equal(cache["q.hook_out"], before)
    assert not cache["hook_q"].any()


def test_several_hooks_run_in_order(policy, obs):
    hooks = [("1.hook_out", lambda tensor, hook: tensor + 1), ("1.hook_out", lambda tensor, hook: tensor * 3)]
    with policy.hooks(fwd_hooks=hooks):
        _, cache = policy.run_with_cache(obs)
    assert torch.equal(cache["1.hook_out"], (torch.relu(policy.module[0](obs)) + 1) * 3)


def test_hooks_of_two_names_for_one_value_both_act(policy, obs):
    hooks = [("2.hook_out", lambda tensor, hook: tensor + 1), ("hook_q_values", lambda tensor, hook: tensor * 3)]
    scores = policy.run_with_hooks(obs, fwd_hooks=hooks)
    torch.testing.assert_close(scores, (policy.module(obs) + 1) * 3)


def test_backward_hooks_see_gradients_and_chain(policy, obs):
    seen = []
    hooks = [
        ("1.hook_out", lambda grad, hook: grad * 2),
        ("1.hook_out", lambda grad, hook: grad * 3),
        ("0.hook_out", lambda grad, hook: seen.append(grad.clone())),
    ]
    with policy.hooks(bwd_hooks=hooks):
        policy(obs)[:, 0].sum().backward()
    plain = torch.autograd.grad(policy(obs)[:, 0].sum(), policy.module[0].bias)[0]
    torch.testing.assert_close(policy.module[0].bias.grad, plain * 6)
    torch.testing.assert_close(seen[0].sum(0), plain * 6)


def test_run_with_hooks_leaves_backward_hooks_to_the_callers_backward(policy, obs):
    seen = []
    scores = policy.run_with_hooks(obs, bwd_hooks=[("1.hook_out", lambda grad, hook: seen.append(grad.shape))])
    assert not seen
    scores.sum().backward()
    assert seen == [torch.Size([5, 8])]
    assert nothing_attached(policy)


def test_a_backward_hook_that_can_never_fire_is_an_error(policy, obs):
    with torch.no_grad(), pytest.raises(HookError, match="gradients are switched off"):
        policy.run_with_hooks(obs, bwd_hooks=[("1.hook_out", lambda grad, hook: None)])
    with pytest.raises(HookError, match="nothing before it requires a gradient"):
        policy.run_with_hooks(obs, bwd_hooks=[("hook_obs", lambda grad, hook: None)])
    assert nothing_attached(policy)


@pytest.mark.parametrize(
    "bad",
    [
        lambda t: t[:1],
        lambda t: t[:, :1],
        lambda t: t.double(),
        lambda t: t.mean(),
        lambda t: t.numpy(force=True),
        lambda t: 0.0,
        lambda t: t.to("meta"),
    ],
)
def test_a_replacement_must_keep_shape_dtype_and_device(policy, obs, bad):
    with pytest.raises(HookError, match="cannot stand in"):
        policy.run_with_hooks(obs, fwd_hooks=[("1.hook_out", lambda tensor, hook: bad(tensor))])
    assert nothing_attached(policy)


def test_the_error_of_a_wrong_replacement_shows_what_was_given_expected_and_how_to_mend_it(policy, obs):
    with pytest.raises(HookError) as error:
        policy.run_with_hooks(obs, fwd_hooks=[("1.hook_out", lambda tensor, hook: tensor[:1])])
    assert str(error.value) == (
        "A hook on '1.hook_out' returned what cannot stand in for the activation.\n"
        "  given: a tensor [1, 8] float32 on cpu   "
        "expected: a tensor [5, 8] float32 on cpu, axes batch neuron, or None\n"
        "  fix: return a tensor of the same shape, dtype and device; nothing is broadcast"
    )


@pytest.mark.parametrize("exception", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_attached_when_a_hook_or_the_body_raises(policy, obs, exception):
    def fail(tensor, hook):
        raise exception

    with pytest.raises(exception):
        policy.run_with_hooks(obs, fwd_hooks=[("1.hook_out", fail)])
    assert nothing_attached(policy)
    with pytest.raises(exception), policy.hooks(fwd_hooks=[("1.hook_out", fail)]):
        policy(obs)
    assert nothing_attached(policy)
    with pytest.raises(exception), policy.hooks(fwd_hooks=[("1.hook_out", lambda tensor, hook: None)]):
        raise exception
    assert nothing_attached(policy)
    assert torch.equal(policy(obs), policy.module(obs))


def test_a_misspelt_name_attaches_nothing(policy, obs):
    hooks = [("1.hook_out", lambda tensor, hook: None), ("1.hok_out", lambda tensor, hook: None)]
    with pytest.raises(SiteError, match=r"did you mean '1.hook_out'\?"), policy.hooks(fwd_hooks=hooks):
        pass
    assert nothing_attached(policy)


def test_a_hook_that_never_fired_is_an_error(policy, obs):
    with (
        pytest.raises(HookError, match="1 of 1 hooks never fired"),
        policy.hooks(fwd_hooks=[("1.hook_out", lambda tensor, hook: None)]),
    ):
        pass
    with (
        pytest.raises(HookError, match="never fired"),
        policy.hooks(bwd_hooks=[("1.hook_out", lambda tensor, hook: None)]),
    ):
        policy(obs)


def test_every_context_undoes_exactly_what_it_did(policy, obs):
    add, times = (lambda tensor, hook: tensor + 1), (lambda tensor, hook: tensor * 3)
    outer = policy.hook_dict["1.hook_out"].add_hook(add)
    with policy.hooks(fwd_hooks=[("1.hook_out", times)]):
        both = policy.run_with_cache(obs)[1]["1.hook_out"]
    one = policy.run_with_cache(obs)[1]["1.hook_out"]
    hidden = torch.relu(policy.module[0](obs))
    assert torch.equal(both, (hidden + 1) * 3)
    assert torch.equal(one, hidden + 1)
    outer.remove()
    outer.remove()
    assert nothing_attached(policy)


def test_remove_hooks_clears_a_point(policy, obs):
    policy.hook_dict["1.hook_out"].add_hook(lambda tensor, hook: tensor * 0)
    policy.hook_dict["1.hook_out"].remove_hooks()
    assert nothing_attached(policy)


def test_a_forward_pass_inside_a_hook_sees_only_the_hooks_it_attaches(policy, obs):
    calls = []

    def reentrant(tensor, hook):
        calls.append("outer")
        assert torch.equal(policy(obs), policy.module(obs))
        with policy.hooks(fwd_hooks=[("0.hook_out", lambda tensor, hook: calls.append("inner"))]):
            policy(obs)
        return tensor * 0

    scores = policy.run_with_hooks(obs, fwd_hooks=[("1.hook_out", reentrant)])
    assert calls == ["outer", "inner"]
    torch.testing.assert_close(scores, policy.module[2].bias.expand(5, 3))
    assert nothing_attached(policy)


def test_a_hook_may_remove_itself_while_it_runs(policy, obs):
    calls = []
    handle = policy.hook_dict["1.hook_out"].add_hook(lambda tensor, hook: (calls.append(1), handle.remove())[1])
    policy(obs)
    policy(obs)
    assert calls == [1]
    assert nothing_attached(policy)


def test_a_point_called_again_has_a_name_of_its_own():
    module = nets.CalledTwice()
    policy = rlm.HookedPolicy(module, torch.rand(2, 4))
    names = set(policy.hook_dict)
    assert {"layer.hook_out", "layer@1.hook_out", "relu@1.hook_out", "block.0.hook_out", "block.0@1.hook_out"} <= names
    assert "tied.hook_out" in names
    obs = torch.rand(3, 4)
    _, cache = policy.run_with_cache(obs)
    first = torch.relu(module.layer(obs))
    assert torch.equal(cache["relu.hook_out"], first)
    assert torch.equal(cache["relu@1.hook_out"], torch.relu(module.layer(first)))
    with policy.hooks(fwd_hooks=[("relu@1.hook_out", lambda tensor, hook: tensor * 0)]):
        _, edited = policy.run_with_cache(obs)
    assert torch.equal(edited["relu.hook_out"], first)
    assert not edited["relu@1.hook_out"].any()


def test_functional_activations_are_points_in_the_module_that_calls_them():
    policy = rlm.HookedPolicy(nets.InPlace(), torch.rand(2, 4))
    assert {"relu.hook_out", "relu_0.hook_out"} <= set(policy.hook_dict)
    obs = torch.rand(3, 4) - 0.5
    _, cache = policy.run_with_cache(obs)
    assert (cache["first.hook_out"] < 0).any(), "the value before an in-place ReLU is the value before it"
    assert torch.equal(cache["relu.hook_out"], torch.relu(cache["first.hook_out"]))
    assert torch.equal(cache["relu_0.hook_out"], torch.relu(cache["second.hook_out"]))


def test_hooking_the_hidden_value_head_changes_the_value_and_not_the_scores():
    policy = rlm.HookedPolicy(nets.Convolutional(), torch.rand(2, 2, 8, 8))
    obs = torch.rand(3, 2, 8, 8)
    plain, before = policy.run_with_cache(obs)
    with policy.hooks(fwd_hooks=[("hook_value", lambda tensor, hook: tensor + 7)]):
        scores, after = policy.run_with_cache(obs)
    assert before.axes("hook_value") == ("batch",)
    torch.testing.assert_close(after["hook_value"], before["hook_value"] + 7)
    assert torch.equal(scores, plain) or not torch.equal(after["value.hook_out"], before["value.hook_out"])


@pytest.mark.parametrize("name", ["hook_result", "hook_pattern", "hook_attn_scores", "hook_mask", "hook_z", "hook_k"])
def test_editing_inside_fused_attention_reaches_the_scores(name):
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(nets.FusedAttention(), nets.scenes(2))
    obs = nets.scenes(4)

    def change(tensor, hook):
        return ~tensor if tensor.dtype == torch.bool else tensor * 0

    changed = policy.run_with_hooks(obs, fwd_hooks=[(name, change)])
    assert not torch.allclose(changed, policy(obs))


def test_hook_point_reads_well(policy):
    assert repr(policy.hook_dict["1.hook_out"]) == "HookPoint(1.hook_out [batch neuron=8])"
