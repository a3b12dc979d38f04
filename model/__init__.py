"""The reference: plain Python on plain ints, written to be read beside the specification.

Nothing here imports a solver, numpy or the language. Data flow is arithmetic, a comparison used as a number included; an
`if` is only used to refuse an operation or, in memory, to tell one granule from two. So the same source can be executed
on values that are not plain ints.
"""
