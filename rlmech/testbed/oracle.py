"""Brute force on policies of known circuit: any edges, or any paths, fed from another run, unit by unit.

It evaluates the equations and never runs the network, so that it can judge what does. Cost: one tensor operation
per edge and unit; per path, one for each unit on it. It knows nothing of units that no equation names.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rlmech.core.site import Site, read
from rlmech.errors import ObservationError, SiteError
from rlmech.testbed.known import Edge, Equation, KnownPolicy

Values = dict[Site, Tensor]


def unit_values(known: KnownPolicy, obs: Float[Tensor, "pair ..."]) -> dict[Site, Float[Tensor, "pair ..."]]:
    """The value of every unit, from its equation: `[pair]`, or `[pair …]` where a unit is several numbers.

    Args:
        known: A policy of known circuit.
        obs: Observations, one row per pair.

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.cancellation()
        >>> values = testbed.unit_values(known, known.clean)
        >>> all((values[unit] == 0).all() for unit in known.outputs[1:])
        True
    """
    values: Values = {}
    for equation in known.equations:
        values[equation.unit] = _value(known, equation, obs, [values[unit] for unit in equation.reads])
    return values


def brute_force(
    known: KnownPolicy,
    *,
    base: Float[Tensor, "pair ..."],
    other: Float[Tensor, ...],
    edges: Collection[Edge],
) -> Float[Tensor, "pair action"]:
    """Scores of the base runs when some edges carry what they carry in the other runs.

    Along each of `edges` the reader is given the value that the unit read has in the other run; everything downstream
    follows. To patch a unit, give all edges out of it.

    Args:
        known: A policy of known circuit.
        base: Observations of the runs that are changed, one row per pair.
        other: Observations of the runs that the values are taken from, row by row.
        edges: (unit read, unit that reads it), among `known.all_edges`.

    Returns:
        In the unit of the scores.

    Raises:
        SiteError: An edge that the network does not have.
        ObservationError: Base and other do not pair up.

    Source:
        Conmy et al. 2023, *Towards Automated Circuit Discovery*, arXiv 2304.14997, section 3 (what an edge carries).

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.cancellation()
        >>> every = testbed.brute_force(known, base=known.corrupt, other=known.clean, edges=known.all_edges)
        >>> bool(torch.allclose(every, known.policy(known.clean)))
        True
    """
    swapped = frozenset(edges)
    _check_pairs(base, other)
    _check_edges(known, swapped)
    elsewhere = unit_values(known, other)
    values: Values = {}
    for equation in known.equations:
        given = [elsewhere[unit] if (unit, equation.unit) in swapped else values[unit] for unit in equation.reads]
        values[equation.unit] = _value(known, equation, base, given)
    return _scores(known, values)


def brute_force_paths(
    known: KnownPolicy,
    *,
    base: Float[Tensor, "pair ..."],
    other: Float[Tensor, ...],
    paths: Collection[Sequence[Site]],
) -> Float[Tensor, "pair action"]:
    """Scores of the base runs when the first unit of each path has its value of the other run, along that path alone.

    The network is read as the tree of its paths: a unit on a path has there the value that follows from the path, and
    everywhere else its value of the base run. For units between sender and receiver this differs from swapping edges,
    where what a unit passes on is the same to all that read it.

    Args:
        known: A policy of known circuit.
        base: Observations of the runs that are changed, one row per pair.
        other: Observations of the runs that the values are taken from, row by row.
        paths: Each from the unit that is exchanged, by edges of the network, to a score.

    Returns:
        In the unit of the scores.

    Raises:
        SiteError: A path with a step that is no edge, or that does not end at a score.
        ObservationError: Base and other do not pair up.

    Source:
        Goldowsky-Dill et al. 2023, *Localizing Model Behavior with Path Patching*, arXiv 2304.05969, section 2.

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.cancellation()
        >>> h1, h2, q = known.hidden[0], known.hidden[2], known.outputs[0]
        >>> run = testbed.brute_force_paths(known, base=known.corrupt, other=known.clean, paths=[(h1, h2, q)])
        >>> (run - known.policy(known.corrupt))[:, 0].tolist()[0]
        -1.0
    """
    chosen = {tuple(path) for path in paths}
    _check_pairs(base, other)
    for path in chosen:
        _check_path(known, path)
    equations = {equation.unit: equation for equation in known.equations}
    here, elsewhere = unit_values(known, base), unit_values(known, other)
    tails = {path[start:] for path in chosen for start in range(len(path))}

    def along(tail: tuple[Site, ...]) -> Tensor:
        """The value that the first unit of a tail passes on along it."""
        if tail in chosen:
            return elsewhere[tail[0]]
        if tail not in tails:
            return here[tail[0]]
        equation = equations[tail[0]]
        return _value(known, equation, base, [along((unit, *tail)) for unit in equation.reads])

    return _scores(known, {unit: along((unit,)) for unit in known.outputs})


def paths_between(known: KnownPolicy, sender: Site, receiver: Site) -> Iterator[tuple[Site, ...]]:
    """All paths from one unit to another, each as its units in order; a unit has the one path to itself.

    Raises:
        SiteError: A site that is no unit of this policy.

    Example:
        >>> import rlmech.testbed as testbed
        >>> known = testbed.cancellation()
        >>> [len(path) for path in testbed.paths_between(known, known.hidden[0], known.outputs[0])]
        [3, 2]
    """
    readers: Mapping[Site, list[Site]] = {unit: [] for unit in known.units}
    for site in (sender, receiver):
        if site not in readers:
            raise _no_unit(known, site)
    for source, target in sorted(known.all_edges, key=lambda edge: known.units.index(edge[1])):
        readers[source].append(target)
    stack = [(sender,)]
    while stack:
        path = stack.pop(0)
        if path[-1] == receiver:
            yield path
            continue
        stack = [(*path, reader) for reader in readers[path[-1]]] + stack


def _value(known: KnownPolicy, equation: Equation, obs: Tensor, given: Sequence[Tensor]) -> Tensor:
    if equation.rule is None:
        point = known.policy.point(equation.unit.name)
        value = read(obs, equation.unit.index(point))
        return value.reshape(obs.shape[0]) if value.numel() == obs.shape[0] else value
    value = equation.rule(*given)
    return value if equation.reads else value.expand(obs.shape[0], *value.shape)


def _scores(known: KnownPolicy, values: Values) -> Tensor:
    return torch.cat([values[unit].reshape(len(values[unit]), -1) for unit in known.outputs], dim=1)


def _check_pairs(base: Tensor, other: Tensor) -> None:
    if base.shape != other.shape:
        raise ObservationError(
            "The two runs' observations do not pair up.",
            given=f"shapes {list(base.shape)} and {list(other.shape)}",
            expected="the same shape, row by row",
            fix="give the counterpart of each row, in the same order",
        )


def _check_edges(known: KnownPolicy, edges: Collection[Edge]) -> None:
    reads = {equation.unit: equation.reads for equation in known.equations}
    for source, target in edges:
        for site in (source, target):
            if site not in reads:
                raise _no_unit(known, site)
        if source not in reads[target]:
            some = ", ".join(map(str, reads[target][:4]))
            raise SiteError(
                f"{target} does not read {source}.",
                given=f"the edge {source} -> {target}",
                expected=f"an edge from one of {some}" if some else f"no edge into {target}",
                fix="known.all_edges lists the network's edges",
            )


def _check_path(known: KnownPolicy, path: tuple[Site, ...]) -> None:
    if not path or path[-1] not in known.outputs:
        raise SiteError(
            "A path ends at a score.",
            given=f"a path that ends at {path[-1]}" if path else "an empty path",
            expected=f"one of {', '.join(map(str, known.outputs))}",
            fix="paths_between(known, sender, known.outputs[0]) gives whole paths",
        )
    if path[0] not in known.units:
        raise _no_unit(known, path[0])
    _check_edges(known, list(itertools.pairwise(path)))


def _no_unit(known: KnownPolicy, site: Site) -> SiteError:
    return SiteError(
        f"{site} is no unit of this policy's circuit.",
        given=str(site),
        expected=f"one of {len(known.units)} units, e.g. {known.units[0]}",
        fix="known.units lists them; an equal site selects by number, as they do",
    )
