"""Several choices at once (MultiDiscrete, MultiBinary): scores `[batch choice action]`.

A network gives them side by side, `[batch sum]`, as a list, or one on top of the other. Choices with fewer actions than
the others are filled up with -inf, which counts as masked everywhere. A bit is a choice between 0 and 1, whose scores
are 0 and its logit, or a logit each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.errors import ConfigError, MetricError, SiteError

if TYPE_CHECKING:
    from gymnasium import spaces

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """How many actions each choice has.

    Attributes:
        sizes: Number of actions of each choice.
        binary: Whether each choice is a bit, which may have one logit.
    """

    sizes: tuple[int, ...]
    binary: bool = False

    @classmethod
    def of_space(cls, space: spaces.Space | None) -> Choices | None:
        """The choices of an action space; None where there is one choice or a continuous action."""
        if space is None:
            return None
        from gymnasium import spaces

        if isinstance(space, spaces.MultiDiscrete):
            return cls(sizes=tuple(int(n) for n in space.nvec.reshape(-1)))
        if isinstance(space, spaces.MultiBinary):
            return cls(sizes=(2,) * int(torch.tensor(space.shape).prod()), binary=True)
        return None

    def space(self, choice: int) -> spaces.Space:
        """The action space of one choice alone."""
        from gymnasium import spaces

        return spaces.Discrete(self.sizes[choice])

    def index(self, choice: int | str, names: Sequence[str]) -> int:
        """The number of a choice that is given by name or number.

        Raises:
            SiteError: There is no such choice.
        """
        if isinstance(choice, str) and choice in names:
            return list(names).index(choice)
        if isinstance(choice, int) and 0 <= choice < len(self.sizes):
            return choice
        raise SiteError(
            f"There is no choice {choice!r}.",
            given=repr(choice),
            expected=f"a number from 0 to {len(self.sizes) - 1}{f', or one of {list(names)}' if names else ''}",
            fix="policy.spec.choices lists their names, policy.choices.sizes how many actions each has",
        )

    def several(self, what: str, names: Sequence[str]) -> MetricError:
        """The error for what is about one choice alone.

        Args:
            what: It, as the beginning of a sentence.
            names: Names of the choices; empty for none.
        """
        return MetricError(
            f"{what} is about one choice, and the policy makes {len(self.sizes)} at once.",
            given="scores [batch choice action]",
            expected=f"one of them: {', '.join(map(repr, names or range(len(self.sizes))))}",
            fix=f"policy.choice({(names or (0,))[0]!r}) is that one alone, and every analysis takes it",
        )

    def check(self, shapes: Sequence[Shape]) -> None:
        """Check that scores of these shapes, without their batch axis, are of these choices.

        Raises:
            ConfigError: They are not.
        """
        equal = len(set(self.sizes)) == 1
        flat = len(self.sizes) if self.binary else sum(self.sizes)
        fits = (
            list(shapes) in ([(flat,)], [(sum(self.sizes),)])
            or (equal and list(shapes) == [(len(self.sizes), self.sizes[0])])
            or (not self.binary and list(shapes) == [(size,) for size in self.sizes])
        )
        if not fits:
            shown = ", ".join(f"[batch {' '.join(map(str, shape))}]" for shape in shapes)
            stacked = f", or [batch {len(self.sizes)} {self.sizes[0]}]" if equal else ""
            raise ConfigError(
                "The scores are not those of the action space's choices.",
                given=f"scores {shown}, for choices of {list(self.sizes)} actions",
                expected=f"[batch {flat}]{stacked}, or one output for each choice",
                fix="say which outputs they are: scores=[0, 1], or a function of the output",
            )

    def joined(self, parts: Sequence[Tensor]) -> Float[Tensor, "batch choice action"]:
        """The scores of all choices, one row each."""
        first = parts[0]
        if len(parts) == 1 and first.ndim == 3:
            return first
        if self.binary and first.shape[-1] == len(self.sizes):
            return torch.stack((torch.zeros_like(first), first), dim=-1)
        if len(set(self.sizes)) == 1:
            return (
                first.unflatten(-1, (len(self.sizes), self.sizes[0])) if len(parts) == 1 else torch.stack([*parts], 1)
            )
        widest = max(self.sizes)
        rows = first.split(self.sizes, dim=-1) if len(parts) == 1 else parts
        filled = [torch.nn.functional.pad(row, (0, widest - row.shape[-1]), value=-torch.inf) for row in rows]
        return torch.stack(filled, dim=1)

    def one(self, parts: Sequence[Tensor], choice: int) -> Float[Tensor, "batch action"]:
        """The scores of one choice alone."""
        if len(parts) > 1:
            return parts[choice]
        if parts[0].ndim == 3 or self.binary:
            return self.joined(parts)[:, choice]
        start = sum(self.sizes[:choice])
        return parts[0][:, start : start + self.sizes[choice]]
