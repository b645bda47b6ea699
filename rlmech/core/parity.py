"""Parity: the hooked policy computes what the module computes in eval mode without gradients, or it is not given out.

Checked on wrap at batch 1, 2 and 7, plain and with every point read, and on rows that hold nothing; one row is compared
again when an analysis begins. Bit for bit where the arithmetic is the same (the fused paths of attention round
otherwise), else within 1e-5 of the output's scale. NaN and infinite scores must stand in the same places.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rlmech.core.engine import Engine
from rlmech.core.hook_point import HookPoint, HookRegistry
from rlmech.core.masked import excess
from rlmech.core.module_record import nan_weights
from rlmech.core.observation import ObservationFormat
from rlmech.errors import ParityError

BATCHES = (1, 2, 7)
TOLERANCE = 1e-5


def prove_parity(module: nn.Module, engine: Engine, observation: ObservationFormat) -> None:
    """Compare an engine with the module it runs, on observations like the example.

    Points whose values have not the shape that they announce are left out of the engine.

    Raises:
        ParityError: They differ, the module itself gives two answers to one question, or a weight is NaN.
    """
    weight = nan_weights(module)
    if weight is not None:
        raise ParityError(
            f"The network cannot be wrapped: {weight} holds NaN.",
            given=f"{weight} with NaN in it",
            expected="weights that are numbers",
            fix="load a checkpoint from before the training diverged",
        )
    with torch.no_grad():
        for n in BATCHES:
            arrays = on_device(observation.samples(n), module)
            expected = live_scores(module, observation, arrays)
            found = difference(live_scores(module, observation, arrays), expected)
            if found is not None:
                raise ParityError(
                    "The module itself, asked twice, does not give the same scores.",
                    given=f"{found} at batch {n}",
                    expected="the same scores",
                    fix="make the module deterministic in eval mode: dropout and noise made inside forward stay alive",
                )
            _compare(engine.forward(arrays), module, observation, arrays, f"at batch {n}")
            scores, values = engine.run(arrays, tuple(engine.points), HookRegistry(), dict[str, HookPoint]())
            _compare(scores, module, observation, arrays, f"at batch {n}, every activation read")
            _compare_states(values, module, observation, arrays, n)
            _leave_out_misfits(engine, values, n)
        arrays = on_device(_with_empty_rows(observation), module)
        if arrays:
            _compare(engine.forward(arrays), module, observation, arrays, "where entities are absent (rows of zeros)")


def live_scores(module: nn.Module, observation: ObservationFormat, arrays: tuple[Tensor, ...]) -> Tensor:
    """The scores that the module itself gives, as it is now."""
    output = module(observation.argument(arrays))
    scores = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(scores, Tensor)  # noqa: S101  # find_outputs has refused anything else
    return scores


def difference(given: Tensor, expected: Tensor, *, n_steps: int | None = None) -> str | None:
    """How scores differ from those expected, in words; None where they are the same within the tolerance.

    Args:
        given: Scores.
        expected: Those expected.
        n_steps: Of a sequence, its steps, each of which rounds anew what the one before it left.
    """
    if torch.equal(given, expected):
        return None
    if given.shape != expected.shape:
        return f"shape {list(given.shape)}"
    if not torch.equal(given.isnan(), expected.isnan()):
        here, there = int(given.isnan().sum()), int(expected.isnan().sum())
        return f"{here} scores that are NaN, where the module gives {there} of {expected.numel()}"
    largest = float(excess(given, expected, 1e-12).max())
    return (
        None if largest <= TOLERANCE * (n_steps or 1) else f"a largest difference of {largest:.2g} of the scores' scale"
    )


def is_fused_path(
    scores: Tensor, module: nn.Module, observation: ObservationFormat, arrays: tuple[Tensor, ...]
) -> bool:
    """Whether the module gives these scores as soon as torch's fused paths of attention are switched off."""
    if not torch.backends.mha.get_fastpath_enabled():
        return False
    with _without_fused_path():
        return difference(scores, live_scores(module, observation, arrays)) is None


def fused_path_error(found: str, where: str) -> ParityError:
    """What to say where torch's fused path gives other numbers than the network's own equations."""
    return ParityError(
        "torch's fused path of attention gives other scores than the layers of the network do.",
        given=f"{found} {where}, between the module in eval mode under torch.no_grad() and its own operations",
        expected="the same scores on both: the policy that acts is the module under no_grad",
        fix="leave a key visible in every row (it gives NaN or zeros where padding hides them all), or switch it off, "
        "where the policy acts too: torch.backends.mha.set_fastpath_enabled(False)",
    )


def on_device(arrays: tuple[Tensor, ...], module: nn.Module) -> tuple[Tensor, ...]:
    """Observations on the device of the module's parameters."""
    parameter = next(module.parameters(), None)
    return arrays if parameter is None else tuple(array.to(parameter.device) for array in arrays)


def _compare(
    given: Tensor, module: nn.Module, observation: ObservationFormat, arrays: tuple[Tensor, ...], where: str
) -> None:
    expected = live_scores(module, observation, arrays)
    found = difference(given, expected, n_steps=observation.n_steps)
    if found is None:
        return
    if is_fused_path(given, module, observation, arrays):
        raise fused_path_error(found, where)
    raise ParityError(
        "The hooked policy does not give the module's scores.",
        given=f"{found} {where}",
        expected=f"the same scores to {TOLERANCE:g} of their scale, shape {list(expected.shape)}",
        fix="report this module: until it is understood, nothing computed from the hooked policy could be trusted",
    )


def _compare_states(
    values: dict[str, Tensor], module: nn.Module, observation: ObservationFormat, arrays: tuple[Tensor, ...], n: int
) -> None:
    """Compare the state after a step with the module's own."""
    if not observation.states or observation.is_sequence:
        return
    outputs = module(dict(zip(observation.shapes, arrays, strict=True)))
    for name, expected in zip(observation.states, outputs[-len(observation.states) :], strict=True):
        found = difference(values[name], expected) if name in values else "nothing: the eager engine cannot see it"
        if found is not None:
            raise ParityError(
                f"The hooked policy does not give the module's state {name!r}.",
                given=f"{found} at batch {n}",
                expected=f"the same to {TOLERANCE:g} of its scale",
                fix="report this module: a state that is not the module's own would be carried on wrongly",
            )


@contextmanager
def _without_fused_path() -> Generator[None]:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def _with_empty_rows(observation: ObservationFormat) -> tuple[Tensor, ...]:
    """The example with some entities, all but the first, and all of them zero; nothing where there are no entities."""
    arrays = observation.samples(3)
    if not any(array.ndim == 3 and array.is_floating_point() for array in arrays):
        return ()
    for array in arrays:
        if array.ndim == 3 and array.is_floating_point():
            array[0, 1::2] = array[1, 1:] = array[2] = 0
    return arrays


def _leave_out_misfits(engine: Engine, values: dict[str, Tensor], n: int) -> None:
    for name in list(engine.points):
        point = engine.points[name]
        expected = tuple(n if size < 0 else size for size in point.address.layout.canonical_shape)
        given = values.get(name)
        if given is None or tuple(given.shape) == expected:
            continue
        if point.kind in ("observation", "output"):
            raise ParityError(
                f"{name!r} has not the shape that its hook point announces.",
                given=f"{list(given.shape)} at batch {n}",
                expected=str(list(expected)),
                fix="report this module: its shapes depend on more than the batch size",
            )
        engine.leave_out(
            name, f"its shape follows from the data: {list(given.shape)} at batch {n}, not {list(expected)}"
        )
