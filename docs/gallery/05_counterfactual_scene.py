"""What if that vehicle were not there?

The simulator itself is taken back to a moment, changed, and driven on: a vehicle less, a vehicle moved until
the decision turns, and the action as a field over where it could be.
"""

# %%
import numpy as np

import rlmech as rlm

policy = rlm.load("zoo:intersection-ego-attention")
env = rlm.make_env(policy.spec)
scene = rlm.Scene.replay(env, seed=3, actions=[1, 1])
others = scene.vehicles[scene.vehicles["vehicle"] != 0]
nearest = int(others.loc[others["distance"].idxmin(), "vehicle"])
print(others[["vehicle", "x", "y", "speed", "distance"]].round(1).to_string(index=False))
print("decides", scene.decide(policy).name)
for vehicle in others["vehicle"]:
    print("without vehicle", vehicle, "decides", scene.remove(vehicle=int(vehicle)).decide(policy).name)

# %% [markdown]
# How little flips the action? The search moves one quantity of one vehicle at a time, over states that the
# simulator could come to.

# %%
change = rlm.scenes.smallest_change(policy, scene, vehicles=[nearest], n_grid=8).sel(vehicle=nearest)
change[["change", "action", "reachable"]].to_dataframe()[["change", "unit", "action", "reachable"]].round(2)

# %% [markdown]
# The action over the positions of that vehicle: everything else as it is.

# %%
x, y = others.set_index("vehicle").loc[nearest, ["x", "y"]]
over = {"y": np.linspace(y - 20, y + 20, 9), "x": np.linspace(x - 20, x + 20, 9)}
rlm.plot.field(rlm.scenes.scene_field(policy, scene, over=over, vehicle=nearest))

# %% [markdown]
# And the episode that follows, with it and without it.

# %%
for name, start in (("as it was", scene), ("without it", scene.remove(vehicle=nearest))):
    roll = start.roll(policy)
    print(name, len(roll.steps), "steps", dict(roll.outcomes))
