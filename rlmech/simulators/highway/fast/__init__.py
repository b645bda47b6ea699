"""highway-env's traffic in compiled code, bit for bit: `accelerate(env)`, and `acceleration(env)` tells what it did.

Of one environment, the frames of a decision run in one call of `kernel.c`, and Kinematics observations are made without
data frames. The installed package and other environments stay as they are. Cost: 0.3 to 1 ms a step instead of 20 to
180. Whatever the kernel does not know runs in highway-env's own code.
"""

from rlmech.simulators.highway.fast.environments import HIGHWAY_VERSIONS, Acceleration, accelerate, acceleration

__all__ = ["HIGHWAY_VERSIONS", "Acceleration", "accelerate", "acceleration"]
