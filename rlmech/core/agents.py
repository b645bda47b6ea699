"""Recurrent agents of CleanRL and PufferLib, which say in their own way what goes in and comes out, as steps.

    CleanRL      get_states(x, lstm_state, done) -> hidden, lstm_state;   actor(hidden), critic(hidden)
    PufferLib    forward_eval(x, {"lstm_h", "lstm_c"}) -> logits, value;   before 3.0 forward(x, state) -> ..., state

Told by the names of their parts, not by their class: those are scripts that people copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.untyped import JsonObject

AGENT = "agent"
"""Name of the user's agent inside its step."""
LSTMState = tuple[Tensor, Tensor]


class CleanRLStep(nn.Module):
    """One step of a CleanRL agent with an LSTM; no episode begins in it, as the state says where one does.

    Args:
        agent: The agent.
    """

    def __init__(self, agent: nn.Module) -> None:
        super().__init__()
        self.agent = agent

    def forward(
        self, obs: Tensor, state: LSTMState
    ) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch 1"], LSTMState]:
        """Logits, value and the next state."""
        agent: Any = self.agent
        hidden, after = agent.get_states(obs, state, torch.zeros_like(state[0][0, :, 0]))
        return agent.actor(hidden), agent.critic(hidden), after


class PufferStep(nn.Module):
    """One step of PufferLib's LSTM wrapper around a policy.

    Args:
        agent: The wrapper.
    """

    def __init__(self, agent: nn.Module) -> None:
        super().__init__()
        self.agent = agent

    def forward(self, obs: Tensor, state: LSTMState) -> tuple[Any, Any, LSTMState]:
        """Logits, value and the next state."""
        agent: Any = self.agent
        if not hasattr(agent, "forward_eval"):
            scores, value, after = agent(obs, state)
            return _single(scores), value, after
        carried: JsonObject = {"lstm_h": state[0], "lstm_c": state[1], "hidden": None}
        scores, value = agent.forward_eval(obs, carried)
        return _single(scores), value, (carried["lstm_h"], carried["lstm_c"])


def recurrent_agent(module: nn.Module) -> tuple[nn.Module, Callable[[int], LSTMState]] | None:
    """The step of an agent of CleanRL's or PufferLib's with a memory, and its state; None for any other module."""
    lstm = getattr(module, "lstm", None) or getattr(module, "recurrent", None)
    if not isinstance(lstm, nn.LSTM):
        return None
    if callable(getattr(module, "get_states", None)) and all(hasattr(module, part) for part in ("actor", "critic")):
        return CleanRLStep(module), _zeros(lstm, layered=True)
    inner = getattr(module, "policy", None)
    if inner is not None and hasattr(inner, "encode_observations") and hasattr(inner, "decode_actions"):
        return PufferStep(module), _zeros(lstm, layered=not hasattr(module, "forward_eval"))
    return None


def _zeros(lstm: nn.LSTM, *, layered: bool) -> Callable[[int], LSTMState]:
    """States of zeros, `[layer batch unit]`, or `[batch unit]` where a single cell steps."""

    def state(n_rows: int) -> LSTMState:
        like = lstm.get_parameter("weight_hh_l0")
        shape = (lstm.num_layers, n_rows, lstm.hidden_size) if layered else (n_rows, lstm.hidden_size)
        return like.new_zeros(shape), like.new_zeros(shape)

    return state


def _single(scores: object) -> Any:
    """The logits of one choice, which PufferLib may give in a list."""
    return scores[0] if isinstance(scores, list | tuple) and len(scores) == 1 else scores
