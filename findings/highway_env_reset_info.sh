#!/usr/bin/env bash
# Package: highway-env 1.12.1 (gymnasium 1.4.0).
#
# Expected: `reset(seed=0)` gives the same `info` in every process, as it gives the same observation, and its
#   `info["action"]` is none, or the action that led there.
# Seen: `info["action"]` after a reset is drawn from the environment's action space, whose generator the seed of `reset`
#   does not reach. No action was taken, and it is another one in other processes: a comparison of two seeded runs by
#   their infos differs at the first entry.
#
# Output (the actions vary):
#   observations of 6 processes: 1 different
#   info["action"] of 6 processes: more than one, e.g. [0, 1, 2, 4]
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check highway-env==1.12.1 gymnasium==1.4.0 numpy==2.4.6

cd "$work"
cat >reset.py <<'PY'
import gymnasium as gym
import highway_env  # registers the environments

env = gym.make("highway-fast-v0", config={"vehicles_count": 3})
observation, info = env.reset(seed=0)
print(observation.tobytes().hex(), int(info["action"]))
PY
for _ in 1 2 3 4 5 6; do "$work/venv/bin/python" -W ignore reset.py; done >seen.txt
"$work/venv/bin/python" - <<'PY'
rows = [line.split() for line in open("seen.txt")]
observations, actions = {row[0] for row in rows}, sorted({int(row[1]) for row in rows})
print(f"observations of {len(rows)} processes: {len(observations)} different")
print('info["action"] of 6 processes:', f"more than one, e.g. {actions}" if len(actions) > 1 else actions)
if len(observations) != 1 or len(actions) == 1:  # alike by chance once in three thousand runs
    raise SystemExit("the behaviour has changed")
PY
