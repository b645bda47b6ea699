"""Patching sweeps: every job on every pair, against other tools' loops over the same jobs, one thread, same results.

Jobs: on the perceptron every neuron of both hidden layers; on ego-attention every head (and vehicle) of q, k, v and z,
every vehicle's embedding and every neuron of the output layers. Denoising; the metric is one action's score less
another's. `rlmech` is `activation_patching`, with intervals and the labelled result; `rlmech, engine alone` leaves
those out; `forward hooks` is a plain loop of PyTorch's own hooks. The floor is the multiply-adds of the cheapest exact
scheme at the machine's measured matmul rate.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import rlmech as rlm
from benchmarks.clock import interleave, ratios
from benchmarks.contenders import absent_peers
from benchmarks.networks import NETWORKS, NetworkName, observations, raw_network, rewritten
from rlmech.attribution.first_order import Estimator
from rlmech.patching.results import bind_pairs
from rlmech.patching.sweeps.sweep import run_sweep

PAIRS = (1, 16, 256, 2048)
AIM = 8
"""How many times as long as the whole call the plain loop should take."""
BETTER, WORSE = 1, 0
Jobs = list[tuple[str, tuple[int, ...]]]
"""(site of the rewritten network, position of the job)"""


def jobs_of(network: NetworkName) -> Jobs:
    if network == "mlp":
        return [(f"relu_{layer}", (j,)) for layer in range(2) for j in range(256)]
    jobs: Jobs = [(name, (h, e)) for name in "qkvz" for h in range(4) for e in range(15 if name in "kv" else 1)]
    jobs += [("ego_relu_1", (0,))] + [("others_relu_1", (e,)) for e in range(14)]
    return jobs + [(f"output_relu_{layer}", (j,)) for layer in range(2) for j in range(64)]


def site_of(network: NetworkName, name: str, position: tuple[int, ...]) -> rlm.Site:
    """The job as rlmech writes it."""
    if network == "mlp":
        return rlm.Site(f"{2 * int(name[-1]) + 1}.hook_out", neuron=position[0])
    if name in ("q", "k", "v"):
        return rlm.Site(f"attention_layer.hook_{name}", head=position[0], entity=position[1])
    if name == "z":
        return rlm.Site("attention_layer.hook_z", head=position[0])
    if name.startswith("output"):
        return rlm.Site(f"output_layer.relu_{name[-1]}.hook_out", neuron=position[0])
    return rlm.Site(f"{name.partition('_')[0]}_embedding.relu_1.hook_out", entity=position[0])


def set_part(name: str, value: Tensor, position: tuple[int, ...], source: Tensor) -> Tensor:
    """The job on the rewritten network's own layout, as a peer's user would write it."""
    value = value.clone()
    if name.startswith(("relu", "output")):
        value[:, position[0]] = source[:, position[0]]
    elif name in ("q", "k", "v", "z"):
        if value.ndim == 3:  # modules keep the heads together: [batch entity (head d_head)]
            part = slice(position[0] * 16, (position[0] + 1) * 16)
            value[:, position[1], part] = source[:, position[1], part]
        else:
            value[:, position[0], position[1]] = source[:, position[0], position[1]]
    else:
        value[:, position[0]] = source[:, position[0]]
    return value


def measure(*, rounds: int, pairs: tuple[int, ...] = PAIRS) -> Iterator[dict[str, Any]]:
    """Rows of the table, one per network, number of pairs and tool."""
    with torch.no_grad():
        rate = matmul_rate()
        for network in NETWORKS:
            raw, jobs = raw_network(network), jobs_of(network)
            for n_pairs in pairs:
                clean = observations(network, n_pairs)
                corrupt = observations(network, n_pairs + 1)[:n_pairs]
                calls = contenders(network, raw, jobs, clean, corrupt, every=n_pairs <= 256)
                few = max(2, min(rounds, 2000 // n_pairs))
                seconds = interleave(calls, rounds=few, slice_s=0.02)
                found = ratios(seconds, reference="rlmech")
                for name, ratio in found.items():
                    floor = multiply_adds(network, jobs) * n_pairs / rate
                    yield {
                        "network": network,
                        "pairs": n_pairs,
                        "jobs": len(jobs),
                        "tool": name,
                        "times": ratio.median,
                        "times_low": ratio.low,
                        "times_high": ratio.high,
                        "milliseconds": ratio.microseconds / 1e3,
                        "rows_per_second": len(jobs) * n_pairs / (ratio.microseconds / 1e6),
                        "times_floor": ratio.microseconds / 1e6 / floor,
                        "aim": AIM if name == "forward hooks" else None,
                    }


def contenders(
    network: NetworkName, raw: nn.Module, jobs: Jobs, clean: Tensor, corrupt: Tensor, *, every: bool
) -> dict[str, Callable[[], Any]]:
    """All tools that are installed, each checked to give the same [job pair]."""
    policy = rlm.HookedPolicy(raw, clean[:2] if len(clean) > 1 else clean)
    sites = [site_of(network, name, position) for name, position in jobs]
    groups = [(site,) for site in sites]
    metric = rlm.metrics.action_gap(BETTER, WORSE)
    names = list(dict.fromkeys(site.name for site in sites))

    def engine() -> Tensor:
        bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=metric)
        source = policy.run_with_cache(clean, names)[1]
        return run_sweep(policy, corrupt, groups, sources=[source], metric=bound).measured

    def whole() -> Tensor:
        result = rlm.activation_patching(policy, clean=clean, corrupt=corrupt, sites=sites, metric=metric)
        return torch.from_numpy(result["patched"].values)

    calls: dict[str, Callable[[], Any]] = {"rlmech": whole, "rlmech, engine alone": engine}
    calls["forward hooks"] = hook_loop(raw, jobs, clean, corrupt)
    absent = absent_peers()
    loops = {"TransformerLens": transformer_lens_loop, "nnsight": nnsight_loop, "pyvene": pyvene_loop}
    for tool, build in loops.items():
        if tool not in absent and (every or tool == "TransformerLens"):
            calls[tool] = build(raw, jobs, clean, corrupt)
    want = engine()
    for name, call in calls.items():
        torch.testing.assert_close(call().double(), want, atol=1e-5, rtol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    return calls


def gap(scores: Tensor) -> Tensor:
    return scores[:, BETTER] - scores[:, WORSE]


def hook_loop(raw: nn.Module, jobs: Jobs, clean: Tensor, corrupt: Tensor) -> Callable[[], Tensor]:
    """A forward pass for each job, with one forward hook attached."""
    network = rewritten(raw)
    names = list(dict.fromkeys(name for name, _ in jobs))

    def loop() -> Tensor:
        source = record(network, names, clean)
        found = []
        for name, position in jobs:

            def replace(
                _: Any, __: Any, value: Tensor, name: str = name, position: tuple[int, ...] = position
            ) -> Tensor:
                return set_part(name, value, position, source[name])

            with network.get_submodule(name).register_forward_hook(replace):
                found.append(gap(network(corrupt)))
        return torch.stack(found)

    return loop


def transformer_lens_loop(raw: nn.Module, jobs: Jobs, clean: Tensor, corrupt: Tensor) -> Callable[[], Tensor]:
    """Its own `generic_activation_patch`, one call per hook point, on the network built from its HookPoints."""
    import pandas as pd
    from transformer_lens import HookedRootModule, patching
    from transformer_lens.hook_points import HookPoint
    from transformer_lens.utilities import get_act_name

    class Hooked(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = rewritten(raw, HookPoint)
            self.cfg = SimpleNamespace(device="cpu")  # it reads one from every model
            self.setup()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    patching.tqdm = lambda rows: rows  # no progress bars in the timing
    model = Hooked().eval()
    names = list(dict.fromkeys(name for name, _ in jobs))
    aliases = {name: get_act_name(name, 0) for name in names}  # it spells every name as a language model's
    for name, alias in aliases.items():
        model.hook_dict[alias] = model.mod_dict[alias] = model.hook_dict[f"network.{model.network.site_paths[name]}"]
    tables = {
        name: pd.DataFrame([(0, *position) for own, position in jobs if own == name]).rename(columns={0: "layer"})
        for name in names
    }

    def loop() -> Tensor:
        _, cache = model.run_with_cache(clean)
        found = []
        for name in names:
            source = cache.cache_dict if hasattr(cache, "cache_dict") else cache
            source = {aliases[name]: source[f"network.{model.network.site_paths[name]}"]}

            def setter(value: Tensor, index: Any, own: Any, name: str = name) -> Tensor:
                return set_part(name, value, tuple(index[1:]), own)

            result = patching.generic_activation_patch(
                model, corrupt, source, gap, setter, name, index_df=tables[name], reduce="none"
            )
            found.append(result.values if hasattr(result, "values") else result)
        return torch.cat([torch.as_tensor(value).reshape(-1, len(corrupt)) for value in found])

    return loop


def nnsight_loop(raw: nn.Module, jobs: Jobs, clean: Tensor, corrupt: Tensor) -> Callable[[], Tensor]:
    import nnsight

    network = rewritten(raw)
    model = nnsight.NNsight(network)
    names = list(dict.fromkeys(name for name, _ in jobs))

    def loop() -> Tensor:
        source = record(network, names, clean)
        found = []
        for name, position in jobs:
            target = getattr(model, name)
            with model.trace(corrupt):
                target.output = set_part(name, target.output, position, source[name])
                scores = model.output.save()
            found.append(gap(scores))
        return torch.stack(found)

    return loop


def pyvene_loop(raw: nn.Module, jobs: Jobs, clean: Tensor, corrupt: Tensor) -> Callable[[], Tensor]:
    import pyvene

    names = list(dict.fromkeys(name for name, _ in jobs))
    chosen: dict[str, Any] = {}

    def build(name: str) -> Any:
        network = rewritten(raw)
        network.config = SimpleNamespace(hidden_size=64, to_dict=dict)  # pyvene reads one from every model

        def replace(base: Tensor, source: Tensor) -> Tensor:
            return set_part(name, base, chosen["position"], chosen["source"])

        return pyvene.IntervenableModel([{"component": f"{name}.output", "intervention": replace}], model=network)

    models, network = {name: build(name) for name in names}, rewritten(raw)

    def loop() -> Tensor:
        source = record(network, names, clean)
        found = []
        for name, position in jobs:
            chosen["position"], chosen["source"] = position, source[name]
            found.append(gap(models[name]({"x": corrupt})[1]))
        return torch.stack(found)

    return loop


def record(network: nn.Module, names: list[str], obs: Tensor) -> dict[str, Tensor]:
    """The named modules' outputs."""
    seen: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(network.site_paths[name]).register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(name, out)
        )
        for name in names
    ]
    network(obs)
    for handle in handles:
        handle.remove()
    return seen


def multiply_adds(network: NetworkName, jobs: Jobs) -> float:
    """Of the cheapest exact scheme, all jobs on one pair: ranks where they are low, one softmax row, folded tails.

    No-op rows are counted; leaving them out can go below this floor.
    """
    if network == "mlp":
        return 256 * (256 + 256 * 5) + 256 * 5
    tail = 64 * 64 + 64 * 3
    head = 16 * 64 + tail
    work = {"z": head, "q": head, "k": 16 + 15 * 16 + head, "v": 16 + head, "ego_relu_1": 210_000}
    work |= {"others_relu_1": 4 * (16 + 15 * 16) + 64 * 64 + tail, "output_relu_0": 64 + 64 * 3, "output_relu_1": 3}
    return sum(work[name] for name, _ in jobs)


def matmul_rate() -> float:
    """Multiply-adds per second of one thread, on matrices that fit the cache."""
    a, b = torch.randn(256, 256), torch.randn(256, 256)
    best = 0.0
    for _ in range(50):
        start = time.thread_time_ns()
        for _ in range(20):
            a @ b
        best = max(best, 20 * 256**3 / ((time.thread_time_ns() - start) / 1e9))
    return best


def attribution(*, rounds: int) -> Iterator[dict[str, Any]]:
    """Whole calls that work by gradients, 256 pairs, in forward passes of the same batch; `auto` sites."""
    for network in NETWORKS:
        raw, jobs = raw_network(network), jobs_of(network)
        clean, corrupt = observations(network, 256), observations(network, 257)[:256]
        policy = rlm.HookedPolicy(raw, clean[:2])
        given: dict[str, Any] = {"clean": clean, "corrupt": corrupt, "metric": rlm.metrics.action_gap(BETTER, WORSE)}
        sites = [site_of(network, name, position) for name, position in jobs]

        def estimates(policy: Any = policy, sites: Any = sites, given: Any = given) -> Any:
            estimator = Estimator.start(policy, sites, direction="denoise", repairs=(), **given)
            return estimator.at_base((), certificate=False)

        calls: dict[str, Callable[[], Any]] = {
            "forward": torch.no_grad()(lambda p=policy, o=corrupt: p(o)),
            f"estimates alone, {len(sites)} sites": estimates,
            "attribution_patching": lambda p=policy, g=given: rlm.attribution_patching(p, **g),
            "with its certificate": lambda p=policy, g=given: rlm.attribution_patching(p, certificate=True, **g),
            "region_margins": lambda p=policy, o=corrupt: rlm.attribution.region_margins(p, o),
            "discover_circuit, EAP-IG, 40 edges": lambda p=policy, g=given: rlm.edges.discover_circuit(
                p, method="eap-ig", n_edges=40, **g
            ),
        }
        aims = dict(zip(list(calls)[2:], (3.5, 12.0, 20.0, 120.0), strict=True))
        for name, found in ratios(interleave(calls, rounds=rounds), reference="forward").items():
            if name != "forward":
                yield {
                    "network": network,
                    "call": name,
                    "forwards": found.median,
                    "forwards_low": found.low,
                    "forwards_high": found.high,
                    "aim": aims.get(name, ""),
                }


def growth(*, rounds: int) -> Iterator[dict[str, Any]]:
    """Time against pairs and jobs: a straight line through nothing is what is hoped for."""
    with torch.no_grad():
        for network in NETWORKS:
            raw, jobs = raw_network(network), jobs_of(network)
            shapes = ((256, 1), (512, 1), (1024, 1), (2048, 1), (4096, 1), (1024, 2), (1024, 4))
            calls = {(n, every): ours_only(network, raw, jobs[::every], n) for n, every in shapes}
            seconds = interleave(calls, rounds=max(3, rounds // 4))
            for (n_pairs, every), times in seconds.items():
                n_rows = n_pairs * len(jobs[::every])
                yield {
                    "network": network,
                    "pairs": n_pairs,
                    "jobs": len(jobs[::every]),
                    "milliseconds": median(times) * 1e3,
                    "nanoseconds_per_row": median(times) * 1e9 / n_rows,
                }


def ours_only(network: NetworkName, raw: nn.Module, jobs: Jobs, n_pairs: int) -> Callable[[], Any]:
    clean, corrupt = observations(network, n_pairs), observations(network, n_pairs + 1)[:n_pairs]
    policy = rlm.HookedPolicy(raw, clean[:2])
    groups = [(site_of(network, name, position),) for name, position in jobs]
    names = list(dict.fromkeys(group[0].name for group in groups))
    bound = bind_pairs(policy, clean=clean, corrupt=corrupt, metric=rlm.metrics.action_gap(BETTER, WORSE))
    source = policy.run_with_cache(clean, names)[1]
    return lambda: run_sweep(policy, corrupt, groups, sources=[source], metric=bound)


def memory() -> Iterator[dict[str, Any]]:
    """Peak memory of the largest sweep beyond what the process held before, in a process of its own."""
    for network in NETWORKS:
        script = (
            "import gc, pathlib, torch; torch.set_num_threads(1); torch.set_grad_enabled(False)\n"
            "from benchmarks import sweeps as s\n"
            f"raw, jobs = s.raw_network({network!r}), s.jobs_of({network!r})\n"
            f"s.ours_only({network!r}, raw, jobs, 2)()\n"
            f"call = s.ours_only({network!r}, raw, jobs, {PAIRS[-1]})\n"
            "status = lambda key: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith(key))\n"
            "gc.collect(); pathlib.Path('/proc/self/clear_refs').write_text('5')\n"
            "before = status('VmRSS'); call(); print(before, status('VmHWM'))"
        )
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        before, after = map(int, run.stdout.split()[-2:])
        yield {
            "network": network,
            "pairs": PAIRS[-1],
            "jobs": len(jobs_of(network)),
            "sweep, MB": (after - before) / 1024,
            "process, MB": after / 1024,
        }
