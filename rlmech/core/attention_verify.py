"""Attention blocks checked against their equations on real observations; what fails is not offered."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor

from rlmech.core.attention_nodes import Found, OutputProjection, Projection
from rlmech.core.graph import Graph
from rlmech.core.masked import agree, is_masked
from rlmech.core.program import Address, compile_program


def verify(graph: Graph, block: Found, observation: tuple[Tensor, ...]) -> str | None:
    """Check a block against its equations.

    Args:
        graph: The graph.
        block: A block that `find_attention` found.
        observation: `PROBE_BATCH` rows of observation, as the graph's inputs.

    Returns:
        None where the core holds (pattern and z), else the reason why the block is not offered. Projections that fail
        are dropped from the block, with the reason in `block.reasons`.
    """
    addresses = [block.values, block.scores, block.pattern, block.z, *block.sources.values()]
    program = compile_program(graph, returned=[address.node for address in addresses])
    values, scores, pattern, z, *sources = (
        address.layout.show(value) for address, value in zip(addresses, program(observation, (), ()), strict=True)
    )
    attended = ~scores.isneginf().all(-1, keepdim=True)  # where every key is hidden, zeros and NaN are both in use
    if not _close(torch.softmax(scores, -1).where(attended, 0), pattern.where(attended, 0)):
        return "the pattern is not the softmax of the scores"
    mixed = pattern @ rearrange(values, "b k h d -> b h k d")
    if not _close(rearrange(mixed, "b h q d -> b q h d"), z):
        return "z is not the pattern times the values"
    shown = dict(zip(block.sources, sources, strict=True))
    if "q" in shown and "k" in shown:
        product = einsum(shown["q"], shown["k"], "b q h d, b k h d -> b h q k") * block.scale
        visible = ~is_masked(scores)
        if not _close(product[visible], scores[visible]):
            block.reasons["scores"] = "scores hold more than the scaled product of queries and keys"
    for name in list(block.projections):
        if not _projection_holds(graph, block.projections[name], shown[name], observation):
            del block.projections[name]
            block.reasons[name] = "the linear layer found does not reproduce them"
    output, attn_out = block.output, block.attn_out
    if output is not None and attn_out is not None and not _output_holds(graph, output, attn_out, z, observation):
        block.output = block.result = block.attn_out = None
        block.reasons["output"] = "the sum over heads of z W_O does not give the combining layer's output"
    return None


def _projection_holds(graph: Graph, projection: Projection, expected: Tensor, observation: tuple[Tensor, ...]) -> bool:
    nodes = [projection.source, projection.weight, *([projection.bias] if projection.bias else [])]
    source, weight, *bias = compile_program(graph, returned=nodes)(observation, (), ())
    split, split_bias = projection.split(weight, bias[0] if bias else None)
    made = einsum(source.reshape(-1, source.shape[-1])[projection.rows], split, "b e m, h m d -> b e h d")
    made = made if split_bias is None else made + split_bias
    return _close(made, expected)


def _output_holds(
    graph: Graph, output: OutputProjection, attn_out: Address, z: Tensor, observation: tuple[Tensor, ...]
) -> bool:
    nodes = [attn_out.node, output.weight, *([output.bias] if output.bias else [])]
    expected, weight, *bias = compile_program(graph, returned=nodes)(observation, (), ())
    made = einsum(z, output.split(weight), "b q h d, h d m -> b q m")
    made = made + bias[0] if bias else made
    return _close(made, attn_out.layout.show(expected))


def _close(a: Tensor, b: Tensor) -> bool:
    return agree(a, b, tolerance=1e-4, smallest_scale=1e-6)
