"""Weights without the network that they belong to: bare state dicts, and checkpoints that hold some.

`opening` has the door, `content` finds the weights in what a file holds, `layers` builds what their names and shapes
tell: stacks of linear layers, as CleanRL's agents and plain `nn.Sequential`s are.
"""

from rlmech.adapters.weights.opening import open_weights

__all__ = ["open_weights"]
