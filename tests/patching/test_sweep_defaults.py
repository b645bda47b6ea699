"""What a sweep does when little is said: which sites, which metric, which shape of a vector, and slips in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlmech as rlm
from rlmech.attribution.first_order import attribution_patching
from rlmech.errors import EditError, MetricError
from rlmech.metrics.score_metrics import action_flip, action_gap, state_value
from rlmech.patching.ablation import ablation_sweep, steering_sweep
from rlmech.patching.activations import activation_patching
from tests.networks import mlp


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = mlp(4, 5, 2), mlp(4, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(x), self.critic(x)[:, 0]


@pytest.fixture(scope="module")
def actor_critic():
    torch.manual_seed(0)
    return rlm.HookedPolicy(ActorCritic(), torch.rand(2, 4), output_kind="logits")


@pytest.fixture(scope="module")
def states():
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("sweep", [activation_patching, attribution_patching])
def test_auto_leaves_out_the_critic_where_scores_are_measured(actor_critic, states, sweep):
    result = sweep(actor_critic, clean=states[:10], corrupt=states[10:])
    assert set(result["hook"].values) == {"actor.1.hook_out"}
    assert result.sizes["site"] == 5


def test_auto_keeps_the_critic_where_the_metric_reads_the_value(actor_critic, states):
    measured = ablation_sweep(actor_critic, states, metric=state_value())
    assert "critic.1.hook_out" in set(measured["hook"].values)
    of_value = measured["effect"].where(measured["hook"] == "critic.1.hook_out", drop=True)
    assert float(abs(of_value).max()) > 0
    own = ablation_sweep(actor_critic, states, metric=lambda scores, context: context.value)
    assert "critic.1.hook_out" in set(own["hook"].values)


def test_auto_leaves_out_the_critic_of_a_flip_rate(actor_critic, states):
    assert ablation_sweep(actor_critic, states, metric=action_flip()).sizes["site"] == 5


def test_a_continuous_policy_is_ablated_by_how_far_its_action_moves(states):
    torch.manual_seed(1)
    policy = rlm.HookedPolicy(mlp(4, 6, 2), states, output_kind="mean_action")
    result = ablation_sweep(policy, states)
    site = rlm.Site("1.hook_out", neuron=0)
    _, cache = policy.run_with_cache(states)
    with policy.edited([rlm.mean_ablation(site, reference=cache)]), torch.no_grad():
        far = (policy(states) - cache["hook_mean_action"]).norm(dim=-1)
    assert result.attrs["metric"] == "action_shift"
    np.testing.assert_allclose(result["patched"].values[0], far.detach(), atol=1e-6)


def test_a_vector_of_the_last_axis_is_added_at_every_selected_position():
    policy = rlm.load("zoo:intersection-ego-attention")
    obs = torch.rand(3, 15, 7)
    (name,) = [point for point in policy.hook_dict if point.endswith("hook_z")]
    vector = torch.randn(policy.point(name).size("d_head"))
    before = policy.run_with_cache(obs, name)[1][name]
    with policy.edited([rlm.steer(name, vector, 2.0)]):
        after = policy.run_with_cache(obs, name)[1][name]
    torch.testing.assert_close(after, before + 2 * vector)
    with policy.edited([rlm.steer(rlm.Site(name, head=1), vector)]):
        one = policy.run_with_cache(obs, name)[1][name]
    torch.testing.assert_close((one - before)[:, :, 1], vector.expand(3, 1, -1))
    assert float((one - before)[:, :, 0].detach().abs().max()) == 0


def test_a_vector_of_another_length_is_refused_with_both_shapes_that_fit():
    policy = rlm.HookedPolicy(mlp(4, 6, 2), torch.rand(2, 4))
    edit = rlm.steer("1.hook_out", torch.ones(5))
    with pytest.raises(EditError, match=r"last axis, shape \[6\]"), policy.edited([edit]):
        pass


def test_doses_that_move_a_fixed_gap_do_not_cancel_between_states_of_either_action(states):
    """The vector raises action 1 by 2 doses in every state; half the states prefer either action."""
    policy = rlm.HookedPolicy(mlp(4, 2), states)
    with torch.no_grad():
        policy.module[0].weight[:] = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
        policy.module[0].bias.zero_()
    obs = torch.cat([states, states * torch.tensor([-1.0, 1, 1, 1])])
    arguments = {"site": "hook_q_values", "vector": torch.tensor([-1.0, 1.0]), "coefficients": [-1.0, 0.0, 1.0]}
    by_default = steering_sweep(policy, obs, **arguments)
    np.testing.assert_allclose(by_default["effect"], [-2, 0, 2], atol=1e-5)
    assert by_default.attrs["metric"] == "action_gap(1, 0)"
    own = steering_sweep(policy, obs, metric=action_gap(), **arguments)
    np.testing.assert_allclose(own["effect"], [0, 0, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("metric", "line"),
    [
        (action_flip, "action_flip()"),
        (rlm.metrics.action_score, "action_score(0)"),
        ("flip", "action_flip()"),
        ("policy_kl", "policy_kl()"),
        (3, "action_gap()"),
    ],
)
def test_a_metric_that_is_none_is_met_with_the_line_to_write(states, metric, line):
    policy = rlm.HookedPolicy(mlp(4, 6, 2), states)
    with pytest.raises(MetricError) as refused:
        ablation_sweep(policy, states, metric=metric)
    assert line in refused.value.fix


@pytest.mark.parametrize("make", [rlm.mean_ablation, rlm.resample_ablation])
def test_observations_as_an_edits_reference_do_what_their_cache_does(states, make):
    policy = rlm.HookedPolicy(mlp(4, 8, 3), states)
    _, cache = policy.run_with_cache(states)
    wanted = _edited_scores(policy, make("1.hook_out", reference=cache), states[:5])
    assert not torch.equal(wanted, policy(states[:5]))
    for reference in (states, states.numpy()):
        torch.testing.assert_close(_edited_scores(policy, make("1.hook_out", reference=reference), states[:5]), wanted)


def test_a_reference_that_is_neither_observations_nor_a_cache_is_refused():
    with pytest.raises(EditError, match="from observations, or from a cache of them"):
        rlm.mean_ablation("1.hook_out", reference="states")


def _edited_scores(policy, edit, obs):
    with policy.edited(edit):
        return policy(obs)
