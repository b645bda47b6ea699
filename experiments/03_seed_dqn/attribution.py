"""What the decision is made of: features by exact integrated gradients, neurons by conductance."""

from __future__ import annotations

from typing import Any

import figures
import naive
import numpy as np
from network import NEURONS, Shown, agreement, panel
from scenes import Data
from scipy.stats import spearmanr

import rlmech as rlm

LAYER = "q_net.3.hook_out"
N_DRAWS = 20


def typical(data: Data) -> np.ndarray:
    """A baseline for each state: the same vehicles present, each row where it is on average when it is there."""
    presence = data.policy.spec.presence_index
    there = data.seen[..., presence] >= 0.5
    weight = there[..., None] / np.maximum(there.sum(0), 1)[:, None]
    return np.where(there[..., None], (data.seen * weight).sum(0), 0).astype(np.float32)


def gap_of(values: np.ndarray, best: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The chosen action's share less the runner-up's, of values `[batch, action, ...]`."""
    rows = np.arange(len(values))
    return values[rows, best] - values[rows, second]


def features(data: Data) -> Shown:
    """The gap between the chosen action and the runner-up, by input; and the ways to get that wrong."""
    policy, seen = data.policy, data.seen
    scores = policy(seen).detach().numpy()
    best, second = scores.argsort(1)[:, ::-1][:, :2].T
    rows, base = np.arange(len(seen)), typical(data)
    exact = rlm.attribution.exact_integrated_gradients(policy, seen, baseline=base)
    gap, raw = gap_of(exact.attribution.values, best, second), exact.attribution.values[rows, best]
    captum = rlm.attribution.integrated_gradients(policy, seen, baseline=base, n_steps=naive.STEPS)
    crossing = naive.zero_baseline_gradients(policy, seen, best)
    nobody = policy(np.zeros_like(seen[:1])).detach().numpy()
    change = (scores - nobody)[rows, best]
    presence = policy.spec.presence_index
    try:
        rlm.attribution.exact_integrated_gradients(policy, seen, baseline=np.zeros_like(seen[:1]))
        refused = "not refused"
    except rlm.RlmechError as error:
        refused = str(error).splitlines()[0]

    def top(values: np.ndarray) -> np.ndarray:
        return np.abs(values).reshape(len(values), -1).argmax(1)

    common = scores.mean(1, keepdims=True)
    numbers: dict[str, Any] = {
        "exact: largest completeness error": float(np.abs(exact.completeness_error).max()),
        "exact: linear pieces of a line, mean and most": [float(exact.n_pieces.mean()), int(exact.n_pieces.max())],
        f"captum, {naive.STEPS} steps: largest completeness error": float(np.abs(captum.completeness_error).max()),
        f"captum, {naive.STEPS} steps, against exact": agreement(exact.attribution.values, captum.attribution.values),
        "raw Q": {
            "share of Q's variance that all actions have in common": float(
                common.var() * scores.size / ((scores - scores.mean(0)) ** 2).sum()
            ),
            "same most important input as for the gap": float((top(raw) == top(gap)).mean()),
            "median correlation with the gap's attribution": _median_correlation(raw, gap),
        },
        "zeros as the baseline": {
            "the package says": refused,
            "share of |attribution| on presence flags": float(
                np.abs(crossing[..., presence]).sum() / np.abs(crossing).sum()
            ),
            "of it on the ego's, which never changes": float(
                np.abs(crossing[:, 0, presence]).sum() / np.abs(crossing).sum()
            ),
            "completeness error over the change, median": float(
                np.median(np.abs((crossing.sum((1, 2)) - change) / change))
            ),
            "action chosen at zero": policy.spec.actions[int(nobody.argmax())],
            "same most important input as for the gap": float((top(crossing) == top(gap)).mean()),
            "median correlation with the gap's attribution": _median_correlation(crossing, gap),
        },
    }
    by_cell = np.abs(gap).mean(0)
    names = data.inputs()
    order = by_cell.ravel().argsort()[::-1]
    numbers["mean |attribution| to the gap"] = {names[i]: float(by_cell.ravel()[i]) for i in order[:8]}
    numbers["by entity"] = dict(zip(policy.spec.entities, by_cell.sum(1).tolist(), strict=True))
    numbers["by feature"] = {f.name: float(v) for f, v in zip(policy.spec.features, by_cell.sum(0), strict=True)}
    flips = _flips(data, policy.sites("hook_obs", over=("entity", "feature")))
    numbers["share of actions that change when it is another state's"] = {
        name: flips[name] for name in sorted(flips, key=lambda name: -flips[name][0])[:8]
    }
    numbers["rank correlation of mean |attribution| with it"] = {
        "exact, gap": float(spearmanr(by_cell.ravel(), [flips[name][0] for name in names])[0]),
        "zeros, raw score": float(spearmanr(np.abs(crossing).mean(0).ravel(), [flips[n][0] for n in names])[0]),
    }
    entities, columns = list(policy.spec.entities), [f.name for f in policy.spec.features]
    wrong = np.abs(crossing).mean(0)
    chosen = {policy.spec.actions[i]: gap[best == i].mean(0).ravel() for i in np.unique(best)}
    panels = (
        panel("What the gap between the best and the second action is made of",
              "Mean size of the exact integrated gradients, from a typical scene with the same vehicles present.",
              figures.grid(by_cell, x=columns, y=entities, titles=("feature", "vehicle"), unit="return", height=340)),
        panel("What it takes to change the action", "Share of states whose action changes when this one input is "
              "another recorded state's.",
              figures.grid(np.array([flips[name][0] for name in names]).reshape(by_cell.shape), x=columns, y=entities,
                           titles=("feature", "vehicle"), unit="share", height=340)),
        panel("By the action chosen", "Mean signed attribution of the gap: positive speaks for the action.",
              figures.grid(np.stack(list(chosen.values())), x=names, y=list(chosen), titles=("input", "chosen"),
                           unit="return", height=340)),
        panel("The same from zeros, for the raw score", "The common formula: mean size. Presence flags, which never "
              "move in these scenes, take much of it.",
              figures.grid(wrong, x=columns, y=entities, titles=("feature", "vehicle"), unit="return", height=340)),
    )  # fmt: skip
    return rlm.plot.Section(title="Which features?", panels=panels), numbers


def neurons(data: Data) -> Shown:
    """Conductance of the second hidden layer for the gap; what its strongest neuron takes it from."""
    policy, seen = data.policy, data.seen
    scores = policy(seen).detach().numpy()
    best, second = scores.argsort(1)[:, ::-1][:, :2].T
    rows, base = np.arange(len(seen)), typical(data)
    found = rlm.attribution.layer_conductance(policy, seen, LAYER, baseline=base, n_steps=naive.STEPS)
    gap, raw = gap_of(found.conductance.values, best, second), found.conductance.values[rows, best]
    active = data.fast.activation(LAYER)
    sizes = {
        "conductance of the gap": np.abs(gap).mean(0),
        "conductance of the raw score": np.abs(raw).mean(0),
        "activation": active.mean(0),
    }
    order = sizes["conductance of the gap"].argsort()[::-1]
    strongest = int(order[0])
    through = rlm.attribution.neuron_conductance(
        policy, seen, LAYER, neuron=strongest, baseline=base, n_steps=naive.STEPS
    )
    total = np.abs(gap).mean(0).sum()
    numbers: dict[str, Any] = {
        "largest completeness error": float(np.abs(found.completeness_error).max()),
        "neurons that carry half of it": int((np.cumsum(np.sort(np.abs(gap).mean(0))[::-1]) < total / 2).sum() + 1),
        "ten strongest": [int(i) for i in order[:10]],
        **{f"of them also among the ten by {name}": len(set(order[:10]) & set(size.argsort()[::-1][:10]))
           for name, size in list(sizes.items())[1:]},
        "strongest neuron, its inputs' completeness error": float(np.abs(through.completeness_error).max()),
    }  # fmt: skip
    ten = {name: size.argsort()[::-1][:10] for name, size in sizes.items()}
    draws = np.random.default_rng(0).permuted(np.tile(np.arange(active.shape[1]), (N_DRAWS, 1)), axis=1)[:, :10]
    sites = [rlm.Site(LAYER, neuron=sorted(map(int, chosen))) for chosen in (*ten.values(), *draws)]
    flips = list(_flips(data, sites).values())
    numbers["share of actions that change when ten neurons are another state's"] = {
        **dict(zip(ten, flips, strict=False)),
        f"at random, mean of {N_DRAWS} draws": float(np.mean([row[0] for row in flips[len(ten) :]])),
    }
    cells = np.abs(gap_of(through.attribution.values, best, second)).mean(0)
    numbers["strongest neuron takes it from"] = {
        data.inputs()[i]: float(cells.ravel()[i]) for i in cells.ravel().argsort()[::-1][:5]
    }
    shown = [NEURONS[i] for i in order[:24]]
    scaled = np.stack([size[order[:24]] / size.max() for size in sizes.values()])
    panels = (
        panel("The 24 strongest neurons of hidden layer 2", "Each row over its own largest value: conductance of the "
              "gap, which is right; of the raw score; and the mean activation, which is no effect at all.",
              figures.grid(scaled, x=shown, y=list(sizes), titles=("neuron", ""), unit="share of the largest",
                           height=280)),
        panel(f"Where neuron {strongest} takes it from", "Mean size of its conductance for the gap, by input.",
              figures.grid(cells, x=[f.name for f in policy.spec.features], y=list(policy.spec.entities),
                           titles=("feature", "vehicle"), unit="return", height=340)),
    )  # fmt: skip
    return rlm.plot.Section(title="Which neurons?", panels=panels), numbers


def _flips(data: Data, sites: list[rlm.Site]) -> dict[str, list[float]]:
    """Share of states whose action changes with a site resampled, and its 95 % interval, by the site's name.

    Episodes are resampled whole for the interval, because states of one episode resemble each other.
    """
    found = rlm.ablation_sweep(
        data.policy, data.seen, sites=sites, kind="resample", metric=rlm.metrics.action_flip(), clusters=data.episode
    )
    rows = zip(*(found[f"effect{end}"].values for end in ("", "_low", "_high")), strict=True)
    names = [" ".join(str(value) for value in dict(site.selection).values()) for site in sites]
    return {name: [float(value) for value in row] for name, row in zip(names, rows, strict=True)}


def _median_correlation(a: np.ndarray, b: np.ndarray) -> float:
    rows = (np.corrcoef(x.ravel(), y.ravel())[0, 1] for x, y in zip(a, b, strict=True))
    return float(np.median(list(rows)))
