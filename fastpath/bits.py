"""The few vector operations that numpy has no function for."""

import numpy as np

from capvisor.fastpath.workspace import Flags, Words

_FLOAT_2_52 = 0x4330_0000_0000_0000
"""The bits of the float 2.0**52: or-ed with an integer below 2**52, they are the float 2**52 + that integer."""


def floor_log2(values: Words, out: Words) -> None:
    """out = the number of the highest bit that is set in each value, 0 also for the value 0. Values must be below 2**52.

    The exponent of the float that equals the value says it; there is no integer instruction for it in numpy.
    """
    np.bitwise_or(values, _FLOAT_2_52 | 1, out=out)
    as_float = out.view(np.float64)
    np.subtract(as_float, 2.0**52, out=as_float)
    np.right_shift(out, 52, out=out)
    np.subtract(out, 1023, out=out)


def shift_right_signed(values: Words, shift: Words, out: Words) -> None:
    """out = values, as 64-bit numbers in two's complement, shifted right with copies of the sign moving in."""
    np.right_shift(values.view(np.int64), shift.view(np.int64), out=out.view(np.int64))


def sign_extend(values: Words, width: int, out: Words) -> None:
    """out = the lowest `width` bits of each value as a 64-bit number in two's complement; higher bits must be zero."""
    sign = 1 << width - 1
    np.bitwise_xor(values, sign, out=out)
    np.subtract(out, sign, out=out)


def choose(condition: Flags, when_true: Words | int, when_false: Words, out: Words) -> None:
    """out = when_true where the condition holds, else when_false. `out` must not be `when_true`."""
    if out is not when_false:
        np.copyto(out, when_false)
    np.copyto(out, when_true, where=condition)
