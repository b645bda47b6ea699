"""What does a MiniGrid agent look at?

The room is edited, not the pixels: the key and the door in a colour that was never seen, the goal in another
corner, the door open. The agent then drives on from there, and its action is drawn for every cell.
"""

# %%
import rlmech as rlm

policy = rlm.load("zoo:minigrid-doorkey-mlp")
env = rlm.make_env(policy.spec, max_steps=40)
scene = rlm.Scene.replay(env, seed=200_000)
print(scene.entities[["object", "type", "color", "state", "x", "y", "seen"]].to_string(index=False))


def number(kind: str) -> int:
    """The number of the object of a kind."""
    return int(scene.entities.query("type == @kind")["object"].iloc[0])


# %%
key, door, goal = number("key"), number("door"), number("goal")
edited = {
    "as it was": scene,
    "key and door red": scene.recolour(key, "red").recolour(door, "red"),
    "goal blue": scene.recolour(goal, "blue"),
    "goal in another corner": scene.move(goal, x=4, y=1),
    "door open": scene.open(door),
}
for name, start in edited.items():
    roll = start.roll(policy, n_steps=40)
    print(f"{name:24s} success: {bool(roll.outcomes.get('success', False))}, {len(roll.steps)} steps")

# %% [markdown]
# Which bits of the observation does it use? The layers of the image are set to zero while it drives.

# %%
kinds = ("object key", "object door", "object goal", "color yellow", "state locked")
conditions = {kind: [rlm.zero_ablation(rlm.Site("hook_obs", channel=kind))] for kind in kinds}
driven = rlm.compare_rollouts(policy, env, conditions=conditions, seeds=range(200_000, 200_006), progress=False)
rlm.plot.comparison(driven, variables=("success", "length"))

# %% [markdown]
# The action in every cell of the room, looking as in the first scene; then the same with the door open.

# %%
over = {"y": range(1, 5), "x": range(1, 5)}
rlm.plot.field(rlm.scenes.scene_field(policy, scene, over=over, edited=scene.open(door)))
