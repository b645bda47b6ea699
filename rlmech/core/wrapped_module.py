"""A module and the engine that is proved to compute what it does, compared with the module again as it changes.

The graph reads parameters and buffers as they are now; whatever else changes in the module is noticed here, before a
pass (by its record, a microsecond) or when an analysis begins (on one row), and is an error that names it, or, in train
mode, calls for the eager engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rlmech.core.eager import EagerEngine
from rlmech.core.engine import Engine, GraphEngine
from rlmech.core.modes import depends_on_mode, evaluating
from rlmech.core.module_record import ModuleRecord
from rlmech.core.observation import ObservationFormat
from rlmech.core.parity import (
    BATCHES,
    difference,
    fused_path_error,
    is_fused_path,
    live_scores,
    on_device,
    prove_parity,
)
from rlmech.core.points import OutputKind
from rlmech.core.stateful import Sequence as Sequential
from rlmech.core.stateful import StatefulFormat
from rlmech.core.tracing import NotTraceable
from rlmech.core.unrolled import UnrolledEngine
from rlmech.errors import EngineError, ParityError


class WrappedModule:
    """A module that runs on an engine.

    Args:
        module: The user's own module.
        scored: What runs: the module itself, or a call around it that returns its scores and its value.
        form: Its observation format.
        root: Path in `scored` that falls away in names.
        output_kind: What the scores are.
        before: The module's record from before its first pass: what `forward` itself writes says nothing.

    Attributes:
        engine: The engine of eval mode.

    Raises:
        ParityError: It does not compute what the module computes.
    """

    def __init__(
        self,
        module: nn.Module,
        scored: nn.Module,
        form: ObservationFormat,
        *,
        root: str,
        output_kind: OutputKind,
        before: ModuleRecord,
    ) -> None:
        self._module, self._scored, self._form = module, scored, form
        self._root = root
        self._output_kind: OutputKind = output_kind
        self._weight = next(_weights_of(module), None)
        self._precision = self._precision_now()
        self._mode_dependent = [child for child in module.modules() if depends_on_mode(child)]
        self.engine = self._proven()
        self.record = ModuleRecord(module, ignored=frozenset(before.changes()))
        self._eager: Engine | None = self.engine if self.engine.name == "eager" else None

    @property
    def couples_rows(self) -> bool:
        """Whether train mode makes rows depend on each other or on chance."""
        return any(child.training for child in self._mode_dependent)

    def active(self) -> Engine:
        """The engine that computes what the module, as it is now, computes.

        Raises:
            EngineError: The module does not compute any longer what it did when it was wrapped.
        """
        if not self.record.is_current():
            self._compare([on_device(self._form.samples(n), self._module) for n in BATCHES])
            self.record = self.record.renewed()
        if self._mode_dependent and self.couples_rows:
            if self._eager is None:
                self._eager = self._eager_engine(
                    "the network is in train mode, where it computes something else (dropout, noise)"
                )
            return self._eager
        return self.engine

    def graph_engine(self) -> GraphEngine:
        """The active engine, where it is that of the graph.

        Raises:
            EngineError: It is the eager one.
        """
        engine = self.active()
        if isinstance(engine, GraphEngine):
            return engine
        raise EngineError(
            "This needs the traced graph, and the policy runs on the eager engine.",
            given=f"engine 'eager': {engine.reason}",
            expected="engine 'graph'",
            fix="put the network in eval mode, or write its forward without control flow that depends on data",
        )

    def check_row(self, arrays: tuple[Tensor, ...] = ()) -> None:
        """Compare the first of some observations, or of the example, with the module as it is now.

        Raises:
            EngineError: They differ.
        """
        rows = tuple(array[:1].detach() for array in arrays) if arrays and len(arrays[0]) else self._form.samples(1)
        self._compare([on_device(rows, self._module)])

    @property
    def device(self) -> torch.device | None:
        """Where the weights are; None without any."""
        return None if self._precision is None else self._precision[1]

    def follow(self) -> bool:
        """Let formats and graphs follow the weights into another precision or onto another device; whether they did."""
        old, new = self._precision, self._precision_now()
        if old is None or new is None or old == new:
            return False  # a weight that was taken away is told where the module is compared
        self._precision = new
        if new[0] != old[0]:
            self._form.retype(new[0])
        if isinstance(self.engine, GraphEngine):
            if new[0] != old[0]:
                self.engine.retype(old[0], new[0])
            if new[1] != old[1]:
                self.engine.move(new[1])
        return True

    def _precision_now(self) -> tuple[torch.dtype, torch.device] | None:
        if self._weight is None:
            return None
        weights, name = self._weight
        weight = weights.get(name)
        return None if weight is None else (weight.dtype, weight.device)

    def _proven(self) -> Engine:
        engine = self._made()
        try:
            prove_parity(self._scored, engine, self._form)
        except ParityError:
            if not (isinstance(engine, GraphEngine) and engine.is_known):
                raise
            engine = self._made(anew=True)  # the graph of another time was not this module's
            prove_parity(self._scored, engine, self._form)
        return engine

    def _made(self, *, anew: bool = False) -> Engine:
        form = self._form
        try:
            if isinstance(self._scored, Sequential) and isinstance(form, StatefulFormat):
                return UnrolledEngine(self._scored, form, root=self._root, output_kind=self._output_kind, anew=anew)
            return GraphEngine(self._scored, form, root=self._root, output_kind=self._output_kind, anew=anew)
        except NotTraceable as error:
            return self._eager_engine(str(error))

    def _eager_engine(self, reason: str) -> Engine:
        return EagerEngine(self._scored, self._form, reason=reason, root=self._root, output_kind=self._output_kind)

    def _compare(self, batches: Sequence[tuple[Tensor, ...]]) -> None:
        """Compare the graph with the live module: in train mode a difference calls for the eager engine."""
        self.record.check_submodules()
        if self.engine.name == "eager" or self.couples_rows:
            return  # the live module runs
        n_steps = self._form.n_steps
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for arrays in batches:
                scores = self.engine.forward(arrays)
                try:
                    live = live_scores(self._scored, self._form, arrays)
                except RuntimeError:
                    if scores.dtype == torch.float32:
                        raise
                    return  # after .double(): modules that cast observations to float32 themselves cannot run
                found = difference(scores, live, n_steps=n_steps)
                if found is None:
                    continue
                if is_fused_path(scores, self._scored, self._form, arrays):
                    raise fused_path_error(found, "on a row of this observation")
                training = [child for child in self._module.modules() if child.training]
                with evaluating(self._module):
                    live = live_scores(self._scored, self._form, arrays)
                    resting = difference(scores, live, n_steps=n_steps)
                if training and resting is None:
                    self._mode_dependent += training
                    return
                raise self.record.error(found)


def _weights_of(module: nn.Module) -> Iterator[tuple[dict[str, Tensor | None], str]]:
    """The parameters of a module: the dict that holds each, and its name there."""
    for child in module.modules():
        weights: object = vars(child).get("_parameters")
        if not isinstance(weights, dict):  # of a scripted module
            continue
        own = cast("dict[str, Tensor | None]", weights)
        yield from ((own, name) for name, weight in own.items() if weight is not None and weight.is_floating_point())
