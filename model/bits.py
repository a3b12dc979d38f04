"""The few operations on values for which Python's operators don't do."""

from typing import Any


def select(condition: Any, when_true: Any, when_false: Any) -> Any:
    """`when_true` or `when_false`, as data: both have been evaluated already, and no path forks."""
    if condition is True:
        return when_true
    if condition is False:
        return when_false
    return condition.select(when_true, when_false)


def not_(condition: Any) -> Any:
    """The negation of a truth value (`~True` is -2, and `not` would fork a path)."""
    return condition ^ True


def bit_length(value: Any) -> Any:
    """How many bits a number >= 0 has, without leading zeros; 0 for 0."""
    return value.bit_length()


def sign_extend(value: Any, width: int) -> Any:
    """The number that the lowest `width` bits of `value` are in two's complement."""
    sign = 1 << width - 1
    return ((value & (1 << width) - 1) ^ sign) - sign
