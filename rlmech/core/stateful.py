"""A recurrent policy as a graph sees it: a step, or several of them, as a function of observations and a state.

    step      {observation, state} -> scores, value, state
    sequence  {observations [batch step ...], state} -> scores and value of one of its steps

Both are modules that take one dict, so that whatever works on a policy with several arrays works on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlmech.core.choices import Choices
from rlmech.core.modes import evaluating
from rlmech.core.observation import Observation, ObservationFormat
from rlmech.core.outputs import Scored
from rlmech.core.points import STEPPED, OutputKind
from rlmech.core.state import OBSERVATION, State, StateForm
from rlmech.errors import ConfigError, ObservationError, StateError


class Step(nn.Module):
    """One step of a recurrent network: observations and a state -> scores, value, the state after it.

    Args:
        network: The user's module.
        form: How it keeps its state.
    """

    def __init__(self, network: nn.Module, form: StateForm) -> None:
        super().__init__()
        self.network, self.form = network, form

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run it; `inputs` holds the observation's arrays and the state's parts."""
        n_rows = next(iter(inputs.values())).shape[0]
        for value in inputs.values():
            # told to the export, which takes each array's batch for one of its own
            torch._check(value.shape[0] == n_rows)  # pyright: ignore[reportPrivateUsage]
        own = {key: value for key, value in inputs.items() if key not in self.form.initial}
        return self.form.step(self.network, own.get(OBSERVATION, own), inputs)


class ChoosingStep(Step):
    """One step of a recurrent network that makes several choices at once.

    Args:
        network: The user's module.
        form: How it keeps its state.
        choices: The choices.
        choice: The one that is wanted; None for all, `[batch choice action]`.
    """

    def __init__(self, network: nn.Module, form: StateForm, choices: Choices, choice: int | None) -> None:
        super().__init__(network, form)
        self.choices, self.choice = choices, choice

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run it; `inputs` holds the observation's arrays and the state's parts."""
        given: Any
        given, *rest = super().forward(inputs)
        parts = list(given) if isinstance(given, tuple | list) else [given]
        scores = self.choices.joined(parts) if self.choice is None else self.choices.one(parts, self.choice)
        return (scores, *rest)


class Sequence(nn.Module):
    """Steps one after the other, the state carried along.

    Args:
        step: One of them.
        n_steps: How many.
        read: Whose scores are given.
    """

    def __init__(self, step: Step, *, n_steps: int, read: int) -> None:
        super().__init__()
        self.step, self.n_steps, self.read = step, n_steps, read

    def forward(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run them; observations are `[batch step ...]`."""
        names = self.step.form.names
        state = {name: inputs[name] for name in names}
        given: tuple[Tensor, ...] = ()
        for step in range(self.read + 1):
            seen = {key: value[:, step] for key, value in inputs.items() if key not in state}
            given = self.step({**seen, **state})
            state = dict(zip(names, given[-len(names) :], strict=True))
        return given[: -len(names)]


class StatefulFormat(ObservationFormat):
    """Observations with the state in which they are met; without one, that of an episode's beginning.

    Args:
        example: A batch of observations, without states.
        initial: The state at the beginning, one row.
        n_steps: Steps of a sequence; None where observations are those of single steps.
    """

    def __init__(self, example: Observation, initial: State, *, n_steps: int | None = None) -> None:
        self.own = ObservationFormat(example)
        n_rows = next(iter(self.own.example.values())).shape[0]
        states = {name: value.expand(n_rows, *value.shape[1:]).clone() for name, value in initial.items()}
        super().__init__({**self.own.example, **states})
        self.initial, self.n_steps = dict(initial), n_steps
        self.states = tuple(initial)

    def coerce(self, obs: Observation, module: nn.Module) -> tuple[Tensor, ...]:
        """The observation's tensors and the state's, checked.

        Raises:
            ObservationError: It is not what the policy takes.
            StateError: Nor is the state.
        """
        state: Mapping[str, Any] | None = None
        if isinstance(obs, Mapping) and any(name in obs for name in self.initial):
            state = {key: value for key, value in obs.items() if key in self.initial}
            rest = {key: value for key, value in obs.items() if key not in self.initial}
            obs = rest[OBSERVATION] if set(rest) == {OBSERVATION} else rest
        arrays = self._own(obs, module)
        return (*arrays, *self.state(state, module, n_rows=arrays[0].shape[0]).values())

    def state(self, given: Any, module: nn.Module, *, n_rows: int) -> State:
        """A state for some rows, checked; that of the beginning where there is none.

        Raises:
            StateError: Parts are missing or of another shape, or it is of another number of rows.
        """
        if given is None:
            given = {name: value.expand(n_rows, *value.shape[1:]).clone() for name, value in self.initial.items()}
        if not isinstance(given, Mapping) or set(given) != set(self.initial):
            raise self._no_state(
                f"parts {sorted(given)}" if isinstance(given, Mapping) else f"a {type(given).__name__}"
            )
        for name, value in given.items():
            shape = tuple(getattr(value, "shape", ()))
            if shape != (n_rows, *self.initial[name].shape[1:]):
                raise self._no_state(f"{name} of shape {list(shape)} for {n_rows} observations")
        try:
            # contiguous, as a step leaves it: matrix products round otherwise on other strides
            return {name: self._coerce_one(name, given[name], module).contiguous() for name in self.initial}
        except ObservationError as error:
            raise self._no_state(error.given) from error

    def with_state(self, obs: Observation, state: Mapping[str, Any] | None, module: nn.Module) -> dict[str, Any]:
        """Observations and a state as one observation.

        Raises:
            ObservationError, StateError: One of them is not what the policy takes.
        """
        arrays = self._own(obs, module)
        return dict(zip(self.own.shapes, arrays, strict=True)) | self.state(state, module, n_rows=arrays[0].shape[0])

    def n_steps_of(self, obs: Observation) -> int | None:
        """Steps of observations that are sequences of what a recurrent policy takes; None where they are not."""
        if self.is_sequence:
            return None
        given = (
            {key: tuple(np.shape(obs[key])) for key in obs} if isinstance(obs, Mapping) else {"": tuple(np.shape(obs))}
        )
        wanted = {key: tuple(shape) for key, shape in self.own.shapes.items()}
        fits = given.keys() == wanted.keys() and all(
            len(shape) == len(wanted[key]) + 2 and shape[2:] == wanted[key] for key, shape in given.items()
        )
        return next(iter(given.values()))[1] or None if fits else None

    def restarted(self, obs: Observation, starts: Any) -> Observation:
        """Observations with a state, that of the beginning in the rows where an episode begins.

        Raises:
            StateError: There is not one truth value for each row.
        """
        assert isinstance(obs, Mapping)  # noqa: S101  # made by `with_state`
        flags = torch.as_tensor(np.asarray(starts))
        n_rows = next(iter(obs.values())).shape[0]
        if tuple(flags.shape) != (n_rows,):
            raise StateError(
                "episode_start says of each row whether an episode begins there.",
                given=f"shape {list(flags.shape)} for {n_rows} rows",
                expected=f"[{n_rows}]",
                fix="give one truth value for each row",
            )
        after = dict(obs)
        for name, initial in self.initial.items():
            value = obs[name]
            rows = flags.to(value.device).bool().reshape(-1, *[1] * (value.ndim - 1))
            after[name] = torch.where(rows, initial.to(value.device), value)
        return after

    def sequences(self, n_steps: int) -> StatefulFormat:
        """The format of sequences of such observations."""
        example = {
            key: value[:, None].expand(-1, n_steps, *value.shape[1:]).clone() for key, value in self._example().items()
        }
        return StatefulFormat(_bare(example), self.initial, n_steps=n_steps)

    def resized(self, shapes: Mapping[str, tuple[int, ...]]) -> StatefulFormat:
        """The same format with observations of other shapes."""
        other = StatefulFormat(_bare(self._resized(shapes)), self.initial, n_steps=self.n_steps)
        other.retype(next((dtype for dtype in self.dtypes.values() if dtype.is_floating_point), torch.float32))
        return other

    def of_one_step(self) -> StatefulFormat:
        """The format of one of a sequence's steps."""
        return StatefulFormat(_bare({key: value[:, 0] for key, value in self._example().items()}), self.initial)

    def _example(self) -> dict[str, Tensor]:
        return {key: self.example[key] for key in self.own.shapes}

    def retype(self, dtype: torch.dtype) -> None:
        """Take floats of another precision from now on."""
        super().retype(dtype)
        self.own.retype(dtype)
        self.initial = {name: value.to(self.dtypes[name]) for name, value in self.initial.items()}

    def is_single(self, obs: Observation) -> bool:
        """Whether this is one observation without a batch axis."""
        return self.own.is_single(obs)

    def _own(self, obs: Observation, module: nn.Module) -> tuple[Tensor, ...]:
        try:
            return self.own.coerce(obs, module)
        except ObservationError as error:
            if self.n_steps_of(obs) is not None:
                raise ObservationError(
                    "These are sequences, and this asks about single steps.",
                    given=error.given,
                    expected=error.expected,
                    fix="policy.run_sequence(obs) runs them; policy.unrolled(n_steps) takes them in every analysis",
                ) from error
            raise

    def _no_state(self, given: str) -> StateError:
        return StateError(
            "The state is not the policy's.",
            given=given,
            expected=", ".join(f"{name} [batch {' '.join(map(str, v.shape[1:]))}]" for name, v in self.initial.items()),
            fix="begin with policy.initial_state(batch), and go on with what policy.step returned",
        )


def _bare(example: dict[str, Tensor]) -> Observation:
    """An observation that is a single array, or the dict that it is."""
    return example[OBSERVATION] if set(example) == {OBSERVATION} else example


def state_form(module: nn.Module, example: Observation, state: Any, *, root: str) -> tuple[StateForm, StatefulFormat]:
    """How a module keeps its state, and what one step of it takes.

    Args:
        module: `module(obs, state)` gives (scores, state) or (scores, value, state).
        example: A batch of observations.
        state: A function of the number of rows that gives the state at the beginning, or that state for the example.
        root: The root of the module's names.

    Raises:
        StateError: It is no state, or the module does not give it back.
    """
    own = ObservationFormat(example)
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.dtype != torch.float64 and torch.float64 in own.dtypes.values():
        own.retype(parameter.dtype)  # numpy's own precision, which the network does not compute in
    n_rows = next(iter(own.example.values())).shape[0]
    seen = own.example
    if n_rows == 1 and callable(state):
        n_rows, seen = 2, {key: value.repeat(2, *[1] * (value.ndim - 1)) for key, value in own.example.items()}
    if parameter is not None:
        seen = {key: value.to(parameter.device) for key, value in seen.items()}
    with evaluating(module):
        form = StateForm(module, state, seen if own.is_dict else seen[OBSERVATION], n_rows=n_rows, root=root)
    return form, StatefulFormat(_bare(own.example), form.initial)


def scored_step(
    module: nn.Module,
    form: StateForm,
    length: tuple[int, int] | None,
    *,
    kind: OutputKind | None,
    selected: tuple[object, object],
    choices: Choices | None = None,
    choice: int | None = None,
    samples: Callable[[int], dict[str, Tensor]],
) -> Scored:
    """What is run of a recurrent policy: one step of it, or several.

    Args:
        module: The user's module.
        form: How it keeps its state.
        length: Of a sequence, its steps and the one that is read; None for one step.
        kind: What the scores are, where that is told.
        selected: Which outputs were asked for as scores and value.
        choices: The choices, where there are several.
        choice: The one of them that is wanted; None for all.
        samples: Observations with states by their number, of one step or of several.

    Raises:
        ConfigError: Some were: a module with a state says it by the order of what it returns; or the scores are not
            those of the choices.
    """
    if selected != (None, None):
        raise ConfigError(
            "A module with a state gives its scores first.",
            given="state= together with scores= or value=",
            expected="a module that returns (scores, state) or (scores, value, state)",
            fix="leave scores= and value= out, and wrap the module in one that returns that",
        )
    if choices is None:
        step = Step(module, form)
    else:
        rows = samples(2)
        seen = rows if length is None else {k: v if k in form.initial else v[:, 0] for k, v in rows.items()}
        with torch.no_grad():
            given: Any = Step(module, form)(seen)[0]
        choices.check([tuple(part.shape[1:]) for part in (given if isinstance(given, tuple | list) else [given])])
        step = ChoosingStep(module, form, choices, choice)
    run = step if length is None else Sequence(step, n_steps=length[0], read=length[1])
    return Scored(module=run, root=STEPPED, kind=kind, choices=choices)
