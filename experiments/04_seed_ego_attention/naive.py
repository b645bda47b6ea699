"""What each formula of the naive analysis gets wrong, measured on the recorded states."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from exact import Terms
from subjects import BETTER, GAP, WORSE, States, interval, mean_of, names_of

import rlmech as rlm

Found = dict[str, Any]
SHUFFLED_SEED = 0
N_STEPS = 50


def measured(states: States, terms: Terms) -> dict[str, Found]:
    """Every entry: what the formula is, and the numbers that say how wrong it is."""
    q, k = states.split("query_ego")[:, 0], states.split("key_all")
    raw = np.einsum("nhd,nehd->nhe", q, k)  # unscaled and unmasked, per head
    d_head, n_heads, absent = q.shape[-1], q.shape[1], ~states.there[:, None]
    joint = np.repeat(raw.sum(1, keepdims=True), n_heads, axis=1) / np.sqrt(n_heads * d_head)
    return {
        "q @ k.T on three dimensions": transposed(states),
        "one dictionary for all forward passes": only_the_last(states),
        "a softmax over features of a weight product": weights_as_attention(states),
        "no head split": against(states, softmax(joint, absent)),
        "no 1/sqrt(d_head)": against(states, softmax(raw, absent)),
        "no mask": without_mask(states, raw / np.sqrt(d_head)),
        "the skip not halved": skipped(states, "whole skip"),
        "the skip left out": skipped(states, "no skip"),
        "ReLU and biases ignored, QK": qk_products(states),
        "ReLU and biases ignored, OV": ov_products(states, terms),
        "attention of s_t+1 labelled a_t": one_late(states),
        "signed means over shuffled rows": shuffled_means(states, terms),
        "raw Q instead of the gap": raw_scores(states, terms),
        "a zero baseline across the mask": zero_baseline(states),
        "a lens through whatever weights fit": borrowed_lens(states),
    }


def softmax(scores: np.ndarray, absent: np.ndarray) -> np.ndarray:
    """Over the rows that are there."""
    shown = np.where(absent, -np.inf, scores)
    weights = np.exp(shown - shown.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def against(states: States, pattern: np.ndarray) -> Found:
    """A wrong pattern beside the policy's own: what it says, and what the policy would do with it."""
    own = states.pattern
    after = states.rerun(names_of(states.policy)["pattern"], lambda _: torch.as_tensor(pattern[:, :, None]).float())
    return {
        "attention in the wrong place": mean_of(states, 0.5 * np.abs(pattern - own).sum(-1).mean(1)),
        "another row attended most": mean_of(states, (pattern.argmax(-1) != own.argmax(-1)).mean(1)),
        **consequences(states, after),
    }


def consequences(states: States, after: np.ndarray) -> Found:
    """What other scores would mean for the decisions."""
    return {
        "another action": mean_of(states, (after.argmax(1) != states.scores.argmax(1)).astype(float)),
        f"error of {GAP} [return]": mean_of(states, np.abs(states.gap(after) - states.gap())),
    }


def transposed(states: States) -> Found:
    """`q @ k.T` as torch takes it: `.T` turns all three axes round."""
    names = names_of(states.policy)
    q, k = (torch.as_tensor(states.recording.activation(names[part])[:1]) for part in ("query_ego", "key_all"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that .T on three axes is deprecated
        try:
            said = f"no error, shape {tuple((q @ k.T).shape)}"
        except (RuntimeError, IndexError) as error:
            said = str(error)
    return {"shapes": [list(q.shape), list(k.shape)], "torch says": said}


def only_the_last(states: States) -> Found:
    """A hook that writes to `activations[name]` keeps one forward pass of an episode."""
    length = np.bincount(states.episode)
    return {"decisions of an episode kept": 1, "decisions of an episode, mean": round(float(length.mean()), 2)}


def weights_as_attention(states: States) -> Found:
    """The softmax of W_Q W_K^T along features: no state, no vehicle, and with the weights as stored not even QK."""
    block = next(iter(states.policy.attention.values()))
    with torch.no_grad():
        heads = torch.einsum("hmd,hnd->hmn", block.W_Q, block.W_K) * block.scale
        as_stored = torch.einsum("hmd,gmc->hdgc", block.W_Q, block.W_K).flatten(2).flatten(0, 1)
        together, uniform = heads.sum(0), 1 / heads.shape[1]
        largest = float(torch.softmax(together, -1).amax(-1).mean())
    flat = heads.flatten(1) / torch.linalg.vector_norm(heads.flatten(1), dim=1, keepdim=True)
    whole = together.flatten() / torch.linalg.vector_norm(together)
    return {
        "largest of each softmax, mean": round(largest, 4),
        "if all were equal": round(uniform, 4),
        "standard deviation over states": 0.0,
        "the pattern's own, over states": round(float(states.pattern.std(0).mean()), 4),
        "cosine of each head's form with the product": [round(float(c), 3) for c in flat @ whole],
        "cosine of W W^T as stored with the product": round(
            float(torch.nn.functional.cosine_similarity(as_stored.flatten(), together.flatten(), dim=0)), 3
        ),
    }


def without_mask(states: States, scores: np.ndarray) -> Found:
    """Rows of zeros are embeddings too: unmasked they are attended to."""
    pattern = softmax(scores, np.zeros_like(scores, dtype=bool))
    on_nobody = (pattern * ~states.there[:, None]).sum(-1).mean(1)
    return {"attention on rows without a vehicle": mean_of(states, on_nobody), **against(states, pattern)}


def skipped(states: States, how: str) -> Found:
    """The layer behind the attention, reading the attention's output with the ego's skip as the formula has it."""
    names, block = names_of(states.policy), next(iter(states.policy.attention.values()))
    layer: Any = states.policy.module.get_submodule(names["reader"].removesuffix(".hook_out"))
    with torch.no_grad():
        out = states.policy.run_with_cache(states.obs, block.names["attn_out"])[1][block.names["attn_out"]][:, 0]
        alone = layer(out)

    def read(t: torch.Tensor) -> torch.Tensor:
        return 2 * t - layer.bias if how == "whole skip" else alone

    with torch.no_grad():
        return consequences(states, states.rerun(names["reader"], read))


def qk_products(states: States) -> Found:
    """Attention scores from the product of all weights, beside those from the mean of the gated forms."""
    moved, _, _ = states.one_vehicle_each()
    product = (
        rlm.circuits.qk_circuit(states.policy, gated=False)
        .circuit.isel(query=0)
        .transpose("head", "entity", ...)
        .values
    )
    bare = product.copy()
    bare[..., -1, :] = bare[..., :, -1] = 0
    mean = product.copy()
    vehicles, own = (
        rlm.circuits.qk_circuit(states.policy, obs=moved),
        rlm.circuits.qk_circuit(states.policy, obs=states.obs),
    )
    mean[:, :1] = own.circuit.isel(query=0).sel(entity=["ego"]).transpose("head", "entity", ...).values
    mean[:, 1:] = vehicles.circuit.isel(query=0).sel(entity=["vehicle_1"]).transpose("head", "entity", ...).values
    x = np.concatenate([states.obs, np.ones((*states.obs.shape[:2], 1))], axis=-1)
    found: Found = {}
    for name, form in {"product": bare, "product with biases": product, "mean of the gated forms": mean}.items():
        scores = np.einsum("nq,hequ,neu->nhe", x[:, 0], form.astype(float), x)
        told = explained(states, scores, states.attention_scores, states.there[:, None])
        found[name] = {"variance of the scores told": told, **against(states, softmax(scores, ~states.there[:, None]))}
    return found


def explained(states: States, guess: np.ndarray, truth: np.ndarray, there: np.ndarray) -> list[float]:
    """Share of the variance within a state and head: softmax takes no notice of a common shift."""
    there = np.broadcast_to(there, truth.shape)

    def centred(values: np.ndarray) -> np.ndarray:
        shown = np.where(there, values, np.nan)
        return shown - np.nanmean(shown, -1, keepdims=True)

    error, whole = (centred(guess) - centred(truth)) ** 2, centred(truth) ** 2
    return interval(states.episode, lambda rows: 1 - np.nansum(error[rows]) / np.nansum(whole[rows]))


def ov_products(states: States, terms: Terms) -> Found:
    """What each vehicle adds to the gap through a head: from products and mean forms, beside the exact terms."""
    moved, _, _ = states.one_vehicle_each()
    gap: Any = {"better": BETTER, "worse": WORSE}
    product = rlm.circuits.ov_circuit(states.policy, gated=False, **gap).circuit.sel(entity="vehicle_1")
    mean = rlm.circuits.ov_circuit(states.policy, obs=moved, **gap).circuit.sel(entity="vehicle_1")
    truth = terms.vehicles.sum(-1)  # [state head entity], the ego left out
    weight, x = states.pattern[:, :, 1:], states.obs[:, 1:].numpy()
    found: Found = {}
    for name, form in {"product": product, "mean of the gated forms": mean}.items():
        features = form.isel(query=0, action=0).transpose("head", "feature").values[:, :-1]
        guess = weight * np.einsum("nef,hf->nhe", x, features)
        error, there = guess - truth, np.broadcast_to(states.there[:, None, 1:], truth.shape)
        told = interval(
            states.episode, lambda rows, e=error: 1 - np.square(e[rows]).sum() / np.square(truth[rows]).sum()
        )
        wrong = np.where(there, guess * truth < 0, np.nan).reshape(len(truth), -1)
        found[name] = {
            "squares of the contributions told": told,
            "wrong sign": mean_of(states, np.nanmean(np.where(np.isnan(wrong).all(1)[:, None], 0, wrong), axis=1)),
        }
    return found


def one_late(states: States) -> Found:
    """Beside a_t the pattern of the next state: whom it looks at then, vehicle by vehicle."""
    follows = np.flatnonzero(states.episode[1:] == states.episode[:-1])
    vehicle = identities(states)
    top = states.pattern.argmax(-1)
    who = np.take_along_axis(vehicle, top, axis=1)
    rows, later = follows, follows + 1
    moved = (vehicle[rows] != vehicle[later]) & (states.there[rows] | states.there[later])
    either = (states.there[rows] | states.there[later])[:, 1:].sum(1)
    episode = states.episode[rows]
    other = (who[rows] != who[later]).mean(1)
    shift = 0.5 * np.abs(states.pattern[rows] - states.pattern[later]).sum(-1).mean(1)
    share = moved[:, 1:].sum(1) / np.maximum(either, 1)
    return {
        "attention in the wrong place": interval(episode, lambda r: shift[r].mean()),
        "another vehicle attended most": interval(episode, lambda r: other[r].mean()),
        "rows that hold another vehicle a step later": interval(episode, lambda r: share[r].mean()),
    }


def identities(states: States) -> np.ndarray:
    """The number of the vehicle in each row of each state, `[state entity]`, -1 for none."""
    found = np.full(states.there.shape, -1)
    steps = states.recording.steps
    place = {key: number for number, key in enumerate(zip(steps["episode"], steps["step"], strict=True))}
    seen = states.recording.vehicles
    seen = seen[seen["row"] >= 0]
    for episode, step, row, vehicle in zip(seen["episode"], seen["step"], seen["row"], seen["vehicle"], strict=True):
        if (episode, step) in place:  # the last scene was not decided in
            found[place[episode, step], row] = vehicle
    return found


def shuffled_means(states: States, terms: Terms) -> Found:
    """The mean contribution of each row where rows are dealt anew in every state, as `order: shuffled` does."""
    generator = np.random.default_rng(SHUFFLED_SEED)
    whole = terms.vehicles.sum((1, 3))  # [state row]
    dealt = generator.permuted(whole, axis=1)
    means = dealt.mean(0)
    ahead, left = states.places()
    distance = np.where(np.isnan(ahead), np.inf, np.hypot(ahead, left))[:, 1:]
    by_distance = np.take_along_axis(whole, distance.argsort(1), axis=1).mean(0)
    return {
        "mean size of what a vehicle adds [return]": round(float(np.abs(whole[states.there[:, 1:]]).mean()), 3),
        "signed means of the rows, lowest and highest": [round(float(m), 3) for m in (means.min(), means.max())],
        "signed means by rank of distance": [round(float(m), 3) for m in by_distance[:4]],
    }


def raw_scores(states: States, terms: Terms) -> Found:
    """How much of a Q-value is common to all actions, and whom an attribution of it points at."""
    common = states.scores.mean(1)
    shared = interval(states.episode, lambda rows: common[rows].var() / states.scores[rows].var(axis=0).mean())
    raw, gap = (np.abs(part.sum((1, 3))).argmax(1) for part in (terms.raw_vehicles, terms.vehicles))
    traffic = states.there[:, 1:].sum(1) > 1
    other = np.where(traffic, raw != gap, np.nan)
    return {
        "variance of a Q-value that all actions share": shared,
        "another vehicle contributes most": mean_of(states, other.astype(float)),
    }


def zero_baseline(states: States) -> Found:
    """Integrated gradients from an observation of zeros: the line crosses the mask, the score jumps there."""
    worst: list[float] = []
    better, worse = states.action(BETTER), states.action(WORSE)
    chosen = np.linspace(0, len(states.obs) - 1, min(40, len(states.obs))).astype(int)
    for row in states.obs[chosen]:
        shares = (torch.arange(N_STEPS) + 0.5) / N_STEPS
        line = (shares[:, None, None] * row).requires_grad_()
        scores = states.policy(line)
        (slope,) = torch.autograd.grad((scores[:, better] - scores[:, worse]).sum(), line)
        with torch.no_grad():
            ends = states.policy(torch.stack([row, torch.zeros_like(row)]))
        total = (ends[0] - ends[1])[better] - (ends[0] - ends[1])[worse]
        worst.append(abs(float((slope.mean(0) * row).sum() - total)))
    try:
        gap: Any = {"better": BETTER, "worse": WORSE}
        first, zeros = states.obs[:1], torch.zeros_like(states.obs[:1])
        error = rlm.attribution.exact_integrated_gradients(
            states.policy, first, baseline=zeros, **gap
        ).completeness_error
        said = f"a completeness error of {float(error):.2g}"
    except rlm.RlmechError as refusal:
        said = str(refusal)
    return {
        "exact_integrated_gradients says": said,
        f"missing from the sum, {N_STEPS} steps, mean [return]": round(float(np.mean(worst)), 3),
        f"mean size of {GAP} [return]": round(float(np.abs(states.gap()[chosen]).mean()), 3),
    }


def borrowed_lens(states: States) -> Found:
    """The last layer put straight behind the attention, which its sizes allow, beside a lens that means something."""
    block = next(iter(states.policy.attention.values())).names["attn_out"]
    last = next(name for name in reversed(states.policy.hook_dict) if name.endswith(".hook_out"))
    layer: Any = states.policy.module.get_submodule(last.removesuffix(".hook_out"))
    with torch.no_grad():
        out = states.policy.run_with_cache(states.obs, block)[1][block][:, 0]
        borrowed = layer(out).numpy()
    own, fitted = states.scores.argmax(1), states.episode % 2 == 0
    agree: Found = {}
    for where, name in {"there": block, "one layer on": names_of(states.policy)["reader"]}.items():
        obs, reference = states.obs[~fitted], states.obs[fitted]
        choice = rlm.attribution.action_lens(
            states.policy, obs, name, reference=reference, method="linear"
        ).choice.values[0]
        same = (choice == own[~fitted]).astype(float)
        told = interval(states.episode[~fitted], lambda r, s=same: s[r].mean())
        agree[f"action_lens {where}, on other episodes"] = told
    return {
        "chooses as the policy does": mean_of(states, (borrowed.argmax(1) == own).astype(float)),
        **agree,
        "always the commonest action": round(float(np.bincount(own).max() / len(own)), 3),
    }
