"""Theorems about the reference and the fast path, by executing their own code on symbolic values with Z3.

`symbolic` has integers and truth values that stand for all values; `symarray` has arrays for the numpy kernels; `theorem`
declares what is to be proved; the other modules hold the theorems, a room each; `runner` proves them.
"""
