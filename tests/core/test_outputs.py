"""Which output is the scores: told, known by name, or asked for in words."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import gymnasium as gym
import pytest
import torch
from torch import nn
from torch.distributions import Categorical

import rlmech as rlm
from rlmech.errors import ConfigError, ObservationError

X = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))


@dataclass
class Output:
    q: torch.Tensor
    v: torch.Tensor


class Heads(nn.Module):
    """A network of two heads that returns them in a form of its own."""

    def __init__(self, form):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.pi, self.vf = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 1)
        self.form = form

    def forward(self, obs):
        h = torch.relu(self.body(obs))
        return self.form(h, self.pi(h), self.vf(h))


def expected(network, x=X):
    h = torch.relu(network.body(x))
    return network.pi(h), network.vf(h)[:, 0]


OPENS = {
    "scores alone": (lambda h, pi, vf: pi, {}, "hook_q_values", False),
    "scores and value": (lambda h, pi, vf: (pi, vf), {}, "hook_q_values", True),
    "RLlib": (
        lambda h, pi, vf: {"embeddings": h, "action_dist_inputs": pi, "vf_preds": vf[:, 0]},
        {},
        "hook_logits",
        True,
    ),
    "RLlib without a value": (lambda h, pi, vf: {"embeddings": h, "action_dist_inputs": pi}, {}, "hook_logits", False),
    "TensorDict's keys": (lambda h, pi, vf: {"hidden": h, "action_value": pi}, {}, "hook_q_values", False),
    "tianshou, no state": (lambda h, pi, vf: (pi, None), {}, "hook_q_values", False),
    "one key of its own": (lambda h, pi, vf: {"preferences": pi}, {}, "hook_q_values", False),
    "value first": (lambda h, pi, vf: (vf, pi), {"scores": 1, "value": 0}, "hook_q_values", True),
    "keys of its own": (
        lambda h, pi, vf: {"hidden": h, "q": pi, "v": vf},
        {"scores": "q", "value": "v"},
        "hook_q_values",
        True,
    ),
    "nested": (
        lambda h, pi, vf: ((pi, h), {"critic": vf}),
        {"scores": "0.0", "value": "1.critic"},
        "hook_q_values",
        True,
    ),
    "a dataclass": (lambda h, pi, vf: Output(pi, vf), {"scores": "q", "value": "v"}, "hook_q_values", True),
    "a function": (lambda h, pi, vf: [h, pi, vf], {"scores": lambda out: out[1]}, "hook_q_values", False),
    "a key with a dot": (lambda h, pi, vf: {"a.b": pi, "h": h}, {"scores": "a.b"}, "hook_q_values", False),
}


@pytest.mark.parametrize(
    ("form", "told", "kind"),
    [
        (lambda h, pi, vf: torch.distributions.Normal(pi, 1.0), {"scores": "mean"}, "mean_action"),
        (lambda h, pi, vf: (torch.distributions.Normal(pi, 1.0), vf), {"scores": "0.loc", "value": 1}, "mean_action"),
        (lambda h, pi, vf: {"mu": pi, "log_std": pi * 0}, {"scores": "mu"}, "mean_action"),
        (lambda h, pi, vf: (Categorical(logits=pi), vf), {"scores": "0.logits"}, "logits"),
        (lambda h, pi, vf: {"mean": pi, "quantiles": h}, {"scores": "mean"}, "q_values"),
        (lambda h, pi, vf: pi, {"action_space": gym.spaces.Box(-1, 1, (4,))}, "mean_action"),
    ],
)
def test_the_mean_of_a_distribution_or_beside_a_deviation_is_an_action(form, told, kind):
    policy = rlm.HookedPolicy(Heads(form), X[:2], **told)
    assert policy.output_kind == kind
    action = policy.predict(X.numpy())[0]
    assert action.shape == ((8, 4) if kind == "mean_action" else (8,))


@pytest.mark.parametrize(
    ("form", "told"),
    [
        (lambda h, pi, vf: pi, {"action_space": gym.spaces.Discrete(3)}),
        (lambda h, pi, vf: torch.cat([pi, pi], 1), {"action_space": gym.spaces.Box(-1, 1, (4,))}),
        (lambda h, pi, vf: pi, {"action_space": gym.spaces.Box(-1, 1, (3, 2)), "output_kind": "mean_action"}),
    ],
)
def test_scores_that_are_not_as_many_as_the_actions_are_refused(form, told):
    with pytest.raises(ConfigError, match="does not give a score for each action"):
        rlm.HookedPolicy(Heads(form), X[:2], **told)


def test_of_two_critics_of_which_one_is_asked_only_its_own_points_are_swept():
    form = lambda h, pi, vf: (torch.tanh(pi) @ torch.ones(4, 3), h @ torch.ones(16, 3))  # noqa: E731
    policy = rlm.HookedPolicy(Heads(form), X[:2], scores=1)
    assert set(rlm.ablation_sweep(policy, X).hook.values) == {"relu_0.hook_out"}
    policy = rlm.HookedPolicy(Heads(lambda h, pi, vf: (h.sigmoid() * 0 + 1, h.flip(1))), X[:2], scores=1)
    assert "sigmoid_0.hook_out" not in set(rlm.activation_patching(policy, clean=X[:4], corrupt=X[4:]).hook.values)


@pytest.mark.parametrize("name", OPENS)
def test_what_is_told_or_known_by_name_is_the_score(name):
    form, told, hook, has_value = OPENS[name]
    network = Heads(form).eval()

    policy = rlm.HookedPolicy(network, X, **told)
    scores, cache = policy.run_with_cache(X)

    pi, vf = expected(network)
    assert torch.equal(scores, pi)
    assert hook in cache
    assert ("hook_value" in cache) == has_value
    if has_value:
        assert torch.equal(cache["hook_value"], vf)
    assert policy.engine == "graph"
    assert policy.module is network
    assert "pi.hook_out" in policy.hook_dict
    assert list(policy.state_dict()) == list(network.state_dict())


ASKS = {
    "value first": (lambda h, pi, vf: (vf, pi), "scores=1, value=0"),
    "mean and deviation": (lambda h, pi, vf: (pi, pi.exp()), "scores=0"),
    "one mean and one deviation": (lambda h, pi, vf: (vf, vf.exp()), "scores=0, value=1"),
    "three tensors": (lambda h, pi, vf: (pi, vf, h), "scores=0, value=1"),
    "two known names": (lambda h, pi, vf: {"logits": pi, "q_values": pi}, "scores='logits'"),
    "keys of its own": (lambda h, pi, vf: {"q": pi, "v": vf}, "scores='q', value='v'"),
    "a distribution": (lambda h, pi, vf: Categorical(logits=pi), "scores='logits'"),
    "a distribution and a value": (
        lambda h, pi, vf: {"pi": Categorical(logits=pi), "v": vf.long()},
        "scores='pi.logits'",
    ),
    "whole numbers": (lambda h, pi, vf: pi.argmax(-1), "scores='actor'"),
}


@pytest.mark.parametrize("name", ASKS)
def test_what_could_be_one_thing_or_another_is_asked_for(name):
    form, proposed = ASKS[name]

    with pytest.raises(ConfigError) as error:
        rlm.HookedPolicy(Heads(form).eval(), X)

    assert proposed in error.value.fix


def test_the_proposal_for_a_distribution_opens_it():
    network = Heads(lambda h, pi, vf: Categorical(logits=pi, validate_args=False)).eval()

    policy = rlm.HookedPolicy(network, X, scores="logits")

    assert torch.allclose(policy(X), expected(network)[0].log_softmax(-1))
    assert policy.output_kind == "logits"


def test_a_name_that_is_not_there_is_an_error_that_lists_what_is():
    with pytest.raises(ConfigError, match="no output 'qq'") as error:
        rlm.HookedPolicy(Heads(lambda h, pi, vf: {"q": pi, "h": h}).eval(), X, scores="qq")

    assert "q [batch 4]" in error.value.given


def test_a_value_of_several_numbers_is_an_error():
    with pytest.raises(ConfigError, match="not one number for each observation"):
        rlm.HookedPolicy(Heads(lambda h, pi, vf: (pi, h)).eval(), X, scores=0, value=1)


@pytest.mark.parametrize("shape", [(3, 11), (2, 3), (3, 3)])
def test_a_distributional_head_is_refused_and_a_function_opens_it(shape):
    class Atoms(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(6, shape[0] * shape[1])

        def forward(self, obs):
            return self.body(obs).view(-1, *shape).softmax(-1)

    network, support = Atoms(), torch.linspace(-1, 1, shape[1])
    with pytest.raises(ConfigError, match="a distribution over returns, or several choices") as error:
        rlm.HookedPolicy(network, X)
    assert "(p * support).sum(-1)" in error.value.fix

    policy = rlm.HookedPolicy(network, X, scores=lambda p: (p * support).sum(-1))

    assert torch.equal(policy(X), (network(X) * support).sum(-1))
    assert policy.predict(X.numpy())[0].shape == (8,)
    effects = rlm.activation_patching(policy, clean=X[:4], corrupt=X[4:], sites=["body.hook_out"])
    assert effects.effect.shape == (1,)


def test_rllibs_inputs_of_a_gaussian_are_a_mean_and_a_deviation_where_the_action_is_continuous():
    space = gym.spaces.Box(-1, 1, (2,))
    network = Heads(lambda h, pi, vf: {"action_dist_inputs": pi, "vf_preds": vf[:, 0]}).eval()

    policy = rlm.HookedPolicy(network, X, action_space=space)

    assert policy.output_kind == "mean_action"
    assert torch.equal(policy(X), expected(network)[0][:, :2])


class CleanRL(nn.Module):
    """CleanRL's ppo.py, ppo_atari.py and ppo_continuous_action.py: no forward, and an action is drawn at once."""

    def __init__(self, *, shared=False, part="actor"):
        super().__init__()
        torch.manual_seed(0)
        self.shared = shared
        if shared:
            self.network = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
        self.part = part
        setattr(self, part, nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))

    def hidden(self, x):
        return self.network(x / 255.0) if self.shared else x

    def get_value(self, x):
        return self.critic(self.hidden(x))

    def get_action_and_value(self, x, action=None):
        hidden = self.hidden(x)
        probs = Categorical(logits=getattr(self, self.part)(hidden))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), probs.entropy(), self.critic(hidden)


@pytest.mark.parametrize(
    ("shared", "part", "kind"),
    [(False, "actor", "logits"), (True, "actor", "logits"), (False, "actor_mean", "mean_action")],
)
def test_a_cleanrl_agent_opens_with_its_actor_and_its_value(shared, part, kind):
    agent = CleanRL(shared=shared, part=part)

    policy = rlm.HookedPolicy(agent, X)
    scores, cache = policy.run_with_cache(X)

    assert policy.output_kind == kind
    assert policy.engine == "graph"
    assert torch.equal(scores, getattr(agent, part)(agent.hidden(X)))
    assert torch.equal(cache["hook_value"], agent.get_value(X)[:, 0])
    assert {f"{part}.0.hook_out", "critic.2.hook_out"} <= set(policy.hook_dict)
    assert list(policy.state_dict()) == list(agent.state_dict())
    again = pickle.loads(pickle.dumps(policy))  # of this test's own making
    assert torch.equal(again(X), scores)
    assert torch.equal(copy.deepcopy(policy)(X), scores)


def test_cleanrls_c51_is_scored_by_its_mean_over_atoms():
    class C51(nn.Module):
        def __init__(self):
            super().__init__()
            self.n, self.n_atoms = 3, 5
            self.register_buffer("atoms", torch.linspace(-2, 2, 5))
            self.network = nn.Linear(6, 15)

        def get_action(self, x, action=None):
            pmfs = torch.softmax(self.network(x / 255.0).view(len(x), self.n, self.n_atoms), dim=2)
            return torch.argmax((pmfs * self.atoms).sum(2), 1), pmfs

    agent = C51()
    policy = rlm.HookedPolicy(agent, X)

    assert torch.equal(torch.as_tensor(policy.predict(X.numpy())[0]), agent.get_action(X)[0])


def test_a_module_without_forward_says_which_parts_it_has_and_opens_by_one():
    class Agent(nn.Module):
        def __init__(self):
            super().__init__()
            self.steer, self.judge = nn.Linear(6, 3), nn.Linear(6, 1)

    agent = Agent()
    with pytest.raises(ConfigError) as error:
        rlm.HookedPolicy(agent, X)
    assert "has no forward" in str(error.value)
    assert "steer, judge" in error.value.expected

    policy = rlm.HookedPolicy(agent, X, scores="steer", value="judge")

    assert torch.equal(policy(X), agent.steer(X))
    assert torch.equal(policy.run_with_cache(X)[1]["hook_value"], agent.judge(X)[:, 0])


def test_a_critic_of_observation_and_action_takes_them_by_name():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(8, 1)

        def forward(self, obs, action):
            return self.q(torch.cat([obs, action], 1))

    critic, given = Critic(), {"obs": X, "action": X[:, :2]}
    with pytest.raises(ConfigError, match="takes several inputs") as error:
        rlm.HookedPolicy(critic, X)
    assert error.value.fix == "HookedPolicy(module, {'obs': ..., 'action': ...})"

    policy = rlm.HookedPolicy(critic, given)

    assert torch.equal(policy(given), critic(**given))
    assert {"hook_obs.obs", "hook_obs.action"} <= set(policy.hook_dict)


def test_arrays_in_a_tuple_are_told_to_come_as_a_dict():
    with pytest.raises(ObservationError) as error:
        rlm.HookedPolicy(nn.Linear(6, 2), (X, X[:, :3]))

    assert "as a dict" in error.value.fix


class TensorDictModule(nn.Module):
    """What a module of TorchRL does when it is called with arrays: `out_keys` as a tuple."""

    in_keys, out_keys = ("observation",), ("action", "action_value", "chosen_action_value")
    __module__ = "tensordict.nn.common"

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(6, 3)

    def forward(self, *args):
        values = self.module(*args)
        return (values == values.max(-1, keepdim=True).values).long(), values, values.max(-1, keepdim=True).values


def test_torchrls_q_value_actor_is_scored_by_its_action_values():
    policy = rlm.HookedPolicy(TensorDictModule(), X)

    assert torch.equal(policy(X), policy.module.module(X))
    assert "module.hook_out" in policy.hook_dict


def test_a_model_of_skrl_is_scored_by_what_its_distribution_is_made_of():
    class GaussianMixin:
        __module__ = "skrl.models.torch.gaussian"

    class Model(nn.Module):
        __module__ = "skrl.models.torch.base"

    class Policy(GaussianMixin, Model):
        def __init__(self):
            super().__init__()
            self.net, self.log_std = nn.Linear(6, 2), nn.Parameter(torch.zeros(2))

        def forward(self, inputs, role=""):
            raise AssertionError("it would draw an action")

        def compute(self, inputs, role):
            return self.net(inputs["observations"]), {"log_std": self.log_std}

    policy = rlm.HookedPolicy(Policy(), X)

    assert policy.output_kind == "mean_action"
    assert torch.equal(policy(X), policy.module.net(X))


def test_several_choices_are_rows_of_scores():
    network = Heads(lambda h, pi, vf: (pi, vf)).eval()
    for told, sizes in (({"action_space": gym.spaces.MultiDiscrete([3, 2])}, (3, 2)),):
        flat = nn.Linear(6, 5)
        policy = rlm.HookedPolicy(flat, X, output_kind="logits", **told)
        scores = policy(X)
        assert scores.shape == (8, 2, 3)
        assert torch.equal(scores[:, 0], flat(X)[:, :3])
        assert torch.equal(scores[:, 1, :2], flat(X)[:, 3:])
        assert torch.isinf(scores[:, 1, 2]).all()
        assert policy.hook_dict["hook_logits"].axes == ("batch", "choice", "action")
        assert policy.choices.sizes == sizes
        assert policy.predict(X.numpy())[0].max(0).tolist() <= [2, 1]
    equal = rlm.HookedPolicy(network, X, action_space=gym.spaces.MultiDiscrete([2, 2]))
    assert torch.equal(equal(X), expected(network)[0].view(8, 2, 2))


def test_a_list_of_heads_is_a_list_of_choices_named_by_their_keys():
    network = Heads(lambda h, pi, vf: {"steer": pi, "speed": pi[:, :2], "v": vf}).eval()

    policy = rlm.HookedPolicy(network, X, scores=["steer", "speed"], value="v", output_kind="logits")

    assert policy.spec.choices == ("steer", "speed")
    assert policy(X).shape == (8, 2, 4)
    assert policy.hook_dict["hook_logits"].labels["choice"] == ("steer", "speed")
    with pytest.raises(ConfigError, match="not those of the action space's choices"):
        rlm.HookedPolicy(network, X, scores="steer", action_space=gym.spaces.MultiDiscrete([3, 2]))


def test_a_bit_is_a_choice_between_zero_and_its_logit():
    flat = nn.Linear(6, 3)

    policy = rlm.HookedPolicy(flat, X, output_kind="logits", action_space=gym.spaces.MultiBinary(3))

    assert torch.equal(policy(X)[..., 1], flat(X))
    assert torch.equal(torch.as_tensor(policy.predict(X.numpy())[0]), (flat(X) > 0).long())


def test_a_graph_that_was_kept_for_one_value_is_not_taken_for_another(tmp_path, monkeypatch):
    monkeypatch.setenv("RLMECH_CACHE", str(tmp_path))
    torch.manual_seed(0)
    parts = nn.ModuleDict({"actor": nn.Linear(6, 3), "one": nn.Linear(6, 1), "other": nn.Linear(6, 1)})

    for value in ("one", "other", "one"):
        policy = rlm.HookedPolicy(parts, X, scores="actor", value=value)
        assert torch.equal(policy.run_with_cache(X)[1]["hook_value"], parts[value](X)[:, 0])
