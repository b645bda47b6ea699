"""A first look as one HTML page: each figure with what it means and the code that makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from rlmech.first_look.analysis import HEAD_PARTS, FirstLook, Pairs, clusters, vehicle_embedding
from rlmech.first_look.driven_page import driven_section
from rlmech.first_look.neurons import acting_layers, spread_rows
from rlmech.first_look.summary import shares, summary
from rlmech.plot import (
    Panel,
    Section,
    circuit,
    episodes,
    heatmap,
    page,
    ranking,
    recorded_pattern,
    sweep,
)
from rlmech.plot.drawn_scene import is_drawable, is_grid


def write_page(look: FirstLook, path: str | Path, *, source: str | None) -> Path:
    """Write the page.

    Args:
        look: What was found.
        path: The `.html` file to write.
        source: What the policy was opened from, as given to `rlm.load`; the page's code names it. None for a live one.

    Returns:
        The path written.
    """
    found = summary(look)
    env_id, n = look.recording.manifest["env"]["id"], found["n_episodes"]
    sections = [_episodes(look), *driven_section(look), *_pairs(look), *_interventions(look), *_circuits(look)]
    told = ["what it does when a part is taken from it", "which parts carry its decisions"]
    if look.block is not None:
        told = ["what it attends to", *told, "what its weights say"]
    by = "mean action" if look.policy.output_kind == "mean_action" else "best action"
    return page(
        sections,
        path,
        title=f"A first look at {_name(look, source)}",
        subtitle=f"{n} recorded episode{'s' * (n > 1)} of {env_id} with the policy's {by}: "
        f"{', '.join(told[:-1])} and {told[-1]}.",
        facts=_facts(look, found, source),
        setup=_setup(look, source),
    )


def _name(look: FirstLook, source: str | None) -> str:
    if source is None:
        return f"a policy of {type(look.policy.module).__name__}"
    return source.removeprefix("zoo:") if source.startswith("zoo:") else Path(source).name


def _setup(look: FirstLook, source: str | None) -> str:
    manifest = look.recording.manifest
    seeds = manifest["seeds"]
    names = list(manifest["activations"])
    run = range(seeds[0], seeds[-1] + 1)
    episodes = "" if clusters(look.recording) is None else '\nepisodes = recording.steps["episode"].to_numpy()'
    opened = "# policy and env: those that rlm.report was given"
    if source is not None:
        opened = f"policy = rlm.load({source!r})\nenv = {_env_code(look)}"
    return f"""import torch
import xarray as xr

import rlmech as rlm

{opened}
recording = rlm.record(policy, env, seeds={run if list(run) == seeds else seeds}, names={names}){episodes}
"""


def _env_code(look: FirstLook) -> str:
    env_id, spec = str(look.recording.manifest["env"]["id"]), look.policy.spec
    mode = ", render_mode='rgb_array'" if look.pictures else ""
    if env_id == spec.env_id:
        return f"rlm.make_env(policy.spec{mode})"
    return f"rlm.make_env({env_id!r}{', config=policy.spec.env_config' * bool(spec.env_config)}{mode})"


def _facts(look: FirstLook, found: dict[str, Any], source: str | None) -> list[tuple[str, str]]:
    facts = [("policy", _name(look, source)), ("environment", str(look.recording.manifest["env"]["id"]))]
    facts.append(("episodes", f"{found['n_episodes']}, {found['n_steps']} decisions"))
    labels = {"return": "return ± standard error", "crashed": "crash rate", "arrived": "arrival rate"}
    labels |= {name: f"{name} rate" for name in shares(look.recording) if name not in labels}
    for name, label in labels.items():
        if name in found:
            mean, error = found[name]["mean"], found[name]["se"]
            facts.append((label, f"{mean:.2f} ± {error:.2f}" if np.isfinite(error) else f"{mean:.2f}, of one episode"))
    if look.pairs is not None:
        facts.append(("clean/corrupt pairs", f"{len(look.pairs.rows)} of {look.pairs.n_states} states"))
    facts.append(("parameters", f"{sum(p.numel() for p in look.policy.module.parameters()):,}"))
    return facts


def _episodes(look: FirstLook) -> Section:
    drawn = look.block is not None
    attended = (
        "Lines run from the ego to the vehicles that it attends to, one colour per head, as wide as the weight; a ring "
        "is attention to itself. Click a head in the legend to hide it. Below: the same weights by CircuitsVis."
    )
    what, meaning, code = _shown(look)
    panels = [
        Panel(
            title="The road, the scores and the attention, step by step" if drawn else f"{what}, step by step",
            meaning=(attended if drawn else meaning) + _jumps(look),
            figure=episodes(look.recording, pictures=look.pictures or None),
            code=_STEP_CODE if drawn else code,
        )
    ]
    if drawn and look.pairs is not None and not _shuffled(look):
        pattern = recorded_pattern(look.recording).isel(query=0)
        present = xr.DataArray(np.asarray(look.recording.observations)[..., look.policy.spec.presence_index] >= 0.5,
                               dims=("step", "key"))  # fmt: skip
        mean = pattern.where(present).mean("step").assign_attrs(long_name="mean attention weight")
        panels.append(
            Panel(
                title="Whom each head attends to",
                meaning="Attention weight of each row of the observation, averaged over the steps at which a vehicle "
                "is in it (grey: never). Rows stand in the environment's order: along the ego's lane, not by distance.",
                figure=heatmap(mean, rows="head", columns="key"),
                code=_MEAN_CODE.format(presence=look.policy.spec.presence_index),
            )
        )
    return Section(title="What it did, and whom it attended to" if drawn else "What it did", panels=tuple(panels))


def _shown(look: FirstLook) -> tuple[str, str, str]:
    """What is seen at each step without attention: its name, what it is, and the code that draws it."""
    plain = "steps = rlm.plot.episodes(recording)"
    if is_grid(look.recording):
        return "The grid and the scores", "The grid at each step.", plain
    if is_drawable(look.recording):
        return "The road and the scores", "The road at each step.", plain
    if not look.pictures:
        return "The scores", "What the network gave for each action at each step.", plain
    n, of = len(look.pictures), len(look.recording.steps)
    first = "" if n == of else f" The first {n} of {of} steps have a picture."
    code = (
        "from rlmech.first_look import pictures\n\n"
        "steps = rlm.plot.episodes(recording, pictures=pictures(env, recording))"
    )
    return "What it saw and did", f"The environment's own picture at each step, and the scores.{first}", code


def _jumps(look: FirstLook) -> str:
    if look.policy.output_kind == "mean_action":
        return ""
    return " The buttons jump to the steps at which the action changes."


def _shuffled(look: FirstLook) -> bool:
    return look.recording.manifest["env"]["config"].get("observation", {}).get("order") == "shuffled"


def _pairs(look: FirstLook) -> list[Section]:
    pairs = look.pairs
    if pairs is None:
        return []
    entities = look.policy.spec.entities
    counts = xr.DataArray(
        np.bincount(pairs.removed, minlength=len(entities))[None, 1:].astype(float),
        dims=("pairs", "entity"),
        coords={"pairs": ["taken away"], "entity": list(entities[1:])},
        attrs={"long_name": "number of pairs"},
    )
    return [
        Section(
            title="Taking a vehicle away",
            text=_pairs_text(pairs),
            panels=(
                Panel(
                    title="Which vehicle was taken away",
                    meaning="In how many pairs the vehicle of each observation row is the one taken away.",
                    figure=heatmap(counts),
                    code=_PAIRS_CODE,
                ),
            ),
        )
    ]


def _pairs_text(pairs: Pairs) -> str:
    kept = (
        f"the {len(pairs.rows)} states in which that changes the action"
        if len(pairs.rows) == pairs.n_flips
        else f"the {len(pairs.rows)} states in which that moves the action gap most (the action changes in only "
        f"{pairs.n_flips})"
    )
    return (
        "A pair is one recorded observation as it was (clean) and the same with one vehicle's row set to zero, that "
        f"is absent (corrupt): the vehicle {pairs.chosen_by}. This edits the observation, not the simulator. Of "
        f"{pairs.n_states} states with traffic the page keeps {kept}. Everything below measures the action gap: the "
        "score of the clean run's action less that of the corrupt run's."
    )


def _interventions(look: FirstLook) -> list[Section]:
    panels: list[Panel] = []
    embedding = vehicle_embedding(look.policy, look.block) if look.block is not None else None
    episodes = None if look.pairs is None else clusters(look.recording, look.pairs.rows)
    together = "" if episodes is None else " clusters=episodes[pairs.rows],"
    code = {"vehicles": _patch_code("noise", f'{embedding!r}, over=("entity",)', together)}
    if look.block is not None:
        names = look.policy.attention[look.block].names
        hooks = [names[part] for part in HEAD_PARTS if part in names]
        code["heads"] = _patch_code("denoise", f'{hooks}, over=("head",)', together)
        if "v" in names:
            code["values"] = _patch_code("noise", f'{names["v"]!r}, over=("head", "entity")', together)
    else:
        code["features"] = _patch_code("denoise", '"hook_obs", over=("entity", "feature")', together)
    for name, result in look.patching.items():
        title, meaning = _PATCHING[name]
        panels.append(Panel(title=title, meaning=meaning, figure=sweep(result), code=code[name]))
    moved = look.policy.output_kind == "mean_action"
    if look.neurons is not None:
        panels.append(_neurons(look, look.neurons))
    if look.ablation:
        what = "head" if look.block is not None else "layer"
        site = (
            f'{look.policy.attention[look.block].names["z"]!r}, over=("head",)'
            if look.block is not None
            else f"{acting_layers(look.policy)}"
        )
        panels.append(
            Panel(
                title=f"Ablating each {what}: how {'far does the action move' if moved else 'often does it change'}?",
                meaning=f"{_measured(look)} when the {what}'s output is replaced by its mean over them, by its value "
                "in another state, or by zero. Offline: what it does to an episode is another question, and zero is "
                "often a value that the network never meets. Intervals resample whole episodes.",
                figure=sweep(look.ablation),
                code=_ABLATION_CODE.format(
                    site=site,
                    metric=f"rlm.metrics.{'action_shift' if moved else 'action_flip'}()",
                    together="" if clusters(look.recording) is None else ", clusters=episodes",
                ),
            )
        )
    return [Section(title="Which parts carry the decision", panels=tuple(panels))] if panels else []


def _measured(look: FirstLook) -> str:
    if look.policy.output_kind == "mean_action":
        return "How far the mean action moves, over the states,"
    return "Share of states in which the action changes"


def _neurons(look: FirstLook, neurons: xr.Dataset) -> Panel:
    layers = list(dict.fromkeys(neurons["hook"].values.tolist()))
    n, of = len(spread_rows(look.recording)), len(look.recording.steps)
    states = f"{n} states, evenly spread over the {of} recorded," if n < of else "all recorded states"
    return Panel(
        title="Which neurons matter most?",
        meaning=f"Each of the {neurons.sizes['site']} units between the observation and the action, one at a time, set "
        f"to its mean over {states} and computed exactly: {_measured(look)[0].lower()}{_measured(look)[1:]}. Units of "
        "a critic are not among them. The largest of many is partly chance: measure it again in other states.",
        figure=ranking(neurons),
        code=f"""from rlmech.first_look.neurons import decision_change, spread_rows, unit_sites

rows = spread_rows(recording)
result = rlm.ablation_sweep(
    policy, recording.observations[rows], sites=unit_sites(policy), metric=decision_change(policy)
)  # for {", ".join(layers)}
rlm.plot.ranking(result)""",
    )


def _circuits(look: FirstLook) -> list[Section]:
    if not look.circuits:
        return []
    vehicles = list(look.policy.spec.entities[1:])
    qk, ov = (_over_vehicles(look.circuits[name], vehicles) for name in ("qk", "ov"))
    score, unit = _SCORES.get(look.policy.output_kind, ("score", ""))
    return [
        Section(
            title="What its weights say",
            text="Circuits between features, through the ReLU gates that are open in the recorded states, averaged "
            "over those states and over the vehicles in them. Features are as the network sees them (normalised); "
            "'bias' is a constant 1. The mean of many exact maps is a summary: qk_forms and ov_forms in "
            "rlmech.circuits give each state's own.",
            panels=(
                Panel(
                    title="QK: what each head looks for",
                    meaning="How a feature of the ego (row) and a feature of a vehicle (column) together move that "
                    "vehicle's attention score, before the softmax. Blue attracts attention, red repels it.",
                    figure=circuit(
                        qk.rename(feature_query="ego feature", feature_key="vehicle feature").assign_attrs(
                            long_name="attention score per unit of both features"
                        )
                    ),
                    code=_CIRCUIT_CODE.format(kind="qk", centred=""),
                ),
                Panel(
                    title="OV: what each head says when it attends",
                    meaning="What a feature of a fully attended vehicle (row) adds to each action's score (column), "
                    "less the mean over actions, since a shift common to all decides nothing.",
                    figure=circuit(
                        (ov - ov.mean("action"))
                        .rename(feature="vehicle feature")
                        .assign_attrs(
                            long_name=f"{score} per unit of the feature",
                            units=unit,
                        )
                    ),
                    code=_CIRCUIT_CODE.format(kind="ov", centred="\nov = ov - ov.mean('action')"),
                ),
            ),
        )
    ]


def _over_vehicles(result: xr.Dataset, vehicles: list[str]) -> xr.DataArray:
    """The circuit averaged over the vehicles, weighted by the number of states in which each is there."""
    form = result["circuit"].isel(query=0, drop=True).sel(entity=vehicles)
    return form.weighted(result["n_states"].sel(entity=vehicles)).mean("entity")


def _patch_code(direction: str, site: str, together: str) -> str:
    return f"""result = rlm.activation_patching(
    policy, clean=clean, corrupt=corrupt, sites=policy.sites({site}),
    metric=rlm.metrics.action_gap(), direction={direction!r},{together}
)
rlm.plot.sweep(result)"""


_SCORES = {"q_values": ("Q-value", "return"), "logits": ("logit", "nat")}
_PATCHING = {
    "heads": (
        "Patching each head into the corrupt run: is it enough?",
        "Share of the action gap that comes back when the vehicle stays away but one head's keys, values, mask, "
        "pattern or output z are those of the clean run (denoising: sufficiency). 1 restores the clean decision, "
        "0 does nothing. Keys and values alone cannot: the mask still hides the vehicle.",
    ),
    "vehicles": (
        "Patching each vehicle's embedding into the clean run: is it needed?",
        "Share of the action gap that is lost when the vehicle stays but its embedding is that of an absent one "
        "(noising: necessity). The other direction does exactly nothing, since the mask still hides the vehicle; "
        "vehicles that were never taken away have the same embedding in both runs.",
    ),
    "values": (
        "Patching each head's value of each vehicle into the clean run",
        "The same for what one head reads from one vehicle: attention as in the clean run, the value that of an "
        "absent vehicle (noising: necessity).",
    ),
    "features": (
        "Giving one number of the scene back: is it enough?",
        "Share of the action gap that comes back when the vehicle stays away but one feature of one row of the "
        "observation is as in the clean run (denoising: sufficiency).",
    ),
}
_STEP_CODE = """steps = rlm.plot.episodes(recording)          # everything of this panel; or one by one:
pattern = rlm.plot.recorded_pattern(recording)[0]
rlm.plot.scene(recording, episode=0, step=0, pattern=pattern)
rlm.plot.attention(pattern)
rlm.plot.q_values(recording, episode=0)"""
_MEAN_CODE = """pattern = rlm.plot.recorded_pattern(recording).isel(query=0)
present = xr.DataArray(recording.observations[..., {presence}] >= 0.5, dims=("step", "key"))
rlm.plot.heatmap(pattern.where(present).mean("step"))"""
_PAIRS_CODE = """from rlmech.first_look import take_away

pairs = take_away(policy, recording)
clean, corrupt = pairs.clean, pairs.corrupt"""
_ABLATION_CODE = """sites = policy.sites({site})
rlm.plot.sweep({{
    f"{{kind}} ablation": rlm.ablation_sweep(
        policy, rlm.episodes.moments(recording, policy), sites=sites, kind=kind, metric={metric}{together}
    )
    for kind in ("mean", "resample", "zero")
}})"""
_CIRCUIT_CODE = """states = torch.as_tensor(recording.observations)
result = rlm.circuits.{kind}_circuit(policy, space="feature", obs=states)
vehicles = list(policy.spec.entities[1:])
{kind} = result.circuit.isel(query=0, drop=True).sel(entity=vehicles)
{kind} = {kind}.weighted(result.n_states.sel(entity=vehicles)).mean("entity"){centred}
rlm.plot.circuit({kind})"""
