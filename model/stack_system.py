"""Steps of the four systems together: of any layer, as what happened; and which invariants of which layers don't hold of it.

What `spec.stack_invariants` says is said of such a step; what a layer's own invariants say, of its part of it, `inner`, or
of a step in which nothing of that layer was done.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from capvisor.model import object_system, system, tpt_system, vmm_system
from capvisor.model.monitor import Monitor, Thread
from capvisor.model.object_tables import TenantThread
from capvisor.model.objects import ObjectMonitor
from capvisor.model.paging import Fault
from capvisor.model.stack import CVM, ORC, TPT_LAYER, VMM_LAYER, Halt, Principal, Stack
from capvisor.spec import tpt as tpt_spec
from capvisor.spec import vmm as vmm_spec
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.cvm_invariants import Place as CvmPlace
from capvisor.spec.cvm_invariants import Step as CvmStep
from capvisor.spec.orc_invariants import Step as OrcStep
from capvisor.spec.paging import FRAME_SHIFT, FREE, Entry, Mode
from capvisor.spec.registers import REGISTER_COUNT
from capvisor.spec.stack import Code, Via, Who
from capvisor.spec.stack_invariants import STACK_INVARIANTS, Place, Step
from capvisor.spec.tpt_invariants import TPT_INVARIANTS
from capvisor.spec.tpt_invariants import Place as TptPlace
from capvisor.spec.tpt_invariants import Step as TptStep
from capvisor.spec.vmm_words import Step as VmmStep

OUTSIDE = "outside"
"""What a layer's own step is called in which nothing of that layer was done."""

_TPT_VIAS = {tpt_spec.Actor.DEVICE: Via.DEVICE, tpt_spec.Actor.HOST: Via.BOOKS}


# -- the VMM ---------------------------------------------------------------------------------------------------------------


def perform_vmm(machine: Stack, name: str, *operands: Any, perform: Callable[..., Any] = vmm_system.perform) -> Step:
    """An operation of the VMM's machine. Raises KeyError for a name that is none."""
    row = vmm_spec.OPERATIONS[name]
    before = machine.begin(VMM_LAYER, Via.CPU, Principal(Who.HOST))
    code = _refused_vmm(machine, row, operands)
    if code is not Code.OK:
        return Step(machine, VMM_LAYER, name, operands, code, None, None, machine.end(), before, False)
    if row.actor is vmm_spec.Actor.GUEST:
        machine.issuer = machine.running(operands[0])
    inner = perform(machine.vmm, name, *operands)
    if inner.is_completed and name == "output":
        machine.note_started(*operands)
    if machine.is_crossed and name in ("mediate", "transfer"):
        machine.abort(operands[0])
    return Step(machine, VMM_LAYER, name, operands, Code.OK, None, inner, machine.end(), before, inner.is_completed)


def _refused_vmm(machine: Stack, row: vmm_spec.Operation, operands: tuple[Any, ...]) -> Code:
    """Why the processor's other tenants don't let an operation begin."""
    if row.actor is not vmm_spec.Actor.GUEST:
        return Code.OK
    running = machine.running(operands[0])
    if row.name in ("input", "output"):
        device = machine.device_at(*operands[1:3])
        is_others = device != 0 and machine.tpt.devices[device] != running
        return Code.NOT_OWNER if machine.policy.registers_by_owner and is_others else Code.OK
    return Code.OK if running == FREE else Code.NOT_HOST


# -- translation pass-through ----------------------------------------------------------------------------------------------


def perform_tpt(machine: Stack, name: str, *operands: Any, perform: Callable[..., Any] = tpt_system.perform) -> Step:
    """An operation of translation pass-through. Raises KeyError for a name that is none."""
    row = tpt_spec.OPERATIONS[name]
    via = _TPT_VIAS.get(row.actor, Via.CPU)
    vcpu = operands[0] if via is Via.CPU else 0
    principal = Principal(Who.BOOKS)
    if via is Via.CPU:
        principal = Principal(Who.VM, machine.running(vcpu))
    elif via is Via.DEVICE:
        principal = machine.owner_of(operands[0])
    before = machine.begin(TPT_LAYER, via, principal, vcpu, operands[0] if via is Via.DEVICE else 0)
    code = _refused_tpt(machine, row, operands)
    if code is not Code.OK:
        return Step(machine, TPT_LAYER, name, operands, code, None, None, machine.end(), before, False)
    held = _contents_given_up(machine, name, operands)
    try:
        inner = perform(machine.tpt, name, *operands)
    except Halt as stopped:
        return Step(machine, TPT_LAYER, name, operands, stopped.code, None, None, machine.end(), before, False)
    if inner.is_completed:
        machine.follow(name, operands, held)
    return Step(machine, TPT_LAYER, name, operands, Code.OK, None, inner, machine.end(), before, inner.is_completed)


def _refused_tpt(machine: Stack, row: tpt_spec.Operation, operands: tuple[Any, ...]) -> Code:
    """Why the layers around don't let an operation begin."""
    if machine.policy.stop_reaches_all and machine.is_stopped:
        return Code.STOPPED
    if row.actor is tpt_spec.Actor.HOST and machine.policy.region_untagged:
        named = (each for (_name, kind), each in zip(row.operands, operands, strict=True) if kind in _FRAMES)
        if any(machine.vmm.in_region(frame) for frame in named):
            return Code.REGION
    if row.name == "attach" and machine.policy.attach_idle and machine.is_busy(operands[0]):
        return Code.BUSY
    return Code.OK


_FRAMES = (tpt_spec.OperandKind.FRAME,)


def _contents_given_up(machine: Stack, name: str, operands: tuple[Any, ...]) -> dict[int, Any]:
    """The granules of frames that an operation of the host's is about to clear or to overwrite."""
    row = tpt_spec.OPERATIONS[name]
    if row.actor is not tpt_spec.Actor.HOST:
        return {}
    named = (each for (_name, kind), each in zip(row.operands, operands, strict=True) if kind in _FRAMES)
    return machine.granules_of(named)


# -- monitors and their guests ---------------------------------------------------------------------------------------------


@contextmanager
def entered(machine: Stack, layer: str, name: str, who: Who, number: int = 0) -> Iterator[Callable[[Any], Step]]:
    """A step of a monitor's or of one of its guests: within, it is taken, and given, as the layer's own, to get it whole.

    Raises Halt and Fault where it can't begin, or can't go on.
    """
    principal = Principal(who, machine.pages[layer].vm, number)
    before = machine.begin(layer, Via.HART, principal)
    made = False

    def whole(inner: Any) -> Step:
        nonlocal made
        made = True
        return Step(machine, layer, name, (), Code.OK, None, inner, machine.end(), before, True)

    try:
        machine.enter(layer)
        yield whole
    except (Halt, Fault) as stopped:
        code, fault = (stopped.code, None) if isinstance(stopped, Halt) else (Code.OK, stopped)
        raise NotTaken(Step(machine, layer, name, (), code, fault, None, machine.end(), before, False)) from stopped
    finally:
        if not made:
            machine.end()


class NotTaken(Exception):  # noqa: N818 - neither is this an error
    """A step of a monitor's that didn't begin, or didn't go on: the step as what happened."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.code, step.fault)
        self.step = step


def instruction(machine: Stack, thread: Any, name: str, operands: tuple[Any, ...]) -> tuple[Step, Any]:
    """One instruction of a thread, of a cVM or a tenant, and its trap."""
    if isinstance(thread, Thread):
        return _taken(machine, CVM, name, Who.CVM, thread.domain, system.instruction, thread, name, operands)
    return _taken(machine, ORC, name, Who.TENANT, thread.tenant, object_system.instruction, thread, name, operands)


def leave(machine: Stack, thread: Thread) -> tuple[Step, Any]:
    """The second part of a call of a cVM's, and its code."""
    return _taken(machine, CVM, "leave", Who.MONITOR, 0, system.leave, thread)


def deploy(machine: Stack, name: str, *arguments: Any, **options: Any) -> tuple[Step, Any]:
    """An operation of the deployer of cVMs, and its result."""
    return _taken(machine, CVM, name, Who.MONITOR, 0, system.deploy, name, *arguments, **options)


def operation(machine: Stack, thread: TenantThread | None, name: str, *operands: Any) -> tuple[Step, Any]:
    """An operation of the base of shared objects, and its code."""
    step, _none = _taken(machine, ORC, name, Who.MONITOR, 0, _operation, thread, name, *operands)
    return step, None if step.inner is None else step.inner.code


def _operation(monitor: ObjectMonitor, thread: TenantThread | None, name: str, *operands: Any) -> tuple[OrcStep, None]:
    return object_system.perform(monitor, thread, name, *operands), None


def _taken(
    machine: Stack, layer: str, name: str, who: Who, number: int, take: Callable[..., Any], *arguments: Any, **options: Any
) -> tuple[Step, Any]:
    try:
        with entered(machine, layer, name, who, number) as whole:
            inner, result = take(machine.monitors[layer], *arguments, **options)
            return whole(inner), result
    except NotTaken as stopped:
        return stopped.step, None


# -- what a VM's kernel does before there is a monitor ---------------------------------------------------------------------


def map_pages(machine: Stack, vcpu: int, base: int, pages: list[int], tables: list[int]) -> list[Step]:
    """Map pages from a virtual address on, by stores to the tables of the VM on a vCPU, of which new ones are taken from
    some frames. Frames are as the VM's tables name them. Raises IndexError where these don't suffice.
    """
    vm = machine.tpt.vms[machine.running(vcpu)]
    steps, free = [], list(tables)
    for number, frame in enumerate(pages):
        address = base + (number << FRAME_SHIFT)
        table = machine.tpt.vcpus[vcpu].cr3 >> FRAME_SHIFT
        for level in range(vm.levels, 0, -1):
            index = address >> FRAME_SHIFT + 9 * (level - 1) & 511
            located = _located(machine, vcpu, table)
            entry = machine.memory.word(located, index)
            if level == 1 or not entry & Entry.P:
                named = frame if level == 1 else free.pop(0)
                entry = named << FRAME_SHIFT | int(Entry.P | Entry.RW | Entry.US)
                steps.append(perform_tpt(machine, "write_pte", vcpu, table, index, entry))
            table = entry >> FRAME_SHIFT & (1 << 40) - 1
    return steps


def _located(machine: Stack, vcpu: int, frame: int) -> int:
    """The machine's frame that a VM's table names."""
    vm = machine.running(vcpu)
    if machine.tpt.vms[vm].mode == Mode.NESTED:
        return machine.tpt.p2m[vm, frame].frame
    return frame


# -- invariants ------------------------------------------------------------------------------------------------------------


def inner_steps(step: Step) -> dict[str, Any]:
    """By layer, its own step, or one in which nothing of it was done."""
    machine = step.stack
    touches = () if step.layer == VMM_LAYER else tuple(machine.tpt.touches)
    steps: dict[str, Any] = {
        VMM_LAYER: VmmStep(machine.vmm, OUTSIDE),
        TPT_LAYER: TptStep(machine.tpt, "load", fault=step.fault, vm=step_vm(step), touches=touches),
    }
    if CVM in machine.monitors:
        if step.layer != CVM or step.inner is None:
            machine.monitors[CVM].accesses.clear()
        steps[CVM] = CvmStep(machine.monitors[CVM], OUTSIDE, OUTSIDE)
    if ORC in machine.monitors:
        steps[ORC] = OrcStep(machine.monitors[ORC], step.before.objects, OUTSIDE, OUTSIDE)
    if step.inner is not None:
        steps[step.layer] = step.inner
    if step.layer == VMM_LAYER and step.inner is not None and machine.is_crossed:
        # Refused because the frame is another's: of that the VMM's own specification knows nothing.
        steps[VMM_LAYER] = step.inner._replace(before=None)
    return steps


def step_vm(step: Step) -> int:
    """The VM that a monitor's step is in."""
    pages = step.stack.pages.get(step.layer)
    return FREE if pages is None else pages.vm


_VIOLATED: dict[str, Callable[[Any], set[str]]] = {
    VMM_LAYER: vmm_system.violated,
    TPT_LAYER: tpt_system.violated,
    ORC: object_system.violated,
}


def violated(step: Step, *, everywhere: bool = True) -> set[str]:
    """The names of the invariants that don't hold of a step, of what is between layers, and of all layers, or, if not
    everywhere, of the step's own layer.
    """
    found: set[str] = set()
    inner = inner_steps(step)
    for layer, each in inner.items():
        if not everywhere and layer != step.layer:
            continue
        found |= violated_cvm(each) if layer == CVM else _VIOLATED[layer](each)
    of_tpt = [name for name in TPT_INVARIANTS if name not in found]
    for frame, word in written_words(step):
        place = TptPlace(frame=frame, word=word)
        found |= {name for name in of_tpt if not TPT_INVARIANTS[name].holds(inner[TPT_LAYER], place)}
    return found | violated_across(step)


def written_words(step: Step) -> set[tuple[int, int]]:
    """Frames and words that a step has written: of those, translation pass-through may have no row in its tables."""
    return {(access.frame, access.word) for access in step.accesses if access.is_write}


def violated_across(step: Step) -> set[str]:
    """The names of those that are between layers."""
    rows, nowhere = STACK_INVARIANTS.items(), Place()
    found = {name for name, row in rows if row.of_step is not None and not row.of_step(step, nowhere)}
    of_places = [(name, row.of_place) for name, row in rows if row.of_place is not None]
    for place in places(step):
        found |= {name for name, of_place in of_places if name not in found and not of_place(step, place)}
    return found


def places(step: Step) -> Iterator[Place]:
    """The places of a step at which an invariant across layers may fail: those that there is something at."""
    machine = step.stack
    yield Place()
    frames = {*step.before.owners, *machine.owners.tags.rows}
    yield from (Place(frame=frame) for frame in frames)
    yield from (Place(frame=frame, granule=number) for frame, number in machine.memory.tagged())
    yield from (Place(content=key) for key in {*step.before.tagged, *machine.tagged()})
    bound = machine.bound
    by_content = sorted((page for page in range(len(bound)) if bound[page] is not None), key=lambda page: str(bound[page]))
    yield from (Place(page=page, other=other) for page, other in pairwise(by_content))
    yield from (Place(page=page, other=page) for page in range(len(bound)))


def violated_cvm(step: CvmStep) -> set[str]:
    """The names of the invariants that don't hold of a step of cVMs."""
    found: set[str] = set()
    for place in cvm_places(step):
        found |= {name for name, row in CVM_INVARIANTS.items() if name not in found and not row.holds(step, place)}
    return found


def cvm_places(step: CvmStep) -> Iterator[CvmPlace]:
    """The places of a step of cVMs that hold something, with every grant."""
    monitor: Monitor = step.monitor
    thread = step.thread
    yield CvmPlace(0) if thread is None else CvmPlace(thread.domain, thread.domain, thread)
    regions: Any = monitor.regions
    live = [number for number, row in regions if row.is_live]
    grants = [*monitor.grants.rows, *monitor.portals.rows] or [0]  # type: ignore[attr-defined]
    yield from (CvmPlace(one, other) for one in live for other in live)
    yield from (CvmPlace(number, number, grant=grant) for number in live for grant in grants)
    for each in monitor.threads:  # type: ignore[attr-defined]
        if each.is_live:
            numbers = [number for number in range(REGISTER_COUNT) if number == 0 or each.hart.registers[number].tag]
            yield from (
                CvmPlace(each.domain, each.domain, each, number, None, grant) for number in numbers for grant in grants
            )
    store: Any = monitor.memory.store
    for index, granule in store.written():
        if granule.tag:
            address = monitor.memory.base + (index << monitor.format.granule_shift)
            around = [number for number in live if regions[number].base <= address < regions[number].top]
            yield from (CvmPlace(number, number, None, 0, index, grant) for number in around for grant in grants)
