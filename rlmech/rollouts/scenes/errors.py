"""What goes wrong with scenes."""

from __future__ import annotations

from rlmech.errors import RlmechError


class SceneError(RlmechError, ValueError):
    """A scene that cannot be captured, an edit that does not fit it, or an observation that it does not have."""
