"""The component graph: single edges and paths, attributions of edges, and circuits found among them.

- The graph: `component_graph`, `choose_units`.
- Single edges and paths: `edge_patching`, `path_patching`; all edges at once from gradients: `edge_attribution`.
- Circuits: `discover_circuit`, `Circuit`; hypotheses about them: `causal_scrubbing`.
- How well all of these find circuits that are known: `score_discovery`, edge by edge `score_edges`.
"""

from rlmech.edges.circuit import Circuit
from rlmech.edges.components import component_graph
from rlmech.edges.discover import discover_circuit
from rlmech.edges.method_scores import DISCOVERY_METHODS, score_discovery, score_edges
from rlmech.edges.path import path_patching
from rlmech.edges.scores import edge_attribution
from rlmech.edges.scrubbing import causal_scrubbing
from rlmech.edges.single import edge_patching
from rlmech.edges.units import choose_units

__all__ = [
    "DISCOVERY_METHODS",
    "Circuit",
    "causal_scrubbing",
    "choose_units",
    "component_graph",
    "discover_circuit",
    "edge_attribution",
    "edge_patching",
    "path_patching",
    "score_discovery",
    "score_edges",
]
