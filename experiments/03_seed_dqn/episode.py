"""Along an episode, and against the scene: what the neurons follow, which regions are crossed, when it is decided."""

from __future__ import annotations

from typing import Any

import figures
import naive
import numpy as np
from network import NEURONS, Shown, panel
from scenes import LAYERS, Data, scene
from scipy.stats import spearmanr

import rlmech as rlm

FEWEST = 20  # states with a vehicle in question, below which no correlation is taken


def lens(data: Data) -> Shown:
    """What would be chosen if the network stopped at each layer; fitted on some episodes, tried on the others."""
    held = data.held_out()
    found = {
        method: rlm.attribution.action_lens(
            data.policy, data.seen[held], list(LAYERS.values()), reference=data.seen[~held], method=method
        )
        for method in ("mean", "linear")
    }
    hooks = [str(name) for name in found["mean"].hook.values]
    w, b = naive.weights(data.policy)
    scores = data.policy(data.seen[held]).detach().numpy()
    hidden = data.fast.activation("q_net.1.hook_out")[held]
    wrong = {
        name: float((values.argmax(1) == scores.argmax(1)).mean())
        for name, values in naive.lenses(w, b, hidden.astype(float)).items()
    }
    before = data.policy(data.seen[~held]).detach().numpy().argmax(1)
    usual = np.bincount(before, minlength=len(data.policy.spec.actions)).argmax()
    numbers: dict[str, Any] = {
        "states fitted on, tried on": [int((~held).sum()), int(held.sum())],
        "most frequent action": data.policy.spec.actions[int(usual)],
        "always the most frequent action": float((scores.argmax(1) == usual).mean()),
        "agreement": {name: dict(zip(hooks, map(float, each.agreement.values), strict=True))
                      for name, each in found.items()},
        "wrong, on hidden 1": wrong,
    }  # fmt: skip
    rows = {hook: {name: numbers["agreement"][name][hook] for name in found} for hook in hooks}
    rows |= {f"wrong: {name}": {"mean": value} for name, value in wrong.items()}
    rows["always the most frequent action"] = {"mean": numbers["always the most frequent action"]}
    shown = figures.comparison(rows, unit="share of held-out states with the policy's action")
    text = "The mean lens replaces what comes after by its mean; the linear one is fitted. Below, lenses that only fit."
    return rlm.plot.Section(title="The action lens", panels=(panel("Agreement layer by layer", text, shown),)), numbers


def along(data: Data) -> Shown:
    """The episode on the dense road: scores, neurons, and the linear regions it passes through."""
    run, policy = data.dense, data.policy
    seen, steps = np.asarray(run.observations), run.steps["step"].to_numpy()
    taken = [policy.spec.actions[int(action)] for action in np.asarray(run.actions)]
    hidden = run.activation("q_net.3.hook_out")
    margins = rlm.attribution.region_margins(policy, seen)
    ours = rlm.attribution.region_margins(policy, data.seen)
    scores = np.asarray(run.scores)
    best = scores.argmax(1)
    gap = np.sort(scores, 1)[:, -1] - np.sort(scores, 1)[:, -2]
    numbers = {
        "steps": len(steps),
        "crashed": bool(run.episodes["crashed"].iloc[0]),
        "linear regions": len(np.unique(margins.region.values)),
        "regions of the states of the other episodes": [len(np.unique(ours.region.values)), len(data.seen)],
        "median distance to the nearest gate": float(np.median(ours.margin.values)),
        "median step between neighbouring observations": float(np.median(_moves(data))),
        "median gap between the best and the second action": float(np.median(gap)),
        "labelled one step late: right action": float((best[1:] == np.asarray(run.actions)[:-1]).mean()),
        "labelled by its own step: right action": float((best == np.asarray(run.actions)).mean()),
    }
    varying = hidden.std(0).argsort()[::-1][:60]
    values = (hidden - hidden.mean(0))[:, varying].T
    panels = (
        panel("Action scores", "Q-values step by step; a marker stands on the action taken.",
              rlm.plot.q_values(run, episode=0)),
        panel("Hidden layer 2 along the episode", "The 60 neurons that vary most, less their mean, in order of that.",
              figures.grid(values, x=[f"{s} {a}" for s, a in zip(steps, taken, strict=True)],
                           y=[NEURONS[i] for i in varying], titles=("step and action", "neuron"), unit="activation",
                           height=820)),
        panel("How near the next gate is", "Distance in the observation's own units within which no gate turns: the "
              "map from observation to scores is one matrix only that far.",
              figures.along(steps, {"distance": margins.margin.values}, taken=taken,
                            titles=("step", "distance to the nearest gate"))),
    )  # fmt: skip
    return rlm.plot.Section(title="Along an episode", panels=panels), numbers


def against_scene(data: Data) -> Shown:
    """Which neuron follows which quantity of the scene: chosen on some episodes, tried on the others."""
    quantities = scene(data.policy, data.seen)
    held = data.held_out()
    hidden = {
        "hidden 1": data.fast.activation("q_net.1.hook_out"),
        "hidden 2": data.fast.activation("q_net.3.hook_out"),
    }
    numbers: dict[str, Any] = {}
    best: dict[str, tuple[int, float]] = {}
    for name, values in quantities.items():
        row: dict[str, Any] = {"states": int(np.isfinite(values).sum())}
        for layer, active in hidden.items():
            fit, test = (_correlations(active, values, part) for part in (~held, held))
            if fit is None or test is None:
                continue
            chosen = int(np.abs(fit).argmax())
            row[layer] = {"neuron": chosen, "where it was chosen": float(fit[chosen]), "held out": float(test[chosen])}
            if layer == "hidden 2":
                best[name] = (chosen, float(test[chosen]))
        numbers[name] = row
    names = [feature.name for feature in data.policy.spec.features]
    first = data.policy.spec.features[names.index("x")].physical(data.seen[:, 1, names.index("x")])
    gap = quantities["gap ahead"]
    there = np.isfinite(gap)
    numbers["the row called vehicle_1 is the one ahead in the lane"] = float(np.isclose(first, gap).mean())
    if there.sum() >= FEWEST:
        numbers["rank correlation of its x with the gap ahead"] = float(spearmanr(first[there], gap[there])[0])
    panels = [
        panel(f"Neuron {neuron} of hidden layer 2 against the {name}",
              f"Rank correlation {value:.2f} in episodes that it was not chosen on.",
              figures.points(quantities[name], hidden["hidden 2"][:, neuron], _taken(data),
                             titles=(f"{name} [{_unit(name)}]", "activation"), names=data.policy.spec.actions))
        for name, (neuron, value) in sorted(best.items(), key=lambda item: -abs(item[1][1]))[:4]
    ]  # fmt: skip
    if not panels:
        return rlm.plot.Section(title="Against the scene", panels=(), text="Too few states to say."), numbers
    return rlm.plot.Section(title="Against the scene", panels=tuple(panels)), numbers


def _correlations(active: np.ndarray, values: np.ndarray, part: np.ndarray) -> np.ndarray | None:
    """Rank correlation of every neuron with the quantity; 0 for one that does not vary, None for too few states."""
    rows = part & np.isfinite(values)
    if rows.sum() < FEWEST or np.ptp(values[rows]) == 0:
        return None
    varies = np.ptp(active[rows], axis=0) > 0
    found = np.zeros(active.shape[1])
    found[varies] = [spearmanr(column, values[rows])[0] for column in active[rows][:, varies].T]
    return found


def _unit(name: str) -> str:
    return "m/s" if "speed" in name else "m" if "gap" in name else "from the left"


def _taken(data: Data) -> list[str]:
    return [data.policy.spec.actions[int(action)] for action in np.asarray(data.fast.actions)]


def _moves(data: Data) -> np.ndarray:
    same = data.episode[1:] == data.episode[:-1]
    return np.linalg.norm(np.diff(data.seen, axis=0), axis=(1, 2))[same]
