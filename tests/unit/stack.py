"""A small machine with all four systems for tests, and the invariants of all layers after each step."""

from typing import Any

from capvisor.model import stack_system
from capvisor.model.memory import Memory
from capvisor.model.monitor import Monitor, Thread
from capvisor.model.objects import ObjectMonitor
from capvisor.model.stack import CVM, ORC, Stack
from capvisor.spec import vmm_policy
from capvisor.spec.cvm import ARGUMENT_REGISTERS, CALLS, NUMBER_REGISTER, STORE_SLOTS
from capvisor.spec.cvm import Code as CvmCode
from capvisor.spec.paging import FRAME_SHIFT, Mode
from capvisor.spec.stack import FORMAT
from capvisor.spec.stack_invariants import Step
from capvisor.spec.stack_policy import INTENDED
from capvisor.spec.tag_policy import INTENDED as TAGS_INTENDED
from capvisor.spec.vmm import DESCRIPTOR_COUNT_SHIFT, DESCRIPTOR_END, START_BIT, TO_MEMORY_BIT, Register

A, B = 2, 3
CPU_A, CPU_B, CPU_HOST = 0, 1, 2
DISK, NIC, HOSTS_NIC = 1, 2, 3
REGION, TABLES = (40, 64), (38, 40)
CVM_PAGES, ORC_PAGES, FREE_FRAME = (14, 15, 16), (12, 13), 30
CVM_BASE, ORC_BASE, PAGE = 0x4000_0000, 0x8000_0000, 1 << FRAME_SHIFT
READ_DMA, WRITE_DMA, SECRET = 0xC8, 0xCA, 0x5EC2E7


class Rig:
    """64 frames, the VMM's from 40 on. VM A has frames 2 to 17, B 20 to 27; the host has claimed 36 and 37.

    vCPU 0 runs for A, 1 for B, 2 is the host's. In A are an Intravisor, whose memory is frames 14 to 16, with two cVMs of a
    page each, and shared objects, with one tenant, in frames 12 and 13. Of the devices one is a disk, B's, one a network
    card, A's, one the host's.
    """

    watches = True
    """Whether the invariants are looked at after each step."""

    def __init__(self, policy: Any = INTENDED, tag_policy: Any = TAGS_INTENDED, vmm: Any = vmm_policy.INTENDED) -> None:
        self.machine = Stack(64, REGION, 2, 3, policy, vmm, tag_policy)
        self.violated: set[str] = set()
        self.machine.vmm.set_key(SECRET)
        self.machine.vmm.add_storage(DISK)
        for device in (DISK, NIC, HOSTS_NIC):
            self.machine.vmm.place_window(device, 0, device)
        for vm, first, count in ((A, 2, 16), (B, 20, 8)):
            self.must("create", vm, Mode.TPT.value, 4)
            for number in range(count):
                self.must("assign", first + number, vm, number)
        self.must("claim", 36)
        self.must("claim", 37)
        self.must("run", CPU_A, A, 1, 2 << FRAME_SHIFT)
        self.must("run", CPU_B, B, 1, 20 << FRAME_SHIFT)
        self.must("attach", DISK, B)
        self.must("attach", NIC, A)
        self.map(CPU_A, CVM_BASE, list(CVM_PAGES), [3, 4, 5])
        self.map(CPU_A, ORC_BASE, list(ORC_PAGES), [6, 7, 8])
        self.map(CPU_B, 0, [25], [21, 22, 23])
        monitor = Monitor(Memory(FORMAT, CVM_BASE, 3 * PAGE))
        objects = ObjectMonitor(Memory(FORMAT, ORC_BASE, 2 * PAGE))
        self.machine.host(CVM, monitor, A)
        self.machine.host(ORC, objects, A)
        self.threads: list[Thread] = []
        for number in (1, 2):
            self.monitor_step(stack_system.deploy(self.machine, "create", number, CVM_BASE + (number - 1) * PAGE, PAGE))
            self.threads.append(self.monitor_step(stack_system.deploy(self.machine, "start_thread", number, 0)))
        self.monitor_step(stack_system.operation(self.machine, None, "create", 1, 0, 1))
        self.tenant = objects.threads[0]

    # -- steps

    def hold(self, step: Step) -> Step:
        if self.watches:
            self.violated |= stack_system.violated(step)
        return step

    def tpt(self, name: str, *operands: Any) -> Step:
        return self.hold(stack_system.perform_tpt(self.machine, name, *operands))

    def vmm(self, name: str, *operands: Any) -> Step:
        return self.hold(stack_system.perform_vmm(self.machine, name, *operands))

    def must(self, name: str, *operands: Any) -> Any:
        step = self.tpt(name, *operands)
        assert step.is_completed, (step.code, step.inner and (step.inner.code, step.inner.fault))
        return step.inner.value

    def map(self, vcpu: int, base: int, pages: list[int], tables: list[int]) -> None:
        for step in stack_system.map_pages(self.machine, vcpu, base, pages, tables):
            assert self.hold(step).is_completed

    def monitor_step(self, taken: tuple[Step, Any]) -> Any:
        step, result = taken
        self.hold(step)
        assert step.is_completed, (step.code, step.fault)
        return result

    def instruction(self, thread: Any, name: str, *operands: int) -> Any:
        return self.monitor_step(stack_system.instruction(self.machine, thread, name, operands))

    def call(self, thread: Thread, name: str, *arguments: int) -> CvmCode:
        """What a cVM's library does."""
        self.enter(thread, name, *arguments)
        code: CvmCode = self.monitor_step(stack_system.leave(self.machine, thread))
        return code

    def enter(self, thread: Thread, name: str, *arguments: int) -> None:
        row = self.machine.monitors[CVM].regions[thread.domain]
        for register, argument in zip(ARGUMENT_REGISTERS, arguments, strict=False):
            self.instruction(thread, "li", register, argument)
        self.instruction(thread, "li", NUMBER_REGISTER, CALLS[name].number)
        for register, slot in ((28, 2), (29, 3)):
            self.instruction(thread, "li", register, row.top - (len(STORE_SLOTS) - slot) * FORMAT.capability_bytes)
            assert self.instruction(thread, "lc.ddc", register, register) is None
        assert self.instruction(thread, "cinvoke", 28, 29) is None

    def output(self, vcpu: int, device: int, register: int, value: int) -> Step:
        return self.vmm("output", vcpu, 0, device << 3 | register, value)

    def start_read(self, vcpu: int, buffer: int, descriptor_frame: int, *, is_write: bool = False) -> Step:
        """Let the disk read a sector into a block of memory, or write it from there, with the descriptor in a frame."""
        word = buffer | 1 << DESCRIPTOR_COUNT_SHIFT | DESCRIPTOR_END
        self.must("write_pte", vcpu, descriptor_frame, 0, word)
        values = {
            Register.COUNT: 1,
            Register.LBA: 0,
            Register.DESCRIPTORS: descriptor_frame << 3,
            Register.COMMAND: WRITE_DMA if is_write else READ_DMA,
            Register.START: START_BIT if is_write else START_BIT | TO_MEMORY_BIT,
        }
        steps = [self.output(vcpu, DISK, register, value) for register, value in values.items()]
        assert all(step.is_completed for step in steps)
        return steps[-1]

    def tagged_in(self, frame: int) -> list[int]:
        return [number for number, granule in self.machine.memory.of_frame(frame).items() if granule.tag]
