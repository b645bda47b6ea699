"""What are published policies like inside? The same questions to every agent of a folder.

    python experiments/10_atlas/run.py --zips FOLDER [--out FOLDER] [--only NAME] [--steps tables,students,...]
    python experiments/10_atlas/run.py --smoke

Only what `import rlmech` shows. Resumable: what is in `--out` is not made again. Tables A, B, C, F and G are
`rlm.atlas.map_policies`, also `rlmech atlas`; here are D (students), E (one agent opened) and the figures. `--smoke`
trains two small agents on the spot and takes few states, seeds and steps.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import figures
import opened
import pandas as pd
import students

import rlmech as rlm

STEPS = ("tables", "students", "opened", "figures")
TEACHERS = ("dqn ", "qrdqn ")
"""Of the agents that have action values, the first two teach."""


def small_zoo(folder: Path) -> Path:
    """Two agents that were hardly trained, laid out as RL Zoo does."""
    from stable_baselines3 import DQN, PPO

    for name, cls in (("ppo", PPO), ("dqn", DQN)):
        run = folder / name / "CartPole-v1_1" / "CartPole-v1"
        run.mkdir(parents=True, exist_ok=True)
        model = cls("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8, 8]}, seed=1, device="cpu")
        model.learn(512).save(run.parent / "CartPole-v1.zip")
        (run / "config.yml").write_text("policy: MlpPolicy\nn_timesteps: 512\n", encoding="utf-8")
        (run / "args.yml").write_text("env: CartPole-v1\n", encoding="utf-8")
    return folder


def agent(zips: Path, name: str) -> rlm.HookedPolicy:
    """An agent by its name in the tables, `ppo CartPole-v1`."""
    algorithm, _, env = name.partition(" ")
    return rlm.load(next(path for path in sorted(zips.rglob(f"{env}.zip")) if algorithm in path.parts))


def markdown(told: pd.DataFrame) -> str:
    """The answers over all policies of a group, as a table to read."""

    def cell(value: float) -> str:
        return "" if pd.isna(value) else f"{value:.3g}"

    lines = ["| | asked | policies | answer [95 %] | untrained |", "|---|---|---|---|---|"]
    for row in told[told["algorithm"] == "all"].sort_values("question", kind="stable").to_dict("records"):
        within = "" if pd.isna(row["low"]) else f" [{cell(row['low'])}, {cell(row['high'])}]"
        who = f"{row['group']}, {row['n']}"
        lines.append(
            f"| {row['question']} | {row['asked']} | {who} | {cell(row['mean'])}{within} | {cell(row['untrained'])} |"
        )
    return "\n".join(lines) + "\n"


def draw(out: Path) -> None:
    """The figures of what tables there are, beside them."""
    tables = {path.stem: pd.read_parquet(path) for path in out.glob("*.parquet")}
    drawn = {}
    if "loops" in tables:
        drawn["worst"] = figures.worst(tables["loops"])
        costly = tables["loops"].dropna(subset=["flips_and_loss"]).sort_values("worst_share", ascending=False)
        drawn["flips_and_loss"] = figures.flips_and_loss(tables["neurons"], costly["policy"].tolist()[:4])
    if "methods" in tables:
        drawn["linear"] = figures.linear(tables["methods"])
    if "students" in tables:
        drawn["students"] = figures.students(tables["students"])
    if "opened" in tables:
        drawn["doses"] = figures.doses(tables["opened"])
    for name, figure in drawn.items():
        figure.save(out / f"{name}.png")


def run(zips: Path, out: Path, *, steps: list[str], only: str, smoke: bool) -> None:
    """Take the steps in order."""
    sizes = rlm.atlas.Sizes.quick() if smoke else rlm.atlas.Sizes()
    out.mkdir(parents=True, exist_ok=True)
    if "tables" in steps:
        rlm.atlas.map_policies(zips, out, only=only, sizes=sizes)
    told = rlm.atlas.answers(out)
    told.to_csv(out / "answers.csv", index=False, float_format="%.6g")
    (out / "answers.md").write_text(markdown(told), encoding="utf-8")
    print(told[told["algorithm"] == "all"].drop(columns="algorithm").to_string(index=False))
    loops = pd.read_parquet(out / "loops.parquet") if (out / "loops.parquet").exists() else pd.DataFrame()
    if "students" in steps:
        identity = pd.read_parquet(out / "identity.parquet")
        known = identity[identity["scores"] == "q_values"]["policy"]
        names = [name for start in TEACHERS for name in known if name.startswith(start)][:2]
        size = {"n_seeds": 3, "n_episodes": 20, "n_steps": 3000, "width": 32}
        if smoke:
            size = {"n_seeds": 1, "n_episodes": 2, "n_steps": 20, "width": 4}
        found = students.table({name: agent(zips, name) for name in names}, sizes=sizes, out=out, **size)
        if len(found):
            means = found.groupby(["teacher", "activation", "target"])[["fidelity", "return", "worst_share"]].mean()
            print(means.to_string())
    if "opened" in steps and len(loops):
        print(opened.write(loops, partial(agent, zips), out, n_seeds=4 if smoke else 100).to_string(index=False))
    if "figures" in steps:
        draw(out)


def main() -> None:
    """Read what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--zips", type=Path, help="a folder of agents, as RL Zoo lays them out")
    parser.add_argument("--out", type=Path, default=Path("runs/10_atlas"))
    parser.add_argument("--only", default="", help="agents whose name has this in it")
    parser.add_argument("--steps", default=",".join(STEPS))
    parser.add_argument("--smoke", action="store_true", help="two small agents, few of everything: does it run?")
    given = parser.parse_args()
    if not given.smoke and given.zips is None:
        parser.error("--zips FOLDER names the agents, or --smoke takes two small ones")
    with tempfile.TemporaryDirectory() as folder:
        zips = small_zoo(Path(folder)) if given.smoke else given.zips
        run(zips, given.out, steps=given.steps.split(","), only=given.only, smoke=given.smoke)


if __name__ == "__main__":
    main()
