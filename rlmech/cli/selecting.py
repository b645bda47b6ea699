"""From `--when "ttc < 2 and action == 'SLOWER'"` to a condition: on a recording's steps, or on moments of an episode.

Comparisons joined by `and`, `or` and `not`, of columns of the step table and of numbers of the observation, by place or
by name: `observation[2] > 0.1`, `observation["vehicle_1", "x"] < 0.2`. Actions go by number or by name. The text is
parsed as Python and read piece by piece: nothing in it is called. What is not a number (a time to collision where no
vehicle is ahead) meets no comparison.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rlmech.episodes.recording import Recording
    from rlmech.episodes.when import Moment, When
    from rlmech.spec import PolicySpec

EXAMPLE = 'e.g. --when "ttc < 2 and action == \'SLOWER\'" or --when "step >= 10 and observation[2] > 0.1"'
Steps = Annotated[str, typer.Option("--when", help="Which steps, e.g. 'step >= 10 and action == 0'; all by default.")]
Acting = Annotated[str, typer.Option("--when", help="When the edits act, e.g. 'ttc < 3'; at every step by default.")]
Column = Callable[[str], Any]
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_ACTIONS = ("action", "previous_action")
_MOMENT = ("step", "seed", "action", "previous_action", "distance", "ttc")


def select_steps(recording: Recording, when: str, *, spec: PolicySpec, option: str = "--when") -> Recording:
    """The steps of a recording that meet a condition; all of them where none is given.

    Args:
        recording: The episodes.
        when: The condition as typed, or nothing.
        spec: What the policy's observations and actions are called.
        option: The option that it was typed as.

    Raises:
        ConfigError: It cannot be read, names no column, or no step meets it.
    """
    if not when:
        return recording
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    condition, steps = Condition(when, spec=spec, option=option), recording.steps

    def column(name: str) -> Any:
        if name == "observation":
            return np.asarray(recording.observations)
        if name not in steps.columns:
            condition.refuse(f"There is no column {name!r} in the steps.", expected=", ".join(map(str, steps.columns)))
        return steps[name].to_numpy()

    met = np.broadcast_to(np.asarray(condition.holds(column), dtype=bool), len(steps))
    if not met.any():
        condition.refuse("No recorded step meets the condition.", expected=f"some of the {len(steps)} steps that do")
    stride = int(steps["step"].max()) + 1
    keys = steps["episode"].to_numpy()[met] * stride + steps["step"].to_numpy()[met]
    return recording.where((pc.field("episode") * stride + pc.field("step")).isin(pa.array(keys)))


def observed(recording: Recording, place: str, *, spec: PolicySpec) -> Any:
    """A number of the observation at every step, e.g. of `observation[2]`.

    Raises:
        ConfigError: It is no place of the observation.
    """
    import numpy as np

    return Condition(place, spec=spec, option="--target").value(lambda _: np.asarray(recording.observations))


def acting_when(when: str, *, spec: PolicySpec) -> When | None:
    """A condition on the moment in which the policy decides; None where none is given.

    Raises:
        ConfigError: It cannot be read; that a moment has no such number is told when the first one is there.
    """
    if not when:
        return None
    import numpy as np

    from rlmech.episodes.when import When

    condition = Condition(when, spec=spec)

    def holds(moment: Moment) -> bool:
        def column(name: str) -> Any:
            if name == "observation":
                return np.asarray(moment.observation)[None]
            if name in _MOMENT:
                value = getattr(moment, name)
                return np.asarray(np.nan if value is None else value)
            if name not in moment.measured:
                known = ", ".join((*_MOMENT, *map(str, moment.measured)))
                condition.refuse(f"There is no {name!r} to tell when a policy decides.", expected=known)
            return np.asarray(moment.measured[name])

        return bool(np.all(condition.holds(column)))

    return When(holds, when)


@dataclass(frozen=True, slots=True, init=False)
class Condition:
    """A condition as typed, parsed.

    Raises:
        ConfigError: It is no comparison of columns and numbers.
    """

    text: str
    spec: PolicySpec
    option: str
    tree: ast.expr

    def __init__(self, text: str, *, spec: PolicySpec, option: str = "--when") -> None:
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "option", option)
        try:
            object.__setattr__(self, "tree", ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, ValueError):
            self.refuse("The condition cannot be read.")

    def holds(self, column: Column) -> Any:
        """Where it holds, given the values of columns by name."""
        return self._truth(self.tree, column)

    def value(self, column: Column) -> Any:
        """Its value, where it is no comparison but a column or a number of the observation."""
        return self._value(self.tree, column, is_action=False)

    def _truth(self, node: ast.expr, column: Column) -> Any:
        import numpy as np

        match node:
            case ast.BoolOp(op=op, values=values):
                joined = np.logical_and if isinstance(op, ast.And) else np.logical_or
                found = self._truth(values[0], column)
                for one in values[1:]:
                    found = joined(found, self._truth(one, column))
                return found
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return np.logical_not(self._truth(operand, column))
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                sides = [left, *comparators]
                found: Any = np.ones(())  # true
                for before, op, after in zip(sides, ops, comparators, strict=False):
                    found = np.logical_and(found, self._compared(before, op, after, column))
                return found
            case ast.Name(id=name):
                return np.asarray(column(name), dtype=bool)
            case _:
                self.refuse("The condition holds something that is no comparison.", part=node)

    def _compared(self, left: ast.expr, op: ast.cmpop, right: ast.expr, column: Column) -> Any:
        import numpy as np

        is_action = any(isinstance(side, ast.Name) and side.id in _ACTIONS for side in (left, right))
        one = self._value(left, column, is_action=is_action)
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple | ast.Set):
                self.refuse("What stands behind `in` is no list.", part=right)
            each = [self._value(item, column, is_action=is_action) for item in right.elts]
            among = np.isin(one, each)
            return among if isinstance(op, ast.In) else np.logical_not(among)
        compare = _COMPARISONS.get(type(op))
        if compare is None:
            self.refuse("The condition compares in a way that is not known.")
        other = self._value(right, column, is_action=is_action)
        try:
            return compare(one, other)
        except TypeError:
            self.refuse("The condition compares what cannot be compared.")

    def _value(self, node: ast.expr, column: Column, *, is_action: bool) -> Any:
        match node:
            case ast.Constant(value=str() as name) if is_action:
                return self._named("action", name)
            case ast.Constant(value=bool() | int() | float() | str() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.Name(id=name):
                return column(name)
            case ast.Subscript(value=ast.Name(id="observation"), slice=place):
                return self._observed(column("observation"), place)
            case _:
                self.refuse("The condition holds something that is neither a column nor a value.", part=node)

    def _observed(self, observations: Any, place: ast.expr) -> Any:
        parts = list(place.elts) if isinstance(place, ast.Tuple) else [place]
        axes: Sequence[str] = ("feature",) if len(parts) == 1 else ("entity", "feature")
        numbers = [
            self._named(axis, part.value) if isinstance(part, ast.Constant) else -1
            for axis, part in zip((*axes, *["feature"] * len(parts)), parts, strict=False)
        ]
        sizes = observations.shape[1:]
        if len(numbers) != len(sizes) or any(not 0 <= n < size for n, size in zip(numbers, sizes, strict=True)):
            self.refuse("The observation has no such number.", expected=f"{len(sizes)} places, below {list(sizes)}")
        return observations[(slice(None), *numbers)]

    def _named(self, axis: Any, value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        names = self.spec.names(axis)
        if value not in names:
            self.refuse(f"There is no {axis} {value!r}.", expected=", ".join(names) or f"the {axis}'s number")
        return names.index(value)

    def refuse(self, problem: str, *, expected: str | None = None, part: ast.expr | None = None) -> NoReturn:
        """Say what is wrong with it.

        Raises:
            ConfigError: Always.
        """
        from rlmech.errors import ConfigError

        raise ConfigError(
            problem,
            given=f"{self.option} {self.text!r}" + ("" if part is None else f", in it {ast.unparse(part)!r}"),
            expected=expected or "comparisons of columns with values, joined by and, or, not",
            fix=f"e.g. {self.option} \"ttc < 2 and action == 'SLOWER'\" or {self.option} 'observation[2] > 0.1'",
        )
