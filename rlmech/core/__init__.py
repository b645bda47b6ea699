"""The graph of a policy, its hook points, programs, caches and edits."""
