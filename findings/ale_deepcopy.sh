#!/usr/bin/env bash
# Package: ale-py 0.12.1 (gymnasium 1.4.0), the environment ALE/Breakout-v5.
#
# Expected: copy.deepcopy of an environment copies its game, or raises. It does so for CartPole,
#   and the wrappers around the ALE environment (here the step counter of TimeLimit) are copied as they are.
# Seen: the copy holds a newly started game: the ALE environment is rebuilt from its constructor arguments
#   (gymnasium.utils.EzPickle). Nothing is reported, and the copied wrappers still count the old steps. A counterfactual
#   that is played on in the copy starts from the wrong frame. clone_state(include_rng=True) followed by
#   restore_state on the copy gives the same memory as the original.
#
# Output:
#   after deepcopy: episode frames (100, 0), memory equal: False
#   steps counted by TimeLimit: (100, 100)
#   after restore_state: episode frames (100, 100), memory equal: True
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check ale-py==0.12.1 gymnasium==1.4.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import copy

import ale_py
import gymnasium as gym
import numpy as np

ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
gym.register_envs(ale_py)
env = gym.make("ALE/Breakout-v5", frameskip=1, max_episode_steps=1000)
env.reset(seed=3)
for step in range(100):
    env.step(step % 4)
twin = copy.deepcopy(env)


def compare(title):
    game, other = env.unwrapped.ale, twin.unwrapped.ale
    frames = game.getEpisodeFrameNumber(), other.getEpisodeFrameNumber()
    equal = bool(np.array_equal(game.getRAM(), other.getRAM()))
    print(f"{title}: episode frames {frames}, memory equal: {equal}")
    return frames, equal


def counted(wrapped):
    while not isinstance(wrapped, gym.wrappers.TimeLimit):
        wrapped = wrapped.env
    return wrapped._elapsed_steps


copied = compare("after deepcopy")
steps = counted(env), counted(twin)
print("steps counted by TimeLimit:", steps)
twin.unwrapped.restore_state(env.unwrapped.clone_state(include_rng=True))
restored = compare("after restore_state")
if (copied, steps, restored) != (((100, 0), False), (100, 100), ((100, 100), True)):
    raise SystemExit("the behaviour has changed")
PY
