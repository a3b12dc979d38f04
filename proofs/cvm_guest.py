"""Any instruction of a guest at all, in a system of cVMs: a step of which nothing is known but M11 (`spec.guest`).

M11 is proved of each operation (`proofs.isa`), and so what is proved of this step holds of all but `cinvoke`. It says of
every register and granule that what is there came from somewhere; here, that somewhere is a symbol, and the invariants are
supposed of it.
"""

from collections.abc import Callable, Iterable
from typing import Any

from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.machine import Trap
from capvisor.proofs.cvm_state import AnyMonitor, GuestRegisters
from capvisor.proofs.state import AnyStore, any_capability
from capvisor.proofs.theorem import Given
from capvisor.spec.formats import CapabilityFormat, Permission
from capvisor.spec.guest import APART, CapabilityStore, Source, is_kept, ways_to_keep, ways_to_run, ways_to_stand
from capvisor.spec.invariants import authorises, has_modes
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.registers import REGISTER_COUNT, SPECIAL_REGISTERS, STATE_NUMBERS, Privilege

NAME = "guest"
"""The step's name among those of the system."""

STANDS_FOR = tuple(name for name in OPERATIONS if name != APART)
"""The operations that it stands for."""


class _Before:
    """The state before the step, and what may have been reached in it."""

    def __init__(self, monitor: AnyMonitor, thread: Any) -> None:
        self.monitor, self.hart = monitor, thread.hart
        self.registers, self.store = thread.hart.registers, monitor.memory.store
        self.pcc, self.ddc = thread.hart.pcc, thread.hart.ddc

    def came(self, symbol: str, after: Capability, ways: Iterable[Any]) -> None:
        """Suppose M11 of what is somewhere now; each way in which it may have come there is a case of that symbol's."""
        cases = tuple(ways)
        self.monitor.given.assume(is_kept(after, cases))
        self.monitor.cases[symbol] = tuple(after.tag & each for each in cases)

    def any_register(self) -> Capability:
        """What some register holds."""
        cap: Capability = self.registers[self.monitor.fresh("source", REGISTER_COUNT.bit_length() - 1)]
        return cap

    def sources(self) -> tuple[Source, ...]:
        """One register, PCC, DDC, and one granule that some capability authorises to load."""
        memory, fmt = self.monitor.memory, self.monitor.format
        index = self.monitor.fresh("loaded", fmt.address_width)
        self.monitor.given.assume(index < memory.size_bytes >> fmt.granule_shift)
        address = memory.base + (index << fmt.granule_shift)
        needed = Permission.LOAD | Permission.LOAD_CAPABILITY
        by = self.any_register()
        may_load = authorises(by, needed, address, fmt.capability_bytes)
        may_load = may_load | authorises(self.ddc, needed, address, fmt.capability_bytes)
        loaded = capability.from_memory(fmt, *self.store.get(index))
        return Source(True, self.any_register()), Source(True, self.pcc), Source(True, self.ddc), Source(may_load, loaded)

    def stores(self) -> tuple[CapabilityStore, ...]:
        """One register, stored by another one or by DDC."""
        by, stored, width = self.any_register(), self.any_register(), self.monitor.format.address_width
        at = self.monitor.fresh("stored_at", width)
        return CapabilityStore(by, stored, at), CapabilityStore(self.ddc, stored, at)


class _RegistersAfter(GuestRegisters):
    """Registers after the step."""

    def __init__(self, fmt: CapabilityFormat, given: Given, before: _Before) -> None:
        super().__init__(fmt, given, "after_")
        self._before = before

    def comes(self, register: Any) -> None:
        """Suppose M11 of a register."""
        before = self._before
        before.came(REGISTER, self[register], ways_to_keep(before.registers[register], self[register], before.sources()))


class _GranulesAfter(AnyStore):
    """Memory after the step."""

    def __init__(self, fmt: CapabilityFormat, given: Given, before: _Before) -> None:
        super().__init__(fmt, given, "memory_after")
        self._before = before

    def comes(self, index: Any) -> None:
        """Suppose M11 of a granule."""
        before, fmt = self._before, self._format
        address = before.monitor.memory.base + (index << fmt.granule_shift)
        held, now = (capability.from_memory(fmt, *store.get(index)) for store in (before.store, self))
        before.came(MEMORY, now, ways_to_stand(held, now, address, before.stores()))


REGISTER, DDC, PCC, MEMORY = "after_tags", "after_ddc_tag", "after_pcc_tag", "memory_after_tags"
PLACES = (REGISTER, DDC, PCC, MEMORY)
"""Where something can be put, by the symbol of its tag after the step."""


def any_step(monitor: AnyMonitor, thread: Any) -> Callable[..., Trap | None]:
    """What stands for `Hart.step` in a thread: any step that M11 allows, completed or refused.

    A goal is about one place, and so one is looked at at a time: `monitor.about` is that place; of others nothing is known.
    """

    def step(_name: str, _operands: tuple[Any, ...]) -> Trap | None:
        hart, fmt, given = thread.hart, monitor.format, monitor.given
        before = _Before(monitor, thread)
        for name in STATE_NUMBERS:
            setattr(hart, name, given.word(f"after_{name}", 2 if name == "privilege" else fmt.address_width))
        hart.pc = given.word("after_pc", fmt.address_width)
        for name in SPECIAL_REGISTERS:
            setattr(hart, name, any_capability(fmt, given, f"after_{name}"))
        given.assume(has_modes({name: vars(hart)[name] for name in STATE_NUMBERS}))
        is_refused = bool(given.flag("is_refused"))
        places = (REGISTER, DDC, MEMORY) if is_refused else PLACES
        monitor.about = next(each for each in places if each == places[-1] or given.flag(f"about_{each}"))
        hart.registers = after = _RegistersAfter(fmt, given, before)
        monitor.memory.store = _GranulesAfter(fmt, given, before)
        # Looked at now, so that what the goals are about is known of where it came from.
        match monitor.about:
            case "after_tags":
                after.comes(monitor.any_register)
            case "memory_after_tags":
                monitor.memory.store.comes(monitor.any_granule)
            case "after_ddc_tag":
                before.came(DDC, hart.ddc, ways_to_keep(before.ddc, hart.ddc, before.sources()))
            case _:
                before.came(PCC, hart.pcc, ways_to_run(before.pcc, hart.pcc, before.sources()))
        if is_refused:
            return Trap("IllegalInstruction")
        given.assume((hart.privilege == int(Privilege.USER)) & (hart.pc & 1 == 0))
        return None

    return step
