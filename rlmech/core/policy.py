"""`HookedPolicy`: a trained policy with named hook points on everything it computes.

The module stays the user's own: same parameters, training goes on underneath. Parity with it is proved on wrap, bit for
bit or within 1e-5 of the output's scale. Cost: a second to wrap; a forward pass costs no more than the module's own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlmech.arguments import explain_misuse
from rlmech.axes import Axis
from rlmech.core.acting import as_numpy, choose_actions
from rlmech.core.agents import AGENT, recurrent_agent
from rlmech.core.attention import AttentionBlocks
from rlmech.core.cache import ActivationCache
from rlmech.core.choices import Choices
from rlmech.core.edit import Edit, check_edits
from rlmech.core.engine import EngineName, GraphEngine, offered_names
from rlmech.core.example import format_of
from rlmech.core.graph_file import offered
from rlmech.core.hook_point import Direction, HookFunction, HookHandle, HookPoint, HookRegistry, check_fired
from rlmech.core.labels import entity_labels, observed_images
from rlmech.core.modes import evaluating, fingerprint
from rlmech.core.module_kinds import unwrapped
from rlmech.core.module_record import ModuleRecord
from rlmech.core.names import HookPoints, NameChooser, Names
from rlmech.core.observation import Observation, batch_of_one, image_keys
from rlmech.core.output_leaves import Selector
from rlmech.core.outputs import Scored, find_outputs
from rlmech.core.parity import on_device
from rlmech.core.points import OutputKind, Point
from rlmech.core.row_edits import RowEdits
from rlmech.core.row_passes import RowPasses
from rlmech.core.sequences import run_sequence
from rlmech.core.site import Site
from rlmech.core.site_lists import automatic_sites, sites_along, sites_in_time
from rlmech.core.state import State, StateForm
from rlmech.core.stateful import scored_step, state_form
from rlmech.core.unrolled import located, step_to_read
from rlmech.core.variants import Variants
from rlmech.core.wrapped_module import WrappedModule
from rlmech.errors import ConfigError, ObservationError
from rlmech.habits import OF_POLICY, unknown_name
from rlmech.spec import PolicySpec
from rlmech.untyped import JsonObject, Settings

if TYPE_CHECKING:
    from gymnasium import Env, Space
    from torch.export import ExportedProgram

Hooks = Sequence[tuple[str | Callable[[str], bool], HookFunction]]


class _Named(type):
    """Answers what is asked of the class itself, `HookedPolicy.from_pretrained`, as the policy does."""

    def __getattr__(cls, name: str) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        raise unknown_name(cls.__name__, name, vars(cls), OF_POLICY)


class HookedPolicy(nn.Module, metaclass=_Named):
    """A policy network, wrapped.

    Args:
        module: `module(obs)` gives action scores `[batch action]`, or a tuple of them and the state value `[batch]`; of
            any other module `scores` and `value` say where they are.
        example_obs: A batch of observations, at least one row: an array, a tensor, or a dict of them.
        spec: Names and units of entities, features and actions.
        output_kind: What the scores are: `q_values`, `logits` or `mean_action`; by default what their name in the
            module's output says (`logits`, RLlib's `action_dist_inputs`, ...), else `q_values`.
        root: Path of the submodule whose names are used, where `module` is a thin wrapper around it.
        observation_space: The environment's observation space, if known; `check_fit` compares it.
        action_space: The environment's action space, if known; `predict` needs it for continuous actions. With several
            choices (MultiDiscrete, MultiBinary) the scores are `[batch choice action]`.
        scores: Which output is the scores: a key, an index, a path (`"1.logits"`, or `"actor"` for a part of the module
            that takes the observation), or a function of what the module returns; a list of these for several choices.
        value: Which output is the state value, likewise.
        state: Of a recurrent module, `module(obs, state)`, which returns (scores, state) or (scores, value, state): a
            function of the number of rows that gives the state at the beginning, or that state for the example. The
            LSTM agents of CleanRL and PufferLib need none.

    Raises:
        ConfigError: The module cannot be opened, or which of its outputs the scores are cannot be told.
        ParityError: The hooked policy does not compute what the module computes.
        ObservationError: The example is not a batch of numbers.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(1, 4))
        >>> list(policy.hook_dict)
        ['hook_obs', '0.hook_out', '1.hook_out', '2.hook_out', 'hook_q_values']
    """

    scored_module: nn.Module
    """What runs: `module` itself, or a call around it that returns its scores and its value."""

    def __init__(
        self,
        module: nn.Module | ExportedProgram,
        example_obs: Observation,
        *,
        spec: PolicySpec | None = None,
        output_kind: OutputKind | None = None,
        root: str = "",
        observation_space: Space | None = None,
        action_space: Space | None = None,
        scores: Selector | Sequence[Selector] | None = None,
        value: Selector | None = None,
        state: Any = None,
    ) -> None:
        super().__init__()
        self.module: nn.Module = unwrapped(module)
        self.spec = spec or PolicySpec()
        self._told_kind: OutputKind | None = output_kind
        self._scores, self._value = scores, value
        self._choice: int | None = None
        self.observation_space, self._told_space = observation_space, action_space
        self._root = root
        self._form: StateForm | None = None
        self._length: tuple[int, int] | None = None
        agent = recurrent_agent(self.module) if state is None else None
        if agent is not None:
            self.module, state = agent
            self._root = root = f"{AGENT}.{root}".rstrip(".")
            self._told_kind = output_kind or "logits"
        if state is None:
            self._format = format_of(example_obs, self.module, images=image_keys(observation_space))
        else:
            self._form, self._format = state_form(self.module, example_obs, state, root=root)
        self._prepare(HookRegistry())

    def _prepare(self, registry: HookRegistry) -> None:
        self._registry = registry
        with evaluating(self.module):
            before = ModuleRecord(self.module)
            scored = self._find_outputs()
            vars(self)["scored_module"] = scored.module  # not registered: its parameters are the module's
            self.output_kind: OutputKind = scored.kind or "q_values"
            self.choices = scored.choices if self._choice is None else None
            self.action_space: Space | None = self._told_space
            if scored.choices is not None and self._choice is not None:
                self.action_space = scored.choices.space(self._choice)
            if scored.names:
                self.spec = replace(self.spec, choices=scored.names)
            self._wrapped = WrappedModule(
                self.module,
                scored.module,
                self._format,
                root=".".join(filter(None, (scored.root, self._root))),
                output_kind=self.output_kind,
                before=before,
            )
            points = observed_images(self._wrapped.engine.points, self._format.images, self.spec)
            labels = entity_labels(self._wrapped.engine, points, self._format, self.spec)
        network, engine = type(self.module).__name__, self._wrapped.engine
        self.hook_dict = HookPoints(network, left_out=engine.left_out)
        for name, point in points.items():
            self.hook_dict[name] = HookPoint(
                name,
                axes=point.axes,
                shape=tuple(None if size < 0 else size for size in point.address.layout.canonical_shape),
                kind=point.kind,
                registry=self._registry,
                labels=labels.get(name),
            )
        entities = frozenset(
            name.partition(".")[2]
            for name, point in points.items()
            if point.kind == "observation" and point.address.node.op == "input" and point.axes[1:2] == ("entity",)
        )
        self._variants = Variants[HookedPolicy](self, self._format, registry, entities=entities, make=self._with)
        self._all_axes: dict[str, tuple[Axis, ...]] = {name: point.axes for name, point in points.items()}
        self._rows = RowPasses(self.module, self._wrapped, self._format, self._registry, self.hook_dict)
        self._deferred = tuple(name for name, point in self.hook_dict.items() if point.kind == "result")
        self._at_once = tuple(name for name in self.hook_dict if name not in self._deferred)
        self._names = NameChooser(network, list(self.hook_dict), left_out=engine.left_out)

    def _find_outputs(self) -> Scored:
        def samples(n: int) -> Any:
            return self._format.argument(on_device(self._format.samples(n), self.module))

        if self._form is not None:
            return scored_step(
                self.module,
                self._form,
                self._length,
                kind=self._told_kind,
                selected=(self._scores, self._value),
                choices=None if self._told_kind == "mean_action" else Choices.of_space(self._told_space),
                choice=self._choice,
                samples=samples,
            )
        return find_outputs(
            self.module,
            samples,
            scores=self._scores,
            value=self._value,
            kind=self._told_kind,
            action_space=self._told_space,
            choice=self._choice,
        )

    @classmethod
    def from_sb3(cls, model: object, *, env: Env | None = None, vecnormalize: object = None) -> HookedPolicy:
        """Wrap a live Stable-Baselines3 algorithm or policy; see `rlmech.adapters.sb3.from_sb3`."""
        from rlmech.adapters.sb3 import from_sb3

        return from_sb3(model, env=env, vecnormalize=vecnormalize)

    @classmethod
    def from_rl_agents(cls, agent: object, *, env: Env | None = None) -> HookedPolicy:
        """Wrap a live rl-agents DQN agent; see `rlmech.adapters.rl_agents.from_rl_agents`."""
        from rlmech.adapters.rl_agents import from_rl_agents

        return from_rl_agents(agent, env=env)

    # ---- running

    def _arrays(self, obs: Observation) -> tuple[Tensor, ...]:
        """An observation's tensors, checked, in the precision and on the device that the network has now."""
        if self._wrapped.follow():
            self._variants.clear()  # made for the old precision and device
        arrays, device = self._format.coerce(obs, self.module), self._wrapped.device
        if device is None or device.type == "cpu":
            return arrays
        return tuple(array.to(device) for array in arrays)  # coerce passes on what it need not look into

    def __call__(self, obs: Observation) -> Float[Tensor, "batch *choice action"]:
        """Action scores of a batch of observations; of several choices `[batch choice action]`.

        Raises:
            ObservationError: Wrong structure, shape or dtype, or NaN.
        """
        try:
            arrays = self._arrays(obs)
        except ObservationError as error:
            taken, rows = self._variants.taking(obs, error)
            return taken(rows)
        engine = self._wrapped.active()
        if self._registry.is_idle:
            return engine.forward(arrays)
        return engine.run(arrays, (), self._registry, self.hook_dict)[0]

    forward = __call__

    @explain_misuse
    def run_with_cache(
        self, obs: Observation, names: Names = None
    ) -> tuple[Float[Tensor, "batch *choice action"], ActivationCache]:
        """Action scores and activations.

        Args:
            obs: A batch of observations.
            names: Which: None for all, a name, a glob (`*.hook_z`), a list of those, or a function of the name.

        Returns:
            Scores `[batch action]` and the cache of the values after all hooks.

        Raises:
            SiteError: A name matches nothing.
        """
        try:
            arrays = self._arrays(obs)
        except ObservationError as error:
            taken, rows = self._variants.taking(obs, error)
            return taken.run_with_cache(rows, names)
        chosen, engine = self._names(names), self._wrapped.active()
        usual = engine is self._wrapped.engine
        if not usual:
            chosen = offered_names(engine, chosen, all_of_them=names is None)
        later = self._deferred if names is None and usual and self._registry.is_idle else ()
        if later:
            chosen = self._at_once
        scores, values = engine.run(arrays, chosen, self._registry, self.hook_dict)
        if values:  # the caller goes on using its observation and its scores
            values |= {name: values[name].clone() for name in chosen if name.startswith("hook_obs")}
            scores = scores.clone()
        cache = ActivationCache(values, axes=self._all_axes)
        for name in later:
            cache.defer(name, self.graph_engine.deferred(name, cache))
        return scores, cache

    def initial_state(self, batch: int = 1) -> State:
        """The state at an episode's beginning, by hook name, a row for each of the batch; empty without memory."""
        return self._format.state(None, self.module, n_rows=batch)

    def with_state(self, obs: Observation, state: Mapping[str, object] | None = None) -> Observation:
        """Observations met in a state, as one observation: what any analysis takes to ask about that moment.

        Raises:
            StateError: The state is not the policy's, or it has none.
        """
        return self._format.with_state(obs, state, self.module)

    def step(
        self, obs: Observation, state: Settings | None = None, *, episode_start: Any = None
    ) -> tuple[Float[Tensor, "batch *choice action"], State]:
        """Action scores, and the state after this step: a pure function of observations and state.

        Args:
            obs: A batch of observations.
            state: What the last step returned, by hook name; None for that of an episode's beginning.
            episode_start: `[batch]`, true where an episode begins: there the state is forgotten first.

        Raises:
            StateError: The state is not the policy's, or it has none.

        Example:
            >>> import torch, rlmech as rlm
            >>> class Agent(torch.nn.Module):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.cell, self.head = torch.nn.GRUCell(4, 8), torch.nn.Linear(8, 2)
            ...     def forward(self, obs, state):
            ...         state = self.cell(obs, state)
            ...         return self.head(state), state
            >>> policy = rlm.HookedPolicy(Agent(), torch.rand(2, 4), state=lambda n: torch.zeros(n, 8))
            >>> scores, state = policy.step(torch.rand(3, 4))
            >>> scores, state = policy.step(torch.rand(3, 4), state)
            >>> {name: value.shape for name, value in state.items()}
            {'cell.hook_h': torch.Size([3, 8])}
        """
        try:
            given = self.with_state(obs, state)
        except ObservationError as error:
            taken, rows = self._variants.taking(obs, error)
            return taken.step(rows, state, episode_start=episode_start)
        if episode_start is not None:
            given = self._format.restarted(given, episode_start)
        scores, cache = self.run_with_cache(given, self.state_names)
        return scores, {name: cache[name] for name in self.state_names}

    def run_rows(
        self, obs: Observation, names: Names = (), *, edits: RowEdits | None = None, rows: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch *choice action"], dict[str, Tensor]]:
        """Action scores and activations of observations that are decided in each for itself, without gradients.

        A row's numbers are the same, bit for bit, alone and in any company: what a closed loop decides by. Those of
        `__call__` may differ by a rounding with the size of the batch.

        Args:
            obs: A batch of observations.
            names: Which activations: as in `run_with_cache`.
            edits: What is done in the rows, each its own; functions that are attached to the policy act besides.
            rows: `[batch]`, numbers of the rows in `edits`.

        Example:
            >>> import torch, rlmech as rlm
            >>> policy, obs = rlm.HookedPolicy(torch.nn.Linear(4, 2), torch.rand(2, 4)), torch.rand(9, 4)
            >>> bool((policy.run_rows(obs)[0][3] == policy.run_rows(obs[3:4])[0][0]).all())
            True
        """
        try:
            arrays = self._arrays(obs)
        except ObservationError as error:
            taken, own = self._variants.taking(obs, error)
            return taken.run_rows(own, names, edits=edits, rows=rows)
        return self._rows.run(arrays, () if names == () else self._names(names), edits, rows)

    @property
    def rows_at_once(self) -> int:
        """Rows of the smallest pass that `run_rows` makes; 1 where rows are run one at a time."""
        return self._rows.smallest()

    def run_sequence(
        self,
        obs: Observation,
        state: Mapping[str, object] | None = None,
        *,
        names: Names = None,
        episode_start: object = None,
    ) -> tuple[Float[Tensor, "batch step action"], ActivationCache]:
        """Step after step, the state carried along; the cache has the axis `step` after the batch.

        Edits and hooks act at each step; `Site(name, step=t)` selects one, and `hook.step` tells a function which it
        is. The state after step t is what the cache holds there, `cache[name][:, t]` for each of `state_names`.

        Args:
            obs: `[batch step ...]`.
            state: The state before the first step; None for that of an episode's beginning.
            names: Which activations: as in `run_with_cache`.
            episode_start: `[batch step]`, true where an episode begins: there the state is forgotten first.

        Raises:
            ObservationError: It is no sequence, or it ends before a step that an edit selects.
            StateError: The state is not the policy's, or it has none.
        """
        return run_sequence(
            self,
            self._format,
            obs,
            state,
            names=self._names(names),
            attached=self._registry.functions(),
            episode_start=episode_start,
        )

    def unrolled(self, n_steps: int, *, read: int | None = None) -> HookedPolicy:
        """This policy over a few steps, as a policy whose observations are sequences `[batch step ...]`.

        Every analysis works on it: what a state at step t, or an observation there, does to the scores at step `read`.
        Its hook points are `step_3.lstm.hook_h`...; sites may say `Site("lstm.hook_h", step=3)`.

        Args:
            n_steps: Steps of a sequence.
            read: The step whose scores it gives, from 0; None for the last.

        Raises:
            StateError: The policy has no state, or there is no such step.
            EngineError: It runs on the eager engine.

        Example:
            >>> import torch, rlmech as rlm
            >>> counter = rlm.testbed.counting_cell()
            >>> twice = counter.policy.unrolled(2)
            >>> twice(counter.clean[:, :2]).shape, twice.sites("hook_h", over=("step",))
            (torch.Size([8, 2]), [Site('hook_h', step=0), Site('hook_h', step=1)])
        """
        read = step_to_read(n_steps, read, is_recurrent=self.is_recurrent)
        assert self.graph_engine  # noqa: S101  # else an error in words
        return self._variants.unrolled(n_steps, read)

    def fitting(self, obs: Observation | None) -> HookedPolicy:
        """The policy that takes these observations, with which an analysis of them begins.

        This one; unrolled over their steps, where they are sequences of what a recurrent one takes; or this one wrapped
        for their number of entities, where its weights fit any. Hooks and edits of this one act in it too.

        Args:
            obs: A batch of observations; None stands for those that it takes anyway.

        Raises:
            ObservationError: The network takes no other number of entities.

        Example:
            >>> import torch, rlmech as rlm
            >>> policy = rlm.load("zoo:intersection-ego-attention")
            >>> policy.hook_dict["hook_obs"].shape, policy.fitting(torch.rand(2, 5, 7)).hook_dict["hook_obs"].shape
            ((None, 15, 7), (None, 5, 7))
        """
        n_steps = None if obs is None else self._format.n_steps_of(obs)
        if n_steps is not None:
            return self.unrolled(n_steps)
        return (None if obs is None else self._variants.fitting(obs)) or self

    @explain_misuse
    def run_with_hooks(
        self, obs: Observation, *, fwd_hooks: Hooks = (), bwd_hooks: Hooks = ()
    ) -> Float[Tensor, "batch *choice action"]:
        """Action scores with some functions attached for this pass only.

        A backward hook fires when the caller calls `backward` on what came out.

        Raises:
            HookError: A forward hook never fired, or returned what cannot stand in for its activation.
        """
        handles = [*self._attach(fwd_hooks, "fwd"), *(backward := self._attach(bwd_hooks, "bwd"))]
        try:
            scores = self(obs)
        finally:
            for handle in handles:
                handle.remove()
        for handle in backward:
            handle.listening = True  # the caller's own backward is still to come
        check_fired([handle for handle in handles if handle not in backward])
        return scores

    @explain_misuse
    @contextmanager
    def hooks(self, *, fwd_hooks: Hooks = (), bwd_hooks: Hooks = ()) -> Generator[HookedPolicy]:
        """Attach functions for as long as the `with` lasts; whatever happens inside, they are gone afterwards.

        Args:
            fwd_hooks: Pairs of a name (or glob, or function of the name) and `fn(tensor, hook) -> tensor | None`.
            bwd_hooks: The same for gradients.

        Raises:
            HookError: On leaving without an exception: one of them never fired.
        """
        handles: list[HookHandle] = []
        try:
            handles += self._attach(fwd_hooks, "fwd")
            handles += self._attach(bwd_hooks, "bwd")
            yield self
        finally:
            for handle in handles:
                handle.remove()
        check_fired(handles)

    @explain_misuse
    @contextmanager
    def edited(self, edits: Edit | Iterable[Edit]) -> Generator[HookedPolicy]:
        """Apply edits, in order, to every forward pass inside the `with`.

        Args:
            edits: One, or several. Those that hold reference observations run the policy on them first, unedited.

        Raises:
            SiteError, EditError: An edit does not fit this policy; nothing is attached then.
            HookError: On leaving without an exception: an edit was never reached.
        """
        several = [edits] if isinstance(edits, Edit) else list(edits)
        check_edits(several)
        with self._registry.suspended():  # references are of the policy as it is
            known = [replace(edit, site=located(edit.site, self.hook_dict)).on(self) for edit in several]
        bound = [(edit.site.name, edit.bind(self.point(edit.site.name))) for edit in known]
        with self.hooks(fwd_hooks=bound):
            yield self

    @explain_misuse
    def predict(
        self,
        obs: Observation,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        *,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Actions, with the signature of Stable-Baselines3, for `evaluate_policy` and VecEnv loops.

        The numbers are those of SB3's own `predict`, bit for bit where a batch is as large; a recording, which decides
        each row for itself, may differ from a loop of it by a rounding (`run_rows`).

        Args:
            obs: One observation or a batch.
            state: Of a recurrent policy, what the last call returned: its parts in the order of `state_names`.
            episode_start: `[batch]`, true where an episode begins: there the state is forgotten first.
            deterministic: The best action; else logits are sampled, and Q-values still give the best action.

        Returns:
            Actions `[batch]` (`[batch action]` if continuous, clipped to the space), without the batch axis for a
            single observation; and the state after this step, None of a policy without memory.
        """
        single = self._format.is_single(obs) or self._variants.is_single(obs)
        with torch.no_grad(), evaluating(self.module) if self.couples_rows else nullcontext():
            before = None if state is None else dict(zip(self.state_names, state, strict=False))
            scores, after = self.step(batch_of_one(obs) if single else obs, before, episode_start=episode_start)
        actions = choose_actions(scores, self.output_kind, self.action_space, deterministic=deterministic)
        parts = tuple(as_numpy(part) for part in after.values())
        return (actions[0] if single else actions), parts or None

    # ---- looking

    @explain_misuse
    def sites(self, names: Names = None, *, over: str | Sequence[str] = ()) -> list[Site]:
        """Expand hook names into sites, one for each position along some axes.

        Args:
            names: As in `run_with_cache`; or `auto`, where there is no such name: heads and entities where there is
                attention, else every hidden neuron.
            over: Axis or axes to run through; points without them are an error.

        Example:
            >>> import rlmech as rlm
            >>> policy = rlm.load("zoo:intersection-ego-attention")
            >>> len(policy.sites("*.hook_z", over=("head",)))
            4
        """
        if isinstance(names, str) and names == "auto":
            return automatic_sites(self.hook_dict, self.attention)
        over = (over,) if isinstance(over, str) else tuple(over)
        if "step" in over and self._format.is_sequence:
            return list(sites_in_time(self.hook_dict, names, over))
        return sites_along(self.hook_dict, self._names(names), over)

    @property
    def n_steps(self) -> int | None:
        """Steps of the sequences that it takes, of an unrolled policy; None where observations are single ones."""
        return self._format.n_steps

    @property
    def is_recurrent(self) -> bool:
        """Whether a step depends on a state that the last one left."""
        return bool(self._format.states) and not self._format.is_sequence

    @property
    def state_names(self) -> tuple[str, ...]:
        """Hook points that make up the state, in order; none for a policy without memory."""
        return self._format.states

    @property
    def attention(self) -> AttentionBlocks:
        """The attention layers by module path, verified numerically."""
        return self._wrapped.engine.attention

    @property
    def has_hooks(self) -> bool:
        """Whether anything is attached: hooks, or edits."""
        return not self._registry.is_idle

    @property
    def engine(self) -> EngineName:
        """`graph` for generated programs, `eager` for hooks on the live modules; `engine_reason` says why."""
        return self._wrapped.active().name

    @property
    def engine_reason(self) -> str:
        """Why the policy runs on the engine it runs on."""
        return self._wrapped.active().reason

    @property
    def left_out(self) -> Mapping[str, str]:
        """Points that the network has and that cannot be shown, with the reason."""
        return dict(self._wrapped.engine.left_out)

    @property
    def fingerprint(self) -> str:
        """Hash of the network's names, shapes and present weights: the same weights give the same fingerprint."""
        return fingerprint(self.module)

    def choice(self, choice: int | str) -> HookedPolicy:
        """One of several choices alone: the same module under the same names, with scores `[batch action]`.

        Every analysis takes it; what drives needs all choices, and is given the policy itself.

        Args:
            choice: Its name (`spec.choices`) or number.

        Raises:
            ConfigError: The policy makes one choice only.
            SiteError: There is no such choice.

        Example:
            >>> import gymnasium as gym, torch, rlmech as rlm
            >>> space = gym.spaces.MultiDiscrete([3, 2])
            >>> policy = rlm.HookedPolicy(torch.nn.Linear(4, 5), torch.rand(1, 4), action_space=space)
            >>> policy(torch.rand(1, 4)).shape, policy.choice(1)(torch.rand(1, 4)).shape
            (torch.Size([1, 2, 3]), torch.Size([1, 2]))
        """
        choices = self.choices
        if choices is None:
            raise ConfigError(
                "The policy makes one choice only.",
                given=f"choice({choice!r})",
                expected="a policy of several choices, whose scores are [batch choice action]",
                fix="use the policy itself",
            )
        number = choices.index(choice, self.spec.choices)
        return self._with({"_choice": number})

    @property
    def is_one_choice(self) -> bool:
        """Whether it is one of several choices alone, see `choice`."""
        return self._choice is not None

    def point(self, name: str) -> HookPoint:
        """The hook point of a name.

        Raises:
            SiteError: The policy has no such hook point; the message gives the nearest names.
        """
        return self.hook_dict[name]

    @property
    def images(self) -> frozenset[str]:
        """Keys of observations that are images, channels first: they may come with their channels last too."""
        return self._format.images

    def coerce(self, obs: Observation, *, compare: bool = True) -> tuple[Tensor, ...]:
        """An observation batch as the checked tensors that the graph reads; an analysis begins with it.

        Args:
            obs: A batch of observations.
            compare: Whether the first row is compared with the module as it is now; once in an analysis is enough.

        Raises:
            ObservationError: Wrong structure, shape or dtype, or NaN.
            EngineError: The module does not compute any longer what it did when it was wrapped.
        """
        try:
            arrays = self._arrays(obs)
        except ObservationError:
            rows = self._variants.flat_rows(obs)
            if rows is None:
                raise
            arrays = self._arrays(rows)
        if compare:
            self.check_unchanged(arrays)
        return arrays

    def check_unchanged(self, arrays: tuple[Tensor, ...] = ()) -> None:
        """Compare one row with the module as it is now; analyses and recordings begin with it.

        Args:
            arrays: Observations as `coerce` gives them, of which the first is compared; none for the example's.

        Raises:
            EngineError: They differ: something has changed that the graph does not read, with its name.
        """
        self._wrapped.check_row(arrays)

    @property
    def points(self) -> Mapping[str, Point]:
        """Where each hook point lies in the graph, for analyses that walk it."""
        return self._wrapped.engine.points

    @property
    def graph_engine(self) -> GraphEngine:
        """The engine that compiles programs, for analyses that slice the graph.

        Raises:
            EngineError: The policy runs on the eager engine.
        """
        return self._wrapped.graph_engine()

    # ---- nn.Module

    def state_dict(self, *args: object, **kwargs: object) -> JsonObject:
        """The wrapped module's own state dict."""
        return self.module.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights into the wrapped module."""
        return self.module.load_state_dict(*args, **kwargs)

    def _apply(self, fn: Callable[..., object], recurse: bool = True) -> HookedPolicy:  # noqa: FBT001, FBT002  # torch's signature
        super()._apply(fn, recurse)
        self._wrapped.follow()
        self._variants.clear()  # made for the old precision and device
        return self

    def __getstate__(self) -> dict[str, object]:
        keep = ("spec", "observation_space", "_told_space", "_root", "_format")
        keep += ("_told_kind", "_scores", "_value", "_choice", "_form", "_length")
        state = {name: value for name, value in self.__dict__.items() if name in keep}
        return {**state, "module": self.module, "training": self.training, "graph": self.stored_graph}

    def _with(self, own: Settings) -> HookedPolicy:
        """The same module wrapped again, with some settings replaced."""
        made: HookedPolicy = HookedPolicy.__new__(HookedPolicy)
        made.__setstate__({**self.__getstate__(), **own})
        return made

    def __setstate__(self, state: JsonObject) -> None:
        nn.Module.__init__(self)
        graph, registry = state.pop("graph"), state.pop("registry", None)
        for name, value in state.items():
            setattr(self, name, value)
        with offered(graph):
            self._prepare(registry or HookRegistry())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "module" not in self.__dict__.get("_modules", {}):
                raise
        if name in dict(self.module.named_children()):
            inner = f"policy.module.{name} is the network's own"
            raise unknown_name("HookedPolicy", name, vars(HookedPolicy), {name: inner})
        raise unknown_name("HookedPolicy", name, vars(HookedPolicy), OF_POLICY)

    @property
    def stored_graph(self) -> str | None:
        """The traced graph as JSON, which spares another process the export; None where JSON does not carry it."""
        return self._wrapped.engine.stored()

    # ---- inside

    @property
    def couples_rows(self) -> bool:
        """Whether train mode makes rows depend on each other or on chance: sweeps refuse that."""
        return self._wrapped.couples_rows

    def _attach(self, hooks: Hooks, direction: Direction) -> list[HookHandle]:
        pairs = [(name, function) for names, function in hooks for name in self._names(names)]
        return self._registry.attach(pairs, direction)
