"""Any instruction of a guest at all, in a system of shared objects: a step of which nothing is known but M11, M2 and M3.

It is `proofs.cvm_guest`'s, of which something more is known in memory: also what isn't tagged changes by authority alone.
"""

from collections.abc import Callable
from typing import Any

from capvisor.model.machine import Trap
from capvisor.proofs import cvm_guest
from capvisor.spec.formats import Permission
from capvisor.spec.invariants import authorises, same

NAME, PLACES, STANDS_FOR = cvm_guest.NAME, cvm_guest.PLACES, cvm_guest.STANDS_FOR


def any_step(monitor: Any, thread: Any) -> Callable[..., Trap | None]:
    """What stands for `Hart.step` in a thread: as `cvm_guest.any_step`; a granule that changes was stored to."""
    step = cvm_guest.any_step(monitor, thread)

    def stepped(name: str, operands: tuple[Any, ...]) -> Trap | None:
        registers, ddc, store = thread.hart.registers, thread.hart.ddc, monitor.memory.store
        trap = step(name, operands)
        if monitor.about == cvm_guest.MEMORY:
            # M2 and M3: where no access stores, all bytes and tags are as they were; what stores is authorised by
            # a register or DDC.
            fmt, given = monitor.format, monitor.given
            by, at = registers[monitor.fresh("stores", 5)], monitor.fresh("store_at", fmt.address_width)
            index = monitor.any_granule
            start = monitor.granule_address(index)
            may_store = authorises(by, Permission.STORE, at, 1) | authorises(ddc, Permission.STORE, at, 1)
            here = (start <= at) & (at < start + fmt.capability_bytes)
            held, now = monitor.granule_in(store, index), monitor.granule_in(monitor.memory.store, index)
            given.assume(same(held, now) | here & may_store)
        return trap

    return stepped
