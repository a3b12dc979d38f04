"""What refuses an operation in some of the lanes in which it is asked, and which kernel does it: for all systems."""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar

import numpy as np

from capvisor.fastpath.machine import Indices
from capvisor.fastpath.workspace import Causes, Flags, Words

Kernel = TypeVar("Kernel", bound=Callable[..., None])


class Refusals:
    """Which lanes are refused, by the first reason that there was: `code` is 0 in the others."""

    def __init__(self, code: Causes, out_of_range: Enum) -> None:
        """`out_of_range` is the code of what names nothing that is there."""
        self.code, self._out_of_range = code, out_of_range

    def refuse(self, where: Flags, code: Enum) -> None:
        """Refuse some of those that haven't been refused yet."""
        np.copyto(self.code, code.value, where=where & (self.code == 0))

    def index(self, numbers: Words, limit: int, first: int = 0) -> Indices:
        """Numbers as places in a table, those that have none refused."""
        outside = (numbers < np.uint64(first)) | (numbers >= np.uint64(limit))
        self.refuse(outside, self._out_of_range)
        places: Indices = np.where(outside, np.uint64(first), numbers).astype(np.int64)
        return places

    @property
    def passed(self) -> Indices:
        """Those that haven't been refused, counted from 0."""
        return np.flatnonzero(self.code == 0)


def declaring(kernels: dict[str, Any], rows: Mapping[str, Any]) -> Callable[[str], Callable[[Kernel], Kernel]]:
    """What declares a function to be the kernel of a row of a table, by its name. It raises KeyError if there is none."""

    def kernel_of(name: str) -> Callable[[Kernel], Kernel]:
        row = rows[name]

        def register(kernel: Kernel) -> Kernel:
            kernels[row.name] = kernel
            return kernel

        return register

    return kernel_of
