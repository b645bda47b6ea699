"""Statistics of circuits are those of the dense matrices, and tell a built circuit from random weights."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.circuits import ov_circuit, qk_circuit
from rlmech.circuits.random_matrices import gaussian_products
from rlmech.circuits.statistics import STATISTICS, circuit_statistics, effective_rank, positivity, stable_rank
from rlmech.errors import AttentionError, ConfigError, ObservationError
from rlmech.nets import EgoAttentionNetwork
from rlmech.testbed import nearest_vehicle
from tests import networks

BOTH = ("qk", "ov")


def random_weights(network: nn.Module) -> nn.Module:
    torch.manual_seed(4)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.double().eval()


def ego_network() -> EgoAttentionNetwork:
    return random_weights(EgoAttentionNetwork(7, 3, d_model=32, n_heads=4, embedding=(32,), output=(16,)))


def states(n: int) -> torch.Tensor:
    obs = networks.scenes(n, n_entities=15, seed=n).double()
    obs[:, 14] = 0  # the last vehicle is never there
    return obs


@cache
def ego() -> rlm.HookedPolicy:
    return rlm.HookedPolicy(ego_network(), states(2), spec=networks.SPEC)


NETWORKS = {
    "self-attention with biases": (networks.FusedAttention, None),
    "multi-head": (networks.MultiHead, None),
    "scaled queries": (networks.ScaledQueries, None),
    "second layer": (networks.Transformer, "encoder.layers.1.self_attn"),
    "ego": (ego_network, None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_number_is_that_of_the_dense_product(name):
    make, block = NETWORKS[name]
    policy = rlm.HookedPolicy(random_weights(make()), states(2))
    found = circuit_statistics(policy, block, n_controls=2)
    (heads,) = [policy.attention[block]] if block else policy.attention.values()
    for head in range(heads.n_heads):
        dense = {"qk": heads.scale * heads.W_Q[head] @ heads.W_K[head].T, "ov": heads.W_V[head] @ heads.W_O[head]}
        for circuit, matrix in dense.items():
            of_head = found.sel(circuit=circuit, head=head)
            s = np.linalg.svd(matrix.detach().numpy(), compute_uv=False)
            values = dict(zip(STATISTICS, of_head.value.values, strict=True))
            p = s / s.sum()
            assert values["norm"] == pytest.approx(np.linalg.norm(matrix.detach().numpy()))
            assert values["spectral_norm"] == pytest.approx(s[0])
            assert values["stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2)
            assert values["effective_rank"] == pytest.approx(np.exp(-(p * np.log(p + 1e-300)).sum()), rel=1e-6)
            rank = int(of_head.singular_value.notnull().sum())
            np.testing.assert_allclose(of_head.singular_value.values[:rank], s[:rank], atol=1e-10)
            if matrix.shape[0] != matrix.shape[1]:
                assert np.isnan(values["positivity"])
                assert of_head.eigenvalue_real.isnull().all()
                continue
            eigenvalues = np.linalg.eigvals(matrix.detach().numpy())
            assert values["positivity"] == pytest.approx(eigenvalues.sum().real / abs(eigenvalues).sum(), abs=1e-6)
            listed = of_head.eigenvalue_real.values + 1j * of_head.eigenvalue_imag.values
            largest = np.sort(abs(eigenvalues))[::-1][: len(listed)]
            np.testing.assert_allclose(abs(listed), largest, atol=1e-9)


def test_singular_vectors_give_the_circuit_back_and_have_the_larger_left_entry_positive():
    found, policy = circuit_statistics(ego(), n_controls=2), ego()
    for circuit, made, left, right in (
        ("qk", qk_circuit(policy, space="model"), found.qk_query, found.qk_key),
        ("ov", ov_circuit(policy, space="model"), found.ov_in, found.ov_out),
    ):
        again = (found.singular_value.sel(circuit=circuit) * left * right).sum("rank")
        np.testing.assert_allclose(again.transpose(*made.circuit.dims).values, made.circuit.values, atol=1e-10)
        assert (left.max(left.dims[-1]) >= -left.min(left.dims[-1])).all()


def test_between_features_the_vectors_bear_the_features_names_and_give_the_mean_circuit_back():
    obs = states(12)
    found = circuit_statistics(ego(), space="feature", obs=obs, n_controls=2)
    circuit = ov_circuit(ego(), space="feature", obs=obs).circuit
    again = (found.singular_value.sel(circuit="ov") * found.ov_in * found.ov_out).sum("rank", skipna=True)
    seen = circuit.isel(entity=slice(0, 14))
    np.testing.assert_allclose(again.isel(entity=slice(0, 14)).transpose(*seen.dims).values, seen.values, atol=1e-8)
    assert list(found.ov_out.action.values) == list(networks.SPEC.actions)
    assert list(found.qk_key.feature_key.values) == [*networks.FEATURES, "bias"]
    assert found.value.isel(entity=14).isnull().all()
    assert found.value.sel(circuit="ov", statistic="positivity").isnull().all()  # features against actions
    assert found.value.sel(circuit="qk", statistic="positivity").isel(entity=slice(0, 14)).notnull().all()
    assert found.percentile.sel(statistic="norm").isnull().all()
    assert found.attrs["gates"] == "as in each state"
    assert "open" in circuit_statistics(ego(), space="feature", n_controls=2).attrs["gates"]


# ---- against random weights


def test_random_weights_stand_anywhere_among_the_draws_and_built_ones_at_the_end():
    found = circuit_statistics(ego(), n_controls=200)
    assert 15 < float(found.percentile.mean()) < 85
    assert abs(found.z).max() < 4.5
    network = ego_network()
    attention = network.attention_layer
    with torch.no_grad():
        attention.key_all.weight.copy_(attention.query_ego.weight)  # every head looks for what is like the ego
        attention.attention_combine.weight.copy_(-attention.value_all.weight.T)  # and writes its opposite
    built = circuit_statistics(rlm.HookedPolicy(network, states(2)), n_controls=200)
    copying = built.sel(statistic="positivity")
    np.testing.assert_allclose(copying.value.sel(circuit="qk").values, 1, atol=1e-10)
    np.testing.assert_allclose(copying.value.sel(circuit="ov").values, -1, atol=1e-10)
    assert (copying.percentile.sel(circuit="qk") == 100).all()
    assert (copying.percentile.sel(circuit="ov") == 0).all()
    assert (built.percentile.sel(statistic="norm") > 95).all()  # its factors are aligned


def test_the_baseline_is_of_the_weights_own_shape_and_scale():
    policy = ego()
    found = circuit_statistics(policy, n_controls=400, seed=3)
    (block,) = policy.attention.values()
    torch.manual_seed(9)
    for head in range(block.n_heads):
        q, k = (block.scale * block.W_Q[head]).detach(), block.W_K[head].detach()
        norms = [
            (torch.randn_like(q) * q.square().mean().sqrt() @ (torch.randn_like(k) * k.square().mean().sqrt()).T).norm()
            for _ in range(400)
        ]
        expected, of_head = torch.stack(norms), found.sel(circuit="qk", head=head, statistic="norm")
        assert float(of_head.random_mean) == pytest.approx(float(expected.mean()), rel=0.03)
        assert float(of_head.random_std) == pytest.approx(float(expected.std()), rel=0.25)


def test_scaling_the_weights_scales_the_norms_and_moves_nothing_against_the_baseline():
    network = ego_network()
    with torch.no_grad():
        network.attention_layer.key_all.weight *= 5
    one, five = circuit_statistics(ego()), circuit_statistics(rlm.HookedPolicy(network, states(2)))
    np.testing.assert_allclose(five.percentile.values, one.percentile.values)
    np.testing.assert_allclose(five.z.values, one.z.values, atol=1e-8)
    ratio = (five.value / one.value).sel(circuit="qk")
    np.testing.assert_allclose(ratio.sel(statistic="norm").values, 5)
    np.testing.assert_allclose(ratio.sel(statistic="effective_rank").values, 1)


def test_the_same_seed_gives_the_same_draws():
    one, same, other = (circuit_statistics(ego(), seed=seed) for seed in (0, 0, 1))
    assert one.equals(same)
    assert not one.random_mean.equals(other.random_mean)
    assert one.value.equals(other.value)
    products = gaussian_products((5, 2, 3), 4, torch.Generator().manual_seed(0))
    assert (products.shape, products.mdim) == ((4, 5, 3), 2)


def test_heads_permuted_with_their_weights_permute_the_statistics():
    network, order = ego_network(), [2, 3, 1, 0]
    attention = network.attention_layer
    with torch.no_grad():
        for layer in (attention.query_ego, attention.key_all, attention.value_all):
            layer.weight.copy_(layer.weight.reshape(4, 8, 32)[order].reshape(32, 32))
        combine = attention.attention_combine.weight
        combine.copy_(combine.reshape(32, 4, 8)[:, order].reshape(32, 32))
    permuted = circuit_statistics(rlm.HookedPolicy(network, states(2)))
    np.testing.assert_allclose(permuted.value.values, circuit_statistics(ego()).value.values[:, order], atol=1e-9)


def test_hand_built_circuits_have_the_numbers_that_they_were_built_with():
    known = nearest_vehicle()
    found = circuit_statistics(known.policy, n_controls=2)
    rank_one = found.value.sel(statistic=["effective_rank", "stable_rank"])
    np.testing.assert_allclose(rank_one.values, 1, atol=1e-9)
    strongest = found.singular_value.isel(rank=0)
    of_search = 1000 * np.sqrt(1 + 1000**2 + 500**2)  # distance, lanes and the ego's own place
    np.testing.assert_allclose(strongest.sel(circuit="qk").values, [of_search, 1000], rtol=1e-10)
    np.testing.assert_allclose(strongest.sel(circuit="ov").values, [2, 2], atol=1e-10)
    assert abs(float(found.qk_query.isel(head=0, rank=0, d_model_query=4))) == pytest.approx(1)  # it asks for the ego
    assert abs(float(found.ov_out.isel(head=0, rank=0, d_model_out=6))) == pytest.approx(1)


# ---- the statistics themselves, and what is refused


def test_ranks_and_positivity_at_their_ends():
    assert effective_rank(torch.ones(5)).item() == pytest.approx(5)
    assert effective_rank(torch.tensor([3.0, 0, 0])).item() == pytest.approx(1)
    assert stable_rank(torch.ones(5)).item() == 5
    assert positivity(torch.tensor([1j, -1j])).item() == 0
    assert positivity(torch.tensor([-2.0 + 0j])).item() == -1


def test_unfit_arguments_are_refused():
    with pytest.raises(ConfigError, match="needs draws"):
        circuit_statistics(ego(), n_controls=1)
    with pytest.raises(ConfigError, match="no space"):
        circuit_statistics(ego(), space="weights")
    with pytest.raises(AttentionError, match="no attention"):
        circuit_statistics(rlm.HookedPolicy(networks.mlp(4, 8, 3), torch.rand(2, 4)))
    with pytest.raises(ObservationError, match="no state"):
        circuit_statistics(ego(), space="feature", obs=states(2)[:0])
