"""The network as it is: its weights and biases, what it computes on one observation, and when its action changes."""

from __future__ import annotations

from typing import Any

import figures
import naive
import numpy as np
from scenes import LAYERS, Data, changes

import rlmech as rlm

Shown = tuple[rlm.plot.Section, dict[str, Any]]
NEURONS = [str(i) for i in range(256)]


def panel(title: str, meaning: str, figure: rlm.plot.Figure | rlm.plot.Steps) -> rlm.plot.Panel:
    """A panel of the page."""
    return rlm.plot.Panel(title=title, meaning=meaning, figure=figure)


def agreement(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """How far `b` is from the right `a`: relative error of the whole, and the correlation of the entries."""
    error = np.linalg.norm(b - a) / np.linalg.norm(a)
    return {"relative error": float(error), "correlation": float(np.corrcoef(a.ravel(), b.ravel())[0, 1])}


def weights(data: Data) -> Shown:
    """Weights and biases of every layer, and their products: which are right, and what even the right one is worth."""
    w, b = naive.weights(data.policy)
    inputs, actions = data.inputs(), list(data.policy.spec.actions)
    right = (w[1] @ w[0]).T
    affine = rlm.attribution.local_affine(data.policy, data.seen)
    jacobian = affine.jacobian.values.reshape(len(data.seen), len(actions), -1)
    ungated = w[2] @ w[1] @ w[0]
    flat = data.seen.reshape(len(data.seen), -1)
    constant = w[2] @ (w[1] @ b[0] + b[1]) + b[2]
    own = data.policy(data.seen).detach().numpy()
    again = np.einsum("bai,bi->ba", jacobian, flat) + affine.offset.values
    shift = (w[0].max() + w[0].min()) / 2  # where an automatic scale puts its white
    numbers = {
        "W0ᵀ W1 against (W1 W0)ᵀ": agreement(right, naive.product(w)),
        "W2 W1 W0, no gates, against the mean Jacobian": agreement(jacobian.mean(0), ungated),
        "share of states where the ungated network chooses the same": float(
            ((flat @ ungated.T + constant).argmax(1) == own.argmax(1)).mean()
        ),
        "largest |J x + c - score|": float(np.abs(again - own).max()),
        "white of an automatic colour scale, W0": float(shift),
        "largest |weight|": [float(np.abs(m).max()) for m in w],
        "neurons of layer 1 with a negative bias": float((b[0] < 0).mean()),
        "neurons of layer 2 with a negative bias": float((b[1] < 0).mean()),
    }  # fmt: skip
    neuron = ("neuron of hidden layer 1", "neuron of hidden layer 2")
    scale = "weight"
    panels = (
        panel("Hidden layer 1: weights", "Each column a neuron, each row an input by its name. White is zero.",
              figures.grid(w[0].T, x=NEURONS, y=inputs, titles=(neuron[0], "input"), unit=scale, height=560)),
        panel("Hidden layer 2: weights", "Each row a neuron of layer 2, each column what it reads of layer 1. The "
              "colours end at the 99.9th percentile.",
              figures.grid(w[1], x=NEURONS, y=NEURONS, titles=neuron, unit=scale, height=760,
                           limit=float(np.quantile(np.abs(w[1]), 0.999)))),
        panel("Output layer: weights", "What each neuron of layer 2 adds to each action's score.",
              figures.grid(w[2], x=NEURONS, y=actions, titles=(neuron[1], "action"), unit=scale, height=300)),
        panel("Biases", "Of the hidden layers, neuron by neuron.",
              figures.bars({"hidden layer 1": b[0], "hidden layer 2": b[1]}, titles=("neuron", "bias"))),
        panel("Bias of the output layer", "In units of return.",
              figures.bars({"output": b[2]}, titles=("action", "bias")).update_xaxes(
                  tickvals=list(range(len(actions))), ticktext=actions)),
        panel("From the inputs to layer 2: (W1 W0)ᵀ", "The right product, gates left out.",
              figures.grid(right, x=NEURONS, y=inputs, titles=(neuron[1], "input"), unit=scale, height=560)),
        panel("The wrong product, W0ᵀ W1", "Of the same shape, because layer 2 is square; it is another matrix.",
              figures.grid(naive.product(w), x=NEURONS, y=inputs, titles=(neuron[1], "input"), unit=scale, height=560)),
    )  # fmt: skip
    both = {"as it is: the mean Jacobian over recorded states": jacobian.mean(0), "W2 W1 W0, gates ignored": ungated}
    panels += tuple(
        panel(f"From the inputs to the scores, {name}", "Each action less the mean of all actions, in units of return "
              "for a unit of the observation.",
              figures.grid(matrix - matrix.mean(0), x=inputs, y=actions, titles=("input", "action"), unit="slope",
                           height=340))
        for name, matrix in both.items()
    )  # fmt: skip
    return rlm.plot.Section(title="Weights and biases", panels=panels), numbers


def observation(data: Data) -> Shown:
    """The ReLU activations of one recorded observation, and of one drawn from the observation space."""
    seen, policy = data.seen, data.policy
    moments = changes(data.fast, policy.spec)
    row = int(moments["row"].values[len(moments["row"]) // 2])
    env = rlm.make_env(policy.spec.env_id or "", config=policy.spec.env_config)
    env.observation_space.seed(0)
    drawn = np.stack([env.observation_space.sample() for _ in range(len(seen))]).astype(np.float32)
    (scores, cache), (other, strange) = (policy.run_with_cache(obs, "q_net.*") for obs in (seen, drawn))
    relu, odd = (
        {f"hidden layer {n}": c[LAYERS[f"hidden_{n}_relu"]].detach().numpy() for n in (1, 2)} for c in (cache, strange)
    )
    presence = drawn[..., policy.spec.presence_index]
    numbers: dict[str, Any] = {
        "row": row,
        "open gates, that observation": {name: int((values[row] > 0).sum()) for name, values in relu.items()},
        "open gates, recorded states": {name: float((values > 0).mean()) for name, values in relu.items()},
        "open gates, drawn": {name: float((values > 0).mean()) for name, values in odd.items()},
        "never open in recorded states": {name: int((values <= 0).all(0).sum()) for name, values in relu.items()},
        "drawn: presence that is 0 or 1": float(np.isin(presence, (0, 1)).mean()),
        "drawn: distance from the mean state over that of recorded states": float(
            np.linalg.norm(drawn - seen.mean(0), axis=(1, 2)).mean()
            / np.linalg.norm(seen - seen.mean(0), axis=(1, 2)).mean()
        ),
        "spread of Q between states, recorded and drawn": [
            float(s.detach().max(1).values.std()) for s in (scores, other)
        ],
        "actions recorded": _counted(scores, policy),
        "actions drawn": _counted(other, policy),
    }  # fmt: skip
    stepped = naive.left_on(policy, seen[row : row + 1], drawn[:1])
    true = relu["hidden layer 2"][row : row + 1]
    numbers["hooks left on"] = {
        "hooks after the cell ran twice": stepped["hooks"],
        "calls for two forward passes": stepped["calls"],
        "gates that read otherwise": float(((np.asarray(stepped["found"]) > 0) != (true > 0)).mean()),
        **agreement(true, np.asarray(stepped["found"])),
        "hooks left by run_with_cache": sum(len(naive.hooks_on(m)) for m in policy.module.modules()),
    }
    panels = tuple(
        panel(f"{name.capitalize()}: ReLU activations",
              f"A state in which the action changed: episode {int(data.episode[row])}, "
              f"step {int(data.fast.steps['step'][row])}, {(values[row] > 0).sum()} of 256 gates open.",
              figures.bars({name: values[row]}, titles=("neuron", "activation")))
        for name, values in relu.items()
    )  # fmt: skip
    return rlm.plot.Section(title="One observation", panels=panels), numbers


def _counted(scores: Any, policy: rlm.HookedPolicy) -> dict[str, float]:
    best = scores.detach().numpy().argmax(1)
    return {action: float((best == i).mean()) for i, action in enumerate(policy.spec.actions)}


def action_changes(data: Data) -> Shown:
    """What is recorded when the action changes, checked; the same with activations of the step after."""
    found = changes(data.fast, data.policy.spec)
    w, b = naive.weights(data.policy)
    actions = list(data.policy.spec.actions)
    rows = found["row"].values
    hidden = data.fast.activation("q_net.3.hook_out")
    same = data.episode[np.minimum(rows + 1, len(hidden) - 1)] == found["episode"].values
    same &= rows + 1 < len(hidden)

    def chosen(values: np.ndarray) -> np.ndarray:
        return (values @ w[2].T + b[2]).argmax(1)

    new = np.array([actions.index(name) for name in found["new_action"].values])
    after = rows[same] + 1
    pairs = list(zip(found["last_action"].values, found["new_action"].values, strict=True))
    table = np.array([[pairs.count((last, new)) for new in actions] for last in actions], dtype=float)
    numbers = {
        "steps": len(hidden),
        "episodes": len(data.fast),
        "changes": len(rows),
        "its hidden activations choose the new action": float((chosen(found["hidden_2_relu"].values) == new).mean()),
        "those of the step after choose it": float((chosen(hidden[after]) == new[same]).mean()),
        "steps where the next one's action is another": float(
            (np.asarray(data.fast.actions)[1:] != np.asarray(data.fast.actions)[:-1])[
                data.episode[1:] == data.episode[:-1]
            ].mean()
        ),
        "from, to": {f"{a} → {c}": int(n) for a, row in zip(actions, table, strict=True)
                     for c, n in zip(actions, row, strict=True) if n},
    }  # fmt: skip
    order = np.lexsort((found["step"].values, found["episode"].values, found["new_action"].values))
    label = [f"{found['new_action'].values[i]}, episode {found['episode'].values[i]} step {found['step'].values[i]}"
             for i in order]  # fmt: skip
    values = found["hidden_2_relu"].values[order]
    centred = values - hidden.mean(0)
    panels = (
        panel("From which action to which", "Number of changes; rows the last action, columns the new one.",
              figures.grid(table, x=actions, y=actions, titles=("new action", "last action"), unit="changes",
                           height=340)),
        panel("Hidden layer 2 when the action changes", "ReLU activations less their mean over all states, ordered by "
              "the new action.",
              figures.grid(centred, x=NEURONS, y=label, titles=("neuron of hidden layer 2", ""), unit="activation",
                           height=max(360, 140 + 12 * len(label)))),
    )  # fmt: skip
    return rlm.plot.Section(title="When the action changes", panels=panels), numbers
