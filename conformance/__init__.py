"""Golden vectors: read, checked against both implementations, and made from the reference for others."""
