"""Every attribution that the package has, ranked by what happens when the vehicles that it names are taken away.

    python -m benchmarks.attributions

Both shipped policies, on states that they met; offline by `faithfulness`, and on the road by `driven_removal`, which
takes the most important vehicle from view at every step. What a policy cannot be given is listed with the reason.
Integrated gradients and DeepLift start from the same vehicles with mean features, for a line to absence would cross the
mask: they answer what another vehicle there would do, and are measured here by what no vehicle does.
With Quantus installed its PixelFlipping and FaithfulnessCorrelation are computed on the same inputs of a perceptron.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import rlmech as rlm
from benchmarks import tables

att = rlm.attribution
SUBJECTS = {
    "intersection-ego-attention": ("intersection-v2", "FASTER", "SLOWER"),
    "highway-dqn-mlp": ("highway-fast-v0", "FASTER", "SLOWER"),
}
N_STATES = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attributions", description=__doc__)
    parser.add_argument("--seeds", type=int, default=60, help="episodes of each condition; 0: states only")
    parser.add_argument("--policies", nargs="*", default=list(SUBJECTS))
    parser.add_argument("--out", type=Path, default=tables.RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows: list[dict[str, Any]] = []
    for name in given.policies:
        rows += measured(name, n_seeds=given.seeds)
    table = tables.plain_table(rows)
    agreed = quantus()
    if agreed:
        table += "\n\nThe same measures by Quantus:\n\n" + tables.plain_table(agreed)
    print(table)
    print("written:", *tables.save("attributions", rows=rows + agreed, table=table, where=given.out))


def measured(name: str, *, n_seeds: int) -> list[dict[str, Any]]:
    """A row an attribution, the highest correlation first."""
    env_id, better, worse = SUBJECTS[name]
    policy, env = rlm.load(f"zoo:{name}"), rlm.make_env(env_id)
    recording = rlm.record(policy, env, seeds=range(20), progress=False)
    chosen = np.random.default_rng(0).permutation(len(recording.observations))[:N_STATES]
    obs = torch.as_tensor(recording.observations[chosen])
    clusters = recording.steps["episode"].to_numpy()[chosen]
    functions, refused, cost = {}, {}, {}
    for title, function in attributions(better, worse, stand_ins(policy, recording.observations)).items():
        if policy.attention and title == "exact_integrated_gradients":
            refused[title] = "Its pieces through a softmax take seconds a state."
            continue
        start = time.thread_time()
        try:
            function(policy, obs)
        except rlm.RlmechError as error:
            refused[title] = error.problem
        else:
            functions[title], cost[title] = function, (time.thread_time() - start) / N_STATES * 1e3
    metric = rlm.metrics.action_gap(better, worse)
    found = att.faithfulness(policy, obs, attributions=functions, metric=metric, clusters=clusters)
    driven = None
    if n_seeds:
        driven = att.driven_removal(
            policy, env, attributions=functions, seeds=range(1000, 1000 + n_seeds), metric=metric, progress=False
        )
    rows: list[dict[str, Any]] = []
    for title in found["condition"].values.tolist():
        own = found.sel(condition=title)
        row: dict[str, Any] = {"policy": name, "attribution": title, "milliseconds_a_state": cost.get(title, np.nan)}
        for measure in MEASURES:
            row[measure] = float(own[f"{measure}_mean"])
        row["sensitivity_interval"] = _interval(own, "sensitivity")
        if driven is not None:
            there = driven.sel(condition=title)
            row["delta_return"] = float(there["delta_return"])
            row["delta_return_interval"] = _interval(there, "delta_return")
            row["crashed"] = float(there["crashed"].mean())
        rows.append(row)
    rows.sort(key=lambda row: -row["sensitivity"])
    nothing = dict.fromkeys(rows[0], "")
    return rows + [nothing | {"policy": name, "attribution": f"{t}: left out. {why}"} for t, why in refused.items()]


MEASURES = ("sensitivity", "deletion", "insertion", "infidelity_scaled", "randomisation")


def _interval(result: xr.Dataset, name: str) -> str:
    return f"[{float(result[f'{name}_low']):.2f} {float(result[f'{name}_high']):.2f}]"


def stand_ins(policy: rlm.HookedPolicy, seen: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor]:
    """A baseline of the same vehicles, each with the mean features of all that were there."""
    place = policy.spec.presence_index or 0
    mean = torch.as_tensor(seen[:, 1:][seen[:, 1:, place] > 0.5].mean(0))

    def baseline(obs: torch.Tensor) -> torch.Tensor:
        return torch.cat([obs[:, :1], torch.where(obs[:, 1:, place, None] > 0.5, mean, obs[:, 1:])], 1)

    return baseline


def attributions(better: str, worse: str, baseline: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    """By title, functions of a policy and a batch."""
    gap = {"better": better, "worse": worse}

    def patched(policy: rlm.HookedPolicy, obs: torch.Tensor) -> xr.DataArray:
        sites = policy.sites("hook_obs", over="entity")
        metric = rlm.metrics.action_gap(better, worse)
        found = rlm.attribution_patching(
            policy, clean=obs, corrupt=baseline(obs), sites=sites, metric=metric, direction="noise"
        )
        values = -found["estimate"].transpose("pair", "site").values
        coords = {"entity": list(policy.spec.entities)}
        return xr.DataArray(values, dims=("batch", "entity"), coords=coords)

    def gradient_times_input(policy: rlm.HookedPolicy, obs: torch.Tensor) -> xr.DataArray:
        slope = att.local_affine(policy, obs)["jacobian"]
        gap_of = slope.sel(action=better) - slope.sel(action=worse)
        return gap_of * xr.DataArray(obs.detach().numpy(), dims=("batch", "entity", "feature"))

    def terms(policy: rlm.HookedPolicy, obs: torch.Tensor) -> xr.DataArray:
        found = att.attribute_actions(policy, obs)
        names = [name for name in found if "entity" in found[name].dims and "action" in found[name].dims]
        parts = [found[name].sel(action=better) - found[name].sel(action=worse) for name in names]
        return sum(part.sum([d for d in part.dims if d not in ("batch", "entity")]) for part in parts)

    return {
        "shapley_values": lambda p, o: att.shapley_values(p, o, metric=rlm.metrics.action_gap(better, worse))["value"],
        "attribute_actions": terms,
        "local_affine x input": gradient_times_input,
        "exact_integrated_gradients": lambda p, o: att.exact_integrated_gradients(p, o, baseline=baseline(o), **gap)[
            "attribution"
        ],
        "integrated_gradients": lambda p, o: att.integrated_gradients(p, o, baseline=baseline(o), **gap)["attribution"],
        "deep_lift": lambda p, o: att.deep_lift(p, o, baseline=baseline(o), **gap)["attribution"],
        "saliency": lambda p, o: att.saliency(p, o, **gap)["attribution"],
        "attribution_patching": patched,
        "pattern_effects": lambda p, o: -att.pattern_effects(p, o, **gap)["removed"].rename(key="entity").fillna(0),
        "key_feature_effects": lambda p, o: -att.key_feature_effects(p, o, **gap)["effect"],
    }


def quantus() -> list[dict[str, Any]]:
    """PixelFlipping's area and FaithfulnessCorrelation of Quantus beside deletion and the correlation at one n."""
    if importlib.util.find_spec("quantus") is None:
        return []
    import quantus as q

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3)).eval()
    policy, obs = rlm.HookedPolicy(net, torch.rand(2, 8)), torch.randn(24, 8)
    given = {"players": "features", "metric": rlm.metrics.action_score(1), "reference": torch.zeros(1, 8)}
    values = att.saliency(policy, obs, better=1)["attribution"].sel(action="1")
    ours = att.faithfulness(policy, obs, attributions={"saliency": values}, n_subsets=400, **given)
    shared = {"model": _Image(net).eval(), "x_batch": obs.numpy()[:, None, None], "y_batch": np.ones(24, dtype=int)}
    shared |= {"a_batch": values.values[:, None, None], "softmax": False, "channel_first": True}
    options = {"perturb_baseline": 0.0, "abs": False, "normalise": False, "disable_warnings": True}
    # its own area calls a function that NumPy 2.4 no longer has, and starts after the first flip
    flipped = np.array(q.PixelFlipping(features_in_step=1, **options)(**shared))
    curves = np.concatenate([policy(obs)[:, 1:2].detach().numpy(), flipped], axis=1)
    correlated = [
        np.nanmean(
            q.FaithfulnessCorrelation(subset_size=n, nr_runs=400, return_aggregate=False, **options)(**shared),
        )
        for n in range(2, 8)
    ]
    own = ours.sel(condition="saliency")
    return [
        {
            "measure": "deletion (PixelFlipping)",
            "rlmech": float(own["deletion"].mean()),
            "Quantus": float(np.trapezoid(curves, dx=1 / 8, axis=1).mean()),
        },
        {
            "measure": "sensitivity (FaithfulnessCorrelation, n = 2 to 7)",
            "rlmech": float(own["sensitivity"].mean()),
            "Quantus": float(np.mean(correlated)),
        },
    ]


class _Image(torch.nn.Module):
    """A perceptron for what Quantus takes for pictures."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x.flatten(1))


if __name__ == "__main__":
    main()
