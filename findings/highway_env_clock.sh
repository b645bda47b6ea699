#!/usr/bin/env bash
# Package: highway-env 1.12.1 (gymnasium 1.4.0).
#
# Expected: a car alone on a straight road at a constant 25 m/s covers 25 m for each second of `env.unwrapped.time`,
#   whatever the policy frequency.
# Seen: a decision simulates simulation_frequency // policy_frequency frames, rounded down, while `time` grows by
#   exactly 1 / policy_frequency. With the 15 Hz simulation, 1 Hz and 15 Hz agree, 2 Hz loses 7 %, 4 Hz 20 % and 10 Hz a
#   third of the seconds: positions follow the frames, the clock does not. A rate or a time to collision
#   computed from `time` is off by that factor, and the observed speed stays right, so nothing looks wrong.
#
# Output:
#    1 Hz: time 4.00 s, speed 25.0 m/s, 100.00 m = 4.000 s of driving
#    2 Hz: time 4.00 s, speed 25.0 m/s,  93.33 m = 3.733 s of driving
#    4 Hz: time 4.00 s, speed 25.0 m/s,  80.00 m = 3.200 s of driving
#   10 Hz: time 4.00 s, speed 25.0 m/s,  66.67 m = 2.667 s of driving
#   15 Hz: time 4.00 s, speed 25.0 m/s, 100.00 m = 4.000 s of driving
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check highway-env==1.12.1 gymnasium==1.4.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import gymnasium as gym
import highway_env  # registers the environments

seen = {}
for hertz in (1, 2, 4, 10, 15):
    env = gym.make(
        "highway-fast-v0",
        config={"simulation_frequency": 15, "policy_frequency": hertz, "vehicles_count": 0, "duration": 40},
    )
    env.reset(seed=0)
    world = env.unwrapped
    start = world.vehicle.position[0]
    for _ in range(4 * hertz):
        env.step(1)  # IDLE
    metres = float(world.vehicle.position[0] - start)
    speed = float(world.vehicle.speed)
    print(f"{hertz:2d} Hz: time {world.time:.2f} s, speed {speed:.1f} m/s, {metres:6.2f} m = {metres / speed:.3f} s of driving")
    seen[hertz] = (round(float(world.time), 6), round(metres / speed, 3))
    env.close()

if seen != {1: (4, 4), 2: (4, 3.733), 4: (4, 3.2), 10: (4, 2.667), 15: (4, 4)}:
    raise SystemExit("the behaviour has changed")
PY
