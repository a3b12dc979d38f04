"""Exit statuses, and the errors that lead to them."""

from enum import IntEnum


class Status(IntEnum):
    """What the command's exit status says."""

    OK = 0
    VIOLATION = 1
    INCONCLUSIVE = 2
    USAGE = 64
    INTERNAL = 70


MEANINGS: dict[Status, str] = {
    Status.OK: "everything is as expected",
    Status.VIOLATION: "a violation: an assertion, a trap, a golden vector, or implementations that differ",
    Status.INCONCLUSIVE: "inconclusive: interrupted, nobody reads the output, or a check was never put to the test",
    Status.USAGE: "wrong options, wrong or missing input, or output that can't be written",
    Status.INTERNAL: "an error of capvisor itself",
}


class InputError(Exception):
    """Something that the user gave can't be used; the message says what, where and what to do."""
