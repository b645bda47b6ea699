"""Compiled programs: the network computes what the plain function does, and the circuit is one."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech import testbed
from rlmech.core.site import read
from rlmech.errors import ConfigError, ObservationError
from rlmech.testbed.programs.opening import compiled

PROGRAMS = testbed.PROGRAMS
OPENED = ("previous token", "histogram", "sort", "parentheses", "induction", "two hops")


@cache
def opened(name: str) -> testbed.KnownPolicy:
    return testbed.known_program(name)


def sequences(name: str, *, most: int = 300) -> list[tuple[str, ...]]:
    """All sequences, or as many random ones."""
    words, n = PROGRAMS[name].vocabulary, PROGRAMS[name].length
    if len(words) ** n <= most:
        return list(itertools.product(words, repeat=n))
    drawn = np.random.default_rng(0).integers(len(words), size=(most, n))
    return [tuple(words[i] for i in row) for row in drawn]


def test_there_are_more_than_twenty_programs():
    assert len(PROGRAMS) > 20
    assert {"reverse", "sort", "histogram", "fraction of previous"} <= set(PROGRAMS)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_network_computes_the_program_at_every_position(name):
    program = PROGRAMS[name]
    network, _, output = compiled(program)
    tried = sequences(name)
    wanted = [program.run(tokens) for tokens in tried]
    actions = list(map(str, output.values))
    for position in range(1, program.length + 1):
        network.asked = position
        with torch.no_grad():
            scores = network(program.encode(*tried))
        answers = torch.tensor([actions.index(each[position - 1]) for each in wanted])
        one_hot = torch.nn.functional.one_hot(answers, len(actions)).double()
        torch.testing.assert_close(scores, one_hot, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPENED)
def test_every_unit_has_the_value_that_its_equation_gives(name):
    known = opened(name)
    _, cache = known.policy.run_with_cache(known.clean)
    for unit, value in testbed.unit_values(known, known.clean).items():
        carried = read(cache[unit.name], unit.index(known.policy.point(unit.name)))
        torch.testing.assert_close(carried.detach().reshape(value.shape), value, rtol=0, atol=1e-9, msg=str(unit))


@pytest.mark.parametrize("name", OPENED)
def test_without_other_edges_nothing_changes_and_without_any_of_the_circuit_an_answer_does(name):
    proof = testbed.prove_circuit(opened(name))
    assert proof.without_others <= 1e-9
    assert proof.unneeded == ()
    assert len(opened(name).edges) < len(opened(name).all_edges)


def test_a_circuit_without_one_of_its_edges_is_none():
    import dataclasses

    known = opened("histogram")
    edge = next(iter(sorted(known.edges, key=str)))
    assert not testbed.prove_circuit(dataclasses.replace(known, edges=known.edges - {edge})).holds
    idle = next(iter(sorted(known.all_edges - known.edges, key=str)))
    proof = testbed.prove_circuit(dataclasses.replace(known, edges=known.edges | {idle}))
    assert proof.unneeded == (idle,)


def test_pairs_have_different_answers():
    known = opened("induction")
    answers = [known.policy(obs).argmax(1) for obs in (known.clean, known.corrupt)]
    assert bool((answers[0] != answers[1]).all())


def test_the_heads_of_a_program_are_found_and_the_idle_one_with_them():
    assert {path: block.n_heads for path, block in opened("sort").policy.attention.items()} == {
        "blocks.0.attention": 3,
        "blocks.2.attention": 1,
    }


def test_the_qk_circuit_of_the_histogram_matches_equal_tokens():
    policy = opened("histogram").policy
    circuit = rlm.circuits.qk_circuit(policy, "blocks.0.attention", space="model").circuit.values
    tokens = slice(1, 4)  # behind the start token's direction
    np.testing.assert_allclose(circuit[0, tokens, tokens], 100 * np.eye(3))
    assert np.abs(circuit[0, tokens, 4:]).max() == 0


def test_the_pattern_of_the_histogram_is_even_over_equal_tokens_and_the_start():
    _, cache = opened("histogram").policy.run_with_cache(PROGRAMS["histogram"].encode("abcaa"))
    pattern = cache["blocks.0.attention.hook_pattern"][0, 0, 5]
    torch.testing.assert_close(pattern.detach(), torch.tensor([1, 1, 0, 0, 1, 1]).double() / 4, rtol=0, atol=1e-12)


def test_the_previous_token_head_attends_one_back():
    _, cache = opened("previous token").policy.run_with_cache(PROGRAMS["previous token"].encode("abcab"))
    pattern = cache["blocks.0.attention.hook_pattern"][0, 0].detach()
    assert pattern[1:].argmax(1).tolist() == [0, 1, 2, 3, 4]


def test_what_is_no_program_or_no_sequence_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'histogram'"):
        testbed.known_program("histogramm")
    with pytest.raises(ConfigError, match="tried on pairs"):
        testbed.known_program("sort", n_pairs=0)
    with pytest.raises(ObservationError, match="does not take this sequence"):
        PROGRAMS["sort"].encode("abcd")
    with pytest.raises(ObservationError, match="does not take this sequence"):
        PROGRAMS["sort"].run("abcdx")
