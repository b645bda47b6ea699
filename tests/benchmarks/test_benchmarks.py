"""The measurements compare like with like, and say what they compared."""

import json

import pytest
import torch
from torch import nn

from benchmarks import forward, startup, sweeps, tables
from benchmarks.__main__ import main
from benchmarks.clock import interleave, ratios
from benchmarks.contenders import PEERS, absent_peers
from benchmarks.networks import NETWORKS, observations, raw_network, rewritten


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("point", [None, nn.Identity])
def test_rewritten_networks_share_the_weights_and_compute_the_same(name, point):
    raw, obs = raw_network(name), observations(name, 5)
    network = rewritten(raw, point)
    torch.testing.assert_close(network(obs), raw(obs), atol=1e-6, rtol=1e-6)
    assert len(network.site_paths) == {"mlp": 5, "ego_attention": 21}[name]
    assert {id(p) for p in network.parameters()} == {id(p) for p in raw.parameters()}


def test_ratios_are_taken_within_a_round():
    seconds = {
        "raw": [1.0, 2.0, 4.0],
        "tool": [2.0, 4.0, 8.0],
    }  # the machine slows down; the tool stays at twice the time
    found = ratios(seconds, reference="raw")["tool"]
    assert (found.median, found.low, found.high) == (2, 2, 2)
    assert found.microseconds == pytest.approx(4e6)


def test_every_contender_runs_in_every_round():
    runs = {"a": 0, "b": 0}

    def call(name):
        runs[name] += 1

    seconds = interleave({name: lambda name=name: call(name) for name in runs}, rounds=4, slice_s=0.0)
    assert [len(own) for own in seconds.values()] == [4, 4]
    assert runs["a"] == runs["b"]


@pytest.mark.slow
def test_the_forward_table_names_every_tool_its_aim_and_what_is_absent(tmp_path):
    rows = list(forward.measure(rounds=2, batches=(1,)))
    tools = {row["tool"] for row in rows}
    assert tools == {"raw", "rlmech", "forward hooks"} | set(PEERS) - set(absent_peers())
    ours = [row for row in rows if row["tool"] == "rlmech"]
    assert {(row["network"], row["mode"]) for row in ours} == {(n, m) for n in NETWORKS for m in forward.MODES}
    assert all(row["target"] for row in ours)
    table = tables.forward_table(rows)
    data, page = tables.save("forward", rows=rows, table=table, where=tmp_path)
    assert json.loads(data.read_text())["rows"] == rows
    assert table in page.read_text()
    assert all(peer in page.read_text() for peer in absent_peers())


def test_wrapping_is_timed_for_every_network():
    rows = list(startup.measure_wrap(rounds=2))
    assert [row["what"] for row in rows] == [f"wrap {name}" for name in NETWORKS]
    assert "wrap mlp" in tables.startup_table(rows)


def test_an_unknown_suite_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", "forwards"])
    with pytest.raises(SystemExit):
        main()
    assert "no suite 'forwards'; there are forward, startup" in capsys.readouterr().err


@pytest.mark.parametrize("name", NETWORKS)
def test_the_jobs_of_a_sweep_are_the_same_for_rlmech_and_for_hooks(name):
    raw, jobs = raw_network(name), sweeps.jobs_of(name)[::23]
    clean, corrupt = observations(name, 3), observations(name, 4)[:3]
    with torch.no_grad():
        ours = sweeps.contenders(name, raw, jobs, clean, corrupt, every=False)["rlmech"]()
        network = rewritten(raw)
        names = [job for job, _ in jobs]
        source = sweeps.record(network, names, clean)
        for row, (site, position) in zip(ours, jobs, strict=True):
            module = network.get_submodule(network.site_paths[site])

            def replace(_, __, value, site=site, position=position):
                return sweeps.set_part(site, value, position, source[site])

            with module.register_forward_hook(replace):
                torch.testing.assert_close(sweeps.gap(network(corrupt)).double(), row, atol=1e-5, rtol=1e-5)


def test_the_sweep_table_names_tools_aims_and_the_floor():
    rows = [
        {"network": "mlp", "pairs": 1, "jobs": 2, "tool": tool, "times": times, "times_low": 1.0, "times_high": 2.0,
         "milliseconds": 0.5, "rows_per_second": 4e6, "times_floor": 3.0, "aim": aim}
        for tool, times, aim in (("rlmech", 1.0, None), ("TransformerLens", 90.0, 100))
    ]  # fmt: skip
    table = tables.sweep_table(rows)
    assert "0.50 ms, 4.00 M rows/s, 3.0 x floor" in table
    assert "**90.0 x [1.0 2.0]** (< 100)" in table
