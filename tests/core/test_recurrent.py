"""Recurrent policies: a step is a function of observation and state, a sequence is steps, a batch is a loop."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.errors import EditError, ObservationError, SiteError, StateError
from tests.core.recurrent_networks import N_UNITS, NETWORKS, Layered, flat, layered

N_STEPS = 5
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


def made(name):
    torch.manual_seed(0)
    module, state, shape = NETWORKS[name]()
    return rlm.HookedPolicy(module, torch.rand(2, *shape), state=state), state, shape


@pytest.fixture(params=list(NETWORKS), scope="module")
def case(request):
    policy, state, shape = made(request.param)
    return policy, state, torch.randn(6, N_STEPS, *shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def lstm():
    policy, _, shape = made("lstm")
    return policy, torch.randn(6, N_STEPS, *shape, generator=torch.Generator().manual_seed(1))


def own_scores(policy, state, sequences):
    """What the module itself gives, carrying its own state."""
    given, scores = state(len(sequences)), []
    with torch.no_grad():
        for step in range(sequences.shape[1]):
            output = policy.module(sequences[:, step], given)
            scores.append(output[0])
            given = output[-1]
    return torch.stack(scores, dim=1), given


def test_a_sequence_gives_the_modules_own_scores(case):
    policy, state, sequences = case
    with torch.no_grad():
        scores, _ = policy.run_sequence(sequences)
    torch.testing.assert_close(scores, own_scores(policy, state, sequences)[0], rtol=1e-5, atol=1e-6)
    assert policy.engine == "graph"
    assert policy.is_recurrent


def test_a_sequence_is_its_steps_bit_for_bit_and_the_cache_holds_their_states(case):
    policy, _, sequences = case
    scores, cache = policy.run_sequence(sequences)
    state = None
    for step in range(N_STEPS):
        now, state = policy.step(sequences[:, step], state)
        assert torch.equal(now, scores[:, step])
        assert list(state) == list(policy.state_names)
        for name, value in state.items():
            assert torch.equal(value, cache[name][:, step])
            assert cache.axes(name)[:2] == ("batch", "step")


def test_a_sequence_of_two_parts_is_the_whole(case):
    policy, _, sequences = case
    scores, cache = policy.run_sequence(sequences)
    state = {name: cache[name][:, 2] for name in policy.state_names}
    rest, _ = policy.run_sequence(sequences[:, 3:], state)
    assert torch.equal(rest, scores[:, 3:])


def test_a_batch_is_a_loop_over_its_rows(case):
    policy, _, sequences = case
    scores, _ = policy.run_sequence(sequences)
    alone = torch.cat([policy.run_sequence(row[None])[0] for row in sequences])
    torch.testing.assert_close(alone, scores, rtol=1e-5, atol=1e-6)  # a row's rounding changes with the batch size


def test_a_state_patched_with_itself_changes_nothing(case):
    policy, _, sequences = case
    scores, cache = policy.run_sequence(sequences)
    for name in policy.state_names:
        for site in (rlm.Site(name, step=2), rlm.Site(f"{name}_pre", step=2), rlm.Site(name)):
            with policy.edited([rlm.patch(site, source=cache)]):
                assert torch.equal(policy.run_sequence(sequences)[0], scores)


def test_a_state_patched_at_a_step_changes_that_step_and_those_after_it_alone(case):
    policy, _, sequences = case
    scores, _ = policy.run_sequence(sequences)
    edits = [rlm.zero_ablation(rlm.Site(f"{name}_pre", step=2)) for name in policy.state_names]
    with policy.edited(edits):
        wiped, cache = policy.run_sequence(sequences)
    assert torch.equal(wiped[:, :2], scores[:, :2])
    assert not torch.equal(wiped[:, 2:], scores[:, 2:])
    fresh, _ = policy.run_sequence(sequences[:, 2:])  # these states begin at zero
    assert torch.equal(wiped[:, 2:], fresh)
    assert not cache[f"{policy.state_names[0]}_pre"][:, 2].any()


def test_an_episode_start_forgets_the_state_of_its_rows_alone(case):
    policy, _, sequences = case
    starts = torch.zeros(6, N_STEPS, dtype=torch.bool)
    starts[1, 3] = True
    scores, _ = policy.run_sequence(sequences, episode_start=starts)
    plain, _ = policy.run_sequence(sequences)
    rest = [row for row in range(6) if row != 1]
    assert torch.equal(scores[rest], plain[rest])
    assert torch.equal(scores[1, :3], plain[1, :3])
    fresh, _ = policy.run_sequence(sequences[:, 3:])
    assert torch.equal(scores[1, 3:], fresh[1])


def test_predict_carries_the_state_in_the_form_of_sb3(case):
    policy, _, sequences = case
    state, chosen = None, []
    for step in range(N_STEPS):
        actions, state = policy.predict(sequences[:, step].numpy(), state, np.full(6, step == 0))
        chosen.append(actions)
        assert all(isinstance(part, np.ndarray) for part in state)
    scores, _ = policy.run_sequence(sequences)
    np.testing.assert_array_equal(np.stack(chosen, 1), scores.argmax(-1).numpy())


def test_gradients_run_through_the_steps(case):
    policy, _, sequences = case
    given = sequences.clone().requires_grad_()
    policy.run_sequence(given)[0][:, -1].sum().backward()
    assert given.grad[:, 0].abs().max() > 0


def test_it_pickles(case):
    policy, _, sequences = case
    again = pickle.loads(pickle.dumps(policy))
    assert torch.equal(again.run_sequence(sequences)[0], policy.run_sequence(sequences)[0])


@pytest.mark.parametrize("name", ["lstm", "lstm cell", "projected lstm"])
def test_an_lstms_gates_and_states_keep_its_equations(name):
    policy, _, shape = made(name)
    _, cache = policy.run_sequence(torch.randn(3, 4, *shape))
    gates = cache["layer.hook_gates"]
    assert policy.point("layer.hook_gates").labels["gate"] == ("i", "f", "g", "o")
    assert policy.point("layer.hook_gates").axes == ("batch", "gate", "neuron")
    i, f, g, o = gates.unbind(2)
    torch.testing.assert_close(cache["layer.hook_c"], f * cache["layer.hook_c_pre"] + i * g)
    if name != "projected lstm":
        torch.testing.assert_close(cache["layer.hook_h"], o * torch.tanh(cache["layer.hook_c"]))


@pytest.mark.parametrize("name", ["gru", "gru cell"])
def test_a_grus_gates_and_states_keep_its_equations(name):
    policy, _, shape = made(name)
    _, cache = policy.run_sequence(torch.randn(3, 4, *shape))
    _, z, n = cache["layer.hook_gates"].unbind(2)
    assert policy.point("layer.hook_gates").labels["gate"] == ("r", "z", "n")
    torch.testing.assert_close(cache["layer.hook_h"], (1 - z) * n + z * cache["layer.hook_h_pre"])


def test_states_are_called_by_the_layer_that_reads_them():
    assert made("lstm")[0].state_names == ("layer.hook_h", "layer.hook_c")
    assert made("two lstm layers")[0].state_names == tuple(f"layer.l{k}.hook_{r}" for r in "hc" for k in (0, 1))
    assert made("gru cell")[0].state_names == ("layer.hook_h",)
    assert made("convolutional")[0].state_names == tuple(f"hook_state_{k}_{r}" for k in (0, 1) for r in (0, 1))


def test_a_forget_gate_held_open_keeps_the_cell_state(lstm):
    policy, sequences = lstm
    shut = rlm.zero_ablation(rlm.Site("layer.hook_gates", gate="i"))

    def opened(tensor, hook):
        tensor[:, 1] = 1
        return tensor

    start = {name: torch.randn(6, N_UNITS) for name in policy.state_names}
    with policy.edited([shut]), policy.hooks(fwd_hooks=[("layer.hook_gates", opened)]):
        _, cache = policy.run_sequence(sequences, start)
    assert torch.equal(cache["layer.hook_c"][:, -1], start["layer.hook_c"])


def test_a_function_is_told_the_step(lstm):
    policy, sequences = lstm
    seen = []
    with policy.hooks(fwd_hooks=[("layer.hook_h", lambda tensor, hook: seen.append(hook.step))]):
        policy.run_sequence(sequences)
        policy(sequences[:, 0])
    assert seen == [*range(N_STEPS), None]


def test_a_state_that_somebody_changes_leaves_the_next_beginning_alone(lstm):
    policy, _ = lstm
    policy.initial_state(2)["layer.hook_h"][:] = 7
    assert not policy.initial_state(2)["layer.hook_h"].any()


def test_a_state_given_for_the_example_is_as_good_as_a_function():
    torch.manual_seed(0)
    module = Layered(nn.LSTM(6, N_UNITS))
    policy = rlm.HookedPolicy(module, torch.rand(3, 4), state=(torch.zeros(1, 3, N_UNITS), torch.zeros(1, 3, N_UNITS)))
    assert policy.state_names == ("layer.hook_h", "layer.hook_c")
    assert policy.initial_state(7)["layer.hook_h"].shape == (7, N_UNITS)


def test_an_initial_state_may_be_anything_that_all_episodes_share():
    torch.manual_seed(0)
    module = Layered(nn.GRUCell(6, N_UNITS))
    start = torch.arange(float(N_UNITS))
    policy = rlm.HookedPolicy(module, torch.rand(3, 4), state=lambda n: start.expand(n, -1))
    x = torch.rand(2, 4)
    torch.testing.assert_close(policy.step(x)[0], module(x, start.expand(2, -1))[0])


def test_an_analysis_asks_about_a_moment_by_its_state(lstm):
    policy, sequences = lstm
    _, state = policy.step(sequences[:, 0])
    here, fresh = policy.with_state(sequences[:, 1], state), policy.with_state(sequences[:, 1])
    result = rlm.activation_patching(
        policy, clean=here, corrupt=fresh, sites=[("layer.hook_h_pre", "layer.hook_c_pre")]
    )
    np.testing.assert_allclose(result.effect, 1, atol=1e-6)
    assert rlm.activation_patching(policy, clean=here, corrupt=fresh, sites=["hook_obs"]).effect.item() == 0


def test_a_policy_without_memory_steps_too_and_refuses_a_state():
    policy = rlm.HookedPolicy(nn.Linear(4, 2), torch.rand(2, 4))
    x = torch.rand(3, 5, 4)
    scores, state = policy.step(x[:, 0])
    assert state == {} == policy.initial_state(3)
    assert torch.equal(scores, policy(x[:, 0]))
    assert torch.equal(policy.run_sequence(x)[0][:, 2], policy(x[:, 2]))
    with pytest.raises(StateError, match="The policy has no state"):
        policy.step(x[:, 0], {"hook_h": torch.zeros(3, 5)})
    with pytest.raises(StateError, match="nothing to unroll"):
        policy.unrolled(3)
    assert policy.predict(x[:, 0].numpy())[1] is None


# ---- what is refused


def test_a_state_of_the_wrong_shape_is_refused_in_words(lstm):
    policy, sequences = lstm
    with pytest.raises(StateError, match="The state is not the policy's") as error:
        policy.step(sequences[:, 0], policy.initial_state(4))
    assert error.value.given == "layer.hook_h of shape [4, 5] for 6 observations"
    with pytest.raises(StateError, match="parts"):
        policy.step(sequences[:, 0], {"layer.hook_h": torch.zeros(6, N_UNITS)})
    with pytest.raises(StateError, match="a tuple"):
        policy.step(sequences[:, 0], (torch.zeros(6, N_UNITS), torch.zeros(6, N_UNITS)))


def test_a_state_that_is_nan_is_refused_in_words(lstm):
    policy, sequences = lstm
    state = policy.initial_state(6)
    state["layer.hook_c"][2] = torch.nan
    with pytest.raises(StateError, match="NaN"):
        policy.step(sequences[:, 0], state)


def test_a_sequence_shorter_than_the_edited_step_is_refused_in_words(lstm):
    policy, sequences = lstm
    edit = rlm.zero_ablation(rlm.Site("layer.hook_h", step=N_STEPS))
    with pytest.raises(SiteError, match="ends before a step") as error, policy.edited([edit]):
        policy.run_sequence(sequences)
    assert error.value.expected == "a step from 0 to 4"
    with (
        pytest.raises(SiteError, match="counted from the beginning"),
        policy.edited([rlm.zero_ablation(rlm.Site("layer.hook_h", step=-1))]),
    ):
        policy.run_sequence(sequences)


def test_an_edit_at_a_step_is_refused_where_there_are_no_steps(lstm):
    policy, sequences = lstm
    with (
        pytest.raises(EditError, match="single pass"),
        policy.edited([rlm.zero_ablation(rlm.Site("layer.hook_h", step=1))]),
    ):
        policy(sequences[:, 0])


def test_a_sequence_is_told_from_a_batch(lstm):
    policy, sequences = lstm
    with pytest.raises(ObservationError, match="These are sequences") as error:
        policy(sequences)
    assert "run_sequence" in error.value.fix
    with pytest.raises(ObservationError, match="no sequence"):
        policy.run_sequence(sequences[:, 0])
    with pytest.raises(ObservationError, match="no sequence"):
        policy.run_sequence(sequences[:, :0])


def test_an_episode_start_of_the_wrong_shape_is_refused_in_words(lstm):
    policy, sequences = lstm
    with pytest.raises(StateError, match="each row"):
        policy.step(sequences[:, 0], episode_start=np.zeros(5, dtype=bool))
    with pytest.raises(StateError, match="each row and step"):
        policy.run_sequence(sequences, episode_start=np.zeros(6, dtype=bool))


class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x, state):
        return self.layer(x)


def test_a_module_that_gives_no_state_back_is_refused_in_words():
    with pytest.raises(StateError, match="does not give its state back") as error:
        rlm.HookedPolicy(Forgetful(), torch.rand(2, 4), state=flat(3))
    assert error.value.given == "a tensor [2, 2]"


def test_a_state_whose_batch_axis_cannot_be_told_is_refused_in_words():
    module = Layered(nn.LSTM(6, N_UNITS))
    with pytest.raises(StateError, match="batch axis"):
        rlm.HookedPolicy(module, torch.rand(1, 4), state=(torch.zeros(1, 1, N_UNITS), torch.zeros(1, 1, N_UNITS)))
    with pytest.raises(StateError, match="no state"):
        rlm.HookedPolicy(module, torch.rand(2, 4), state=lambda n: None)
    with pytest.raises(StateError, match="rows of the state"):
        rlm.HookedPolicy(
            module, torch.rand(2, 4), state=lambda n: (torch.rand(1, n, N_UNITS), torch.rand(1, n, N_UNITS))
        )
    assert layered(1, 3)(2).shape == (1, 2, 3)
