"""Names of other libraries, where they are typed out of habit: what each is called here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlmech.errors import UnknownNameError, nearest

_HOOKS = "with policy.hooks(fwd_hooks=[(name, fn)]): ... takes them away by itself"
_PATCHING = 'rlm.activation_patching(policy, clean=..., corrupt=..., sites="auto") patches every site in one call'
_TEXT = "a policy reads observations: policy(obs), policy.run_with_cache(obs)"
_WEIGHTS = "policy.attention[path] holds W_Q, W_K, W_V, W_O; policy.state_dict() holds all weights"
_DIRECT = "rlm.attribution.direct_action_attribution(policy, obs, site)"
_LENS = "rlm.attribution.action_lens(policy, obs, reference=...) reads action scores off every layer"

OF_POLICY: Mapping[str, str] = {
    "add_hook": f"policy.hook_dict[name].add_hook(fn); {_HOOKS}",
    "add_perma_hook": f"policy.hook_dict[name].add_hook(fn); {_HOOKS}",
    "reset_hooks": f"hooks end with their call or their block; policy.hook_dict[name].remove_hooks() ends those of a "
    f"point; {_HOOKS}",
    "remove_all_hook_fns": f"policy.hook_dict[name].remove_hooks() ends those of a point; {_HOOKS}",
    "add_caching_hooks": "policy.run_with_cache(obs, names)",
    "get_caching_hooks": "policy.run_with_cache(obs, names)",
    "cache_all": "policy.run_with_cache(obs)",
    "hook_points": "policy.hook_dict maps names to hook points",
    "hook_names": "list(policy.hook_dict)",
    "cfg": "policy.spec names entities, features and actions; policy.attention[path] has n_heads and d_head",
    "config": "policy.spec names entities, features and actions",
    "blocks": "policy.attention holds the attention layers by module path",
    "W_Q": _WEIGHTS,
    "W_K": _WEIGHTS,
    "W_V": _WEIGHTS,
    "W_O": _WEIGHTS,
    "W_E": _WEIGHTS,
    "W_U": _WEIGHTS,
    "W_in": _WEIGHTS,
    "W_out": _WEIGHTS,
    "QK": "rlm.circuits.qk_circuit(policy), rlm.circuits.qk_factored(policy)",
    "OV": "rlm.circuits.ov_circuit(policy), rlm.circuits.ov_factored(policy)",
    "all_composition_scores": "rlm.circuits.composition_scores(policy)",
    "to_tokens": _TEXT,
    "to_string": _TEXT,
    "to_str_tokens": _TEXT,
    "to_single_token": _TEXT,
    "tokenizer": _TEXT,
    "generate": "rlm.record(policy, env, seeds=range(5)) lets the policy act",
    "W_pos": _WEIGHTS,
    "b_Q": _WEIGHTS,
    "b_K": _WEIGHTS,
    "b_V": _WEIGHTS,
    "b_O": _WEIGHTS,
    "b_U": _WEIGHTS,
    "b_in": _WEIGHTS,
    "b_out": _WEIGHTS,
    "accumulated_bias": _WEIGHTS,
    "mod_dict": "policy.hook_dict maps names to hook points",
    "from_pretrained": 'rlm.load("policy.zip"), rlm.load("zoo:intersection-ego-attention")',
    "from_pretrained_no_processing": 'rlm.load("policy.zip"); weights are never changed',
    "fold_layer_norm": "weights stay the network's own; analyses hold norms as they are in each state",
    "center_unembed": "weights stay the network's own; metrics of two actions leave a common shift out",
    "load": 'rlm.load("policy.zip")',
    "save": "rlm.save_policy(policy, path)",
    "learn": "training goes on with the library that made the policy; policy.module is its own module",
    "policy": "policy.module is the wrapped module",
    "trace": "policy.run_with_cache(obs) reads, policy.edited([...]) changes",
}
OF_HOOK_POINT: Mapping[str, str] = {
    "layer": "hook.name says where it stands: it begins with the module's own path, e.g. 'layers.2.attention.hook_z'",
    "ctx": "keep values in a variable of your own: kept[hook.name] = tensor",
    "clear_context": "keep values in a variable of your own: kept[hook.name] = tensor",
    "add_perma_hook": f"hook_point.add_hook(fn); {_HOOKS}",
    "fwd_hooks": "policy.has_hooks says whether anything is attached; add_hook returns the handle of a function",
    "bwd_hooks": "policy.has_hooks says whether anything is attached; add_hook returns the handle of a function",
    "has_hooks": "policy.has_hooks says whether anything is attached",
}
OF_CACHE: Mapping[str, str] = {
    "stack_head_results": 'cache["*.hook_result"] has the axis head: what each head writes',
    "compute_head_results": 'cache["*.hook_result"] has the axis head: what each head writes',
    "decompose_resid": _DIRECT,
    "accumulated_resid": _LENS,
    "logit_attrs": _DIRECT,
    "get_full_resid_decomposition": _DIRECT,
    "stack_neuron_results": _DIRECT,
    "get_neuron_results": _DIRECT,
    "stack_activation": 'cache.stack("*.hook_pattern")',
    "apply_ln_to_stack": "rlm.attribution.attribute_actions(policy, obs) holds norms as they are in each state",
    "remove_batch_dim": "cache[name][0] is the first row",
    "apply_slice_to_batch_dim": "cache.select(rows)",
    "toggle_autodiff": "cache.detach(), or run under torch.no_grad()",
    "numpy": "cache[name].detach().numpy()",
    "cache_dict": "a cache is a mapping: dict(cache)",
    "model": "keep the policy beside its cache",
}
OF_PACKAGE: Mapping[str, str] = {
    "HookedTransformer": "rlm.load(file), rlm.HookedPolicy(module, obs)",
    "HookedRootModule": "rlm.HookedPolicy(module, obs)",
    "HookedSAETransformer": "rlm.HookedPolicy(module, obs)",
    "from_pretrained": "rlm.load(file)",
    "generic_activation_patch": _PATCHING,
    "utils": "hook names are the modules' own paths: policy.hook_dict lists them",
    "get_act_name": "hook names are the modules' own paths: policy.hook_dict lists them, globs choose: '*.hook_z'",
    "to_numpy": "tensor.detach().numpy()",
    "logit_lens": _LENS,
    "linear_probe": "scikit-learn fits one on cache[name]",
    "ablate": "rlm.ablation_sweep(policy, obs) for every site, rlm.zero_ablation(site) for one",
    "PPO": "rlm.load(file) opens what Stable-Baselines3 saved",
    "DQN": "rlm.load(file) opens what Stable-Baselines3 saved",
    "evaluate_policy": "rlm.record(policy, env, seeds=...).episodes",
    "make": "rlm.make_env(env_id)",
    "LanguageModel": "rlm.HookedPolicy(module, obs)",
    "IntegratedGradients": "rlm.attribution.integrated_gradients(policy, obs, baseline=...)",
    "DeepLift": "rlm.attribution.deep_lift(policy, obs, baseline=...)",
    "Saliency": "rlm.attribution.saliency(policy, obs)",
    "LayerConductance": "rlm.attribution.layer_conductance(policy, obs, name, baseline=...)",
}
BEGINNINGS: Mapping[str, str] = {
    "get_act_patch_": _PATCHING,
    "set_use_": "policy.hook_dict: every hook point is there from the start, and what costs more is computed on demand",
    "to_": _TEXT,
}
"""Beginnings of whole families of names."""


def unknown_name(
    owner: str,
    name: str,
    known: Iterable[str],
    habits: Mapping[str, str],
    *,
    elsewhere: Mapping[str, str] | None = None,
) -> UnknownNameError:
    """The error for a name that an object or a package does not have.

    Args:
        owner: What was asked, e.g. `HookedPolicy`.
        name: The name.
        known: Names that it has.
        habits: Other libraries' names -> what to write here.
        elsewhere: Names that stand at another address -> that address.
    """
    known = sorted(word for word in known if not word.startswith("_"))
    places = dict(elsewhere or {})
    close = nearest(name, [*known, *places], n=1)
    family = next((fix for start, fix in BEGINNINGS.items() if name.startswith(start)), None)
    if name in places:
        fix = f"write {places[name]}"
    elif name in habits:
        fix = habits[name]
    elif family and not close:
        fix = family
    elif close:
        fix = f"did you mean {places.get(close[0], close[0])}?"
    else:
        fix = f"dir({owner}) lists what there is"
    return UnknownNameError(
        f"{owner} has no {name!r}.",
        given=repr(name),
        expected=f"one of {', '.join(known[:12])}{'...' if len(known) > 12 else ''}",
        fix=fix,
    )
