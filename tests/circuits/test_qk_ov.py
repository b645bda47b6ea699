"""QK and OV circuits are exact: they give every score and output back, and the well-known wrong formulas do not."""

import numpy as np
import pytest
import torch
import xarray as xr
from einops import einsum, rearrange
from torch import nn

import rlmech.circuits.feature_space as feature_space
import rlmech.circuits.over_states as over_states
from rlmech.attribution import attribute_actions
from rlmech.circuits import ov_circuit, ov_factored, ov_forms, qk_circuit, qk_factored, qk_forms
from rlmech.core.policy import HookedPolicy
from rlmech.errors import AttentionError, ConfigError, ObservationError
from rlmech.nets import EgoAttentionNetwork
from rlmech.spec import FeatureSpec, PolicySpec
from rlmech.testbed import nearest_vehicle

FEATURES = ("presence", "x", "y", "vx", "vy", "cos_h", "sin_h")
SPEC = PolicySpec(
    entities=("ego", *(f"vehicle_{i}" for i in range(1, 6))),
    features=tuple(FeatureSpec(name=name) for name in FEATURES),
    actions=("SLOWER", "IDLE", "FASTER"),
    presence="presence",
)
BLOCK = "attention_layer"


def scenes(n: int, n_entities: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    obs = torch.rand(n, n_entities, 7, generator=generator, dtype=torch.float64) * 2 - 1
    obs[..., 0] = (torch.rand(n, n_entities, generator=generator) < 0.6).double()
    obs[:, 0, 0], obs[:, 1, 0], obs[:, -1, 0] = 1, 1, 0
    return obs * (obs[..., :1] > 0)


def ego_network(**kwargs) -> EgoAttentionNetwork:
    torch.manual_seed(3)
    network = EgoAttentionNetwork(
        7, 3, **{"d_model": 16, "n_heads": 4, "embedding": (16, 16), "output": (16, 16), **kwargs}
    )
    for name, parameter in network.named_parameters():
        scale = 3.0 if "query" in name or "key" in name else 1.0
        parameter.data = torch.randn_like(parameter) * scale * parameter.shape[-1] ** -0.5
    return network.double()


class BiasedSelfAttention(nn.Module):
    """Self-attention with biases everywhere, between ReLU embeddings of the entities and a ReLU readout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 12)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.readout = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e = torch.relu(self.embed(x))
        out = self.attention(e, e, e, need_weights=True)[0]
        return self.readout(torch.relu(out + e).mean(1))


@pytest.fixture(scope="module")
def ego() -> HookedPolicy:
    return HookedPolicy(ego_network(), scenes(2), spec=SPEC)


@pytest.fixture(scope="module")
def biased() -> HookedPolicy:
    torch.manual_seed(0)
    network = BiasedSelfAttention().double()
    for name, parameter in network.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return HookedPolicy(network, scenes(2), spec=SPEC)


def with_one(obs: torch.Tensor) -> torch.Tensor:
    return torch.cat((obs, torch.ones_like(obs[..., :1])), dim=-1)


def scores_from(forms: xr.DataArray, obs: torch.Tensor) -> torch.Tensor:
    """Scores that a form gives back: [batch head query entity]."""
    x = with_one(obs)
    queries = x[:, : forms.sizes["query"]]
    pattern = "batch query left, batch head query entity left right, batch entity right -> batch head query entity"
    return einsum(queries, torch.as_tensor(forms.values), x, pattern)


def visible(cache, name="attention_layer.hook_mask") -> torch.Tensor:
    return ~cache[name]


def assert_equal(got, want, tolerance=1e-10) -> None:
    torch.testing.assert_close(torch.as_tensor(got), want.detach(), atol=tolerance, rtol=tolerance)


# ---- exactness


def test_the_feature_form_gives_every_visible_score_back(ego):
    obs = scenes(20)
    forms = qk_forms(ego, obs)
    _, cache = ego.run_with_cache(obs)
    seen = visible(cache)
    assert_equal(scores_from(forms, obs)[seen], cache[f"{BLOCK}.hook_attn_scores"][seen])
    assert forms.dims == ("batch", "head", "query", "entity", "feature_query", "feature_key")
    assert list(forms.feature_key.values) == [*FEATURES, "bias"]
    assert list(forms["query"].values) == ["ego"]
    assert list(forms.entity.values) == list(SPEC.entities)


def test_the_feature_form_gives_every_score_back_with_biases_and_many_queries(biased):
    obs = scenes(7)
    name = biased.attention["attention"].names["attn_scores"]
    _, cache = biased.run_with_cache(obs)
    assert_equal(scores_from(qk_forms(biased, obs), obs), cache[name])


@pytest.mark.parametrize("which", ["ego", "biased"])
def test_the_output_form_with_the_pattern_gives_the_attention_s_output_back(which, request):
    policy, obs = request.getfixturevalue(which), scenes(9)
    (block,) = policy.attention.values()
    _, cache = policy.run_with_cache(obs)
    forms = torch.as_tensor(ov_forms(policy, obs, to="d_model").values)
    pattern = "batch head query entity, batch entity feature, batch head entity feature d_model -> batch query d_model"
    out = einsum(cache[block.names["pattern"]], with_one(obs), forms, pattern)
    bias = 0 if block.b_O is None else block.b_O
    assert_equal(out + bias, cache[block.names["attn_out"]])


@pytest.mark.parametrize("which", ["ego", "biased"])
def test_the_action_form_says_what_shrinking_the_attention_s_output_does_to_the_scores(which, request):
    policy, obs, share = request.getfixturevalue(which), scenes(9), 1e-7
    (block,) = policy.attention.values()
    scores, cache = policy.run_with_cache(obs)
    pattern = "batch head query entity, batch entity feature, batch head query entity feature action -> batch action"
    forms = torch.as_tensor(ov_forms(policy, obs).values)
    contribution = einsum(cache[block.names["pattern"]], with_one(obs), forms, pattern)
    bias = 0 if block.b_O is None else block.b_O
    shrink = lambda out, hook: out - share * (out - bias)  # noqa: E731
    moved = policy.run_with_hooks(obs, fwd_hooks=[(block.names["attn_out"], shrink)])
    torch.testing.assert_close(contribution, (scores - moved) / share, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("which", ["ego", "biased"])
def test_the_model_form_with_its_bias_terms_gives_every_score_back(which, request):
    policy, obs = request.getfixturevalue(which), scenes(5)
    (block,) = policy.attention.values()
    network = policy.module
    if which == "ego":
        x_query = network.ego_embedding(obs[:, :1])
        x_key = torch.cat((x_query, network.others_embedding(obs[:, 1:])), 1)
    else:
        x_query = x_key = torch.relu(network.embed(obs))
    found = {name: torch.as_tensor(values.values) for name, values in qk_circuit(policy, space="model").items()}
    scores = (
        einsum(x_query, found["circuit"], x_key, "b q l, h l r, b k r -> b h q k")
        + einsum(x_query, found["query_bias"], "b q l, h l -> b h q")[..., None]
        + einsum(x_key, found["key_bias"], "b k r, h r -> b h k")[:, :, None]
        + found["constant"][:, None, None]
    )
    _, cache = policy.run_with_cache(obs)
    name = block.names["attn_scores"]
    seen = visible(cache) if which == "ego" else torch.ones_like(cache[name], dtype=torch.bool)
    assert_equal(scores.expand_as(cache[name])[seen], cache[name][seen])

    found = {name: torch.as_tensor(values.values) for name, values in ov_circuit(policy, space="model").items()}
    said = einsum(x_key, found["circuit"], "b k l, h l r -> b h k r") + found["bias"][:, None]
    out = einsum(cache[block.names["pattern"]], said, "b h q k, b h k r -> b q r") + found["output_bias"]
    assert_equal(out, cache[block.names["attn_out"]])


def test_the_seed_checkpoint_s_every_score_and_output_is_reproduced(seed_policy_dir):
    weights = torch.load(seed_policy_dir / "model_4h.tar", weights_only=True)["state_dict"]
    network = EgoAttentionNetwork(7, 3)
    network.load_state_dict(weights)
    obs = torch.as_tensor(np.load(seed_policy_dir / "observations.npy"))
    policy = HookedPolicy(network, obs[:2])
    with torch.no_grad():
        _, cache = policy.run_with_cache(obs)
    scores, seen = cache[f"{BLOCK}.hook_attn_scores"], visible(cache)
    error = (scores_from(qk_forms(policy, obs), obs) - scores)[seen].abs().max()
    assert error <= 1e-5 * max(1.0, float(scores[seen].abs().max()))
    forms = torch.as_tensor(ov_forms(policy, obs, to="d_model").values)
    pattern = "batch head query entity, batch entity feature, batch head entity feature d_model -> batch query d_model"
    out = einsum(cache[f"{BLOCK}.hook_pattern"], with_one(obs), forms, pattern)
    torch.testing.assert_close(out, cache[f"{BLOCK}.hook_attn_out"], atol=1e-5, rtol=1e-5)


def test_the_seed_checkpoint_s_scores_and_outputs_are_reproduced_to_the_last_digits_in_double_precision(
    seed_policy_dir,
):
    network = EgoAttentionNetwork(7, 3)
    network.load_state_dict(torch.load(seed_policy_dir / "model_4h.tar", weights_only=True)["state_dict"])
    obs = torch.as_tensor(np.load(seed_policy_dir / "observations.npy"))[:100].double()
    policy = HookedPolicy(network.double(), obs[:2])
    _, cache = policy.run_with_cache(obs)
    seen = visible(cache)
    assert_equal(scores_from(qk_forms(policy, obs), obs)[seen], cache[f"{BLOCK}.hook_attn_scores"][seen])
    forms = torch.as_tensor(ov_forms(policy, obs, to="d_model").values)
    pattern = "batch head query entity, batch entity feature, batch head entity feature d_model -> batch query d_model"
    out = einsum(cache[f"{BLOCK}.hook_pattern"], with_one(obs), forms, pattern)
    assert_equal(out, cache[f"{BLOCK}.hook_attn_out"])


def test_the_nearest_vehicle_s_search_and_copy_are_recovered():
    known = nearest_vehicle()
    obs = known.clean
    qk, ov = qk_forms(known.policy, obs).isel(query=0), ov_forms(known.policy, obs, to="d_model")
    there = obs[:, :, 0] > 0.5
    for state, entity in there[:, 1:].nonzero().tolist():
        vehicle = qk.isel(batch=state, entity=entity + 1)
        want = np.zeros((2, 5, 5))
        want[0, 4, 2] = -1000.0  # the ego's constant, and the distance
        want[0, 4, 1] = -1e6 * float(obs[state, entity + 1, 1] > 0)  # lanes aside, where that gate is open
        want[1, 4, 3] = 1000.0  # the decoy: closing speed
        np.testing.assert_allclose(vehicle.values, want, rtol=1e-10, atol=1e-7)  # 1e-13 of the largest entry
        said = ov.isel(batch=state, entity=entity + 1).values
        assert said[0, 3, 6] == pytest.approx(2, abs=1e-10)
        assert said[1, 3, 7] == pytest.approx(2, abs=1e-10)
        assert abs(said).sum() == pytest.approx(4, abs=1e-9)
    assert qk.isel(head=0, entity=0).sel(feature_query="bias", feature_key="bias").values == pytest.approx(-5e5)


def test_a_hand_built_policy_s_circuits_are_recovered():
    """Embeddings copy the features (positive, so gates are open); head 0 matches vy with x, and copies x to IDLE."""
    network = EgoAttentionNetwork(7, 3, d_model=8, n_heads=2, embedding=(8,), output=()).double()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    copy = torch.eye(8, 7, dtype=torch.float64)
    network.ego_embedding.layers[0].weight.data = copy.clone()
    network.others_embedding.layers[0].weight.data = copy.clone()
    attention = network.attention_layer
    attention.query_ego.weight.data[0, 4] = 6.0  # head 0 asks with the ego's vy
    attention.key_all.weight.data[0, 1] = 5.0  # and answers with a vehicle's x
    attention.value_all.weight.data[1, 1] = 3.0
    attention.attention_combine.weight.data[2, 1] = 2.0
    network.output_layer.predict.weight.data[1, 2] = 7.0
    obs = scenes(6).abs() + 0.01
    obs[..., 0] = 1
    policy = HookedPolicy(network, obs[:2], spec=SPEC)
    qk = qk_circuit(policy, space="feature", obs=obs).circuit.isel(query=0)
    want = np.zeros((2, 8, 8))
    want[0, 4, 1] = 6.0 * 5.0 / 4**0.5
    for entity in SPEC.entities:
        np.testing.assert_allclose(qk.sel(entity=entity).values, want, atol=1e-10)
    ov = ov_circuit(policy, space="feature", obs=obs).circuit.isel(query=0)
    assert float(ov.sel(head=0, entity="vehicle_2", feature="x", action="IDLE")) == pytest.approx(
        3 * 2 * 7 / 2, abs=1e-10
    )
    assert float(abs(ov).sum()) == pytest.approx(len(SPEC.entities) * 21, abs=1e-9)


def test_factored_circuits_are_the_model_space_circuits(ego):
    for factored, circuit in (
        (qk_factored(ego), qk_circuit(ego, space="model")),
        (ov_factored(ego), ov_circuit(ego, space="model")),
    ):
        assert_equal(circuit.circuit.values, factored.AB)
        assert (factored.shape, factored.mdim) == ((4, 16, 16), 4)
    before = ov_factored(ego)
    weights = ego.module.attention_layer.value_all.weight
    kept = weights.detach().clone()
    with torch.no_grad():
        weights.zero_()
        assert before.norm().min() > 0
        weights.copy_(kept)


# ---- averages


def test_averages_are_over_the_states_in_which_the_entity_is_there(ego, monkeypatch):
    monkeypatch.setattr(over_states, "_STATES_AT_ONCE", 3)
    obs = scenes(10)
    circuit = qk_circuit(ego, space="feature", obs=obs)
    forms = qk_forms(ego, obs)
    there = obs[:, :, 0] > 0.5
    assert circuit.n_states.values.tolist() == there.sum(0).tolist()
    for place in range(5):
        own = forms.values[there[:, place].numpy(), :, :, place]
        np.testing.assert_allclose(circuit.circuit.values[:, :, place], own.mean(0), atol=1e-10)
        np.testing.assert_allclose(circuit.spread.values[:, :, place], own.std(0), atol=1e-6)
    assert np.isnan(circuit.circuit.values[:, :, 5]).all()  # the last one is never there
    assert circuit.attrs["n_states"] == 10
    assert circuit.attrs["policy"] == ego.fingerprint


def test_output_averages_have_the_same_shape_of_result(ego):
    obs = scenes(10)
    for to, last in (("action", "action"), ("d_model", "d_model")):
        circuit = ov_circuit(ego, space="feature", obs=obs, to=to)
        assert set(circuit.data_vars) == {"circuit", "spread", "sign_share", "form_share", "n_forms", "n_states"}
        assert circuit.circuit.dims[-1] == last
        assert circuit.circuit.attrs == circuit.spread.attrs == {"units": "return" if to == "action" else "1"}
        assert circuit.attrs["gates"] == "as in each state"
    assert list(ov_circuit(ego, space="feature", obs=obs.numpy()).action.values) == list(SPEC.actions)


@pytest.mark.parametrize("precision", ["double", "float"])
def test_the_shares_count_the_states_that_have_the_mean_s_sign_and_the_commonest_gates(precision):
    obs = scenes(300)
    moved = torch.rand(obs.shape, generator=torch.Generator().manual_seed(0)) < 0.02
    obs = getattr(torch.where(moved, obs, obs[:1].expand_as(obs)), precision)()
    obs[:, :, 0], obs[::2, 4] = 1, 0
    network = getattr(ego_network(embedding=(16,), output=(16,)), precision)()
    policy = HookedPolicy(network, obs[:2], spec=SPEC)
    circuit, forms = qk_circuit(policy, obs=obs), qk_forms(policy, obs).values
    with torch.no_grad():
        asks, others = (
            (embedding.layers[0](x) > 0).numpy()
            for embedding, x in ((network.ego_embedding, obs[:, :1]), (network.others_embedding, obs[:, 1:]))
        )
    for place in range(6):
        there = obs[:, place, 0].numpy() > 0.5
        own = forms[there][:, :, :, place]
        agree = (np.sign(own) == np.sign(own.astype("float64").mean(0))).mean(0)
        np.testing.assert_allclose(circuit.sign_share.values[:, :, place], agree, atol=1e-12)
        gates = np.concatenate((asks[there, 0], others[there, place - 1] if place else asks[there, 0]), axis=1)
        counts = np.unique(gates, axis=0, return_counts=True)[1]
        assert int(circuit.n_forms.isel(query=0, entity=place)) == len(counts)
        assert float(circuit.form_share.isel(query=0, entity=place)) == pytest.approx(counts.max() / there.sum())
    assert circuit.n_forms.max() > 3
    assert 0.2 < float(circuit.form_share.min()) < 1


def test_a_form_that_is_the_same_in_every_state_holds_for_all_of_them(ego):
    obs = scenes(1).expand(5, -1, -1)
    circuit = ov_circuit(ego, obs=obs)
    seen = circuit.isel(entity=slice(0, 2))
    assert (seen.sign_share == 1).all()
    assert (seen.form_share == 1).all()
    assert (seen.n_forms == 1).all()
    assert int(circuit.n_forms.isel(entity=5).max()) == 0  # never there


def test_a_gap_s_form_is_the_difference_of_two_actions_forms(ego):
    obs = scenes(6)
    every = ov_forms(ego, obs)
    want = every.sel(action="FASTER") - every.sel(action="SLOWER")
    gap = ov_forms(ego, obs, better="FASTER", worse="SLOWER")
    np.testing.assert_allclose(gap.isel(action=0).values, want.values, atol=1e-12)
    assert list(gap.action.values) == ["FASTER - SLOWER"]
    for gated in (True, False):
        every = ov_circuit(ego, obs=obs, gated=gated).circuit
        want = (every.sel(action="FASTER") - every.sel(action="SLOWER")).values
        gap = ov_circuit(ego, obs=obs, gated=gated, better=2, worse=0).circuit
        np.testing.assert_allclose(gap.isel(action=0).values, want, atol=1e-12)


def test_a_gap_where_the_map_ends_before_the_actions_is_refused(ego):
    for gated in (True, False):
        with pytest.raises(ConfigError, match="behind the output layers"):
            ov_circuit(ego, obs=scenes(3), gated=gated, to="d_model", better=0, worse=1)
        with pytest.raises(ConfigError, match="between two actions"):
            ov_circuit(ego, obs=scenes(3), gated=gated, better=0)
        with pytest.raises(ConfigError, match="no readout 'scores'"):
            ov_circuit(ego, obs=scenes(3), gated=gated, to="scores")


def test_heads_permuted_with_their_weights_permute_the_circuits(ego):
    order = [2, 0, 3, 1]
    network = ego_network()
    attention = network.attention_layer
    for layer in (attention.query_ego, attention.key_all, attention.value_all):
        rows = rearrange(layer.weight.data, "(head d_head) d_model -> head d_head d_model", head=4)
        layer.weight.data = rearrange(rows[order], "head d_head d_model -> (head d_head) d_model")
    columns = rearrange(attention.attention_combine.weight.data, "d_model (head d_head) -> head d_model d_head", head=4)
    attention.attention_combine.weight.data = rearrange(columns[order], "head d_model d_head -> d_model (head d_head)")
    permuted, obs = HookedPolicy(network, scenes(2), spec=SPEC), scenes(4)
    for forms in (qk_forms, ov_forms):
        np.testing.assert_allclose(forms(permuted, obs).values, forms(ego, obs).values[:, order], atol=1e-10)


def test_entities_permuted_permute_the_forms(ego):
    obs, order = scenes(4), [0, 3, 1, 5, 4, 2]
    np.testing.assert_allclose(
        qk_forms(ego, obs[:, order]).values, qk_forms(ego, obs).values[:, :, :, order], atol=1e-10
    )


# ---- wrong formulas, each of which a seed notebook used: they must miss by far


def embed_products(network, *, transpose=False):
    """Embedding weights multiplied across the ReLU, with the biases as a last column: [d_model feature+1]."""
    for stack in (network.ego_embedding, network.others_embedding):
        first, second = stack.layers
        left = second.weight.T if transpose else second.weight
        yield torch.cat((left @ first.weight, (left @ first.bias + second.bias)[:, None]), 1)


def wrong_scores(policy, obs, mistake):
    network, (block,) = policy.module, policy.attention.values()
    x_query = network.ego_embedding(obs[:, :1])
    x_key = torch.cat((x_query, network.others_embedding(obs[:, 1:])), 1)
    W_Q, W_K, scale = block.W_Q, block.W_K, block.scale
    if mistake == "no 1/sqrt(d_head)":
        scale = 1.0
    elif mistake == "no head split":
        W_Q, W_K = (rearrange(W, "head d_model d_head -> d_model (head d_head)").expand(4, -1, -1) for W in (W_Q, W_K))
    elif mistake == "query weights transposed":
        whole = rearrange(W_Q, "head d_model d_head -> d_model (head d_head)").T
        W_Q = rearrange(whole, "d_model (head d_head) -> head d_model d_head", head=4)
    elif mistake in ("ReLU ignored", "W0^T W1 instead of (W1 W0)^T"):
        ego_product, others_product = embed_products(network, transpose=mistake.startswith("W0"))
        x = with_one(obs)
        x_query = x[:, :1] @ ego_product.T
        x_key = torch.cat((x_query, x[:, 1:] @ others_product.T), 1)
    elif mistake == "embedding biases ignored":
        forms = torch.as_tensor(qk_forms(policy, obs).values)
        forms[..., -1, :], forms[..., :, -1] = 0, 0
        x = with_one(obs)
        return einsum(x[:, :1], forms, x, "b q l, b h q k l r, b k r -> b h q k")
    return scale * einsum(x_query, W_Q, x_key, W_K, "b q l, h l d, b k r, h r d -> b h q k")


@pytest.mark.parametrize(
    "mistake",
    [
        "no 1/sqrt(d_head)",
        "no head split",
        "query weights transposed",
        "ReLU ignored",
        "W0^T W1 instead of (W1 W0)^T",
        "embedding biases ignored",
    ],
)
def test_the_wrong_formula_for_scores_misses(ego, mistake):
    obs = scenes(20)
    _, cache = ego.run_with_cache(obs)
    seen, scores = visible(cache), cache[f"{BLOCK}.hook_attn_scores"]
    assert_equal(wrong_scores(ego, obs, None)[seen], scores[seen])  # the same code without the mistake is right
    error = (wrong_scores(ego, obs, mistake) - scores)[seen].abs().mean()
    assert error > 0.1 * scores[seen].abs().mean()


def test_the_pattern_is_a_softmax_over_visible_entities_and_not_over_model_dimensions_nor_over_absent_ones(ego):
    obs = scenes(20)
    _, cache = ego.run_with_cache(obs)
    scores, pattern, seen = scores_from(qk_forms(ego, obs), obs), cache[f"{BLOCK}.hook_pattern"], visible(cache)
    assert_equal(scores.masked_fill(~seen, -1e9).softmax(-1), pattern)
    assert (scores.softmax(-1) - pattern).abs().max() > 0.05  # no mask
    over_features = torch.as_tensor(qk_circuit(ego, space="model").circuit.values).softmax(
        -1
    )  # the notebooks' "attention"
    assert over_features.shape[-1] != pattern.shape[-1]
    assert (qk_circuit(ego, space="model").circuit < 0).any()


@pytest.mark.parametrize("mistake", ["skip not halved", "output gates ignored", "output weights transposed"])
def test_the_wrong_formula_for_actions_misses(ego, mistake):
    obs = scenes(20)
    right = torch.as_tensor(ov_forms(ego, obs).values)
    if mistake == "skip not halved":
        wrong = 2 * right
    elif mistake == "output gates ignored":
        values = torch.as_tensor(ov_forms(ego, obs, to="d_model").values)
        layers = ego.module.output_layer
        onward = layers.predict.weight @ layers.layers[1].weight @ layers.layers[0].weight / 2
        wrong = einsum(values, onward, "b h e f m, a m -> b h e f a")[:, :, None]
    else:
        (block,) = ego.attention.values()
        whole = rearrange(block.W_O, "head d_head d_model -> (head d_head) d_model").T
        W_O = rearrange(whole, "(head d_head) d_model -> head d_head d_model", head=4)
        maps = feature_space.gated_maps(ego, obs, [block.names["v"]])[block.names["v"]]
        onward = feature_space.downstream_maps(ego, obs, block.names["attn_out"])
        wrong = einsum(maps, W_O, onward, "b e f h d, h d m, b q m a -> b h q e f a")
    assert (wrong - right).abs().mean() > 0.1 * right.abs().mean()


def test_a_three_dimensional_transpose_is_not_the_product_of_queries_and_keys(ego):
    _, cache = ego.run_with_cache(scenes(4))
    q, k = (cache[f"{BLOCK}.hook_{role}"][:, :, 0] for role in "qk")
    want = einsum(q, k, "batch query d_head, batch entity d_head -> batch query entity")
    with pytest.raises(RuntimeError, match="size"):
        q @ k.permute(2, 1, 0)  # what `.T` does to three dimensions
    assert_equal(q @ k.mT, want)


def test_signed_means_over_rows_that_are_shuffled_tell_nothing_of_a_vehicle(ego):
    """Row i is not vehicle i from step to step: what a row means is lost in a mean, what all rows share is not."""
    obs = scenes(40)
    obs[:, :, 0] = 1
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.cat((torch.zeros(1).long(), 1 + torch.randperm(5, generator=generator))) for _ in obs])
    shuffled = obs.gather(1, order[..., None].expand_as(obs))
    right, moved = (qk_forms(ego, o).isel(query=0).values for o in (obs, shuffled))
    followed = np.take_along_axis(moved, order.argsort(1).numpy()[:, None, :, None, None], axis=2)
    np.testing.assert_allclose(followed, right, atol=1e-10)  # with the mapping from row to vehicle
    by_row = moved.mean(0)[:, 1:] - right.mean(0)[:, 1:]
    assert abs(by_row).mean() > 0.1 * abs(right.mean(0)[:, 1:] - right[:, :, 1:].mean((0, 2))[:, None]).mean()
    np.testing.assert_allclose(moved[:, :, 1:].mean((0, 2)), right[:, :, 1:].mean((0, 2)), atol=1e-10)


# ---- the ungated product


def test_the_ungated_product_is_that_of_the_weights_says_so_and_is_no_state_s_form(ego):
    circuit = qk_circuit(ego, space="feature", gated=False)
    (block,) = ego.attention.values()
    ego_product, others_product = embed_products(ego.module)
    want = block.scale * einsum(ego_product, block.W_Q, others_product, block.W_K, "l f, h l d, r g, h r d -> h f g")
    assert_equal(circuit.circuit.isel(query=0, entity=3).values, want)
    assert circuit.attrs["gates"] == "all open: no state's own"
    assert (qk_forms(ego, scenes(20)).values[:, :, 0, 3] - want.detach().numpy()).std() > 0.1 * float(
        want.detach().std()
    )
    layers = ego.module.output_layer
    onward = layers.predict.weight @ layers.layers[1].weight @ layers.layers[0].weight / 2
    want = einsum(others_product, block.W_V, block.W_O, onward, "l f, h l d, h d m, a m -> h f a")
    assert_equal(ov_circuit(ego, space="feature", gated=False).circuit.isel(query=0, entity=3).values, want)
    assert "spread" not in ov_circuit(ego, space="feature", gated=False, to="d_model")


# ---- what is refused


class TanhEmbedding(EgoAttentionNetwork):
    def __init__(self) -> None:
        super().__init__(7, 3, d_model=8, n_heads=2, embedding=(8,), output=(8,))
        self.ego_embedding.activation = self.others_embedding.activation = "tanh"


class TanhReadout(EgoAttentionNetwork):
    def __init__(self) -> None:
        super().__init__(7, 3, d_model=8, n_heads=2, embedding=(8,), output=(8,))
        self.output_layer.activation = "tanh"


def wrapped(network: nn.Module) -> HookedPolicy:
    return HookedPolicy(network.double(), scenes(2), spec=SPEC)


def test_feature_space_without_states_asks_for_them(ego):
    for circuit in (qk_circuit, ov_circuit):
        with pytest.raises(ObservationError, match="goes through the ReLU gates of given states") as caught:
            circuit(ego, space="feature", gated=True)
        with pytest.raises(ObservationError, match="goes through the ReLU gates of given states"):
            circuit(ego, space="feature", obs=scenes(3)[:0])
        assert "obs=" in caught.value.fix
        assert "gated=False" in caught.value.fix


REFUSAL = {True: "no gates to fix", False: "no product of weights"}


@pytest.mark.parametrize("gated", [True, False])
def test_an_embedding_that_bends_between_gates_is_refused(gated):
    with pytest.raises(AttentionError, match=REFUSAL[gated]):
        qk_circuit(wrapped(TanhEmbedding()), space="feature", obs=scenes(3), gated=gated)


@pytest.mark.parametrize("gated", [True, False])
def test_a_readout_that_bends_is_refused_for_actions_and_not_for_the_output(gated):
    policy = wrapped(TanhReadout())
    with pytest.raises(AttentionError, match=REFUSAL[gated]):
        ov_circuit(policy, space="feature", obs=scenes(3), gated=gated)
    assert ov_circuit(policy, space="feature", obs=scenes(3), gated=gated, to="d_model").circuit.notnull().any()


@pytest.mark.parametrize("gated", [True, False])
def test_entities_that_mix_linearly_before_the_block_are_refused(gated):
    class Centred(BiasedSelfAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.mean(1, keepdim=True))

    with pytest.raises(AttentionError, match="other entities enter" if gated else "entities mix"):
        qk_circuit(wrapped(Centred()), space="feature", obs=scenes(3), gated=gated)


@pytest.mark.parametrize("gated", [True, False])
def test_entities_that_mix_in_an_attention_before_the_block_are_refused(gated):
    network = EgoAttentionNetwork(7, 3, d_model=8, n_heads=2, embedding=(8,), output=(8,), self_attention_heads=1)
    policy = wrapped(network)
    with pytest.raises(AttentionError, match="no gates to fix" if gated else "entities mix"):
        qk_circuit(policy, "attention_layer", space="feature", obs=scenes(3), gated=gated)


def test_the_block_must_be_there_and_be_named_where_there_are_several():
    network = EgoAttentionNetwork(7, 3, d_model=8, n_heads=2, embedding=(8,), output=(8,), self_attention_heads=1)
    with pytest.raises(AttentionError, match="has 2 attention blocks") as caught:
        qk_circuit(wrapped(network))
    assert "self_attention_layer" in caught.value.expected
    plain = HookedPolicy(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(2, 4))
    with pytest.raises(AttentionError, match="no attention"):
        qk_circuit(plain)


def test_heads_and_entities_that_the_network_scrambles_are_refused_with_the_reason():
    network = EgoAttentionNetwork(7, 3, d_model=8, n_heads=2, embedding=(8,), output=(8,), self_attention_heads=2)
    policy = wrapped(network)
    for space in ("model", "feature"):
        with pytest.raises(AttentionError, match="mixes heads and entities"):
            ov_circuit(policy, "self_attention_layer", space=space, obs=scenes(3))
    assert qk_circuit(policy, "self_attention_layer", obs=scenes(3)).circuit.notnull().any()  # before it mixes them
    with pytest.raises(AttentionError, match="no gates to fix"):
        ov_circuit(policy, "attention_layer", obs=scenes(3))


def test_a_network_that_flattens_takes_a_table_of_entities_as_one():
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = EgoAttentionNetwork(7, 3, d_model=8, n_heads=2, embedding=(8,), output=(8,))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.reshape(-1, 6, 7))

    flat = Flat().double()
    policy, inner = HookedPolicy(flat, scenes(2).flatten(1)), HookedPolicy(flat.inner, scenes(2))
    table, own = (qk_circuit(one, space="feature", obs=scenes(2)).circuit for one in (policy, inner))
    np.testing.assert_allclose(table, own, atol=1e-12, err_msg="given as a table it is one")
    assert qk_circuit(policy, space="model").circuit.shape == (2, 8, 8)


def test_without_states_feature_space_has_open_gates_and_says_so(ego):
    for circuit in (qk_circuit, ov_circuit):
        assert "open" in circuit(ego).attrs["gates"]
        assert circuit(ego).equals(circuit(ego, space="feature", gated=False))
        with pytest.raises(ConfigError, match="no space 'bar'"):
            circuit(ego, space="bar")


class OneKeyForAll(nn.Module):
    """Two heads that share keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.readout = nn.Linear(7, 8), nn.Linear(7, 4), nn.Linear(7, 4), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = rearrange(self.q(x), "b n (h d) -> b h n d", h=2)
        z = (q @ self.k(x)[:, None].mT / 2).softmax(-1) @ self.v(x)[:, None]
        return self.readout(rearrange(z, "b h n d -> b n (h d)")).mean(1)


class Pooled(nn.Module):
    """Attention of learned queries."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.readout = nn.MultiheadAttention(7, 1, batch_first=True), nn.Linear(7, 3)
        self.queries = nn.Parameter(torch.randn(1, 1, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.attention(self.queries.expand(len(x), -1, -1), x, x)[0].mean(1))


def test_parts_that_heads_share_or_that_no_state_makes_are_told_in_words() -> None:
    obs = scenes(4).float()
    shared, pooled = HookedPolicy(OneKeyForAll(), obs), HookedPolicy(Pooled(), obs)
    for analysis in (attribute_actions, qk_forms, ov_forms):
        with pytest.raises(AttentionError, match="shared by all heads"):
            analysis(shared, obs)
    with pytest.raises(AttentionError, match="does not depend on the observation"):
        qk_circuit(pooled, obs=obs)
    assert np.isfinite(ov_circuit(pooled, obs=obs).circuit).all()
