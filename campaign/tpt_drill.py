"""A drill of translation pass-through: every operation is done, refused for each reason that it has, and meets each fault.

So a short campaign is conclusive too. What can't be is in `NEVER`.
"""

from collections.abc import Iterator

import numpy as np

from capvisor.campaign.systems import exercise
from capvisor.campaign.tpt_moves import Deployment, GuestOf
from capvisor.campaign.tpt_systems import Begun, Systems
from capvisor.dsl.tpt_layout import NAMES
from capvisor.spec.paging import FRAME_SHIFT, HOST, WORDS_PER_FRAME, Mode
from capvisor.spec.tag_policy import INTENDED, TagPolicy
from capvisor.spec.tpt import CACHE_SLOTS, OPERATIONS, SWAP_SLOTS, TLB_SLOTS, Actor, Code

FRAMES = 528
DEPLOYMENT = Deployment(FRAMES, 4, 2, (GuestOf(0, 511, 2, False, True), GuestOf(512, 519, 1, True, True)))
"""A VM that has a whole region, with two vCPUs, and a plain one."""

_OWNED_IS_NOT_FREE = {(name, Code.LARGE) for name in ("assign", "claim", "migrate", "swap_in")}
_OF_VCPUS = {
    (name, code)
    for name, row in OPERATIONS.items()
    if row.actor in (Actor.GUEST, Actor.PROCESSOR)
    for code in (
        Code.NO_VM,
        *((Code.RANGE,) if name in ("load", "store", "fetch", "set_cr3", "invlpg", "flush", "step_walk") else ()),
    )
}
NEVER = {*_OWNED_IS_NOT_FREE, *_OF_VCPUS, ("reclaim", Code.PENDING), ("set_tag", Code.OK)}
"""What can't be under the intended policy: a frame under a large tag is owned, which is what an operation is refused for;
in a program every vCPU that is named is there, and runs for a VM; a reclaimed frame isn't leaving, as it has left; a tag is
the host's.
"""

VM0, VM1, NO_VM = 2, 3, 6
RW, SHIFT = NAMES["rw"], FRAME_SHIFT
NOT_CANONICAL, UNMAPPED = 1 << 62, 1 << 30
BEYOND = FRAMES


def operations() -> Iterator[Begun]:
    """What is done, one after the other."""
    yield from _guests()
    yield from _walks()
    yield from _frames()
    yield from _content()
    yield from _large_tags()
    yield from _vms_and_devices()


def _guests() -> Iterator[Begun]:
    table, foreign, mapped = 3, (500 << SHIFT), 400 << SHIFT
    yield "write_pte", (0, table, 500, 513 << SHIFT | RW)
    yield "write_pte", (2, table, 400, 100 << SHIFT | RW)
    for name, written in (("load", ()), ("store", (7,)), ("fetch", ())):
        for vcpu, address in ((0, 0), (0, NOT_CANONICAL), (0, 4), (0, UNMAPPED), (0, foreign), (2, 0), (2, mapped)):
            yield name, (vcpu, address, *written, 1)
        yield name, (0, 0, *written, 1)
    for vcpu, frame, index in ((0, 5, 0), (0, 5, WORDS_PER_FRAME), (0, 513, 0), (2, 100, 0)):
        yield "write_pte", (vcpu, frame, index, 9)
    yield "set_cr3", (0, 0)
    yield "set_cr3", (0, 1 << 63)
    yield "invlpg", (0, 0)
    yield "flush", (0,)
    yield "set_tag", (0, 513)
    yield "set_tag", (0, BEYOND)
    yield "evict", (0, 0)
    yield "evict", (0, TLB_SLOTS + CACHE_SLOTS)


def _walks() -> Iterator[Begun]:
    yield "begin_walk", (0, 0, 3, 0)
    yield "begin_walk", (0, NOT_CANONICAL, 0, 0)
    for vcpu, address in ((0, 0x1000), (0, UNMAPPED), (0, 500 << SHIFT), (2, 400 << SHIFT)):
        yield "begin_walk", (vcpu, address, 1, 0)
        for _ in range(10):
            yield "step_walk", (vcpu,)


def _taken(frame: int) -> Iterator[Begun]:
    yield "reclaim", (frame,)
    for vcpu in range(3):
        yield "acknowledge", (vcpu, frame)


def _frames() -> Iterator[Begun]:
    assign = ((BEYOND, VM0, 600), (520, NO_VM, 600), (0, VM0, 600), (520, VM1, 0), (520, VM1, 20))
    yield from (("assign", each) for each in assign)
    yield from (("reclaim", (frame,)) for frame in (BEYOND, 521, 520))
    yield from (("assign", (520, VM1, 21)), ("scrub", (520,)), ("claim", (520,)))
    for vcpu, frame in ((0, BEYOND), (0, 520), (0, 520), (1, 520), (2, 520)):
        yield "acknowledge", (vcpu, frame)
    yield "assign", (520, VM1, 21)
    for name, frames in (("scrub", (BEYOND, 0, 520)), ("claim", (BEYOND, 0, 521)), ("release", (BEYOND, 0, 521))):
        yield from ((name, (frame,)) for frame in frames)


def _content() -> Iterator[Begun]:
    """Frame 521 isn't clean, 522 and 523 are."""
    yield "reclaim", (513,)
    yield from (("migrate", (513, 522)), ("swap_out", (513, 0)))
    yield from (("acknowledge", (vcpu, 513)) for vcpu in range(3))
    yield "reclaim", (514,)
    for source, target in ((BEYOND, 0), (0, 522), (513, 0), (513, 514), (513, 521), (513, 522)):
        yield "migrate", (source, target)
    yield from (("acknowledge", (vcpu, 514)) for vcpu in range(3))
    yield "assign", (523, VM1, 2)
    yield from (("migrate", (514, 524)), ("swap_out", (514, SWAP_SLOTS)), ("swap_out", (0, 0)), ("swap_out", (514, 0)))
    yield from _taken(515)
    yield "swap_out", (515, 0)
    yield "swap_out", (515, 1)
    yield "reclaim", (516,)
    for frame, slot in ((BEYOND, 0), (524, 2), (0, 1), (516, 1), (521, 1), (524, 0), (524, 1)):
        yield "swap_in", (frame, slot)


def _large_tags() -> Iterator[Begun]:
    yield from (("merge", (frame,)) for frame in (1, 0, 0))
    yield "reclaim", (5,)
    yield from (("split", (frame,)) for frame in (BEYOND, 0, 0))
    yield from _taken(5)
    yield "merge", (0,)
    yield from _taken(0)
    yield "merge", (0,)


def _vms_and_devices() -> Iterator[Begun]:
    for vm in (1, VM0, 4):
        yield "create", (vm, Mode.TPT.value, 4)
    for vm in (HOST, NO_VM, VM0):
        yield "run", (0, vm, 2, 1 << SHIFT)
    yield "dma_write", (0, 6, 0, 1)
    for device, vm in ((9, VM0), (0, NO_VM), (0, VM0)):
        yield "attach", (device, vm)
    for name, written in (("dma_read", ()), ("dma_write", (1,))):
        for frame, index in ((6, 0), (6, WORDS_PER_FRAME), (517, 0)):
            yield name, (0, frame, index, *written)
    yield from _taken(6)
    yield "dma_read", (0, 6, 0)


def drill(lanes: int, policy: TagPolicy = INTENDED) -> Systems:
    """A drill in some lanes, alike in all of them."""
    systems = Systems(DEPLOYMENT.size(), lanes, policy, DEPLOYMENT.start())

    def all_operations() -> None:
        for name, operands in operations():
            systems.step(name, tuple(np.full(lanes, each, np.uint64) for each in operands))

    exercise(systems, all_operations)
    return systems
