"""Episodes: environments and what their numbers mean, and recordings of what a policy saw, computed and did."""

from rlmech.rollouts.env import check_fit, make_env, spec_of
from rlmech.rollouts.record import record
from rlmech.rollouts.recording import Recording

__all__ = ["Recording", "check_fit", "make_env", "record", "spec_of"]
