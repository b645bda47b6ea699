"""What each operation of a graph does to a value: one record an operation, in one table that all analyses read.

`record` says what a record holds, `table` has them all, `gates` the boundaries of those that are piecewise affine,
`aliases` the second names of one operation. `reading` asks of one node of a graph what it does to what moves in it: an
operation that has no record, or is called in a way that its record does not describe, is unknown, which is never exact,
never affine and never independent.
"""
