"""Second names of one operation: torch has several for some, and a graph keeps one of them."""

from __future__ import annotations

_ALIASES = {
    "true_divide": "div", "divide": "div", "multiply": "mul", "subtract": "sub", "negative": "neg", "absolute": "abs",
    "clip": "clamp", "greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le", "not_equal": "ne",
    "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim", "concat": "cat", "concatenate": "cat",
    "__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor",
    "special_expit": "sigmoid", "special_log_softmax": "log_softmax", "special_softmax": "softmax",
    "__matmul__": "matmul", "__truediv__": "div", "__mul__": "mul", "__rmul__": "mul", "__add__": "add",
    "__radd__": "add", "__sub__": "sub",
}  # fmt: skip


_OVERLOADS = {("max", "other"): "maximum", ("min", "other"): "minimum"}


def plain_name(name: str, overload: str = "") -> str:
    """The name under which an operation stands in the table.

    Example:
        >>> plain_name("true_divide"), plain_name("relu"), plain_name("max", "other")
        ('div', 'relu', 'maximum')
    """
    return _OVERLOADS.get((name, overload)) or _ALIASES.get(name, name)
