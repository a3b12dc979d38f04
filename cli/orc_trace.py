"""Showing a run of shared objects step by step."""

from collections.abc import Callable, Iterator
from typing import Any

from capvisor.cli.trace import CvmTracer
from capvisor.dsl.system_runner import Executed
from capvisor.model.object_tables import Slot
from capvisor.spec.orc import SlotKind


class OrcTracer:
    """Prints each step as that of cVMs is, and what it changed in slots."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._slots: dict[int, Slot] = {}
        self._tracer = CvmTracer(write, self._changed)

    def __call__(self, step: Executed) -> None:
        self._tracer(step)

    def _changed(self, system: Any) -> Iterator[str]:
        """The slots that aren't what they were, in words."""
        slots = dict(system.slots.rows)
        for slot in sorted(slots):
            row, before = slots[slot], self._slots.get(slot, Slot())
            if (row.kind, row.owner) != (before.kind, before.owner):
                whose = f" of tenant {row.owner}" if row.owner else ""
                yield f"slot {slot} = {SlotKind(row.kind).name}{whose}"
        self._slots = slots
