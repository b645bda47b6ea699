"""Results as figures: heat maps, attention, roads and grids, episodes, comparisons, and one page that holds them all.

Figures take results and compute nothing. Each is a `PlotFigure` of plotly, an `SvgFigure` or an `AttentionFigure`; all
of them show in a notebook and `save` themselves by the ending of a path, and `page` puts them into one self-contained
HTML page.
"""

from rlmech.plot.attention_heads import AttentionFigure, attention, recorded_pattern
from rlmech.plot.certified import certified_map
from rlmech.plot.circuit_drawing import circuit_graph
from rlmech.plot.comparisons import comparison, dose_response
from rlmech.plot.drawn_scene import scene
from rlmech.plot.episode import q_values, scores
from rlmech.plot.episode_pairs import side_by_side
from rlmech.plot.feature_figures import dictionary_scores, feature_scenes, feature_table
from rlmech.plot.fields import field
from rlmech.plot.heatmaps import circuit, heatmap, sweep
from rlmech.plot.probing import probe_scores
from rlmech.plot.report_page import Figure, Frame, Panel, Section, Steps, page
from rlmech.plot.saving import PlotFigure
from rlmech.plot.strongest_sites import ranking
from rlmech.plot.student_curves import students
from rlmech.plot.svg import SvgFigure
from rlmech.plot.viewer import episodes

__all__ = [
    "AttentionFigure",
    "Figure",
    "Frame",
    "Panel",
    "PlotFigure",
    "Section",
    "Steps",
    "SvgFigure",
    "attention",
    "certified_map",
    "circuit",
    "circuit_graph",
    "comparison",
    "dictionary_scores",
    "dose_response",
    "episodes",
    "feature_scenes",
    "feature_table",
    "field",
    "heatmap",
    "page",
    "probe_scores",
    "q_values",
    "ranking",
    "recorded_pattern",
    "scene",
    "scores",
    "side_by_side",
    "students",
    "sweep",
]
