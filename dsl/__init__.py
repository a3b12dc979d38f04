"""The language of guest operations: one program is a test, and a property of many values at once.

`parser` and `printer` are inverse; `check` finds what is wrong with a program before it runs; `runner` executes it on the
reference and the fast path; `campaign` fuzzes its `any` values.
"""
