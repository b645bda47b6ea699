"""The policies that are asked: the zoo's, two further seeds, their training ladders, and networks for comparison.

The further seeds stand beside this file, `policies/seed_N/step_M.safetensors`. They are made by

    rlmech train experiments/06_social_attention/training/seed_1.toml --run runs/social_attention_seed_1

and, as far as their checkpoints are there, converted by `convert`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import rlmech as rlm

ZOO = "intersection-ego-attention"
STEPS = (0, 10_000, 30_000, 60_000, 102_000)  # of the zoo's ladder
SEEDS = (1, 2)
KEPT = Path(__file__).parent / "policies"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A checkpoint of one training.

    Attributes:
        training: Which training: `zoo`, `seed 1`, `seed 2`.
        step: Environment steps that it was trained for.
        address: What `rlm.load` opens.
        final: Whether it is the training's last checkpoint.
    """

    training: str
    step: int
    address: str
    final: bool

    @property
    def name(self) -> str:
        """Training and step, e.g. `seed 1 at 40k`."""
        return f"{self.training} at {self.step // 1000}k"

    @property
    def folder(self) -> str:
        """Where its episodes go."""
        return f"{self.training.replace(' ', '_')}/step_{self.step:07d}"

    def load(self) -> rlm.HookedPolicy:
        """The policy."""
        return rlm.load(self.address)


def subjects() -> list[Subject]:
    """All checkpoints that are there, each training's in order."""
    found = [Subject(training="zoo", step=n, address=f"zoo:{ZOO}@step_{n:07d}", final=n == STEPS[-1]) for n in STEPS]
    for seed in SEEDS:
        files = sorted((KEPT / f"seed_{seed}").glob("step_*.safetensors"))
        found += [
            Subject(training=f"seed {seed}", step=_step(file), address=str(file), final=file == files[-1])
            for file in files
        ]
    return found


def convert(runs: Path) -> list[Path]:
    """Keep the checkpoints of the further seeds' trainings in the package's own format; those kept are left alone."""
    made: list[Path] = []
    env = rlm.make_env("intersection-v2")
    for seed in SEEDS:
        for file in sorted((runs / f"social_attention_seed_{seed}" / "checkpoints").glob("step_*.zip")):
            kept = KEPT / f"seed_{seed}" / f"{file.stem}.safetensors"
            if not kept.exists():
                made.append(rlm.save_policy(rlm.load(file, env=env), kept))
    return made


def untrained(policy: rlm.HookedPolicy, *, seed: int) -> rlm.HookedPolicy:
    """A network of the same architecture with weights drawn anew, as a training from `seed` would begin.

    The policy given is changed and returned: load it for this.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in policy.module.modules():
            if isinstance(module, torch.nn.Linear):
                module.reset_parameters()
    return policy


def shuffled(policy: rlm.HookedPolicy, *, seed: int) -> rlm.HookedPolicy:
    """The policy with the entries of each weight matrix in another order: weights as large, with nothing learned.

    The policy given is changed and returned: load it for this.
    """
    order = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in policy.module.modules():
            if isinstance(module, torch.nn.Linear):
                flat = module.weight.flatten()
                module.weight.copy_(flat[torch.randperm(len(flat), generator=order)].view_as(module.weight))
    return policy


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step_"))
