"""An ego-attention policy that finds the nearest vehicle in its lane and copies that vehicle's closing speed.

    head 0: score_i = -1000 (distance_i + 1000 lanes_i),  ego: -1000 x 500      value_i = closing speed_i
    head 1: score_i = +1000 closing speed_i               (the decoy)           value_i = closing speed_i

Distances, and closing speeds, differ by 1 at least, so that the softmax is one-hot to the last bit of float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlmech.core.policy import HookedPolicy
from rlmech.core.site import Site
from rlmech.nets.ego_attention import ABSENT_SCORE, EgoAttentionNetwork
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.testbed.known import Edge, Effects, Equation, KnownPolicy, Rule, affine

N_ENTITIES = 6
PRESENCE, LANES, DISTANCE, SPEED = range(4)
SHARPNESS = 1000.0
PER_LANE = 1000.0
"""Metres that a lane aside counts for."""
EGO_DISTANCE = 500.0
"""Where the ego itself stands in its own search: nearer than other lanes, farther than anything in its own."""
EMPTY_LANE = 5
"""One in so many clean scenes, and as many corrupt ones, has nobody in the ego's lane."""
ALERT = 3.0
"""Q(FASTER): the closing speed, in m/s, from which on the policy slows down."""

SPEC = PolicySpec(
    entities=("ego", *(f"vehicle_{i}" for i in range(1, N_ENTITIES))),
    features=(
        FeatureSpec(name="presence"),
        FeatureSpec(name="lanes_aside"),
        FeatureSpec(name="distance", unit="m"),
        FeatureSpec(name="closing_speed", unit="m/s"),
    ),
    actions=("SLOWER", "IDLE", "FASTER"),
    presence="presence",
)
EMBEDDING = "others_embedding.relu_0.hook_out"


def nearest_vehicle(*, n_pairs: int = 16, seed: int = 0) -> KnownPolicy:
    """The nearest vehicle in the lane decides, by its closing speed.

        i* = the present vehicle with 0 lanes aside and the least distance; the ego if there is none
        Q(SLOWER) = ReLU(closing speed of i*), 0 for the ego    Q(IDLE) = 1    Q(FASTER) = 3

    A second head, alive and sharp, looks for the fastest vehicle; its output reaches r and one hidden neuron, and no
    score. A third of the vehicles are absent, and the presence comes from the observation: restoring the embedding
    of an absent vehicle does exactly nothing. The network is rl-agents' `EgoAttentionNetwork`, d_model 8, two heads.

    Args:
        n_pairs: Pairs; clean and corrupt scenes are independent draws, a fifth of either without anyone in the lane.
        seed: Of the scenes.

    Returns:
        Answers in `denoise`, `noise` and both attributions for every entity of the observation and of the embeddings,
        every feature and embedding neuron of a vehicle, both heads' z and the hidden neurons; in `denoise` and `noise`
        for the edges between these and into the scores of attention; in `zero` for both heads' z.

    Example:
        >>> import rlmech as rlm, rlmech.testbed as testbed
        >>> known = testbed.nearest_vehicle()
        >>> decoy = rlm.Site("attention_layer.hook_z", query=0, head=1, d_head=0)
        >>> bool((known.answers["denoise"][decoy] == 0).all())
        True
    """
    clean, corrupt = _scenes(n_pairs, seed)
    equations = _equations()
    return KnownPolicy(
        policy=HookedPolicy(_network(), clean, spec=SPEC),
        clean=clean,
        corrupt=corrupt,
        better="SLOWER",
        worse="FASTER",
        equations=equations,
        edges=_circuit(equations),
        answers={
            "denoise": _answers(corrupt, clean),
            "noise": _answers(clean, corrupt),
            "attribute_denoise": _attributions(corrupt, clean),
            "attribute_noise": _attributions(clean, corrupt),
            "zero": {_z(0): -_chosen_speed(clean), _z(1): torch.zeros(n_pairs, dtype=torch.float64)},
        },
        description="Head 0 finds the nearest vehicle in the lane and copies its closing speed; head 1 is a decoy.",
    )


def _network() -> EgoAttentionNetwork:
    """Embedding: 0 distance, 1 lanes, 2 speed, 3 distance + speed (unread), 4 constant of the ego, 5 its own speed."""
    network = EgoAttentionNetwork(4, 3, d_model=8, n_heads=2, embedding=(8,), output=(2,)).double()
    attention, output = network.attention_layer, network.output_layer
    ego, others = network.ego_embedding.layers[0], network.others_embedding.layers[0]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for neuron, feature in ((0, DISTANCE), (1, LANES), (2, SPEED), (3, DISTANCE), (3, SPEED)):
            others.get_parameter("weight")[neuron, feature] = 1
        ego.get_parameter("bias")[4] = 1
        ego.get_parameter("weight")[5, SPEED] = 1
        attention.query_ego.weight[0, 4] = attention.query_ego.weight[4, 4] = 2  # sqrt(d_head): scores are unscaled
        attention.key_all.weight[0, :2] = torch.tensor([-SHARPNESS, -SHARPNESS * PER_LANE])
        attention.key_all.weight[0, 4] = -SHARPNESS * EGO_DISTANCE
        attention.key_all.weight[4, 2] = SHARPNESS
        attention.value_all.weight[0, 2] = attention.value_all.weight[4, 2] = 1
        attention.attention_combine.weight[6, 0] = attention.attention_combine.weight[7, 4] = 2  # the skip halves
        hidden, predict = output.layers[0], output.get_submodule("predict")
        hidden.get_parameter("weight")[0, 6] = hidden.get_parameter("weight")[1, 7] = 1
        predict.get_parameter("weight")[0, 0] = 1
        predict.get_parameter("bias").copy_(torch.tensor([0.0, 1.0, ALERT]))
    return network


def _scenes(n_pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Distances and closing speeds that all differ, in a pair's two scenes together; absent rows are zero."""
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.zeros(n_pairs, 2, N_ENTITIES, 4, dtype=torch.float64)
    n_vehicles = N_ENTITIES - 1
    for number, pair in enumerate(scenes):
        distances = torch.randperm(80, generator=generator)[: 2 * n_vehicles] + 5
        speeds = torch.randperm(30, generator=generator)[: 2 * n_vehicles] + 1
        pair[:, 1:, DISTANCE] = distances.reshape(2, n_vehicles).double()
        pair[:, 1:, SPEED] = speeds.reshape(2, n_vehicles).double()
        pair[:, 1:, LANES] = torch.randint(0, 2, (2, n_vehicles), generator=generator).double()
        if number % EMPTY_LANE < 2:
            pair[number % EMPTY_LANE, 1:, LANES] = 1
        pair[:, 1:, PRESENCE] = (torch.rand(2, n_vehicles, generator=generator) < 2 / 3).double()
        pair *= pair[:, :, :1].clone()
        pair[:, 0, PRESENCE] = 1
        pair[:, 0, SPEED] = 20 + 5 * torch.rand(2, generator=generator).double()
    return scenes[:, 0].clone(), scenes[:, 1].clone()


# ---- the equations


def _embedded(entity: int, neuron: int) -> Site:
    return Site(EMBEDDING, entity=entity - 1, neuron=neuron)


def _score(head: int, key: int) -> Site:
    return Site("attention_layer.hook_attn_scores", head=head, query=0, key=key)


def _pattern(head: int, key: int) -> Site:
    return Site("attention_layer.hook_pattern", head=head, query=0, key=key)


def _z(head: int) -> Site:
    return Site("attention_layer.hook_z", query=0, head=head, d_head=0)


def _hidden(head: int) -> Site:
    return Site("output_layer.relu_0.hook_out", neuron=head)


def _equations() -> tuple[Equation, ...]:
    obs = [[Site("hook_obs", entity=i, feature=f) for f in range(4)] for i in range(N_ENTITIES)]
    vehicles = range(1, N_ENTITIES)
    equations = [Equation(unit=unit) for row in obs for unit in row]
    own_speed = Site("ego_embedding.relu_0.hook_out", entity=0, neuron=5)
    equations.append(Equation(unit=own_speed, reads=(obs[0][SPEED],), rule=affine(1.0, relu=True)))
    for i in vehicles:
        for neuron, features in enumerate(((DISTANCE,), (LANES,), (SPEED,), (DISTANCE, SPEED))):
            reads = tuple(obs[i][f] for f in features)
            rule = affine(*(1.0 for _ in features), relu=True)
            equations.append(Equation(unit=_embedded(i, neuron), reads=reads, rule=rule))
    for head in (0, 1):
        of_ego = -SHARPNESS * EGO_DISTANCE if head == 0 else 0.0
        equations.append(Equation(unit=_score(head, 0), reads=(obs[0][PRESENCE],), rule=_masked(bias=of_ego)))
        for i in vehicles:
            read = (_embedded(i, 0), _embedded(i, 1)) if head == 0 else (_embedded(i, 2),)
            rule = _masked(-SHARPNESS, -SHARPNESS * PER_LANE) if head == 0 else _masked(SHARPNESS)
            equations.append(Equation(unit=_score(head, i), reads=(obs[i][PRESENCE], *read), rule=rule))
    for head in (0, 1):
        scores = tuple(_score(head, i) for i in range(N_ENTITIES))
        equations += [Equation(unit=_pattern(head, i), reads=scores, rule=_share(i)) for i in range(N_ENTITIES)]
    for head in (0, 1):
        weights = tuple(_pattern(head, i) for i in vehicles)
        values = tuple(_embedded(i, 2) for i in vehicles)
        equations.append(Equation(unit=_z(head), reads=(*weights, *values), rule=_weighted_sum))
    equations += [Equation(unit=_hidden(head), reads=(_z(head),), rule=affine(1.0, relu=True)) for head in (0, 1)]
    slower, idle, faster = (Site("hook_q_values", action=i) for i in range(3))
    equations.append(Equation(unit=slower, reads=(_hidden(0),), rule=affine(1.0)))
    equations += [Equation(unit=idle, rule=affine(bias=1.0)), Equation(unit=faster, rule=affine(bias=ALERT))]
    return tuple(equations)


def _masked(*weights: float, bias: float = 0.0) -> Rule:
    """A score: of the presence first, which hides the entity where it is below a half, then of what the key reads."""
    score = affine(*weights, bias=bias)
    return lambda presence, *values: torch.where(presence < 0.5, ABSENT_SCORE, score(*values))


def _share(place: int) -> Rule:
    def rule(*scores: Tensor) -> Tensor:
        powers = (torch.stack(scores) - torch.stack(scores).amax(0)).exp()
        return powers[place] / powers.sum(0)

    return rule


def _weighted_sum(*weights_and_values: Tensor) -> Tensor:
    half = len(weights_and_values) // 2
    return (torch.stack(weights_and_values[:half]) * torch.stack(weights_and_values[half:])).sum(0)


def _circuit(equations: tuple[Equation, ...]) -> frozenset[Edge]:
    """All edges on a way to a score; the others end at the decoy, at the unread neuron, or at the ego's own speed."""
    needed = {equation.unit for equation in equations if equation.unit.name == "hook_q_values"}
    for equation in reversed(equations):
        if equation.unit in needed:
            needed |= set(equation.reads)
    return frozenset(edge for equation in equations if equation.unit in needed for edge in equation.edges)


# ---- the answers, by looking for the nearest vehicle in the scene that a patch amounts to


def _chosen(scenes: Float[Tensor, "pair entity feature"]) -> Int[Tensor, " pair"]:
    """The entity whose speed is copied; 0, the ego, where no vehicle is in the lane."""
    nearest: list[int] = []
    for scene in scenes.tolist():
        there = [i for i in range(1, N_ENTITIES) if scene[i][PRESENCE] >= 0.5]
        away = {i: scene[i][DISTANCE] + PER_LANE * scene[i][LANES] for i in there}
        in_lane = [i for i in there if away[i] < EGO_DISTANCE]
        nearest.append(min(in_lane, key=lambda i: away[i], default=0))
    return torch.tensor(nearest)


def _chosen_speed(scenes: Float[Tensor, "pair entity feature"]) -> Float[Tensor, " pair"]:
    chosen = _chosen(scenes)
    speed = scenes[torch.arange(len(scenes)), chosen, SPEED]
    return torch.where(chosen == 0, 0.0, speed)


def _answers(base: Tensor, source: Tensor) -> Effects:
    before = _chosen_speed(base)
    nothing = torch.zeros_like(before)

    def effect(change: Callable[[Tensor], object]) -> Tensor:
        scene = base.clone()
        change(scene)
        return _chosen_speed(scene) - before

    answers: Effects = {Site("hook_obs", entity=0): nothing}
    for i in range(1, N_ENTITIES):
        answers[Site("hook_obs", entity=i)] = effect(lambda scene, i=i: scene[:, i].copy_(source[:, i]))
        of_presence = effect(lambda scene, i=i: scene[:, i, PRESENCE].copy_(source[:, i, PRESENCE]))
        presence = Site("hook_obs", entity=i, feature=PRESENCE)
        answers[presence] = answers[presence, _score(0, i)] = of_presence
        answers[presence, _score(1, i)] = answers[_embedded(i, 2), _score(1, i)] = nothing
        answers[Site(EMBEDDING, entity=i - 1)] = effect(lambda scene, i=i: scene[:, i, 1:].copy_(source[:, i, 1:]))
        for neuron, feature in enumerate((DISTANCE, LANES, SPEED)):
            alone = effect(lambda scene, i=i, f=feature: scene[:, i, f].copy_(source[:, i, f]))
            observed, embedded = Site("hook_obs", entity=i, feature=feature), _embedded(i, neuron)
            answers[embedded] = answers[observed] = answers[observed, embedded] = alone
            answers[embedded, _z(0) if feature == SPEED else _score(0, i)] = alone
        answers[_embedded(i, 3)] = nothing
    for head, whole in enumerate((_chosen_speed(source) - before, nothing)):
        answers |= {_z(head): whole, _hidden(head): whole, (_z(head), _hidden(head)): whole}
    return answers


def _attributions(base: Tensor, source: Tensor) -> Effects:
    """The softmax is saturated: a gradient sees the speed of the vehicle that is chosen already, no other."""
    chosen, before = _chosen(base), _chosen_speed(base)
    nothing = torch.zeros_like(before)
    whole = _chosen_speed(source) - before
    found: Effects = {Site("hook_obs", entity=0): nothing, _z(1): nothing, _hidden(1): nothing}
    found |= {_hidden(0): whole, _z(0): whole * (before > 0)}  # at 0 the hidden neuron's gate is closed
    for i in range(1, N_ENTITIES):
        copied = (chosen == i) * (source[:, i, SPEED] - base[:, i, SPEED])
        for unit in (Site("hook_obs", entity=i, feature=f) for f in (PRESENCE, LANES, DISTANCE)):
            found[unit] = nothing
        found |= {_embedded(i, neuron): nothing for neuron in (0, 1, 3)}
        by_speed = (_embedded(i, 2), Site("hook_obs", entity=i, feature=SPEED))
        found |= dict.fromkeys((*by_speed, Site(EMBEDDING, entity=i - 1), Site("hook_obs", entity=i)), copied)
    return found
