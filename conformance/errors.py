"""What is wrong with files of golden vectors and traces."""


class VectorFileError(Exception):
    """A file that can't be used as golden vectors: which, and why."""
