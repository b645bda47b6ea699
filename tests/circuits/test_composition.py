"""Composition scores are Elhage et al.'s on a residual stream, and stay true where gates and norms lie between."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import rlmech as rlm
from rlmech.circuits import composition as module
from rlmech.circuits.composition import composition_scores
from rlmech.circuits.random_matrices import against, gaussian_compositions, rotated_compositions
from rlmech.errors import AttentionError, ConfigError, ObservationError
from rlmech.nets import EgoAttentionNetwork
from tests import networks

KINDS = ("Q", "K", "V")


class Stream(nn.Module):
    """Two attentions on a residual stream, and between them whatever `between` is."""

    def __init__(self, between: nn.Module | None = None, *, n_heads: int = 2, parallel: bool = False) -> None:
        super().__init__()
        self.embed, self.readout = nn.Linear(7, 8), nn.Linear(8, 3)
        self.first = nn.MultiheadAttention(8, n_heads, batch_first=True)
        self.second = nn.MultiheadAttention(8, 4, batch_first=True)
        self.between, self.parallel = between or nn.Identity(), parallel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # the first entity stays visible: torch's fused path gives NaN where every key is hidden
        absent = nn.functional.pad(x[:, 1:, 0] < 0.5, (1, 0))
        r = self.embed(x)
        written = r + self.first(r, r, r, key_padding_mask=absent, need_weights=False)[0]
        r = r if self.parallel else self.between(written)
        read = self.second(r, r, r, key_padding_mask=absent, need_weights=False)[0]
        return self.readout((r + read + written).mean(1))


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, r: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.relu(self.inner(r)))


class Centred(nn.Module):
    def forward(self, r: torch.Tensor) -> torch.Tensor:
        return r - r.mean(1, keepdim=True)


def random_weights(network: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.double().eval()


def states(n: int) -> torch.Tensor:
    return networks.scenes(n, n_entities=5, seed=n).double()


def policy_of(network: nn.Module) -> rlm.HookedPolicy:
    return rlm.HookedPolicy(random_weights(network), states(3))


@cache
def plain() -> rlm.HookedPolicy:
    return policy_of(Stream())


@cache
def gated() -> rlm.HookedPolicy:
    return policy_of(Stream(Gate()))


def by_hand(policy: rlm.HookedPolicy, between: torch.Tensor, later: str = "second") -> np.ndarray:
    """Elhage et al.'s formula with dense products through one map between the blocks: `[composition earlier later]`."""
    first, second = policy.attention["first"], policy.attention[later]
    scores = torch.zeros(3, first.n_heads, second.n_heads, dtype=torch.float64)
    for i in range(first.n_heads):
        write = first.W_V[i] @ first.W_O[i]
        for j in range(second.n_heads):
            qk, ov = second.W_Q[j] @ second.W_K[j].T, second.W_V[j] @ second.W_O[j]
            for place, read in enumerate((between @ qk, between @ qk.T, between @ ov)):
                scores[place, i, j] = (write @ read).norm() / (write.norm() * read.norm())
    return scores.detach().numpy()


def found_scores(found, later: str = "second") -> np.ndarray:
    later = found.later.values[found.later_block.values == later]
    earlier = found.earlier.values[found.earlier_block.values == "first"]
    return found.score.sel(earlier=earlier, later=later).values


def test_on_a_plain_residual_stream_it_is_the_published_formula_and_needs_no_states():
    found = composition_scores(plain())
    np.testing.assert_allclose(found_scores(found), by_hand(plain(), torch.eye(8).double()), atol=1e-10)
    np.testing.assert_allclose(
        found_scores(composition_scores(plain(), obs=states(4))), found_scores(found), atol=1e-10
    )
    assert found.attrs["between"] == "first > second: linear"
    assert np.isnan(found.score.sel(earlier="second head 0").values).all()
    assert np.nanmax(found.spread.values) < 1e-7
    assert list(found.composition.values) == list(KINDS)


class ThreeBlocks(nn.Module):
    """Three attentions, each of which reads the sum of all before it, or with `chained` only the one before it."""

    def __init__(self, *, chained: bool) -> None:
        super().__init__()
        self.embed, self.readout, self.chained = nn.Linear(7, 8), nn.Linear(8, 3), chained
        self.first, self.second, self.third = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r = self.embed(x)
        for attention in (self.first, self.second, self.third):
            written = attention(r, r, r, need_weights=False)[0]
            r = written if self.chained else r + written
        return self.readout(r.mean(1))


def test_a_third_block_between_two_is_passed_by_but_not_passed_through():
    summed = policy_of(ThreeBlocks(chained=False))
    found = composition_scores(summed)
    for later in ("second", "third"):  # past the second block the residual stream is the identity
        expected = by_hand(summed, torch.eye(8).double(), later)
        np.testing.assert_allclose(found_scores(found, later), expected, atol=1e-10)
    chained = policy_of(ThreeBlocks(chained=True))
    found = composition_scores(chained)
    np.testing.assert_allclose(found_scores(found), by_hand(chained, torch.eye(8).double()), atol=1e-10)
    assert np.isnan(found_scores(found, "third")).all()


def test_a_linear_layer_between_is_part_of_what_the_later_head_reads():
    policy = policy_of(Stream(nn.Linear(8, 8)))
    between = policy.module.between.weight.T
    np.testing.assert_allclose(found_scores(composition_scores(policy)), by_hand(policy, between), atol=1e-10)
    assert abs(by_hand(policy, between) - by_hand(policy, torch.eye(8).double())).max() > 0.05


def test_a_norm_s_scale_is_held_so_only_its_centring_and_weights_count():
    policy = policy_of(Stream(nn.LayerNorm(8)))
    between = (torch.eye(8) - 1 / 8).double() * policy.module.between.weight
    found = composition_scores(policy, obs=states(6))
    np.testing.assert_allclose(found_scores(found), by_hand(policy, between), atol=1e-10)
    assert found.attrs["between"] == "first > second: layer_norm as in each state"


@pytest.mark.parametrize("at_once", [2**24, 1])
def test_gates_between_are_those_of_each_state_and_position_that_is_there(at_once, monkeypatch):
    monkeypatch.setattr(module, "_NUMBERS_AT_ONCE", at_once)
    policy, obs = gated(), states(8)
    net: Stream = policy.module
    _, cache = policy.run_with_cache(obs)
    written = obs @ net.embed.weight.T + net.embed.bias + cache[policy.attention["first"].names["attn_out"]]
    gates = (net.between.inner(written) > 0).double()[obs[:, :, 0] >= 0.5]
    maps = [net.between.inner.weight.T * gate @ net.between.outer.weight.T for gate in gates]
    singles = np.stack([by_hand(policy, one) for one in maps])
    found = composition_scores(policy, obs=obs)
    np.testing.assert_allclose(found_scores(found), np.sqrt(np.nanmean(singles**2, 0)), atol=1e-10)
    spread = found.spread.sel(earlier="first head 1", later="second head 2", composition="K")
    assert float(spread) == pytest.approx(float(np.nanstd(singles[:, 1, 1, 2])), abs=1e-8)
    assert len(gates) < 40
    assert found.attrs["between"] == "first > second: relu as in each state"


def test_a_head_that_writes_what_only_another_s_keys_read_composes_by_keys_alone():
    network = random_weights(Stream(n_heads=1)).double()
    first, second = network.first, network.second
    with torch.no_grad():
        first.out_proj.weight.zero_()
        first.out_proj.weight[3, :] = 1.0  # all of its output goes to dimension 3
        second.in_proj_weight.zero_()
        second.in_proj_weight[0:2, 0] = 1.0  # queries of head 0 read dimension 0
        second.in_proj_weight[8:10, 3] = 1.0  # its keys dimension 3
        second.in_proj_weight[16:18, 5] = 1.0  # its values dimension 5
        second.out_proj.weight.copy_(torch.eye(8))
    found = composition_scores(rlm.HookedPolicy(network, states(3)))
    head = found.sel(earlier="first head 0", later="second head 0")
    np.testing.assert_allclose(head.score.sel(composition=list(KINDS)).values, [0, 1, 0], atol=1e-12)
    assert (head.percentile.sel(composition="K") == 100).all()
    assert (head.z.sel(composition="K") > 3).all()
    assert np.isnan(found.score.sel(later="second head 1", composition="K").values).all()  # reads nothing at all


def test_scores_do_not_depend_on_how_large_weights_are():
    network = random_weights(Stream())
    with torch.no_grad():
        network.first.in_proj_weight[16:] *= 7.0
        network.second.in_proj_weight[8:16] *= 0.1
    found = composition_scores(rlm.HookedPolicy(network, states(3)))
    np.testing.assert_allclose(found_scores(found), found_scores(composition_scores(plain())), atol=1e-10)


def test_heads_permuted_with_their_weights_permute_the_scores():
    network, order = random_weights(Stream()), [3, 1, 0, 2]
    with torch.no_grad():
        weights = network.second.in_proj_weight.reshape(3, 4, 2, 8)
        network.second.in_proj_weight.copy_(weights[:, order].reshape(24, 8))
        out = network.second.out_proj.weight.reshape(8, 4, 2)
        network.second.out_proj.weight.copy_(out[:, order].reshape(8, 8))
    found = composition_scores(rlm.HookedPolicy(network, states(3)))
    np.testing.assert_allclose(found_scores(found), found_scores(composition_scores(plain()))[..., order], atol=1e-10)


def test_what_stands_in_the_row_of_an_absent_entity_does_not_count():
    obs = states(8)
    other = torch.where(obs[..., :1] < 0.5, torch.randn(obs.shape).double().clamp(-0.4, 0.4), obs)
    assert (obs != other).any()
    before, after = (found_scores(composition_scores(gated(), obs=o)) for o in (obs, other))
    np.testing.assert_allclose(before, after, atol=1e-10)


# ---- baselines


def test_random_rotations_of_two_circuits_give_what_the_short_formula_draws():
    torch.manual_seed(0)
    write, read = torch.randn(6, 2).double() @ torch.randn(2, 6).double(), torch.diag(torch.arange(6.0).double())
    scores = torch.empty(3000, dtype=torch.float64)
    for draw in range(len(scores)):
        turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
        scores[draw] = (write @ turn @ read).norm() / (write.norm() * read.norm())
    shares = [torch.linalg.svdvals(matrix) ** 2 for matrix in (write, read)]
    shares = [(share / share.sum())[None] for share in shares]
    draws = rotated_compositions(*shares, 6, 3000, torch.Generator().manual_seed(1))[:, 0, 0]
    assert float((draws**2).mean()) == pytest.approx(1 / 6, rel=0.03)  # the same for all singular values
    for q in (0.1, 0.5, 0.9):
        assert float(draws.quantile(q)) == pytest.approx(float(scores.quantile(q)), rel=0.04)


def test_random_factors_of_the_same_shapes_give_what_their_products_do():
    torch.manual_seed(0)
    scores = torch.empty(2000, dtype=torch.float64)
    for draw in range(len(scores)):
        write, read = (torch.randn(6, 2).double() @ torch.randn(2, 6).double() for _ in range(2))
        scores[draw] = (write @ read).norm() / (write.norm() * read.norm())
    draws = gaussian_compositions((6, 2, 6), (6, 2, 6), 2000, torch.Generator().manual_seed(1))
    for q in (0.1, 0.5, 0.9):
        assert float(draws.quantile(q)) == pytest.approx(float(scores.quantile(q)), rel=0.05)


def test_a_head_of_random_weights_stands_anywhere_among_the_draws():
    ranks = np.concatenate(
        [
            composition_scores(policy_of(Stream(n_heads=4)), n_controls=100, seed=seed).percentile.values.ravel()
            for seed in range(2)
        ]
    )
    ranks = ranks[~np.isnan(ranks)]
    assert 25 < ranks.mean() < 75
    assert ranks.min() < 25 < 75 < ranks.max()


def test_the_same_seed_gives_the_same_baselines_and_another_one_others():
    one, same, other = (composition_scores(plain(), seed=seed) for seed in (0, 0, 1))
    assert one.equals(same)
    assert not (one.random_mean == other.random_mean).any()
    np.testing.assert_array_equal(one.score, other.score)


def test_a_value_among_draws_has_its_distance_and_its_share():
    found = against(np.array([3.0, np.nan]), torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [6.0, 0.0]]))
    assert found["random_mean"][0] == 3
    assert found["percentile"][0] == 50  # strictly below
    assert found["z"][0] == 0
    assert all(np.isnan(values[1]) for values in found.values())


# ---- what is refused


def refused(network: nn.Module, error=AttentionError, **kwargs):
    with pytest.raises(error) as caught:
        composition_scores(policy_of(network), **kwargs)
    return caught.value


def test_one_block_alone_does_not_compose():
    error = refused(EgoAttentionNetwork(7, 3, d_model=8, n_heads=2, embedding=(8,), output=(8,)))
    assert "between two attention blocks" in error.problem
    assert "attention_layer" in error.given


def test_blocks_side_by_side_do_not_compose():
    assert "No attention block reads" in refused(Stream(parallel=True)).problem


def test_gates_between_ask_for_states_and_say_which_gates():
    error = refused(Stream(Gate()), ObservationError)
    assert "relu" in error.given
    assert "obs=" in error.fix


def test_a_factor_that_depends_on_the_state_asks_for_states_too():
    class Scaled(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            r = self.embed(x)
            r = (r + self.first(r, r, r, need_weights=False)[0]) * x.mean(-1, keepdim=True)
            return self.readout(self.second(r, r, r, need_weights=False)[0].mean(1))

    assert "depends on the observation" in refused(Scaled(), ObservationError).given


def test_what_bends_between_is_refused_by_name_and_what_bends_before_is_not():
    assert "tanh" in refused(Stream(nn.Tanh()), obs=states(3)).given

    class Before(Stream):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.tanh(x))

    assert composition_scores(policy_of(Before())).score.notnull().any()


def test_positions_that_mix_between_blocks_are_refused():
    error = refused(Stream(Centred()), obs=states(3))
    assert "Positions mix" in error.problem


def test_a_block_whose_heads_are_scrambled_is_refused_with_the_reason():
    sizes = {"d_model": 8, "n_heads": 2, "embedding": (8,), "output": (8,)}
    error = refused(EgoAttentionNetwork(7, 3, **sizes, self_attention_heads=2), obs=states(3))
    assert "mixes heads and entities" in error.problem
    found = composition_scores(policy_of(EgoAttentionNetwork(7, 3, **sizes, self_attention_heads=1)))
    assert found.score.sel(later="attention_layer head 1", earlier="self_attention_layer head 0").notnull().all()


def test_a_baseline_of_one_draw_is_refused():
    assert "needs draws" in refused(Stream(), ConfigError, n_controls=1).problem
