"""The type checker that the jaxtyping import hook uses under test: it looks at shapes and dtypes, and at nothing else.

What a user may get wrong is met by our own errors, with their own tests; a type checker would come before them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the annotations that give shapes."""
    annotations = getattr(function, "__annotations__", {})
    shaped = {name: annotation for name, annotation in annotations.items() if _gives_shape(annotation)}
    if isinstance(function, type) or not shaped:
        return function
    function.__annotations__ = shaped
    return _beartype(function)


def _gives_shape(annotation: object) -> bool:
    text = annotation if isinstance(annotation, str) else repr(annotation)
    return 'Tensor, "' in text or 'ndarray, "' in text or "jaxtyping" in text or hasattr(annotation, "array_type")
