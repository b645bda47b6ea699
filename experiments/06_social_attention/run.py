"""What Leurent and Mercat say of social attention, as tests: does it hold for our policies?

    python experiments/06_social_attention/run.py [--smoke] [--episodes N] [--out FOLDER]

Writes `numbers.json` with what the README quotes, and the figures.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import attention
import claims
import figures
import numpy as np
import policies
import right_of_way
import scenes as made
from decisions import CONTRASTS, decisions
from intervals import wilson
from observed import observe
from priority import RULES
from road import Road
from states import States, recorded
from traffic import Seen
from unusual import unusual

Scenes = Mapping[str, made.Scenes]
FEW = 250  # scenes of each kind for networks that are there for comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is recorded.

    Attributes:
        main: Episodes of the zoo's policy, on whose states all are asked, under either rule.
        further: Episodes of the further seeds' last checkpoints under either rule.
        ladder: Episodes of the other checkpoints, under the simulator's rule.
        untrained: Episodes of each training's first checkpoint under either rule.
    """

    main: int
    further: int
    ladder: int
    untrained: int


def main() -> None:
    """Record, ask, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--episodes", type=int, default=200, help="of the zoo's policy; fewer of the others")
    parser.add_argument("--out", type=Path, default=Path("report/social_attention"))
    parser.add_argument("--recordings", type=Path, default=Path("runs/06_social_attention"))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the further seeds are trained")
    parser.add_argument("--smoke", action="store_true", help="a few episodes of two checkpoints: does it run?")
    given = parser.parse_args()
    start = time.perf_counter()
    if not given.smoke:
        policies.convert(given.runs)
    n = given.episodes
    plan = Plan(main=n, further=n // 2, ladder=n // 2, untrained=n // 4)
    asked = policies.subjects()
    if given.smoke:
        plan = Plan(main=6, further=4, ladder=2, untrained=3)
        asked = [s for s in asked if s.training == "zoo" and (s.step == 0 or s.final)]
    numbers: dict[str, Any] = {"episodes": asdict(plan)}
    seen = _seen(recorded(_zoo(asked).load(), given.recordings / _zoo(asked).folder, episodes=plan.main))
    numbers["findings"] = attended(asked, seen, few=20 if given.smoke else FEW)
    print(f"attention: {time.perf_counter() - start:.0f} s")
    numbers["driving"] = driven(asked, given.recordings, plan)
    print(f"episodes: {time.perf_counter() - start:.0f} s")
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(numbers), indent=1)
    (given.out / "numbers.json").write_text(text, encoding="utf-8")
    figures.draw(json.loads(text), given.out)
    for claim in claims.CLAIMS:
        found = {s.name: numbers["findings"][s.name][claim.name] for s in asked if s.final}
        print(f"{claim.says}: " + "; ".join(f"{name} {one.verdict}, {one.effect}" for name, one in found.items()))
    print(f"all of it is in {given.out}, after {time.perf_counter() - start:.0f} s")


def attended(asked: list[policies.Subject], seen: Seen, *, few: int) -> dict[str, Any]:
    """The claims about attention, of every checkpoint on the same scenes."""
    scenes = {name: make(seen) for name, make in made.MAKERS.items()}
    some = {claim.scenes: scenes[claim.scenes].some(few) for claim in claims.CLAIMS}
    untrained = attention.untrained(some)
    found: dict[str, Any] = {"scenes": {name: {"scenes": len(s), "episodes": len(np.unique(s.episode))}
                                        for name, s in scenes.items()}}  # fmt: skip
    for subject in asked:
        policy = subject.load()
        of = attention.all_weights(policy, scenes)
        shuffled = attention.shuffled(subject, some)
        one: dict[str, Any] = {
            claim.name: claims.find(claim, scenes, of, few=some, untrained=untrained, shuffled=shuffled)
            for claim in claims.CLAIMS
        }
        one["curves"] = curves(scenes, of)
        one["decisions"] = {
            name: decisions(
                scenes[name], attention.read(policy, scenes[name].observations), contrasts, policy.spec.actions
            )
            for name, contrasts in CONTRASTS.items()
        }
        one["observed"] = observe(seen, attention.read(policy, seen.states.observations))
        if subject.training == "zoo" and subject.final:
            one["unusual"] = {name: unusual(policy, each, seen.states.observations) for name, each in scenes.items()}
        found[subject.name] = one
    return found


def curves(scenes: Scenes, of: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the figures draw: profiles of the heads, attention by distance, attention before and after."""
    return {
        "profiles": _shares(of["arms"], scenes["arms"]),
        **{name: _means(of[name].mean(2), scenes[name]) for name in ("approach", "leaving", "intent", "clear")},
    }


def driven(asked: list[policies.Subject], folder: Path, plan: Plan) -> dict[str, Any]:
    """Returns and collision rates of every checkpoint, and what the right of way changes in those of either end."""
    found: dict[str, Any] = {}
    control = None
    for subject in asked:
        policy = subject.load()
        both = subject.final or subject.step == 0
        number = plan.ladder if subject.step else plan.untrained
        if subject.final:
            number = plan.main if subject.training == "zoo" else plan.further
        rules: dict[str, Any] = {}
        for rule in RULES if both else RULES[:1]:
            seen = _seen(recorded(policy, folder / subject.folder, rule=rule, episodes=number))
            rules[rule] = (seen, attention.read(policy, seen.states.observations))
        one: dict[str, Any] = {rule: _outcomes(seen.states) for rule, (seen, _) in rules.items()}
        if both:
            one["turned"] = right_of_way.compare(rules, untrained=control)
            control = rules if subject.step == 0 else None
        found[subject.name] = one
    return found


def plain(value: Any) -> Any:
    """As JSON values, numbers to four digits."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _zoo(asked: list[policies.Subject]) -> policies.Subject:
    return next(subject for subject in asked if subject.training == "zoo" and subject.final)


def _seen(states: States) -> Seen:
    return Seen(states, Road(states.lanes))


def _means(rows: np.ndarray, scenes: made.Scenes) -> list[Any]:
    value, draws = claims.means(rows, scenes.episode)
    return _with_intervals(value, draws)


def _shares(rows: np.ndarray, scenes: made.Scenes) -> list[Any]:
    value, draws = claims.means(rows, scenes.episode)
    return _with_intervals(claims.profiles(value[None])[0], claims.profiles(draws))


def _with_intervals(value: np.ndarray, draws: np.ndarray) -> list[Any]:
    low, high = np.nanquantile(draws, [0.025, 0.975], axis=0)
    return [value, low, high]


def _outcomes(states: States) -> dict[str, Any]:
    """Return, speed and rates of an agent's episodes."""
    table, number = states.episodes, len(states.episodes)
    means_of = {
        name: right_of_way.mean(table[name].to_numpy(), table["seed"].to_numpy())
        for name in ("return", "speed", "length")
    }
    rates = {name: wilson(int(table[name].sum()), number) for name in ("crashed", "arrived")}
    slower = float((states.actions == states.spec.index("action", "SLOWER")).mean())
    return {"episodes": number, **means_of, **rates, "share of SLOWER": slower}


if __name__ == "__main__":
    main()
