"""A compiled program as a policy of known circuit: tokens are the observation, the answer is the action."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float
from torch import Tensor

from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError, nearest
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.testbed.known import KnownPolicy
from rlmech.testbed.programs.circuit import Units
from rlmech.testbed.programs.compiler import compile_program, plan
from rlmech.testbed.programs.language import Positions, Tokens, Variable, gather, lookup, same
from rlmech.testbed.programs.listing import PROGRAMS, Program, select
from rlmech.testbed.programs.network import ProgramNetwork

_POOL = 4096
"""Sequences that pairs are drawn from, where there are more."""


def known_program(name: str, *, n_pairs: int = 32, seed: int = 0) -> KnownPolicy:
    """A program of RASP as a policy: small attention and look-up layers whose weights are written from it.

        action = what the program gives at one position (1 for it, 0 for all others)

    The network computes the program exactly, for every sequence and at every position. Units are the tokens, q, k, v
    and z of each head, the neurons of each table, and the scores. Its circuit are the edges on a way from the tokens to
    the scores: without the others nothing changes, and without any of them some answer does (`prove_circuit`). A
    head and a table more, which compare each token with the next one, lead nowhere. What depends on positions alone is
    the same in every run, and no edge of a circuit that is defined by exchanges between runs.

    Args:
        name: One of `PROGRAMS`.
        n_pairs: Pairs of sequences with different answers, all answers as often as they can be.
        seed: Of the pairs.

    Returns:
        No answers of single experiments; `better` and `worse` are None, because they differ from pair to pair.

    Raises:
        ConfigError: No such program, or no pairs.

    Source:
        Weiss et al. 2021, *Thinking Like Transformers*, arXiv 2106.06981 (the language); Lindner et al. 2023, *Tracr*,
        arXiv 2301.05062 (programs as known circuits). The weights are built by rules of our own.

    Example:
        >>> import rlmech as rlm
        >>> known = rlm.testbed.known_program("histogram")
        >>> program = rlm.testbed.PROGRAMS["histogram"]
        >>> best = int(known.policy(program.encode("abcaa")).argmax())
        >>> known.policy.spec.actions[best], program.run("abcaa")[-1]
        ('3', '3')
    """
    if name not in PROGRAMS:
        close = nearest(name, PROGRAMS)
        raise ConfigError(
            f"There is no program {name!r}.",
            given=repr(name),
            expected=f"one of {', '.join(map(repr, PROGRAMS))}",
            fix=f"did you mean {close[0]!r}?" if close else "rlm.testbed.PROGRAMS lists them",
        )
    if n_pairs < 1:
        raise ConfigError("A circuit is tried on pairs.", given=f"n_pairs={n_pairs}", expected="1 or more", fix="32")
    program = PROGRAMS[name]
    network, units, output = compiled(program)
    clean, corrupt = _pairs(program, n_pairs=n_pairs, seed=seed)
    spec = PolicySpec(
        entities=("start", *(f"position_{place}" for place in range(1, 1 + program.length))),
        features=tuple(FeatureSpec(name=f"token_{token}") for token in ("start", *program.vocabulary)),
        actions=tuple(map(str, output.values)),
    )
    return KnownPolicy(
        policy=HookedPolicy(network, clean[:3], spec=spec),
        clean=clean,
        corrupt=corrupt,
        better=None,
        worse=None,
        equations=tuple(units.equations),
        edges=units.circuit(),
        answers={},
        description=f"At position {program.asked} of {program.length}: {program.description}.",
    )


def compiled(program: Program) -> tuple[ProgramNetwork, Units, Variable]:
    """A program's network, the equations of its units, and its output."""
    tokens = Tokens(values=program.vocabulary)
    positions = Positions(values=tuple(range(1, program.length + 1)))
    output = program.write(tokens, positions)
    layout = plan(tokens, positions, [output, _idle(tokens, positions)])
    units = Units(layout, positions)
    units.add_scores(output, asked=program.asked)
    return compile_program(layout, tokens, positions, output, asked=program.asked), units, output


def _idle(tokens: Tokens, positions: Positions) -> Variable:
    """Whether the next token is the same: computed, and read by nothing."""
    following = gather(select(positions, positions, lambda q, k: int(k == q + 1)), tokens)
    return lookup(lambda a, b: same(a, b), following, tokens)


def _pairs(
    program: Program, *, n_pairs: int, seed: int
) -> tuple[Float[Tensor, "pair entity feature"], Float[Tensor, "pair entity feature"]]:
    """Sequences with different answers: an answer is drawn first, then a sequence that has it."""
    generator = np.random.default_rng(seed)
    words, n = program.vocabulary, program.length
    if len(words) ** n <= _POOL:
        pool = list(itertools.product(words, repeat=n))
    else:
        pool = [tuple(words[i] for i in row) for row in generator.integers(len(words), size=(_POOL, n))]
    by_answer: dict[str, list[tuple[str, ...]]] = {}
    for sequence in pool:
        by_answer.setdefault(program.run(sequence)[program.asked - 1], []).append(sequence)
    answers = sorted(by_answer)
    drawn: list[list[tuple[str, ...]]] = []
    for _ in range(n_pairs):
        chosen = generator.choice(len(answers), size=2, replace=False)
        drawn.append([by_answer[answers[i]][generator.integers(len(by_answer[answers[i]]))] for i in chosen])
    return tuple(program.encode(*(pair[side] for pair in drawn)) for side in (0, 1))  # type: ignore[return-value]
