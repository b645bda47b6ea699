"""Docstrings as rlmech writes them, for mkdocstrings: the section `Example:` holds a session of Python, not prose."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object


class PythonSessions(Extension):
    """Read `Example:` as the section that Griffe calls `Examples:`."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rename the section in an object's docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
