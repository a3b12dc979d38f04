"""Any instruction of a guest at all, in a system of shared objects: a step of which nothing is known but M11 and M2.

M11 is proved of each operation (`proofs.isa`), and so what is proved of this step holds of all but `cinvoke`. It says that
what is tagged somewhere came from something that the step reached: PCC, or something that the tenant holds in a register, in
DDC, or where it can load it. The step `loaded` shows that the last is as what is in registers is; by that, here it is any
capability that a tenant may hold.
"""

from collections.abc import Callable, Iterable
from typing import Any

from capvisor.model.capability import Capability
from capvisor.model.machine import Trap
from capvisor.proofs.cvm_guest import DDC, MEMORY, NAME, PCC, PLACES, REGISTER, STANDS_FOR
from capvisor.proofs.cvm_state import GuestRegisters
from capvisor.proofs.state import AnyStore, any_capability
from capvisor.proofs.theorem import implies
from capvisor.spec.formats import Permission
from capvisor.spec.guest import (
    ByteStore,
    CapabilityStore,
    Source,
    is_kept,
    is_runnable,
    some,
    ways_to_change,
    ways_to_keep,
    ways_to_run,
    ways_to_stand,
)
from capvisor.spec.invariants import authorises, has_modes, same
from capvisor.spec.registers import SPECIAL_REGISTERS, STATE_NUMBERS, Privilege

__all__ = ["LOADED", "NAME", "PLACES", "STANDS_FOR", "any_loaded", "any_step"]

LOADED = "loaded"
"""The step that is none: what is loaded by a thread's authority is what its tenant may hold in a register."""


def any_loaded(monitor: Any, thread: Any) -> Capability:
    """What a granule holds that something in a register or DDC of a thread authorises to load, tag included."""
    memory, fmt, given = monitor.memory, monitor.format, monitor.given
    by, index = monitor.any_held("by", thread), given.word("loaded", fmt.address_width)
    needed = Permission.LOAD | Permission.LOAD_CAPABILITY
    monitor.reader = monitor.holding(thread, by)
    given.assume(index < memory.size_bytes >> fmt.granule_shift)
    given.assume(authorises(by, needed, monitor.granule_address(index), fmt.capability_bytes))
    cap: Capability = monitor.granule_in(memory.store, index)
    return cap


def any_step(monitor: Any, thread: Any) -> Callable[..., Trap | None]:
    """What stands for `Hart.step` in a thread: any step that M11 allows, completed or refused.

    A goal is about one place, and so one is looked at at a time: `monitor.about` is that place; of others nothing is known.
    """

    def came(symbol: str, after: Capability, ways: Iterable[Any]) -> None:
        """Suppose M11 of what is somewhere now; each way in which it may have come there is a case of that symbol's."""
        cases = tuple(ways)
        monitor.given.assume(is_kept(after, cases))
        monitor.cases[symbol] = tuple(after.tag & each for each in cases)

    def step(_name: str, _operands: tuple[Any, ...]) -> Trap | None:
        hart, fmt, given = thread.hart, monitor.format, monitor.given
        registers, ddc, pcc, store = hart.registers, hart.ddc, hart.pcc, monitor.memory.store
        for name in STATE_NUMBERS:
            setattr(hart, name, given.word(f"after_{name}", 2 if name == "privilege" else fmt.address_width))
        hart.pc = given.word("after_pc", fmt.address_width)
        for name in SPECIAL_REGISTERS:
            setattr(hart, name, any_capability(fmt, given, f"after_{name}"))
        given.assume(has_modes({name: vars(hart)[name] for name in STATE_NUMBERS}))
        is_refused = bool(given.flag("is_refused"))
        places = (REGISTER, DDC, MEMORY) if is_refused else PLACES
        monitor.about = next(each for each in places if each == places[-1] or given.flag(f"about_{each}"))
        hart.registers = GuestRegisters(fmt, given, "after_")
        monitor.memory.store = AnyStore(fmt, given, "memory_after")
        source = monitor.any_held("source", thread)
        sources = Source(True, source), Source(True, pcc)
        match monitor.about:
            case "after_tags":
                now = hart.registers[monitor.any_register]
                came(REGISTER, now, ways_to_keep(registers[monitor.any_register], now, sources))
            case "after_ddc_tag":
                came(DDC, hart.ddc, ways_to_keep(ddc, hart.ddc, sources))
            case "memory_after_tags":
                by, at, index = monitor.any_held("by", thread), given.word("at", fmt.address_width), monitor.any_granule
                held, now = monitor.granule_in(store, index), monitor.granule_in(monitor.memory.store, index)
                stores = (CapabilityStore(by, source, at),)
                came(MEMORY, now, ways_to_stand(held, now, monitor.granule_address(index), stores))
                other, byte = monitor.any_held("other_by", thread), given.word("byte", fmt.address_width)
                changes = ways_to_change(held, now, monitor.granule_address(index), (ByteStore(other, byte),))
                given.assume(some(changes))
            case _:
                came(PCC, hart.pcc, ways_to_run(pcc, hart.pcc, sources))
                given.assume(implies(hart.pcc.tag, same(pcc, hart.pcc) | is_runnable(hart.pcc)))
        if is_refused:
            return Trap("IllegalInstruction")
        given.assume((hart.privilege == int(Privilege.USER)) & (hart.pc & 1 == 0))
        return None

    return step
