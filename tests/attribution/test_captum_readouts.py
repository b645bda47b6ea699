"""Captum explains the policy's own scores, whichever output they are, and says where there is no gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rlmech as rlm
from rlmech.attribution import deep_lift, integrated_gradients, layer_conductance, saliency
from rlmech.errors import ObservationError

pytest.importorskip("captum")


class Several(nn.Module):
    """Three outputs, of which the last is the scores."""

    def __init__(self, pack: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu, self.value = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)
        self.decoy, self.actor, self.pack = nn.Linear(6, 3), nn.Linear(6, 3), pack

    def forward(self, x: Tensor) -> Any:
        h = self.relu(self.first(x))
        return self.pack(self.decoy(h), self.value(h), self.actor(h))


PACKED: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Any], Any, Any]] = {
    "by place": (lambda *made: made, 2, 1),
    "by key": (lambda a, b, c: {"other": a, "v": b, "q": c}, "q", "v"),
    "by path": (lambda a, b, c: (a, {"pi": (c, b)}), "1.pi.0", "1.pi.1"),
    "by function": (lambda a, b, c: torch.cat([a, b, c], dim=1), lambda made: made[:, 4:], None),
}


@pytest.fixture(params=PACKED)
def policy(request: pytest.FixtureRequest) -> rlm.HookedPolicy:
    pack, scores, value = PACKED[request.param]
    return rlm.HookedPolicy(Several(pack), torch.rand(2, 4), scores=scores, value=value)


def test_what_is_explained_is_the_policys_scores(policy: rlm.HookedPolicy) -> None:
    clean, baseline = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1))
    change = (policy(clean) - policy(baseline)).detach().numpy()
    for found in (
        integrated_gradients(policy, clean, baseline=baseline, n_steps=4),
        deep_lift(policy, clean, baseline=baseline),
        layer_conductance(policy, clean, "relu.hook_out", baseline=baseline, n_steps=4),
    ):
        np.testing.assert_allclose(found.total, change, atol=1e-6)
    variable = clean.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(policy(variable)[:, 1].sum(), variable)
    np.testing.assert_allclose(saliency(policy, clean).attribution[:, 1], gradient.abs(), atol=1e-6)


class Cast(nn.Module):
    """Whole numbers, taken for real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float())


class LooksUp(nn.Module):
    """Of two arrays one is real and one is looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.relu, self.layer = nn.Embedding(5, 2), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return self.relu(self.table(x["place"])) + self.layer(x["speed"])


class Unread(nn.Module):
    """Of two arrays the scores read one."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(4, 2), nn.Linear(3, 1)

    def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.actor(x["seen"]), self.critic(x["more"])[:, 0]


def test_whole_numbers_that_count_as_real_ones_have_a_gradient() -> None:
    module = Cast()
    found = saliency(rlm.HookedPolicy(module, torch.ones(2, 3, dtype=torch.int64)), torch.tensor([[1, 2, 3]]))
    np.testing.assert_allclose(found.attribution[0], module.layer.weight.detach().abs(), atol=1e-7)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "deep_lift", "layer_conductance"])
@pytest.mark.parametrize("mixed", [False, True])
def test_whole_numbers_that_are_looked_up_are_refused_in_words(method: str, *, mixed: bool) -> None:
    place = torch.tensor([0, 1, 4])
    policy, obs = (
        (rlm.HookedPolicy(LooksUp(), states := {"place": place, "speed": torch.rand(3, 4)}), states)
        if mixed
        else (rlm.HookedPolicy(nn.Sequential(nn.Embedding(5, 4), nn.ReLU(), nn.Linear(4, 2)), place), place)
    )
    more = {} if method == "saliency" else {"baseline": obs}
    where = (["relu.hook_out"] if mixed else ["1.hook_out"]) if method == "layer_conductance" else []
    with pytest.raises(ObservationError, match="looks up, as a one-hot row or an embedding"):
        getattr(rlm.attribution, method)(policy, obs, *where, **more)
    assert rlm.ablation_sweep(policy, obs).sizes["site"] > 0, "what the message proposes works"


def test_an_array_that_the_scores_do_not_read_has_the_attribution_zero() -> None:
    obs = {"seen": torch.rand(3, 4), "more": torch.rand(3, 3)}
    policy = rlm.HookedPolicy(Unread(), obs)
    found = saliency(policy, obs)
    assert not found.attribution_more.any()
    assert found.attribution_seen.all()
