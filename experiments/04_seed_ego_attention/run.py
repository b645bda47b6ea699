"""What an ego-attention policy's heads look for and say, exactly; and what the naive formulas make of it.

    python experiments/04_seed_ego_attention/run.py [--smoke] [--episodes N] [--out FOLDER]
        [--checkpoint model.tar --config agent.json --env-config env.json]

Writes a page with all figures, each figure as a file for the notebook, and `numbers.json` with what the README quotes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import circuits
import exact
import figures
import naive
import xarray as xr
from saved import kept
from subjects import BETTER, GAP, WORSE, States, names_of, opened, recorded, untrained

import rlmech as rlm

Panels = list[tuple[str, str, Any]]


def main() -> None:
    """Record, read the circuits, add up the decisions, measure the naive formulas, write."""
    given = arguments()
    start = time.perf_counter()
    policy, env = opened(given.checkpoint, given.config, given.env_config)
    recording = recorded(policy, env, folder=given.recordings, episodes=3 if given.smoke else given.episodes)
    states = States(policy, recording)
    print(f"recorded: {time.perf_counter() - start:.0f} s")
    numbers: dict[str, Any] = {
        "states": described(states),
        "saved": kept(states, given.out / "activations.safetensors"),
    }
    sections: dict[str, Panels] = {"One episode, and what its attention computed": episode(states)}
    parts = {
        "circuits": ("What the heads look for, and what they say", weights),
        "decisions": ("Decisions as sums", decisions),
        "naive": ("What the naive formulas get wrong", mistakes),
    }
    terms = exact.Terms.of(states)
    for name, (title, part) in parts.items():
        sections[title], numbers[name] = part(states, terms, smoke=given.smoke)
        print(f"{name}: {time.perf_counter() - start:.0f} s")
    page = written(sections, given.out, states)
    (given.out / "numbers.json").write_text(json.dumps(strict(numbers), indent=1), encoding="utf-8")
    for law, error in numbers["decisions"]["laws"].items():
        print(f"  {law}: {error:.1e}")
    print(f"the page is at {page}, after {time.perf_counter() - start:.0f} s")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="an rl-agents model; by default the shipped policy")
    parser.add_argument("--config", type=Path, help="the agent's JSON file")
    parser.add_argument("--env-config", type=Path, help="the environment's JSON file")
    parser.add_argument("--episodes", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("report/seed_ego_attention"))
    parser.add_argument("--recordings", type=Path, default=Path("runs/04_seed_ego_attention"))
    parser.add_argument("--smoke", action="store_true", help="three episodes: does it run?")
    return parser.parse_args()


def described(states: States) -> dict[str, Any]:
    """How many states there are, and what was chosen and came of it."""
    chosen, episodes, gap = states.scores.argmax(1), states.recording.episodes, states.gap()
    taken = {states.policy.spec.actions[number] for number in chosen}
    return {
        "states": len(chosen),
        "episodes": len(states.recording),
        "vehicles in a state, mean": round(float(states.there[:, 1:].sum(1).mean()), 2),
        "return, mean": round(float(episodes["return"].mean()), 2),
        "size of the gap, mean": round(float(abs(gap).mean()), 2),
        "gap where it chooses it, mean": {
            name: round(float(gap[chosen == states.action(name)].mean()), 2) if name in taken else None
            for name in (WORSE, BETTER)
        },
        **{name: int((chosen == number).sum()) for number, name in enumerate(states.policy.spec.actions)},
    }


def episode(states: States) -> Panels:
    """The first episode to walk through, and one decision's attention: scores, pattern and projections by head."""
    number = int(abs(states.gap()[states.episode == 0]).argmin())
    entities = list(states.policy.spec.entities)
    there = states.there[number]
    panels: Panels = [
        (
            "The first episode",
            "Beside each decision is the attention that led to it, a_t with s_t.",
            rlm.plot.episodes(states.recording, only=[0], pattern=names_of(states.policy)["pattern"]),
        )
    ]
    for name, values, text in (
        ("Attention scores", states.attention_scores, "q k / sqrt(d_head), head by head, before the softmax."),
        ("Attention pattern", states.pattern, "Softmax over the vehicles that are there: each row adds up to 1."),
    ):
        shown = [entity for entity, here in zip(entities, there, strict=True) if here]
        array = xr.DataArray(values[number][:, there], dims=("head", "key"), coords={"key": shown}, name=name)
        panels.append((f"{name}, step {number}", f"{text} The step with the smallest gap.", rlm.plot.heatmap(array)))
    for part, text in (("query_ego", "of the ego"), ("key_all", "of each vehicle")):
        array = xr.DataArray(states.split(part)[number], dims=("entity", "head", "d_head"), name=part)
        array = array.assign_coords(entity=entities[: array.sizes["entity"]]).isel(entity=slice(0, 4))
        panels.append(
            (f"{part}, step {number}", f"Head by head, {text}; the first four rows.", rlm.plot.heatmap(array))
        )
    return panels


def weights(states: States, terms: exact.Terms, *, smoke: bool) -> tuple[Panels, dict[str, Any]]:
    """QK and OV, trained beside untrained on one scale, and what kind of matrices they are."""
    policy = states.policy
    found = {"trained": circuits.forms(states, policy), "untrained": circuits.forms(states, untrained(policy, 0))}
    text = "Mean over all vehicles of all states, through the gates as they are; untrained at the same states."
    meant = {
        "QK": "Features of the ego (rows) and of a vehicle (columns) to the attention score.",
        "OV": "Features of a vehicle to each Q-value, if it had all of the head's attention.",
        "OV to the gap": f"The same to {GAP}.",
    }
    panels: Panels = []
    for what, meaning in meant.items():
        drawn = {who: forms[what] for who, forms in found.items()}
        if what == "OV to the gap":
            lone = xr.concat([form.circuit.squeeze(drop=True) for form in drawn.values()], "policy", join="outer")
            drawn_gap = (
                lone.assign_coords(policy=list(drawn)).rename("OV to the gap").transpose("policy", "head", "feature")
            )
            figure = rlm.plot.heatmap(drawn_gap.assign_attrs(units="return"), panels="policy", rows="head")
        else:
            figure = rlm.plot.circuit(drawn)
        panels.append((f"{what}, trained beside untrained", f"{meaning} {text}", figure))
    sized = {who: circuits.of_one_size(forms["QK"]) for who, forms in found.items()}
    text = "The same QK forms, each over its own norm: what they look like, whatever their size."
    panels.append(("QK, of one size", text, rlm.plot.circuit(sized)))
    numbers, kinds = circuits.statistics(policy, 3 if smoke else 20)
    text = "Products of weights, head by head. Grey: all heads of freshly initialised networks."
    panels.append(("Singular values", text, figures.spectra(kinds)))
    stand = circuits.how_well_means_stand(found)
    panels.append(
        (
            "How well the means stand for the states",
            "A sign share of 0.5 is a coin's.",
            figures.table(stand, first="form"),
        )
    )
    panels.append(
        (
            "What kind of matrices they are",
            "Against 200 Gaussian products.",
            figures.table(numbers, first="of the products"),
        )
    )
    return panels, {"means": stand, "statistics": numbers, "composition": circuits.composition(policy)}


def decisions(states: States, terms: exact.Terms, *, smoke: bool) -> tuple[Panels, dict[str, Any]]:
    """Paths, vehicles and features of the gap, and the laws."""
    paths = rlm.circuits.path_expansion(states.policy, states.obs, better=BETTER, worse=WORSE)
    shares, looks = exact.path_shares(states, paths), exact.looks(states, terms)
    pattern = exact.moved_by_the_pattern(states)
    biases = exact.bias_sources(states, terms)
    ablated, slopes = exact.ablated(states), exact.slopes(states)
    features = abs(terms.gap.ov.isel(action=0)).sum("entity").mean("batch").transpose("head", "feature")
    panels: Panels = [
        ("Along which paths?", f"{GAP} path by path, biases with the path that they enter on; 95 % over episodes.",
         figures.paths(shares)),
        ("Which biases?", f"What each bias adds to {GAP}, by whatever way, through the gates that are open.",
         rlm.plot.heatmap(biases)),
        ("Where does each head look?", "Sum over the vehicles of a place, mean over the states with one there.",
         rlm.plot.heatmap(looks["attention"])),
        ("What does it say of them?", f"Added to {GAP} through the head by the features of those vehicles; "
         "the biases on the way are left out.", rlm.plot.heatmap(looks["contribution"])),
        ("What does looking there do?", f"Change of {GAP} when one such vehicle leaves the softmax of one head.",
         rlm.plot.heatmap(pattern["change"])),
        ("Through which features?", "Mean size of the contributions, summed over vehicles.",
         rlm.plot.heatmap(features.rename("size").assign_attrs(units="return"))),
        ("How would a change move the gap?", f"Mean slope of {GAP} on each state's own linear region, pattern frozen.",
         rlm.plot.heatmap(slopes["slope"], rows="of", spread=slopes["spread"])),
        ("What if a head said the same everywhere?", f"Each head's output replaced by its mean over states: {GAP}.",
         rlm.plot.sweep(ablated["gap"])),
    ]  # fmt: skip
    found = {
        "laws": exact.laws(states, terms, paths),
        "regions": exact.regions(states),
        "paths": shares,
        "biases": rounded(biases),
        "places": {name: rounded(array) for name, array in looks.items()},
        "change when a vehicle leaves a head's softmax": {
            str(name): rounded(array) for name, array in pattern.data_vars.items()
        },
        "SLOWER states without vehicles": exact.without_vehicles(states),
        "features": rounded(features),
        "slopes": {str(name): rounded(array) for name, array in slopes.data_vars.items()},
        "heads mean-ablated": exact.by_head(states, ablated),
    }
    return panels, found


def mistakes(states: States, terms: exact.Terms, *, smoke: bool) -> tuple[Panels, dict[str, Any]]:
    """The naive formulas, each with its numbers."""
    found = naive.measured(states, terms)
    text = "On the recorded states; brackets are 95 % intervals over episodes."
    return [("Each formula, and how far off it is", text, figures.table(found, first="formula"))], found


def rounded(array: xr.DataArray) -> Any:
    """A named array as nested JSON."""
    if not array.dims:
        return round(float(array), 4)
    dim = array.dims[0]
    return {str(value): rounded(array.isel({dim: i})) for i, value in enumerate(array[dim].values)}


def strict(value: Any) -> Any:
    """The same with null for what is no number, which JSON has no word for."""
    if isinstance(value, dict):
        return {key: strict(one) for key, one in value.items()}
    if isinstance(value, list):
        return [strict(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def written(sections: dict[str, Panels], out: Path, states: States) -> Path:
    """The page, and beside it each figure as a file that the notebook shows."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, str]] = []
    made: list[rlm.plot.Section] = []
    for title, panels in sections.items():
        drawn = tuple(rlm.plot.Panel(title=name, meaning=text, figure=figure) for name, text, figure in panels)
        made.append(rlm.plot.Section(title=title, panels=drawn))
        for name, text, figure in panels:
            if isinstance(figure, rlm.plot.Steps):
                continue  # the page alone can walk through an episode
            file = f"{len(listed):02d}.json"
            (folder / file).write_text(figure.to_json(), encoding="utf-8")
            listed.append({"section": title, "title": name, "meaning": text, "file": file})
    (folder / "index.json").write_text(json.dumps(listed, indent=1), encoding="utf-8")
    facts = [("states", str(len(states.episode))), ("episodes", str(len(states.recording)))]
    return rlm.plot.page(made, out / "index.html", title="The ego-attention policy, head by head", facts=facts)


if __name__ == "__main__":
    main()
