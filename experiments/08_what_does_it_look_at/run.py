"""What does the shipped MiniGrid policy look at: the key, the door, the goal, their colours, or the room alone?

    python experiments/08_what_does_it_look_at/run.py [--smoke] [--episodes N] [--policy P] [--out FOLDER]

Only what `import rlmech` shows. Minutes; `--smoke` takes few episodes. Writes `looks.csv` and `page.html`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

import rlmech as rlm

Edit = Callable[[rlm.Scene], rlm.Scene]
FIRST_SEED = 200_000


def number(scene: rlm.Scene, kind: str) -> int:
    """The number of the object of a kind."""
    return int(scene.entities.query("type == @kind")["object"].iloc[0])


def goal_moved(scene: rlm.Scene) -> rlm.Scene:
    """The goal in the upper right corner instead of the lower right one, where it stood in every training episode."""
    width = len(scene.entities) and scene.stage.base.width
    return scene.move(number(scene, "goal"), x=int(width) - 2, y=1)


def key_moved(scene: rlm.Scene) -> rlm.Scene:
    """The key in another free cell of its room: where the environment could have put it as well."""
    key = number(scene, "key")
    row = scene.entities.set_index("object").loc[key]
    columns = range(1, int(scene.entities.query("type == 'door'")["x"].iloc[0]))
    for x in columns:
        for y in range(1, 5):
            if (x, y) != (row.x, row.y) and not scene.stage.taken((x, y), by=scene.stage.thing(key)):
                return scene.move(key, x=x, y=y)
    return scene


EDITS: dict[str, tuple[str, Edit]] = {
    "key and door red": (
        "both recoloured: the task is the same, the colour never seen",
        lambda s: s.recolour(number(s, "key"), "red").recolour(number(s, "door"), "red"),
    ),
    "goal in another corner": ("the task is as easy, the goal where it never was", goal_moved),
    "key elsewhere": ("control: as the environment could have drawn it", key_moved),
    "door open": ("the key is not needed", lambda s: s.open(number(s, "door"))),
    "goal blue": ("the goal recoloured: it counts all the same", lambda s: s.recolour(number(s, "goal"), "blue")),
}


def episodes(policy: rlm.HookedPolicy, env: object, seeds: range) -> pd.DataFrame:
    """Each episode driven from its first scene, unedited and after each edit: success and length."""
    lines: list[dict[str, object]] = []
    for seed in seeds:
        first = rlm.Scene.replay(env, seed=seed)
        scenes = {"unedited": first} | {name: edit(first) for name, (_, edit) in EDITS.items()}
        for name, scene in scenes.items():
            roll = scene.roll(policy, n_steps=40)
            done = bool(roll.outcomes.get("success", False))
            lines.append({"seed": seed, "edit": name, "success": done, "steps": len(roll.steps) if done else np.nan})
    return pd.DataFrame(lines)


def decisions(policy: rlm.HookedPolicy, env: object, recording: rlm.Recording, n: int) -> pd.DataFrame:
    """Of states in which an object is seen: how often the action changes when it is taken out of the grid."""
    lines: list[dict[str, object]] = []
    for seed in recording.episodes["seed"][:n]:
        one = recording.episode(int(seed))
        for step in range(len(one.steps)):
            scene = rlm.Scene.replay(env, seed=int(seed), actions=[int(a) for a in one.actions[:step]])
            action = scene.decide(policy).action
            for row in scene.entities.query("object > 0 and seen and not carried").to_dict("records"):
                changed = scene.remove(row["object"]).decide(policy).action != action
                carrying = bool(scene.entities["carried"].any())
                lines.append({"seed": seed, "object": row["type"], "carrying": carrying, "changed": bool(changed)})
    return pd.DataFrame(lines)


def channels(policy: rlm.HookedPolicy, env: object, seeds: range) -> pd.DataFrame:
    """Kinds of bits of the observation set to zero while it drives: type or colour, of key, door and goal."""
    kinds = ("object key", "object door", "object goal", "color yellow", "color green", "state locked", "object ball")
    conditions = {kind: [rlm.zero_ablation(rlm.Site("hook_obs", channel=kind))] for kind in kinds}
    result = rlm.compare_rollouts(policy, env, conditions=conditions, seeds=seeds, progress=False)
    return pd.DataFrame(
        {
            "bits": list(conditions),
            "success": [float(result.success.sel(condition=kind).mean()) for kind in conditions],
            "delta": [float(result.delta_success.sel(condition=kind)) for kind in conditions],
            "low": [float(result.delta_success_low.sel(condition=kind)) for kind in conditions],
            "high": [float(result.delta_success_high.sel(condition=kind)) for kind in conditions],
        }
    )


def page(policy: rlm.HookedPolicy, env: object, recording: rlm.Recording, out: Path) -> None:
    """The first episode, and what it would do in each cell before and after the door is opened."""
    scene = rlm.Scene.replay(env, seed=FIRST_SEED)
    over = {"y": range(1, 5), "x": range(1, 5)}
    field = rlm.scenes.scene_field(policy, scene, over=over, edited=scene.open(number(scene, "door")))
    panels = (
        rlm.plot.Panel(title="An episode", meaning="The grid and the scores, step by step.",
                       figure=rlm.plot.episodes(recording, only=[0])),
        rlm.plot.Panel(title="What it does in each cell", meaning="Looking as in the first scene; then with the door "
                       "open.", figure=rlm.plot.field(field)),
    )  # fmt: skip
    rlm.plot.page([rlm.plot.Section(title="What does it look at?", panels=panels)], out / "page.html")


def main() -> None:
    """Edit, drive, decide, write down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policy", default="zoo:minigrid-doorkey-mlp")
    parser.add_argument("--episodes", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("report/what_does_it_look_at"))
    parser.add_argument("--smoke", action="store_true", help="few episodes: does it run?")
    given = parser.parse_args()
    n = 4 if given.smoke else given.episodes
    policy = rlm.load(given.policy)
    env = rlm.make_env(policy.spec, max_steps=40)
    seeds = range(FIRST_SEED, FIRST_SEED + n)
    recording = rlm.record(policy, env, seeds=seeds, progress=False)

    driven = episodes(policy, env, seeds)
    decided = decisions(policy, env, recording, max(2, n // 4))
    bits = channels(policy, env, seeds)
    given.out.mkdir(parents=True, exist_ok=True)
    driven.to_csv(given.out / "looks.csv", index=False)
    page(policy, env, recording, given.out)
    print("Success within 40 steps, and steps where it succeeds, after an edit of the first scene:")
    print(driven.groupby("edit", sort=False)[["success", "steps"]].mean().round(2).to_string())
    print("How often the action changes when a seen object is taken away:")
    print(decided.groupby(["carrying", "object"])["changed"].agg(["mean", "size"]).round(2).to_string())
    print("Bits of the observation set to zero, against unedited:")
    print(bits.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
