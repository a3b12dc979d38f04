"""A small system with translation pass-through for tests: two VMs, their tables, and the invariants after each step."""

from typing import Any

from capvisor.model.tpt import System
from capvisor.model.tpt_system import perform, violated
from capvisor.spec.paging import FRAME_SHIFT, Entry, Mode, index_shift
from capvisor.spec.tag_policy import INTENDED, TagPolicy
from capvisor.spec.tpt import OPERATIONS, Code
from capvisor.spec.tpt_invariants import Step

A, B = 2, 3
RW = int(Entry.P | Entry.RW | Entry.US)
SECRET = 0x5EC2E7


def entry(frame: int, flags: int = RW) -> int:
    """A present entry that names a frame."""
    return frame << FRAME_SHIFT | flags


class Rig:
    """VM A has frames 1 to 8 (tables 1 to 4, pages 5 to 8), B 9 to 16 (tables 9 to 12); 0 is the host's, the rest free.

    vCPUs 0 and 1 run for A, 2 for B; device 0 is A's. B has a secret in word 0 of its page 13.
    """

    watches = True
    """Whether the invariants are looked at after each step."""

    def __init__(self, policy: TagPolicy = INTENDED, frames: int = 32, mode: Mode = Mode.TPT, levels: int = 4) -> None:
        self.system = System(frames, 3, 2, policy)
        self.violated: set[str] = set()
        self.must("claim", 0)
        for vm, first in ((A, 1), (B, 9)):
            self.must("create", vm, mode if vm == A else Mode.TPT, levels)
            for guest_frame in range(8):
                self.must("assign", first + guest_frame, vm, guest_frame)
        self.base = 1 if mode is Mode.TPT else 0
        for vcpu, vm, root in ((0, A, self.base), (1, A, self.base), (2, B, 9)):
            self.must("run", vcpu, vm, 1, entry(root, 0))
        self.must("attach", 0, A)
        for vcpu, first in ((0, self.base), (2, 9)):
            for table in range(3):
                self.must("write_pte", vcpu, first + table, 0, entry(first + table + 1))
        self.must("write_pte", 2, 13, 0, SECRET)
        self.map(0, self.base + 4)

    def do(self, name: str, *operands: Any) -> Step:
        step = perform(self.system, name, *operands)
        assert step.code is Code.OK or step.code in OPERATIONS[name].refusals, step
        assert step.fault is None or step.fault.kind in OPERATIONS[name].faults, step
        if self.watches:
            self.violated |= violated(step)
        return step

    def must(self, name: str, *operands: Any) -> Any:
        """An operation that has to complete."""
        step = self.do(name, *operands)
        assert step.is_completed, step
        return step.value

    def map(self, index: int, frame: int, flags: int = RW) -> int:
        """Let A's page number `index` be a frame, as A names it; the virtual address."""
        self.must("write_pte", 0, self.base + 3, index, entry(frame, flags))
        return index << index_shift(1)

    def acknowledge(self, frame: int) -> None:
        for vcpu in range(self.system.vcpu_count):
            self.must("acknowledge", vcpu, frame)

    def walk_steps(self, vcpu: int, count: int) -> Step:
        for _ in range(count - 1):
            self.must("step_walk", vcpu)
        return self.do("step_walk", vcpu)

    def give_to_b(self, frame: int) -> None:
        """Scrub a reclaimed frame, give it to B, and let B keep a secret there; whatever the policy refuses isn't done."""
        self.do("scrub", frame)
        if self.do("assign", frame, B, 100).is_completed:
            self.do("write_pte", 2, frame, 0, SECRET)
