"""Which vehicle makes it brake?

At an intersection the policy sees up to fourteen other vehicles. Its decision is divided among them exactly:
Shapley values, where a vehicle that does not take part is hidden by the presence mask that the policy was
trained with.
"""

# %%
import numpy as np

import rlmech as rlm

policy = rlm.load("zoo:intersection-ego-attention")
env = rlm.make_env(policy.spec)
recording = rlm.record(policy, env, seeds=range(3, 5), progress=False)
scores = policy(recording.observations).detach().numpy()
braking = np.flatnonzero(scores.argmax(1) == policy.spec.index("action", "SLOWER"))
row = int(braking[len(braking) // 2])
state = recording.observations[row : row + 1]
step = recording.steps.iloc[row]
print(
    "seed",
    int(step["seed"]),
    "step",
    int(step["step"]),
    dict(zip(policy.spec.actions, scores[row].round(2).tolist(), strict=True)),
)

# %%
rlm.plot.scene(recording, episode=int(step["episode"]), step=int(step["step"]))

# %% [markdown]
# The metric is the action gap: how much SLOWER leads FASTER. All coalitions of the vehicles that are there
# are computed; the shares add up to the gap with all of them less the gap on an empty road.

# %%
found = rlm.attribution.shapley_values(policy, state, metric=rlm.metrics.action_gap("SLOWER", "FASTER"))
shares = found["value"].isel(batch=0).to_series().loc[lambda values: values != 0].sort_values()
print(shares.round(3).to_string())
print(
    "sum",
    round(shares.sum(), 3),
    "= gap",
    round(found["total"].item(), 3),
    "less an empty road's",
    round(found["none"].item(), 3),
)

# %%
rlm.plot.heatmap(found["value"].isel(batch=[0]).sel(entity=shares.index.tolist()), rows="batch", columns="entity")

# %% [markdown]
# Is it true? Each of these vehicles is taken out of the simulator itself, and the policy asked again.

# %%
actions = recording.episode(int(step["seed"])).actions[: int(step["step"])]
scene = rlm.Scene.replay(env, seed=int(step["seed"]), actions=[int(action) for action in actions])
for name in [None, *shares.index[::-1]]:
    left = scene if name is None else scene.remove(row=policy.spec.index("entity", name))
    slower, _, faster = left.decide(policy).scores
    print(f"without {name}: {left.decide(policy).name}, SLOWER leads FASTER by {slower - faster:.2f}")
