"""Loops that numba compiles where it is installed (`capvisor[fast]`), and that Python runs as they stand where it isn't."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

_Function = TypeVar("_Function", bound=Callable[..., Any])

try:
    import numba
except ImportError:
    COMPILED = False
else:
    COMPILED = not getattr(numba.config, "DISABLE_JIT", False)  # set by NUMBA_DISABLE_JIT=1


def compiled(function: _Function) -> _Function:
    """The function, compiled at its first call if that is possible; the results are the same either way."""
    if not COMPILED:
        return function
    try:
        machine_code: Any = numba.njit(cache=True)(function)
    except RuntimeError:  # there is no folder to keep machine code in
        machine_code = numba.njit(function)
    return cast(_Function, machine_code)
