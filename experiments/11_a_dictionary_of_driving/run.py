"""Is a dictionary of its activations worth it in a policy that drives, and do its features drive?

    python experiments/11_a_dictionary_of_driving/run.py [--smoke] [--policy NAME] [--episodes N] [--driven N] ...

Only what `import rlmech` shows. Some ten minutes of one core; `--smoke` takes few episodes and steps of training.
Writes for each policy `scores.csv`, `driven.csv` (each reconstruction in the value's place) and `features.csv` (without
a feature) into `--out FOLDER`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import rlmech as rlm

SITES = {
    "highway-dqn-mlp": "q_net.3.hook_out",
    "intersection-ego-attention": "features_extractor.attention_layer.hook_attn_out",
}
"""The last hidden layer of the perceptron; what attention adds to the ego's own state."""
N_STRONGEST = 3


def look(name: str, *, n_episodes: int, n_driven: int, n_features: int, n_steps: int, out: Path) -> None:
    """Fit, score and drive one policy."""
    policy = rlm.load(f"zoo:{name}")
    env = rlm.make_env(policy.spec)
    recording = rlm.record(policy, env, seeds=range(n_episodes), progress=False)
    fresh = range(n_episodes, n_episodes + n_driven)
    found = rlm.features.compare_dictionaries(
        policy,
        recording,
        site=SITES[name],
        n_features=n_features,
        k=8,
        n_steps=n_steps,
        n_fits=2,
        env=env,
        seeds=fresh,
    )
    scores = found.result
    print(f"\n{name} at {SITES[name]}: {len(recording.steps)} states of {n_episodes} episodes")
    print(f"topk, {n_features} features, 8 at a time: {found.says['topk']}")
    for one in scores["dictionary"].values:
        row, driven = scores.sel(dictionary=one), found.driven.sel(condition=one)
        kept = [float(row[f"agreement{end}"].sel(splice="reconstruction")) for end in ("", "_low", "_high")]
        rest = float(row["agreement"].sel(splice="error_only"))
        change = [float(driven[f"delta_return{end}"]) for end in ("", "_low", "_high")]
        print(
            f"  {one:8s} decisions {kept[0]:.2f} [{kept[1]:.2f}, {kept[2]:.2f}], from the rest alone {rest:.2f}; "
            f"variance {float(row['explained']):.2f}; found again {float(row['stability']):.2f}; "
            f"dead {float(row['dead']):.0%}; return {change[0]:+.2f} [{change[1]:+.2f}, {change[2]:+.2f}]"
        )
    dictionary = found.dictionaries["topk"]
    effects = rlm.features.feature_effects(policy, dictionary, recording)
    strength = np.abs(effects["effect"].values).max(1)
    strongest = [int(place) for place in np.argsort(-strength)[:N_STRONGEST]]
    alone = rlm.features.drive_features(
        policy, env, dictionary, features=strongest, seeds=fresh, n_controls=2, progress=False
    )
    print(f"return without a feature, baseline {float(alone['return'].sel(condition='baseline').mean()):.2f}:")
    for condition in alone["condition"].values[1:]:
        one = alone.sel(condition=condition)
        change = [float(one[f"delta_return{end}"]) for end in ("", "_low", "_high")]
        print(f"  {condition:24s} {change[0]:+.2f} [{change[1]:+.2f}, {change[2]:+.2f}]")
    for feature in strongest:
        own = effects.sel(feature=feature)
        adds = ", ".join(f"{a} {float(own['effect_active'].sel(action=a)):+.2f}" for a in own["action"].values)
        print(
            f"  feature {feature}: active in {float(own['density']):.1%}, changes {float(own['flips']):.0%} of those "
            f"decisions, adds {adds}"
        )
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    scores.drop_vars("agreement_by_fit").to_dataframe().to_csv(folder / "scores.csv")
    for file, result in (("driven", found.driven), ("features", alone)):
        columns = ["delta_return", "delta_return_low", "delta_return_high"]
        result[columns].to_dataframe().to_csv(folder / f"{file}.csv")


def main() -> None:
    """Take the policies one by one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="few episodes and steps: does it run?")
    parser.add_argument("--policy", choices=[*SITES], help="one of them alone")
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--driven", type=int, default=200)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--out", type=Path, default=Path("runs/11_a_dictionary_of_driving"))
    given = parser.parse_args()
    size = {"n_episodes": given.episodes, "n_driven": given.driven}
    size |= {"n_features": given.features, "n_steps": given.steps}
    if given.smoke:
        size = {"n_episodes": 12, "n_driven": 4, "n_features": 24, "n_steps": 20}
    for name in [given.policy] if given.policy else SITES:
        look(name, **size, out=given.out)


if __name__ == "__main__":
    main()
