"""The records of all operations that are known. What is not here is unknown: never exact, affine or independent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from rlmech.core.operations.gates import GATINGS
from rlmech.core.operations.record import UNKNOWN, Operation, Written

_CONVERSION = frozenset({"dtype", "layout", "device", "pin_memory", "non_blocking", "copy", "memory_format"})
_DTYPE = frozenset({"dtype"})
_SCALES = frozenset({"alpha", "beta"})
_ALL: object = {"affine": None}
_TABLE: dict[str, Operation] = {}


def _add(names: str | Iterable[str], **fields: Any) -> None:
    for name in names.split() if isinstance(names, str) else names:
        if name in _TABLE:
            raise ValueError(f"{name!r} has two records")
        _TABLE[name] = Operation(name=name, gating=GATINGS.get(name), **fields)


# ---- what computes nothing, or only looks at shapes
_add("input parameter constant", role="leaf")
_add("sym_size", role="leaf", shape_only=(0,))
_add("zeros_like ones_like full_like new_zeros new_ones new_full", shape_only=(0,), keywords=_CONVERSION)
_add("fill copy", affine=(1,), shape_only=(0,))
_add("zeros ones full arange eye scalar_tensor empty", affine=None, keywords=_CONVERSION)

# ---- elements in other places
for _name in ("permute", "transpose", "unsqueeze", "select", "squeeze"):
    _add(_name, **_ALL, moves="layout", written=Written(method=_name))
_add("t numpy_T mT adjoint movedim slice narrow getitem split split_with_sizes chunk tensor_split unbind", **_ALL,
     moves="layout")  # fmt: skip
_add("flip roll rot90 repeat tile repeat_interleave diagonal unfold pixel_shuffle pixel_unshuffle", **_ALL,
     moves="layout")  # fmt: skip
_add("contiguous clone", **_ALL, moves="layout", keywords=_CONVERSION)
_add("view reshape _unsafe_view unflatten", **_ALL, moves="reshape")
_add("flatten", **_ALL, moves="reshape", written=Written(method="flatten"))
_add("expand", **_ALL, moves="reshape", keywords=frozenset({"implicit"}), written=Written(method="expand"))
_add("expand_as view_as reshape_as", affine=(0,), shape_only=(1,))
_add("cat", **_ALL, moves="join", written=Written(function=torch.cat))
_add("stack", **_ALL, moves="join")
_add("hstack vstack dstack column_stack", **_ALL)
_add("constant_pad_nd", **_ALL, moves="join", numbers=(2,))
_add("pad", **_ALL, moves="join", numbers=(3,))
_add("reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d", **_ALL, moves="join")
_add("index_select gather index take_along_dim", affine=(0,))
_add("select_scatter slice_scatter diagonal_scatter", affine=(0, 1))
_add("scatter scatter_add index_add index_copy", affine=(0, 3), numbers=(3,))
_add("index_put", affine=(0, 2))
_add("tril triu diag_embed diff", **_ALL)

# ---- arithmetic, element by element
_add("add", **_ALL, moves="elementwise", numbers=(1,), keywords=frozenset({"alpha"}),
     written=Written(infix="+", function=torch.add))  # fmt: skip
_add("sub", **_ALL, moves="elementwise", numbers=(0, 1), keywords=frozenset({"alpha"}), written=Written(infix="-"))
_add("rsub", **_ALL, moves="elementwise", numbers=(1,), keywords=frozenset({"alpha"}))
_add("neg positive", **_ALL, moves="elementwise")
_add("mul", factors=(0, 1), moves="elementwise", written=Written(infix="*", function=torch.mul))
_add("div", factors=(0,), moves="elementwise", written=Written(infix="/", function=torch.div))
_add("addcmul", added=(0,), factors=(1, 2), moves="elementwise", keywords=frozenset({"value"}))
_add("addcdiv", added=(0,), factors=(1,), moves="elementwise", keywords=frozenset({"value"}))
_add("lerp", affine=(0, 1), moves="elementwise")
_add("where", affine=(1, 2), moves="elementwise", numbers=(1, 2))
_add("masked_fill", affine=(0, 2), moves="elementwise", numbers=(2,), written=Written(method="masked_fill"))
_add("causal_mask", affine=(0,), moves="elementwise")
_add("to _to_copy", affine=(0,), moves="elementwise", keywords=_CONVERSION)
_add("type_as", affine=(0,), shape_only=(1,), moves="elementwise")

# ---- gates, element by element
_add("relu", moves="elementwise", kind="activation", written=Written(function=torch.relu))
_add("leaky_relu rrelu relu6 hardtanh hardsigmoid softshrink hardshrink threshold clamp clamp_min clamp_max",
     moves="elementwise", kind="activation")  # fmt: skip
_add("prelu", moves="channelwise", kind="activation")
_add("abs sign maximum minimum fmax fmin", moves="elementwise")
for _name, _sign in (("lt", "<"), ("gt", ">"), ("le", "<="), ("ge", ">=")):
    _add(_name, moves="elementwise", role="comparison", written=Written(infix=_sign))
_add("eq ne", moves="elementwise", role="comparison")

# ---- curves, element by element
for _name, _function in (("tanh", torch.tanh), ("sigmoid", torch.sigmoid)):
    _add(_name, curve=_name, moves="elementwise", kind="activation", written=Written(function=_function))
_add("gelu", curve="gelu", moves="elementwise", kind="activation", keywords=frozenset({"approximate"}))
for _name in ("elu", "selu", "celu", "silu", "mish", "hardswish", "softplus", "softsign", "log_sigmoid", "tanhshrink"):
    _add(_name, curve=_name, moves="elementwise", kind="activation")
for _name in ("exp", "log", "sqrt", "rsqrt", "reciprocal", "square", "sin", "cos", "tan", "atan", "erf", "log1p",
              "expm1", "sinh", "cosh", "asinh", "log2", "log10", "exp2"):  # fmt: skip
    _add(_name, curve=_name, moves="elementwise")
_add("pow remainder fmod atan2 floor ceil round trunc frac nan_to_num hypot xlogy logit heaviside floor_divide erfc",
     moves="elementwise")  # fmt: skip
_add("isnan isinf isfinite signbit logical_not logical_and logical_or logical_xor bitwise_not bitwise_and bitwise_or "
     "bitwise_xor", moves="elementwise")  # fmt: skip
_add("detach", moves="elementwise")  # affine forwards, but no gradient comes through

# ---- along axes
_add("sum mean", **_ALL, moves="reduction", axes=1, keywords=_DTYPE)
_add("cumsum", **_ALL, moves="along", axes=1, keywords=_DTYPE)
_add("amax amin", moves="reduction", axes=1)
_add("max min", axes=1)
_add("any all logsumexp prod std var", moves="reduction", axes=1)
_add("softmax", moves="along", axes=1, role="softmax", kind="activation", keywords=_DTYPE,
     written=Written(method="softmax"))  # fmt: skip
_add("_softmax", moves="along", axes=1, role="softmax", kind="activation")
_add("_safe_softmax", moves="along", axes=1, role="softmax")
_add("log_softmax _log_softmax", moves="along", axes=1, kind="activation")
_add("cumprod logcumsumexp", moves="along", axes=1)
_add("glu", kind="activation")

# ---- products
_add("linear", factors=(0, 1), added=(2,), moves="product", kind="linear", role="layer",
     written=Written(function=torch._C._nn.linear))  # pyright: ignore  # fmt: skip  # a fifth faster than the overload
_add("addmm", factors=(1, 2), added=(0,), moves="product", kind="linear", role="layer", keywords=_SCALES)
_add("mm", factors=(0, 1), moves="product", role="layer")
_add("matmul", factors=(0, 1), moves="product", role="matmul", written=Written(function=torch.matmul))
_add("bmm", factors=(0, 1), moves="product", role="matmul", written=Written(function=torch.bmm))
_add("baddbmm", factors=(1, 2), added=(0,), moves="product", role="matmul", keywords=_SCALES)
_add("einsum", factors=(1,))
_add("mv dot vdot inner tensordot linalg_vecdot outer", factors=(0, 1))
_add("head_result", factors=(0,), moves="heads")
_add("head_sum", **_ALL)

# ---- convolutions and pools
for _name, _call in (("conv1d", torch.conv1d), ("conv2d", torch.conv2d), ("conv3d", None)):
    _add(_name, factors=(0, 1), added=(2,), moves="convolution", kind="convolution", written=Written(function=_call))
_add("conv_transpose1d conv_transpose2d conv_transpose3d", factors=(0, 1), added=(2,), kind="convolution",
     moves="convolution")  # fmt: skip
_add("convolution", factors=(0, 1), added=(2,), kind="convolution")
_add("avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d "
     "adaptive_avg_pool3d", affine=(0,), moves="pool", kind="pool")  # fmt: skip
_add("max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices",
     moves="pool", kind="pool")  # fmt: skip
_add("adaptive_max_pool1d adaptive_max_pool2d", kind="pool")
_add("upsample_nearest1d upsample_nearest2d upsample_linear1d upsample_bilinear2d", affine=(0,))

# ---- norms, attention, recurrence
_add("batch_norm _native_batch_norm_legit_no_training", factors=(0,), adds=True, moves="channelwise", kind="norm")
_add("layer_norm rms_norm", moves="norm", kind="norm", role="norm")
_add("native_layer_norm group_norm native_group_norm instance_norm", kind="norm")
_add("scaled_dot_product_attention", factors=(2,), moves="attention", role="attention",
     keywords=frozenset({"scale", "enable_gqa", "attn_mask", "is_causal", "dropout_p"}))  # fmt: skip
_add("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell", kind="recurrent")
_add("embedding", kind="layer")


def known(name: str) -> Operation:
    """The record of an operation by its plain name; that of an unknown one where there is none."""
    return _TABLE.get(name, UNKNOWN)


def names_where(holds: Callable[[Operation], bool]) -> frozenset[str]:
    """The names of the operations of whose records something holds."""
    return frozenset(name for name, record in _TABLE.items() if holds(record))
