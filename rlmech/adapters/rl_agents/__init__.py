"""Checkpoints and live agents of rl-agents, without the rl-agents package.

`config` reads its JSON configurations, `plan` builds the network that one describes, `opening` has the doors.
"""

from rlmech.adapters.rl_agents.opening import from_rl_agents, open_checkpoint, open_plan, owns

__all__ = ["from_rl_agents", "open_checkpoint", "open_plan", "owns"]
