#!/usr/bin/env bash
# Package: minigrid 3.2.0 (gymnasium 1.4.0).
#
# Expected: two states of an environment with the same `hash()` go on alike under the same actions, so that states can be
#   counted or searched by it.
# Seen: `hash()` takes in the grid, the agent's place and its direction, but not what the agent carries. In DoorKey the
#   same grid with the key in the hand and with the key gone for good have one hash; in the first the door opens, in the
#   second it stays locked.
#
# Output:
#   hash equal: True
#   with the key: door open True; without: door open False
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check minigrid==3.2.0 gymnasium==1.4.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import copy

import gymnasium as gym
import minigrid  # registers the environments
from minigrid.core.world_object import Door, Key

env = gym.make("MiniGrid-DoorKey-5x5-v0").unwrapped
env.reset(seed=0)
cells = [(x, y) for x in range(env.width) for y in range(env.height)]
(key_at,) = [at for at in cells if isinstance(env.grid.get(*at), Key)]
(door_at,) = [at for at in cells if isinstance(env.grid.get(*at), Door)]
env.carrying = env.grid.get(*key_at)
env.grid.set(*key_at, None)
env.agent_pos, env.agent_dir = (door_at[0] - 1, door_at[1]), 0  # before the door, which lies to the right

without = copy.deepcopy(env)
without.carrying = None
equal = env.hash() == without.hash()
opened = []
for each in (env, without):
    each.step(each.actions.toggle)
    opened.append(bool(each.grid.get(*door_at).is_open))
print("hash equal:", equal)
print(f"with the key: door open {opened[0]}; without: door open {opened[1]}")
if not equal or opened != [True, False]:
    raise SystemExit("the behaviour has changed")
PY
