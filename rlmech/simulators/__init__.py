"""Simulators: what an environment is, behind one seam.

Make: `make_env` makes an environment, `environment` one that is given or named; `spec_of` reads what its observations
and actions mean; `check_fit` compares its spaces with a policy's; `acceleration` says whether it runs in compiled code.
Tell: an `Outcome` is what is told of an episode beside its return and length.
Extend: `Simulator` is the seam; `simulator_of` says which one serves an environment. `rlmech.simulators.highway` holds
all that knows a road, `rlmech.simulators.plain` serves any Gymnasium environment.
"""

from rlmech.simulators.choice import simulator_of
from rlmech.simulators.compiled import Acceleration
from rlmech.simulators.env import acceleration, check_fit, environment, make_env, spec_of
from rlmech.simulators.protocol import Outcome, Simulator

__all__ = [
    "Acceleration",
    "Outcome",
    "Simulator",
    "acceleration",
    "check_fit",
    "environment",
    "make_env",
    "simulator_of",
    "spec_of",
]
