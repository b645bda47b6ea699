"""A grid held still: objects taken hold of, edited and observed. What `rlmech.scenes` does in MiniGrid."""
