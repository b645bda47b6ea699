"""The drawing of a circuit shows its edges, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlmech as rlm
from rlmech.edges.circuit import Circuit
from rlmech.edges.discover import discover_circuit
from rlmech.plot.circuit_drawing import circuit_graph
from rlmech.plot.style import NEGATIVE, POSITIVE
from tests.networks import scenes


@pytest.fixture(scope="module")
def circuit():
    policy = rlm.load("zoo:intersection-ego-attention")
    clean, corrupt = scenes(16), scenes(16, seed=1)
    return discover_circuit(policy, clean=clean, corrupt=corrupt, method="eap", n_edges=60, n_controls=0)


def lines(figure):
    return [trace for trace in figure.data if trace.mode == "lines" and trace.x[0] is not None]


def test_every_edge_of_the_circuit_is_drawn_once(circuit):
    drawn = sum(sum(x is None for x in trace.x) for trace in lines(circuit_graph(circuit)))
    assert drawn == len(circuit.kept)


def test_edges_run_from_left_to_right_and_end_at_units(circuit):
    figure = circuit_graph(circuit)
    units = next(trace for trace in figure.data if trace.mode == "markers+text")
    places = set(zip(units.x, units.y, strict=True))
    assert len(places) == len(circuit.nodes)
    for trace in lines(figure):
        ends = [i for i, x in enumerate(trace.x) if x is None]
        for start, end in zip([0, *(i + 1 for i in ends[:-1])], ends, strict=True):
            assert trace.x[start] < trace.x[end - 1]
            for i in (start, end - 1):
                assert min(abs(trace.x[i] - x) + abs(trace.y[i] - y) for x, y in places) < 1e-9


def test_colour_is_the_sign_and_width_the_score(circuit):
    effect, score = circuit.dataset["effect"].values, circuit.dataset["score"].values
    kept = list(circuit.kept)
    by_colour = {
        colour: sum(sum(x is None for x in t.x) for t in lines(circuit_graph(circuit)) if t.line.color == colour)
        for colour in (POSITIVE, NEGATIVE)
    }
    assert by_colour == {POSITIVE: int((effect[kept] <= 0).sum()), NEGATIVE: int((effect[kept] > 0).sum())}
    widest = max(lines(circuit_graph(circuit)), key=lambda trace: trace.line.width)
    assert sum(x is None for x in widest.x) <= (score[kept] >= score[kept].max() * 5 / 6 - 1e-12).sum()


def test_labels_are_the_specs_names_and_the_title_says_how_faithful_it_is(circuit):
    figure = circuit_graph(circuit)
    units = next(trace for trace in figure.data if trace.mode == "markers+text")
    assert any("vehicle_" in text for text in units.text)
    trustworthy = circuit.dataset.attrs["denominator_trustworthy"]
    assert f"{len(circuit.kept)} of" in figure.layout.title.text
    assert ("faithfulness" if trustworthy else "error") in figure.layout.title.text
    assert circuit_graph(circuit, title="Mine").layout.title.text == "Mine"


def test_an_empty_circuit_is_an_empty_drawing():
    torch.manual_seed(0)
    policy = rlm.HookedPolicy(torch.nn.Linear(3, 2), torch.rand(2, 3))
    found = discover_circuit(policy, clean=torch.rand(8, 3), corrupt=torch.rand(8, 3), threshold=1e9, n_controls=2)
    assert found.kept == ()
    assert isinstance(found, Circuit)
    assert float(found.dataset["faithfulness"]) == 0
    assert not lines(circuit_graph(found))
    assert np.isnan(found.dataset["minimality"]).all()
