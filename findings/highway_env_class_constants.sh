#!/usr/bin/env bash
# Package: highway-env 1.12.1 (gymnasium 1.4.0).
#
# Expected: an episode is a function of its environment, its seed and its actions. Another environment that was only
#   reset in the same process cannot change it.
# Seen: resetting an intersection environment assigns its driver settings to the class IDMVehicle, so a highway
#   environment made afterwards has other traffic with the same seed and the same actions. Nothing is restored.
#   An evaluation that visits both environments therefore depends on the order of the visits.
#
# Output:
#   class settings before and after: (10.0, 3.0, -5.0) (7.0, 6.0, -3.0)
#   same seed, twice before the intersection: True
#   same seed, after the intersection:        False
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check highway-env==1.12.1 gymnasium==1.4.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W ignore - <<'PY'
import gymnasium as gym
import highway_env  # registers the environments
from highway_env.vehicle.behavior import IDMVehicle


def settings():
    return tuple(float(getattr(IDMVehicle, name)) for name in ("DISTANCE_WANTED", "COMFORT_ACC_MAX", "COMFORT_ACC_MIN"))


def highway_traffic():
    """Mean speed of the other vehicles after ten IDLE actions in an environment that is made here."""
    env = gym.make("highway-fast-v0")
    env.reset(seed=0)
    for _ in range(10):
        env.step(1)
    others = [v.speed for v in env.unwrapped.road.vehicles if v is not env.unwrapped.vehicle]
    env.close()
    return round(float(sum(others) / len(others)), 6)


first, again, before = highway_traffic(), highway_traffic(), settings()
intersection = gym.make("intersection-v2")
intersection.reset(seed=0)
intersection.close()
later, after = highway_traffic(), settings()

print("class settings before and after:", before, after)
print("same seed, twice before the intersection:", first == again)
print("same seed, after the intersection:       ", first == later)
if not (first == again and first != later and before == (10, 3, -5) and after == (7, 6, -3)):
    raise SystemExit("the behaviour has changed")
PY
