"""Parity: the hooked policy computes what the module computes, or it is not given out.

Checked at batch 1, 2 and 7, plain and with every point read: bit for bit where the arithmetic is the same (the fused
paths of attention round otherwise), else within 1e-5 of the output's scale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlmech.core.engine import Engine
from rlmech.core.hook_point import HookPoint, HookRegistry
from rlmech.core.masked import excess
from rlmech.core.observation import ObservationFormat
from rlmech.errors import ParityError

BATCHES = (1, 2, 7)
TOLERANCE = 1e-5


def prove_parity(module: nn.Module, engine: Engine, observation: ObservationFormat) -> None:
    """Compare an engine with the module it runs, on observations like the example.

    Raises:
        ParityError: They differ, or the module itself gives two answers to one question.
    """
    idle, no_points = HookRegistry(), dict[str, HookPoint]()
    names = tuple(engine.points)
    with torch.no_grad():
        for n in BATCHES:
            arrays = observation.samples(n)
            parameter = next(module.parameters(), None)
            if parameter is not None:
                arrays = tuple(array.to(parameter.device) for array in arrays)
            argument = dict(zip(observation.shapes, arrays, strict=True)) if observation.is_dict else arrays[0]
            expected = _scores(module(argument))
            _compare(_scores(module(argument)), expected, n, "the module itself, asked twice")
            plain = engine.forward(arrays)
            _compare(plain, expected, n, "the hooked policy")
            read, values = engine.run(arrays, names, idle, no_points)
            _compare(read, expected, n, "the hooked policy with every activation read")
            _check_shapes(engine, values, n)


def _scores(output: object) -> Tensor:
    first = output[0] if isinstance(output, tuple | list) else output
    if isinstance(output, dict):
        first = next(iter(output.values()))
    assert isinstance(first, Tensor)  # noqa: S101  # name_points has refused anything else
    return first


def _compare(given: Tensor, expected: Tensor, n: int, what: str) -> None:
    if torch.equal(given, expected):
        return
    if given.shape == expected.shape:
        difference = float(excess(given, expected, 1e-12).max())
        if difference <= TOLERANCE:
            return
        found = f"a largest difference of {difference:.2g} of the scores' scale at batch {n}"
    else:
        found = f"shape {list(given.shape)} at batch {n}"
    random = "asked twice" in what
    raise ParityError(
        f"{what[0].upper()}{what[1:]} does not give the module's scores.",
        given=found,
        expected=f"the same scores to {TOLERANCE:g} of their scale, shape {list(expected.shape)}",
        fix="make the module deterministic in eval mode: dropout and noise made inside forward stay alive there"
        if random
        else "report this module: until it is understood, nothing computed from the hooked policy could be trusted",
    )


def _check_shapes(engine: Engine, values: dict[str, Tensor], n: int) -> None:
    for name, value in values.items():
        promised = engine.points[name].address.layout.canonical_shape
        expected = tuple(n if size < 0 else size for size in promised)
        if tuple(value.shape) != expected:
            raise ParityError(
                f"{name!r} has not the shape that its hook point announces.",
                given=f"{list(value.shape)} at batch {n}",
                expected=str(list(expected)),
                fix="report this module: its shapes depend on more than the batch size",
            )
