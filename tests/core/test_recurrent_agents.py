"""LSTM agents in the published shapes of CleanRL and PufferLib, rebuilt here, open without being told their state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rlmech as rlm


class CleanRLAgent(nn.Module):
    """As in `ppo_atari_lstm.py`: no `forward`, a `get_states` that loops over time, and a sampled action."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.lstm, self.actor, self.critic = nn.LSTM(6, 5), nn.Linear(5, 3), nn.Linear(5, 1)

    def get_states(self, x, lstm_state, done):
        hidden = self.network(x / 255.0)
        batch_size = lstm_state[0].shape[1]
        hidden, done = hidden.reshape((-1, batch_size, self.lstm.input_size)), done.reshape((-1, batch_size))
        new_hidden = []
        for h, d in zip(hidden, done, strict=True):
            kept = tuple((1.0 - d).view(1, -1, 1) * part for part in lstm_state)
            h, lstm_state = self.lstm(h.unsqueeze(0), kept)
            new_hidden += [h]
        return torch.flatten(torch.cat(new_hidden), 0, 1), lstm_state

    def get_action_and_value(self, x, lstm_state, done, action=None):
        hidden, lstm_state = self.get_states(x, lstm_state, done)
        probs = torch.distributions.Categorical(logits=self.actor(hidden))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), probs.entropy(), self.critic(hidden), lstm_state


class Inner(nn.Module):
    """What PufferLib wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.value = nn.Linear(4, 6), nn.Linear(5, 3), nn.Linear(5, 1)

    def encode_observations(self, observations: Tensor, state: object = None) -> Tensor:
        return torch.relu(self.encoder(observations))

    def decode_actions(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder(hidden), self.value(hidden)


class PufferAgent(nn.Module):
    """As PufferLib 3 wraps a policy: a cell steps in `forward_eval`, which writes into the state that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.lstm, self.cell = Inner(), nn.LSTM(6, 5, batch_first=True), nn.LSTMCell(6, 5)
        self.cell.weight_ih, self.cell.weight_hh = self.lstm.weight_ih_l0, self.lstm.weight_hh_l0
        self.cell.bias_ih, self.cell.bias_hh = self.lstm.bias_ih_l0, self.lstm.bias_hh_l0

    def forward_eval(self, observations, state):
        hidden = self.policy.encode_observations(observations, state=state)
        hidden, cell = self.cell(hidden, (state["lstm_h"], state["lstm_c"]))
        state["hidden"] = state["lstm_h"] = hidden
        state["lstm_c"] = cell
        return self.policy.decode_actions(hidden)

    def forward(self, observations, state):
        raise AssertionError("the training pass is not what acts")


class OlderPufferAgent(nn.Module):
    """As PufferLib before 3 has it: `recurrent`, and a `forward` that gives its state back."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.recurrent = Inner(), nn.LSTM(6, 5)

    def forward(self, x, state):
        hidden, state = self.recurrent(self.policy.encode_observations(x)[None], state)
        actions, value = self.policy.decode_actions(hidden[0])
        return [actions], value, state


def by_hand(agent, obs):
    """Logits along sequences, as each library's own loop gives them."""
    n, scores = len(obs), []
    h = c = torch.zeros(1, n, 5)
    carried = {"lstm_h": h[0], "lstm_c": c[0]}
    for step in range(obs.shape[1]):
        if isinstance(agent, CleanRLAgent):
            hidden, (h, c) = agent.get_states(obs[:, step], (h, c), torch.zeros(n))
            scores.append(agent.actor(hidden))
        elif isinstance(agent, PufferAgent):
            scores.append(agent.forward_eval(obs[:, step], carried)[0])
        else:
            logits, _, (h, c) = agent(obs[:, step], (h, c))
            scores.append(logits[0])
    return torch.stack(scores, dim=1)


@pytest.mark.parametrize("kind", [CleanRLAgent, PufferAgent, OlderPufferAgent])
def test_it_steps_as_its_library_has_it(kind):
    torch.manual_seed(0)
    agent = kind().eval()
    policy = rlm.HookedPolicy(agent, torch.rand(2, 4))
    obs = torch.randn(3, 4, 4)
    with torch.no_grad():
        scores, cache = policy.run_sequence(obs)
        torch.testing.assert_close(scores, by_hand(agent, obs), rtol=1e-5, atol=1e-6)
    assert policy.output_kind == "logits"
    assert policy.engine == "graph"
    assert "hook_value" in cache
    assert {name.rpartition(".")[2] for name in policy.state_names} == {"hook_h", "hook_c"}
