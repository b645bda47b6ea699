"""How many states, seeds and networks the atlas takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of the measurements; the published tables stand on the defaults.

    Attributes:
        n_states: States that each agent is asked in.
        state_seeds: Episodes from seed 0 that they are taken from.
        return_seeds: Episodes from seed 0 whose returns are held against the published ones.
        choose_seeds: Episodes from seed 0 on which units are chosen.
        measure_from: First seed of those on which the chosen ones are measured.
        measure_seeds: How many these are.
        paired_seeds: How many, from `measure_from`, compare whole policies: without statistics, a linear imitation.
        n_pairs: Pairs of states of activation patching.
        n_untrained: Networks with fresh weights beside each agent.
        shared_states: States of each agent on which pairs of agents are compared.
        n_noise: Draws of noise for each state.

    Example:
        >>> import rlmech as rlm
        >>> rlm.atlas.Sizes(n_states=100, choose_seeds=4).measure_seeds
        30
    """

    n_states: int = 2000
    state_seeds: int = 40
    return_seeds: int = 100
    choose_seeds: int = 10
    measure_from: int = 100
    measure_seeds: int = 30
    paired_seeds: int = 20
    n_pairs: int = 500
    n_untrained: int = 3
    shared_states: int = 500
    n_noise: int = 10

    @classmethod
    def quick(cls) -> Sizes:
        """So few that all of it takes seconds a policy, and says nothing: to see whether it runs."""
        return cls(
            n_states=100,
            state_seeds=4,
            return_seeds=4,
            choose_seeds=2,
            measure_seeds=4,
            paired_seeds=4,
            n_pairs=20,
            n_untrained=1,
            shared_states=40,
            n_noise=1,
        )

    @property
    def choosing(self) -> range:
        """Seeds on which units are chosen."""
        return range(self.choose_seeds)

    @property
    def measuring(self) -> range:
        """Seeds on which they are measured."""
        return range(self.measure_from, self.measure_from + self.measure_seeds)

    @property
    def paired(self) -> range:
        """Seeds on which whole policies are compared."""
        return range(self.measure_from, self.measure_from + self.paired_seeds)
