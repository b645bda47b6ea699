"""How sure is this decision?

How far may another vehicle be from where it was seen before the action can change? A certified radius is a
proof from below, an attack a counterexample from above; the truth lies between the two.
"""

# %%
import rlmech as rlm

policy = rlm.load("zoo:highway-dqn-mlp")
env = rlm.make_env(policy.spec)
states = rlm.record(policy, env, seeds=[0], progress=False).observations[2:6]
print("decides", [policy.spec.actions[int(action)] for action in policy(states).argmax(-1)])

# %%
move = rlm.certify.Move(features=["x", "y"], entities=["vehicle_1"])
found = rlm.certify.certified_radius(policy, states, move=move, n_boxes=8)
print("proved up to, in", found.certified.attrs["units"], found.certified.values.round(2))
print("refuted from           ", found.attacked.values.round(2))

# %% [markdown]
# The action over where that vehicle stands: proved for the whole cell, changing in it, or unknown.

# %%
cells = {"y": [-6.0, -2.0, 2.0, 6.0], "x": [5.0, 10.0, 15.0, 20.0, 25.0, 30.0]}
rlm.plot.certified_map(rlm.certify.certified_map(policy, states[:1], over=cells, entity="vehicle_1", n_boxes=4))

# %% [markdown]
# A claim is decided for every state of a region: proved, refuted by an example, or undecided with the volume
# that is left.

# %%
claim = rlm.certify.Never("FASTER")
near = rlm.certify.Move(features={"x": 1.0, "vx": 0.5}, entities=["vehicle_1"], clipped=True)
verdict = rlm.certify.check(policy, states, box=near, claim=claim, n_boxes=8)
print(verdict.verdict.values, verdict.remaining.values.round(3))
