"""Policies whose circuit is known, because it was built by hand or planted: what methods are tried on.

Each function returns a `KnownPolicy`: a float64 policy, pairs of observations, the equations of all units, the edges of
the circuit, and effects derived by hand. `brute_force` evaluates the equations with any edges fed from another run.
`known_program` opens one of `PROGRAMS`, compiled to attention and tables; `hard_circuit` plants what methods stumble
over; `prove_circuit` shows that a circuit is one. `rlm.edges.score_discovery` scores all methods on any of them.
Those that remember are `KnownMemory`: pairs of sequences, and what each state and observation does to the last step.
Of a `KnownSubspace` it is known along which directions of a layer a variable stands.
"""

from rlmech.testbed.braking import brake
from rlmech.testbed.cancelling import cancellation
from rlmech.testbed.filters import matched_filter
from rlmech.testbed.gates import and_gate, backup, or_gate
from rlmech.testbed.hard_circuits import KINDS, hard_circuit
from rlmech.testbed.known import Edge, Equation, KnownPolicy
from rlmech.testbed.memory import KnownMemory, counting_cell, cue_lstm, delay_line, forgetting_cell
from rlmech.testbed.nearest import nearest_vehicle
from rlmech.testbed.oracle import brute_force, brute_force_paths, paths_between, unit_values
from rlmech.testbed.programs.listing import PROGRAMS, Program
from rlmech.testbed.programs.opening import known_program
from rlmech.testbed.proof import CircuitProof, prove_circuit
from rlmech.testbed.random_circuits import random_circuit
from rlmech.testbed.scoring import edge_auroc
from rlmech.testbed.subspaces import KnownSubspace, planted_subspace

__all__ = [
    "KINDS",
    "PROGRAMS",
    "CircuitProof",
    "Edge",
    "Equation",
    "KnownMemory",
    "KnownPolicy",
    "KnownSubspace",
    "Program",
    "and_gate",
    "backup",
    "brake",
    "brute_force",
    "brute_force_paths",
    "cancellation",
    "counting_cell",
    "cue_lstm",
    "delay_line",
    "edge_auroc",
    "forgetting_cell",
    "hard_circuit",
    "known_program",
    "matched_filter",
    "nearest_vehicle",
    "or_gate",
    "paths_between",
    "planted_subspace",
    "prove_circuit",
    "random_circuit",
    "unit_values",
]
