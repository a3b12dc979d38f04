"""Golden vectors and traces: read, held against both implementations, and made from the reference for others."""
