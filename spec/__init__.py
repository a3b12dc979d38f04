"""What is true by definition: tables without algorithms.

Formats, operations, traps, registers and the columns of golden vectors are declared here, once; the reference, the fast
path, the language, the documentation and the tests derive from these tables.
"""
