"""Sound bounds on the values of a graph over boxes of its inputs.

`calls` computes operations in double precision and with absolute values, `intervals` bounds an operation by intervals
of what it reads, `bends` by lines, and `region` walks a graph forwards with the one and backwards with the other. Each
asks the table of operations; what it does not know is refused by name. Rounding in the policy's precision is covered.
"""
