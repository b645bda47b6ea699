"""Simulators: what an environment is, behind one seam: how it is made, what its numbers mean, how it is copied.

`make_env` makes an environment, `spec_of` reads what its observations and actions mean, `check_fit` compares its spaces
with a policy's. `rlmech.simulators.highway` is all that knows a road; its traffic runs in compiled code where the same
bits come of it, and `acceleration` says whether it does.
"""

from rlmech.simulators.acceleration import Acceleration, acceleration
from rlmech.simulators.env import check_fit, make_env, spec_of

__all__ = ["Acceleration", "acceleration", "check_fit", "make_env", "spec_of"]
