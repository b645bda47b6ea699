"""What a policy represents, and whether it uses it: probes with their controls, and directions that are driven.

- Decodable? `fit_probe`, for columns of a recording (`within`, `of_entity`, `entities` make more) or a function, beside
  the same probe on the observation, on untrained networks and on shuffled labels, and each episode's own mean.
- Used? `is_used` drives with the direction erased and pushed, beside random directions of the same length.
- Ahead of time? `planning`: what is done or happens some steps later, beside all else that is known by then.
- Out of it: `erase_targets` leaves nothing that a linear readout could find, of several targets at once (LEACE).
- Directions of a concept: `concept_direction`, and `concept_sensitivity`, TCAV's scores against random concepts.
"""

from rlmech.probes.concepts import Concept, concept_direction, concept_sensitivity
from rlmech.probes.erasure import erase_targets
from rlmech.probes.fit import fit_probe
from rlmech.probes.foresight import planning
from rlmech.probes.probe import Probe, Probes
from rlmech.probes.targets import Labels, entities, of_entity, within
from rlmech.probes.use import is_used

__all__ = [
    "Concept",
    "Labels",
    "Probe",
    "Probes",
    "concept_direction",
    "concept_sensitivity",
    "entities",
    "erase_targets",
    "fit_probe",
    "is_used",
    "of_entity",
    "planning",
    "within",
]
