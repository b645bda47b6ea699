"""The programs: each in plain Python, and written as heads and tables.

Positions count from 1. A function takes the tokens of a sequence and gives the output at each position; that of one
position, `asked`, is what the compiled policy does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.errors import ObservationError
from rlmech.testbed.programs.language import (
    NONE,
    Average,
    Match,
    Positions,
    Selector,
    Tokens,
    Value,
    Variable,
    count,
    gather,
    levels,
    lookup,
    same,
)


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program on sequences of tokens.

    Attributes:
        name: Its name.
        description: What it gives at each position.
        vocabulary: The tokens.
        length: How many tokens a sequence has.
        asked: The position whose output the policy's action is, from 1.
        function: The outputs at all positions, in plain Python.
        write: The same as heads and tables.

    Example:
        >>> from rlmech.testbed import PROGRAMS
        >>> PROGRAMS["sort"].run("cabca")
        ('a', 'a', 'b', 'c', 'c')
    """

    name: str
    description: str
    vocabulary: tuple[str, ...]
    length: int
    asked: int
    function: Callable[[Sequence[str]], Sequence[Value]]
    write: Callable[[Tokens, Positions], Variable]

    def run(self, tokens: Sequence[str]) -> tuple[str, ...]:
        """The outputs at all positions, by plain Python."""
        self._check(tokens)
        return tuple(str(value) for value in self.function(tokens))

    def encode(self, *sequences: Sequence[str]) -> Float[Tensor, "batch entity feature"]:
        """Sequences as observations: rows are positions, one-hot over the start token and the vocabulary.

        Raises:
            ObservationError: A token that is not in the vocabulary, or too many or too few of them.

        Example:
            >>> from rlmech.testbed import PROGRAMS
            >>> PROGRAMS["reverse"].encode("abcab").shape
            torch.Size([1, 6, 4])
        """
        found = torch.zeros(len(sequences), 1 + self.length, 1 + len(self.vocabulary), dtype=torch.float64)
        found[:, 0, 0] = 1
        for row, tokens in enumerate(sequences):
            self._check(tokens)
            for place, token in enumerate(tokens):
                found[row, 1 + place, 1 + self.vocabulary.index(token)] = 1
        return found

    def _check(self, tokens: Sequence[str]) -> None:
        if len(tokens) != self.length or set(tokens) - set(self.vocabulary):
            raise ObservationError(
                f"The program {self.name!r} does not take this sequence.",
                given=repr(tokens),
                expected=f"{self.length} tokens, each one of {', '.join(map(repr, self.vocabulary))}",
                fix=f"{''.join(self.vocabulary * self.length)[: self.length]!r}",
            )


def select(query: Variable | None, key: Variable, score: Callable[[Any, Any], int] = same) -> Selector:
    """The positions where a condition holds."""
    return Selector(parts=(Match(query=query, key=key, score=score),), least=1)


def _both(*parts: tuple[Variable | None, Variable, Callable[[Any, Any], int]]) -> Selector:
    """The positions where all of some conditions hold."""
    return Selector(parts=tuple(Match(query=q, key=k, score=score) for q, k, score in parts), least=len(parts))


def _before(query: int, key: int) -> int:
    return int(key < query)


def _so_far(query: int, key: int) -> int:
    return int(key <= query)


def _all(_: None, key: int) -> int:
    return 1


def _share(selector: Selector, value: Variable, *wanted: Value, length: int) -> tuple[Average, tuple[float, ...]]:
    """The share of some values among the selected positions, and all that it can be."""
    shares = {Fraction(k, n) for n in range(1, length + 1) for k in range(n + 1)}
    return Average(selector=selector, value=value, weights=dict.fromkeys(wanted, 1.0)), tuple(map(float, shares))


def _any(selector: Selector, value: Variable, *wanted: Value, length: int, yes: str, no: str) -> Variable:
    """Whether one of some values is among the selected positions."""
    share, inputs = _share(selector, value, *wanted, length=length)
    return levels(share, inputs=inputs, function=lambda x: yes if x > 0 else no)


def _previous(tokens: Tokens, positions: Positions) -> Variable:
    return gather(select(positions, positions, lambda q, k: int(k == q - 1)), tokens)


def _histogram(tokens: Tokens, positions: Positions) -> Variable:
    return count(select(tokens, tokens), most=len(positions.values), function=lambda n: n)


def _rank(key: Variable, positions: Positions, *, ahead: Callable[[Any, Any], int]) -> Variable:
    """The place of a position when they are ordered by a variable, from 1; the earlier first where it is equal."""
    most = len(positions.values)
    in_front = count(select(key, key, ahead), most=most, function=lambda n: n)
    level = count(_both((key, key, same), (positions, positions, _before)), most=most, function=lambda n: n)
    return lookup(lambda a, b: min(a + b + 1, most), in_front, level)


def _sort(tokens: Tokens, positions: Positions) -> Variable:
    rank = _rank(tokens, positions, ahead=lambda q, k: int(k < q))
    return gather(select(positions, rank), tokens)


def _most_frequent(tokens: Tokens, positions: Positions) -> Variable:
    rank = _rank(_histogram(tokens, positions), positions, ahead=lambda q, k: int(k > q))
    return gather(select(None, rank, lambda _, k: int(k == 1)), tokens)


def _double_histogram(tokens: Tokens, positions: Positions) -> Variable:
    own = _histogram(tokens, positions)
    alike = count(select(own, own), most=len(positions.values), function=lambda n: n)
    return lookup(lambda n, each: n // each if each else 0, alike, own)


def _fractions(tokens: Tokens, positions: Positions) -> Variable:
    share, inputs = _share(select(positions, positions, _so_far), tokens, "x", length=len(positions.values))
    return levels(share, inputs=inputs, function=lambda x: str(Fraction(x).limit_denominator(20)))


def _balance(tokens: Tokens, positions: Positions, opening: str, closing: str) -> Variable:
    """Whether parentheses of one kind are balanced so far, and never closed before they were opened."""
    n = len(positions.values)
    so_far = select(positions, positions, _so_far)
    inputs = tuple(float(one) for one in {Fraction(k, m) for m in range(1, n + 1) for k in range(-m, m + 1)})
    depth = levels(
        Average(selector=so_far, value=tokens, weights={opening: 1.0, closing: -1.0}),
        inputs=inputs,
        function=lambda x: "below" if x < 0 else "level" if x == 0 else "above",
    )
    broken = _any(so_far, depth, "below", length=n, yes="ever", no="never")
    return lookup(lambda d, b: "balanced" if (d, b) == ("level", "never") else "not", depth, broken)


def _two_balances(tokens: Tokens, positions: Positions) -> Variable:
    round_, square = (_balance(tokens, positions, *pair) for pair in ("()", "[]"))
    return lookup(lambda a, b: "balanced" if (a, b) == ("balanced", "balanced") else "not", round_, square)


def _is_balanced(tokens: Sequence[str], *pairs: str) -> list[Value]:
    found: list[Value] = []
    for end in range(1, len(tokens) + 1):
        well = True
        for opening, closing in pairs:
            depths = [tokens[:i].count(opening) - tokens[:i].count(closing) for i in range(1, end + 1)]
            well &= depths[-1] == 0 and min(depths) == 0
        found.append("balanced" if well else "not")
    return found


def _parity(tokens: Tokens, positions: Positions) -> Variable:
    n = len(positions.values)
    share, _ = _share(select(None, positions, _all), tokens, "1", length=n)
    exact = tuple(k / n for k in range(n + 1))
    return levels(share, inputs=exact, function=lambda x: ("even", "odd")[round(x * n) % 2])


def _remainder(tokens: Tokens, positions: Positions) -> Variable:
    n = len(positions.values)
    mean = Average(selector=select(None, positions, _all), value=tokens, weights={"1": 1.0, "2": 2.0})
    return levels(mean, inputs=tuple(k / n for k in range(2 * n + 1)), function=lambda x: str(round(x * n) % 3))


def _majority(tokens: Tokens, positions: Positions) -> Variable:
    n = len(positions.values)
    share, _ = _share(select(None, positions, _all), tokens, "x", length=n)
    return levels(share, inputs=tuple(k / n for k in range(n + 1)), function=lambda x: "most" if x > 0.5 else "few")


def _length(tokens: Tokens, positions: Positions) -> Variable:
    return count(select(None, tokens, lambda _, k: int(k != "_")), most=len(positions.values), function=lambda n: n)


def _latest(tokens: Tokens, positions: Positions, *parts: Match, of: Variable) -> Variable:
    """What stands at the last position so far where a condition holds."""
    n = len(positions.values)
    late = Match(query=positions, key=positions, score=lambda q, k: k if k <= q else -n)
    return gather(Selector(parts=(*parts, late), least=n + 2), of)


def _induction(tokens: Tokens, positions: Positions) -> Variable:
    n = len(positions.values)
    match = Match(query=tokens, key=_previous(tokens, positions), score=lambda q, k: (n + 1) * (q == k))
    return _latest(tokens, positions, match, of=tokens)


def _continue(tokens: Sequence[str]) -> list[Value]:
    found: list[Value] = []
    for here, token in enumerate(tokens):
        earlier = [i for i in range(1, here + 1) if tokens[i - 1] == token]
        found.append(tokens[earlier[-1]] if earlier else NONE)
    return found


def _carry(tokens: Tokens, positions: Positions) -> Variable:
    n = len(positions.values)
    shown = Match(query=None, key=tokens, score=lambda _, k: (n + 1) * (k != "_"))
    return _latest(tokens, positions, shown, of=tokens)


def _carried(tokens: Sequence[str]) -> list[Value]:
    shown = [[token for token in tokens[: i + 1] if token != "_"] for i in range(len(tokens))]
    return [so_far[-1] if so_far else NONE for so_far in shown]


def _news(tokens: Tokens, positions: Positions) -> Variable:
    earlier = _both((tokens, tokens, same), (positions, positions, _before))
    return count(earlier, most=len(positions.values), function=lambda n: "seen" if n else "new")


def _distinct(tokens: Tokens, positions: Positions) -> Variable:
    new = select(None, _news(tokens, positions), lambda _, k: int(k == "new"))
    return count(new, most=len(positions.values), function=lambda n: n)


def _repeats(tokens: Tokens, positions: Positions) -> Variable:
    news = _news(tokens, positions)
    return _any(select(None, positions, _all), news, "seen", length=len(positions.values), yes="twice", no="once")


def _maximum(tokens: Tokens, positions: Positions) -> Variable:
    return gather(Selector(parts=(Match(query=None, key=tokens, score=lambda _, k: ord(k) - 96),), least=1), tokens)


def _is_sorted(tokens: Tokens, positions: Positions) -> Variable:
    falls = lookup(
        lambda before, now: "falls" if before != NONE and before > now else "holds",
        _previous(tokens, positions),
        tokens,
    )
    everywhere = select(None, positions, _all)
    return _any(everywhere, falls, "falls", length=len(positions.values), yes="unsorted", no="sorted")


def _contains(tokens: Tokens, positions: Positions) -> Variable:
    here = lambda before, now: "here" if (before, now) == ("a", "b") else "no"  # noqa: E731
    found = lookup(here, _previous(tokens, positions), tokens)
    return _any(select(None, positions, _all), found, "here", length=len(positions.values), yes="found", no="absent")


def _reverse(tokens: Tokens, positions: Positions) -> Variable:
    n = len(positions.values)
    return gather(select(positions, positions, lambda q, k: int(q + k == n + 1)), tokens)


def _palindrome(tokens: Tokens, positions: Positions) -> Variable:
    match = lookup(lambda a, b: "same" if a == b else "other", _reverse(tokens, positions), tokens)
    everywhere = select(None, positions, _all)
    return _any(everywhere, match, "other", length=len(positions.values), yes="no palindrome", no="palindrome")


def _ends(tokens: Tokens, positions: Positions) -> Variable:
    n = len(positions.values)
    first, last = (gather(select(None, positions, lambda _, k, at=at: int(k == at)), tokens) for at in (1, n))
    return lookup(lambda a, b: "same" if a == b else "other", first, last)


def _smaller(tokens: Tokens, positions: Positions) -> Variable:
    less = select(tokens, tokens, lambda q, k: int(k < q))
    return count(less, most=len(positions.values), function=lambda n: n)


def _points(token: str, place: int) -> int:
    return int(token == str(place))


def _pointer(tokens: Tokens, positions: Positions) -> Variable:
    return gather(select(tokens, positions, _points), tokens)


def _two_hops(tokens: Tokens, positions: Positions) -> Variable:
    return gather(select(_pointer(tokens, positions), positions, _points), tokens)


def _program(
    name: str,
    description: str,
    write: Callable[[Tokens, Positions], Variable],
    function: Callable[[Sequence[str]], Sequence[Value]],
    *,
    vocabulary: str = "abc",
    length: int = 5,
    asked: int = 5,
) -> tuple[str, Program]:
    made = Program(
        name=name,
        description=description,
        vocabulary=tuple(vocabulary),
        length=length,
        asked=asked,
        function=function,
        write=write,
    )
    return name, made


def _everywhere(value: Value, tokens: Sequence[str]) -> list[Value]:
    return [value] * len(tokens)


def _doubles(t: Sequence[str]) -> list[Value]:
    n = Counter(t)
    return [sum(n[other] == n[token] for other in n) for token in t]


PROGRAMS: dict[str, Program] = dict(
    (
        _program("previous token", "the token before", _previous, lambda t: [NONE, *t[:-1]]),
        _program("reverse", "the sequence backwards", _reverse, lambda t: [*t[::-1]], asked=1),
        _program("sort", "the tokens in order", _sort, sorted, asked=3),
        _program("histogram", "how often this token stands there", _histogram, lambda t: [t.count(x) for x in t]),
        _program("double histogram", "how many tokens stand there as often as this", _double_histogram, _doubles),
        _program(
            "most frequent",
            "the token that stands there most often, the earliest of several",
            _most_frequent,
            lambda t: _everywhere(Counter(t).most_common(1)[0][0], t),
        ),
        _program(
            "fraction of previous",
            "the fraction of x so far",
            _fractions,
            lambda t: [str(Fraction(t[:i].count("x"), i)) for i in range(1, len(t) + 1)],
            vocabulary="xyz",
        ),
        _program(
            "parentheses",
            "whether the parentheses so far are balanced",
            lambda t, p: _balance(t, p, "(", ")"),
            lambda t: _is_balanced(t, "()"),
            vocabulary="()x",
            length=6,
            asked=6,
        ),
        _program(
            "two parentheses",
            "whether the parentheses of two kinds so far are balanced, each by itself",
            _two_balances,
            lambda t: _is_balanced(t, "()", "[]"),
            vocabulary="()[]",
            length=6,
            asked=6,
        ),
        _program(
            "parity",
            "whether the number of 1s is even",
            _parity,
            lambda t: _everywhere(("even", "odd")[t.count("1") % 2], t),
            vocabulary="01",
        ),
        _program(
            "remainder",
            "the sum of all digits, modulo 3",
            _remainder,
            lambda t: _everywhere(str(sum(map(int, t)) % 3), t),
            vocabulary="012",
        ),
        _program(
            "majority",
            "whether more than half of the tokens are x",
            _majority,
            lambda t: _everywhere("most" if 2 * t.count("x") > len(t) else "few", t),
            vocabulary="xy",
        ),
        _program(
            "length",
            "how many tokens there are without the blanks",
            _length,
            lambda t: _everywhere(len(t) - t.count("_"), t),
            vocabulary="ab_",
        ),
        _program("induction", "what followed when this token was last seen", _induction, _continue),
        _program("carry", "the last token that is no blank", _carry, _carried, vocabulary="ab_"),
        _program(
            "first occurrence",
            "whether this token is new",
            _news,
            lambda t: ["seen" if x in t[:i] else "new" for i, x in enumerate(t)],
        ),
        _program("distinct", "how many different tokens", _distinct, lambda t: _everywhere(len(set(t)), t)),
        _program(
            "repeats",
            "whether a token stands there twice",
            _repeats,
            lambda t: _everywhere("twice" if len(set(t)) < len(t) else "once", t),
            vocabulary="abcde",
            length=4,
            asked=4,
        ),
        _program("maximum", "the largest token", _maximum, lambda t: _everywhere(max(t), t)),
        _program(
            "is sorted",
            "whether the tokens are in order",
            _is_sorted,
            lambda t: _everywhere("sorted" if sorted(t) == list(t) else "unsorted", t),
        ),
        _program(
            "contains ab",
            "whether an a is followed by a b",
            _contains,
            lambda t: _everywhere("found" if "ab" in "".join(t) else "absent", t),
        ),
        _program(
            "palindrome",
            "whether the sequence reads the same backwards",
            _palindrome,
            lambda t: _everywhere("palindrome" if list(t) == list(t)[::-1] else "no palindrome", t),
        ),
        _program(
            "equal ends",
            "whether the first token is the last one",
            _ends,
            lambda t: _everywhere("same" if t[0] == t[-1] else "other", t),
        ),
        _program("rank", "how many tokens are smaller", _smaller, lambda t: [sum(x < own for x in t) for own in t]),
        _program(
            "pointer",
            "the token at the position that this one names",
            _pointer,
            lambda t: [t[int(x) - 1] for x in t],
            vocabulary="1234",
            length=4,
            asked=4,
        ),
        _program(
            "two hops",
            "the token that the one that this names names",
            _two_hops,
            lambda t: [t[int(t[int(x) - 1]) - 1] for x in t],
            vocabulary="1234",
            length=4,
            asked=4,
        ),
    )
)
"""The programs, by name."""
