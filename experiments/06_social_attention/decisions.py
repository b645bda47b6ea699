"""What the moves of the counterfactual scenes do to the decision, beside what they do to attention."""

from __future__ import annotations

import numpy as np
from attention import Reading
from intervals import Estimate, estimate
from scenes import Scenes

CONTRASTS = {
    "intent": {"out of the way": (1, 0), "in the way": (3, 2)},  # revealed, less undecided
    "clear": {"way clear": (1, 0), "others away": (3, 2)},
}


def decisions(
    scenes: Scenes, read: Reading, contrasts: dict[str, tuple[int, int]], actions: tuple[str, ...]
) -> dict[str, dict[str, Estimate]]:
    """Change of Q(FASTER) - Q(SLOWER), in units of return, and of the shares of FASTER and SLOWER among decisions."""
    go, brake = actions.index("FASTER"), actions.index("SLOWER")
    best = read.scores.argmax(1)
    values = {
        "gap": scenes.table(read.scores[:, go] - read.scores[:, brake]),
        "FASTER": scenes.table((best == go).astype(float)),
        "SLOWER": scenes.table((best == brake).astype(float)),
    }
    found: dict[str, dict[str, Estimate]] = {}
    for name, (after, before) in contrasts.items():
        found[name] = {
            what: estimate(table[:, after] - table[:, before], scenes.episode, np.asarray)
            for what, table in values.items()
        }
    return found
