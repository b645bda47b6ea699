"""A dictionary inside a policy: as hooks that put its reconstruction in, and as a network whose features are points.

    spliced value = value + decoder (codes - codes as the encoder makes them)

Nothing changes as long as no code is changed, bit for bit; a change of a code moves the value along its direction, what
the dictionary does not explain stays as it is. Every sweep then takes features as it takes neurons.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlmech.arguments import explain_misuse
from rlmech.core.hook_point import HookPoint
from rlmech.core.policy import HookedPolicy
from rlmech.core.site import read, write
from rlmech.errors import ConfigError
from rlmech.features.dictionary import Dictionary, FeatureMap, Splice

FEATURES = "features.active.hook_out"
"""The hook point of a spliced policy whose neurons are the features."""


@explain_misuse
def splice_hooks(
    dictionary: Dictionary, how: Splice = "reconstruction"
) -> list[tuple[str, Callable[[Tensor, HookPoint], Tensor]]]:
    """Functions on hook points that put what a dictionary or transcoder makes of a value in its place.

    They go into `policy.hooks(fwd_hooks=...)`, and as a condition into `rlm.compare_rollouts`.

    Args:
        dictionary: A dictionary, or a transcoder, which reads one site and writes another.
        how: As in `Dictionary.splice`.

    Example:
        >>> import torch, rlmech as rlm
        >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4))
        >>> found = rlm.features.fit_dictionary(policy, torch.randn(50, 4), site="hook_obs", kind="pca", k=4)
        >>> obs = torch.randn(3, 4)
        >>> with policy.hooks(fwd_hooks=rlm.features.splice_hooks(found)):
        ...     torch.allclose(policy(obs), policy.module(obs), atol=1e-5)
        True
    """
    if dictionary.into is None:
        return [(dictionary.site.name, _Write(dictionary, how, None))]
    seen = _Seen()
    return [(dictionary.site.name, _Read(seen)), (dictionary.into.site.name, _Write(dictionary, how, seen))]


class _Seen(threading.local):
    """What a pass in this thread had at the site that a transcoder reads."""

    value: Tensor | None = None

    def __reduce__(self) -> tuple[type[_Seen], tuple[()]]:
        return _Seen, ()


class _Read:
    def __init__(self, seen: _Seen) -> None:
        self.seen = seen

    def __repr__(self) -> str:
        return "what a transcoder reads"

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Tensor:
        self.seen.value = tensor
        return tensor


class _Write:
    def __init__(self, dictionary: Dictionary, how: Splice, seen: _Seen | None) -> None:
        self.dictionary, self.seen = dictionary, seen
        self.how: Splice = how

    def __repr__(self) -> str:
        return f"{self.how} of dictionary {self.dictionary.digest}"

    def __call__(self, tensor: Tensor, hook: HookPoint) -> Tensor:
        own = self.dictionary
        if self.seen is None:
            index = own.site.index(hook)
            return write(tensor, index, FeatureMap(dictionary=own, splice=self.how)(read(tensor, index)))
        assert own.into is not None and self.seen.value is not None  # noqa: S101, PT018  # its reader came before
        if self.how == "with_error":
            return tensor
        index = own.into.site.index(hook)
        value = read(tensor, index)
        predicted = own.decode(own.encode(own.layout.vectors(self.seen.value)))
        new = (
            predicted
            if self.how == "reconstruction"
            else own.into.vectors(value).to(predicted) - predicted + own.offset
        )
        return write(tensor, index, own.into.value(new, like=value).to(value))


class FeatureLayer(nn.Module):
    """A dictionary as a layer; see the module's equation.

    Args:
        dictionary: A learned dictionary of one site.
        dtype: Of the network.
    """

    mean: Tensor
    threshold: Tensor | None

    def __init__(self, dictionary: Dictionary, dtype: torch.dtype) -> None:
        super().__init__()
        n, width = dictionary.encoder.shape
        self.encode, self.decode = nn.Linear(width, n, dtype=dtype), nn.Linear(n, width, bias=False, dtype=dtype)
        self.active = nn.ReLU()
        self.k, self.n = dictionary.k, n
        self.register_buffer("mean", dictionary.mean.to(dtype))
        self.register_buffer("threshold", None if dictionary.threshold is None else dictionary.threshold.to(dtype))
        with torch.no_grad():
            self.encode.weight.copy_(dictionary.encoder)
            self.encode.bias.copy_(dictionary.bias)
            self.decode.weight.copy_(dictionary.decoder.T)

    def forward(self, x: Tensor) -> Tensor:
        """The same value, by way of its features."""
        before = self.encode(x - self.mean)
        if self.threshold is not None:
            kept = before * (before > self.threshold)  # a product: its axes are told by its first factor
        elif self.k < self.n:
            least = before.topk(self.k, dim=-1)[0][..., -1:]  # by place: hooks see results as tuples
            kept = before * ((before >= least) & (before > 0))
        else:
            kept = torch.relu(before)
        return x + self.decode(self.active(kept) - kept)


class SplicedNetwork(nn.Module):
    """A policy's network with a dictionary in it.

    Args:
        policy: The policy; its parameters are this network's.
        dictionary: A learned dictionary of one site.
    """

    policy: HookedPolicy
    """Not registered: its parameters are the network's."""

    def __init__(self, policy: HookedPolicy, dictionary: Dictionary) -> None:
        super().__init__()
        self.network = policy.module
        vars(self)["policy"] = policy
        point = policy.point(dictionary.site.name)
        dtype = policy.points[point.name].address.node.dtype or torch.float32
        self.features = FeatureLayer(dictionary, dtype)
        self._name, self._apart = point.name, bool(dictionary.layout.over)
        self._shape = point.shape[1:]

    def forward(self, obs: Tensor) -> Tensor:
        """Scores of the actions."""
        engine = self.policy.graph_engine
        there = engine.points[self._name].address
        scores = next(point.address for point in engine.points.values() if point.kind == "output")
        value = there.layout.show(engine.program(returned=(there.node,))((obs,), (), ())[0])
        if self._apart or len(self._shape) == 1:
            value = self.features(value)
        else:
            value = self.features(value.flatten(1)).reshape(-1, *self._shape)
        given = there.layout.restore(value)
        return scores.layout.show(engine.program(returned=(scores.node,), given=(there.node,))((obs,), (given,), ())[0])


@explain_misuse
def spliced(policy: HookedPolicy, dictionary: Dictionary) -> HookedPolicy:
    """The policy with a dictionary's features as neurons of a hook point, `features.active.hook_out`.

    It computes what the policy computes. `ablation_sweep`, `activation_patching`, `attribution_patching` and the others
    take `spliced.sites("features.active.hook_out", over="neuron")`; the network's own points have other names there.

    Args:
        policy: A policy without memory, one array as observation.
        dictionary: A learned dictionary of a whole hook point; with `over`, of all axes but the last.

    Raises:
        ConfigError: It is no such dictionary, or another policy.
        EngineError: The policy runs on the eager engine.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> obs = torch.randn(200, 4)
        >>> found = rlm.features.fit_dictionary(policy, obs, site="1.hook_out", n_features=16, k=2, n_steps=20)
        >>> inside = rlm.features.spliced(policy, found)
        >>> bool((inside(obs) == policy(obs)).all())
        True
        >>> sites = inside.sites("features.active.hook_out", over="neuron")
        >>> rlm.ablation_sweep(inside, obs[:20], sites=sites).sizes["site"]
        16
    """
    point, over = policy.point(dictionary.site.name), dictionary.layout.over
    fits = not dictionary.site.selection and (not over or over == tuple(point.axes[1:-1]))
    inputs = [name for name in policy.hook_dict if policy.points[name].kind == "observation"]
    one_array = all(name in ("hook_obs", "hook_obs_raw") for name in inputs)
    if not (dictionary.is_learned and dictionary.into is None and fits) or policy.is_recurrent or not one_array:
        raise ConfigError(
            "Features become neurons where a learned dictionary covers a whole hook point.",
            given=f"a dictionary of kind {dictionary.kind} at {dictionary.site}, over={list(over)}"
            + (", of a policy with memory" if policy.is_recurrent else ""),
            expected="topk, batch_topk or jump_relu, no selection, no transcoder, over= none or all axes but the last; "
            "a policy of one array without memory",
            fix="edits work everywhere: dictionary.ablate(feature)",
        )
    network = SplicedNetwork(policy, dictionary).train(policy.module.training)
    observed = policy.graph_engine.graph.inputs[0]
    return HookedPolicy(
        network,
        torch.rand(2, *observed.sizes[1:]).to(observed.dtype or torch.float32),
        spec=policy.spec,
        output_kind=policy.output_kind,
        observation_space=policy.observation_space,
        action_space=policy.action_space,
    )
