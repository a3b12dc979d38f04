"""Harts that share memory: all threads of a system, in many systems at once."""

from typing import Any

import numpy as np

from capvisor.fastpath.machine import CHANGE_PCC, KERNELS, NUMBERS, BatchMachine, Indices
from capvisor.fastpath.memory import Memory, MemoryBlock
from capvisor.fastpath.workspace import Causes
from capvisor.spec.formats import CapabilityFormat


class SharedMemory(Memory):
    """Memory of many systems: harts whose numbers are equal modulo the number of lanes have the same."""

    def __init__(self, fmt: CapabilityFormat, base: int, size_bytes: int, lanes: int) -> None:
        super().__init__(fmt, base, size_bytes, lanes)
        self._lanes = lanes

    def block(self, start: int, stop: int) -> MemoryBlock:
        return self.selection(np.arange(start, stop))

    def selection(self, lanes: Indices) -> MemoryBlock:
        return super().selection(lanes % self._lanes)


class Harts(BatchMachine):
    """The harts of all threads, of which some take a step."""

    def __init__(self, memory: SharedMemory, harts: int) -> None:
        def shared(*_arguments: Any) -> SharedMemory:
            return memory

        super().__init__(memory.format, memory.base, memory.size_bytes, harts, memory_type=shared)  # type: ignore[arg-type]

    def step_some(self, harts: Indices, name: str, operands: tuple[Any, ...]) -> Causes:
        """Execute one operation in some harts; why it was refused, by number, 0 where it was completed.

        Operands are as those of `step`, but arrays have one element for each of these harts.
        """
        fetched = self._fetch(harts)
        if fetched.any():
            own = tuple(each[fetched] if isinstance(each, np.ndarray) else each for each in operands)
            self._execute(KERNELS[name], harts[fetched], own)
        self._commit(harts, leaves=name in CHANGE_PCC)
        return self.cause[harts]

    def copy_of(self, others: "Harts") -> None:
        """Let the first harts be in the state of all the harts of another machine."""
        count = others.lanes
        for name in ("tags", "metas", "addresses", "pc", "next_pc", "is_reserved", "cause", "trap_value"):
            getattr(self, name)[..., :count] = getattr(others, name)
        for name in NUMBERS:
            self.numbers[name][:count] = others.numbers[name]
        self.pcc_changed(np.arange(count))
