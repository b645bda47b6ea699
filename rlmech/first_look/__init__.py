"""The main job in one call: record a policy, patch it, ablate it, drive it ablated, read its circuits, write the page.

report(policy, env, path="report/index.html"), or by parts:

look = first_look(policy, env, seeds=range(20));  write_page(look, "report/index.html");  summary(look)
"""

from rlmech.first_look.analysis import FirstLook, Pairs, first_look, take_away
from rlmech.first_look.any_policy import report, with_pictures
from rlmech.first_look.driven import Driven
from rlmech.first_look.own_pictures import pictures
from rlmech.first_look.page import write_page
from rlmech.first_look.summary import summary

__all__ = [
    "Driven",
    "FirstLook",
    "Pairs",
    "first_look",
    "pictures",
    "report",
    "summary",
    "take_away",
    "with_pictures",
    "write_page",
]
