"""Each tool on the same network: with no hook active, with every site cached, and with one activation replaced."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import rlmech as rlm
from benchmarks.networks import REPLACED, NetworkName, rewritten

Call = Callable[[], Any]
PEERS = {"TransformerLens": "transformer_lens", "nnsight": "nnsight", "pyvene": "pyvene"}
OUR_REPLACED = {"mlp": "1.hook_out", "ego_attention": "attention_layer.hook_z"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One tool on one network and batch.

    Attributes:
        name: The tool.
        n_sites: How many activations `cached` records.
        calls: By mode, `idle`, `cached`, `replaced`: what is timed; each returns the scores, `cached` the record too.
    """

    name: str
    n_sites: int
    calls: dict[str, Call] = field(default_factory=dict)


def absent_peers() -> list[str]:
    return [name for name, module in PEERS.items() if importlib.util.find_spec(module) is None]


def contenders(name: NetworkName, raw: nn.Module, obs: Tensor) -> Iterator[Contender]:
    """All tools that are installed; each checked to give the raw network's scores, and the same ones on replacement."""
    want, replaced = raw(obs), None
    absent = absent_peers()
    for tool, build in BUILDERS.items():
        if tool in absent:
            continue
        contender = build(name, raw, obs)
        if contender.calls.get("replaced"):
            scores = contender.calls["replaced"]()
            replaced = scores if replaced is None else replaced
            torch.testing.assert_close(scores, replaced, atol=1e-5, rtol=1e-5)
        if contender.calls.get("idle"):
            torch.testing.assert_close(contender.calls["idle"](), want, atol=1e-5, rtol=1e-5)
        record = contender.calls["cached"]()[1]
        if len(record) != contender.n_sites:
            raise RuntimeError(f"{tool} recorded {len(record)} of {contender.n_sites} sites")
        yield contender


def _ours(name: NetworkName, raw: nn.Module, obs: Tensor) -> Contender:
    policy = rlm.HookedPolicy(raw, obs[:2] if len(obs) > 1 else obs)
    site = OUR_REPLACED[name]
    value = torch.zeros_like(policy.run_with_cache(obs, site)[1][site])
    hooks = [(site, lambda tensor, hook: value)]
    calls = {
        "idle": lambda: policy(obs),
        "cached": lambda: policy.run_with_cache(obs),
        "replaced": lambda: policy.run_with_hooks(obs, fwd_hooks=hooks),
    }
    return Contender(name="rlmech", n_sites=len(policy.hook_dict), calls=calls)


def _forward_hooks(name: NetworkName, raw: nn.Module, obs: Tensor) -> Contender:
    network = rewritten(raw)
    sites = {site: network.get_submodule(path) for site, path in network.site_paths.items()}
    value = _zeros(network, sites[REPLACED[name]], obs)

    def cached() -> tuple[Tensor, dict[str, Tensor]]:
        record: dict[str, Tensor] = {}
        handles = [
            module.register_forward_hook(lambda _, __, out, site=site: record.__setitem__(site, out))
            for site, module in sites.items()
        ]
        try:
            return network(obs), record
        finally:
            for handle in handles:
                handle.remove()

    def replaced() -> Tensor:
        with sites[REPLACED[name]].register_forward_hook(lambda *_: value):
            return network(obs)

    calls = {"idle": lambda: network(obs), "cached": cached, "replaced": replaced}
    return Contender(name="forward hooks", n_sites=len(sites), calls=calls)


def _transformer_lens(name: NetworkName, raw: nn.Module, obs: Tensor) -> Contender:
    from transformer_lens import HookedRootModule
    from transformer_lens.hook_points import HookPoint

    class Hooked(HookedRootModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = rewritten(raw, HookPoint)
            self.setup()

        def forward(self, x: Tensor) -> Tensor:
            return self.network(x)

    model = Hooked()
    site = f"network.{model.network.site_paths[REPLACED[name]]}"
    value = torch.zeros_like(model.run_with_cache(obs)[1][site])
    hooks = [(site, lambda tensor, hook: value)]
    calls = {
        "idle": lambda: model(obs),
        "cached": lambda: model.run_with_cache(obs),
        "replaced": lambda: model.run_with_hooks(obs, fwd_hooks=hooks),
    }
    return Contender(name="TransformerLens", n_sites=len(model.network.site_paths), calls=calls)


def _nnsight(name: NetworkName, raw: nn.Module, obs: Tensor) -> Contender:
    import nnsight

    network = rewritten(raw)
    model = nnsight.NNsight(network)
    order = _order(network, obs)
    sites = {site: getattr(model, site) for site in order}
    target = getattr(model, REPLACED[name])
    value = _zeros(network, network.get_submodule(REPLACED[name]), obs)

    def cached() -> tuple[Tensor, dict[str, Tensor]]:
        with model.trace(obs):
            record = nnsight.save({})
            for site, envoy in sites.items():
                record[site] = envoy.output
        return record[order[-1]], record

    def replaced() -> Tensor:
        with model.trace(obs):
            target.output = value
            scores = model.output.save()
        return scores

    return Contender(name="nnsight", n_sites=len(sites), calls={"cached": cached, "replaced": replaced})


def _pyvene(name: NetworkName, raw: nn.Module, obs: Tensor) -> Contender:
    import pyvene

    def build() -> nn.Module:
        network = rewritten(raw)
        network.config = SimpleNamespace(hidden_size=64, to_dict=dict)  # pyvene reads one from every model
        return network

    network = build()
    order = _order(network, obs)
    collect = pyvene.IntervenableModel(
        [{"component": f"{site}.output", "intervention": pyvene.CollectIntervention()} for site in order], model=network
    )
    value = _zeros(network, network.get_submodule(REPLACED[name]), obs)
    replace = pyvene.IntervenableModel(
        [{"component": f"{REPLACED[name]}.output", "intervention": lambda base, source: value}], model=build()
    )

    def cached() -> tuple[Tensor, list[Tensor]]:
        record = collect({"x": obs})[0][1]
        return record[-1], record

    calls = {"cached": cached, "replaced": lambda: replace({"x": obs})[1]}
    return Contender(name="pyvene", n_sites=len(order), calls=calls)


def _order(network: nn.Module, obs: Tensor) -> list[str]:
    """Sites in the order in which they run."""
    order: list[str] = []
    handles = [
        network.get_submodule(path).register_forward_hook(lambda *_, site=site: order.append(site))
        for site, path in network.site_paths.items()
    ]
    network(obs)
    for handle in handles:
        handle.remove()
    return order


def _zeros(network: nn.Module, module: nn.Module, obs: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with module.register_forward_hook(lambda _, __, out: seen.append(out)):
        network(obs)
    return torch.zeros_like(seen[0])


BUILDERS: dict[str, Callable[[NetworkName, nn.Module, Tensor], Contender]] = {
    "rlmech": _ours,
    "forward hooks": _forward_hooks,
    "TransformerLens": _transformer_lens,
    "nnsight": _nnsight,
    "pyvene": _pyvene,
}
