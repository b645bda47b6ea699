"""`rlm.report`: the page of any policy, in one call."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlmech.arguments import explain_misuse
from rlmech.core.policy import HookedPolicy
from rlmech.errors import ConfigError
from rlmech.first_look.analysis import first_look
from rlmech.first_look.own_pictures import shows_itself
from rlmech.first_look.page import write_page
from rlmech.simulators import make_env, simulator_of

if TYPE_CHECKING:
    import gymnasium as gym


@explain_misuse
def report(
    policy: HookedPolicy | str | Path,
    env: gym.Env[Any, Any] | str | None = None,
    *,
    path: str | Path = "report/index.html",
    seeds: Iterable[int] = range(20),
    n_driven: int = 8,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Drive a policy, take parts from it, and write what was found as one page that opens anywhere.

    What `rlmech report` does. The page shows the episodes step by step, as a road, a grid or the environment's own
    pictures; which heads or neurons of the acting network its decisions depend on; whole episodes with the strongest of
    them ablated; each figure with the code that makes it.

    Args:
        policy: The policy, or the file that `rlm.load` opens.
        env: An environment, or its id; by default the one that the policy was trained in. Made here from an id, it
            returns pictures where it can; one that is given does so with `render_mode="rgb_array"`.
        path: The `.html` file to write.
        seeds: Seeds of the episodes.
        n_driven: On how many of them, from the first, ablations drive; 0: none do.
        workers: Processes.
        progress: Whether to draw a progress bar.

    Returns:
        The path written.

    Raises:
        ConfigError: No environment is given and the policy names none, or the path is no HTML file.
        EnvironmentFitError: The environment does not fit the policy.

    Example:
        >>> import torch, rlmech as rlm
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> policy = rlm.HookedPolicy(net, torch.rand(2, 4))
        >>> rlm.report(policy, "CartPole-v1", path="page.html", seeds=range(2), n_driven=0, progress=False).name
        'page.html'
    """
    if isinstance(policy, list | tuple):
        raise ConfigError(
            "A report is of a policy.",
            given=f"a {type(policy).__name__}",
            expected="a policy, or the file of one",
            fix="rlm.plot.page(sections, path) writes figures of your own as a page",
        )
    if Path(path).suffix not in (".html", ".htm"):
        raise ConfigError(
            "A report is an HTML file.",
            given=f"path {str(path)!r}",
            expected="a path that ends in .html",
            fix="e.g. path='report/index.html'",
        )
    from rlmech.adapters.load import load

    opened = policy if isinstance(policy, HookedPolicy) else load(policy)
    made = with_pictures(opened, env)
    look = first_look(opened, made, seeds=seeds, n_driven=n_driven, workers=workers, progress=progress)
    return write_page(look, path, source=None if isinstance(policy, HookedPolicy) else str(policy))


def with_pictures(policy: HookedPolicy, env: gym.Env[Any, Any] | str | None) -> gym.Env[Any, Any]:
    """An environment that is given, or made; made so that it returns pictures where it can and is not drawn here."""
    if env is not None and not isinstance(env, str):
        return env
    if env is None and policy.spec.env_id is None:
        raise ConfigError(
            "The policy does not say which environment it is for.",
            given="no environment",
            expected="an environment, or a Gymnasium id, e.g. intersection-v2",
            fix="name it after the policy",
        )
    named = policy.spec if env is None or env == policy.spec.env_id else env
    made = make_env(named)
    plain = simulator_of(made).name == "plain"
    return make_env(named, render_mode="rgb_array") if plain and shows_itself(made) else made
