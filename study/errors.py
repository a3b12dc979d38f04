"""What is wrong with an input of the study."""


class StudyError(Exception):
    """A trace, a workload or a configuration that can't be used; the message says what, where and what to do."""
