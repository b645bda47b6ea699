"""A task that needs a memory and little else: a cue at the first step says what to do at the last.

    step 0: cue -1 or 1      then some steps of noise      last step: `go` is 1, and the action is paid

`rlm.make_env("CueRecall-v0")` makes one; for Gymnasium it is `"rlmech.testbed.cue_env:CueRecall-v0"`.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float32

from rlmech.errors import ConfigError
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.untyped import JsonObject

ENV_ID = "CueRecall-v0"
SPEC = PolicySpec(
    features=tuple(FeatureSpec(name=name) for name in ("cue", "noise", "go")),
    actions=("LEFT", "RIGHT"),
    env_id=ENV_ID,
)
"""What its observations and actions mean."""


class CueRecall(gym.Env[Float32[np.ndarray, " feature"], np.int64]):
    """Do at the last step what the cue of the first one said: LEFT for -1, RIGHT for 1.

    Observations are `[cue, noise, go]`: the cue, 0 after the first step; noise, uniform in [-1, 1]; 1 at the last step.
    The right action there is worth 1, the wrong one -1, and all others nothing.

    Args:
        min_delay: Steps between the cue and the last step, at least, 1 or more.
        max_delay: And at most; it is drawn anew for each episode.

    Raises:
        ConfigError: The delays are no range.

    Example:
        >>> from rlmech.testbed.cue_env import CueRecall
        >>> env = CueRecall(min_delay=2, max_delay=2)
        >>> cue = env.reset(seed=0)[0][0]
        >>> [env.step(int(cue > 0))[1] for _ in range(3)]
        [0.0, 0.0, 1.0]
    """

    metadata: JsonObject = {"render_modes": []}  # noqa: RUF012  # Gymnasium's own form

    def __init__(self, *, min_delay: int = 3, max_delay: int = 8) -> None:
        if not 1 <= min_delay <= max_delay:
            raise ConfigError(
                "The delays are no range.",
                given=f"min_delay={min_delay}, max_delay={max_delay}",
                expected="1 <= min_delay <= max_delay",
                fix="give both ends, the smaller one first",
            )
        self.min_delay, self.max_delay = min_delay, max_delay
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._cue, self._left = 1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[Float32[np.ndarray, " feature"], JsonObject]:
        """Draw a cue and a delay."""
        super().reset(seed=seed)
        self._cue = int(self.np_random.choice([-1, 1]))
        self._left = int(self.np_random.integers(self.min_delay, self.max_delay + 1))
        return self._seen(self._cue), {"cue": self._cue}

    def step(self, action: int | np.int64) -> tuple[Float32[np.ndarray, " feature"], float, bool, bool, JsonObject]:
        """Act; the last action ends the episode."""
        if self._left:
            self._left -= 1
            return self._seen(0), 0.0, False, False, {}
        right = (action == 1) == (self._cue > 0)
        return self._seen(0), 1.0 if right else -1.0, True, False, {"is_success": right}

    def _seen(self, cue: int) -> Float32[np.ndarray, " feature"]:
        return np.array([cue, self.np_random.uniform(-1, 1), self._left == 0], np.float32)


gym.register(id=ENV_ID, entry_point=f"{__name__}:CueRecall")
