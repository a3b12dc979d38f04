"""Theorems on the four systems together: each step of each layer keeps what is said across layers, S1 to S4 and S7 to S9.

A step is an operation of translation pass-through, or one reference of a walk within one; a part of an operation of the
VMM's; a block that the VMM writes; or what a step of a monitor's, or of one of its guests, does to a granule of its memory.
It is executed once by the reference (`model.stack_system`, with the views of `model.stack`), from any state that is allowed
by the layers' own invariants (`capvisor prove tpt`, `vmm`) and what is said across them, along all its ways; then each is
asked of any place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import z3

from capvisor.model import paging, stack_system
from capvisor.model.bits import not_
from capvisor.model.memory import Granule
from capvisor.model.paging import Fault
from capvisor.model.stack import CVM, ORC, TPT_LAYER, VMM_LAYER, Blocks, Halt, Pages, Principal
from capvisor.model.tpt import Refused as NoVm
from capvisor.model.vmm import Refused
from capvisor.proofs import lazy, symbolic, tpt, vmm, vmm_state
from capvisor.proofs.cache import Cache
from capvisor.proofs.incremental import Way, asked_of
from capvisor.proofs.runner import Workers
from capvisor.proofs.stack_state import CONTENT_BITS, NUMBER_BITS, AnyStack, Known, State
from capvisor.proofs.steps import Job, Key, Proved, Prover, StepOutcome, outcome_of, run
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import Given, implies
from capvisor.proofs.tpt_state import DEVICE_BITS, FRAME_BITS, OPERAND_BITS, VM_BITS
from capvisor.proofs.vmm_extension import AnyExtension
from capvisor.spec import tpt as tpt_spec
from capvisor.spec import vmm as vmm_spec
from capvisor.spec.paging import FIRST_VM, FRAME_SHIFT
from capvisor.spec.stack import Via, Who
from capvisor.spec.stack_invariants import STACK_INVARIANTS, Place, Step
from capvisor.spec.stack_policy import INTENDED, StackPolicy

UNTAGGED, PLACED, LEAVING, COMMANDED = "untagged", "placed", "leaving", "commanded"
SUPPOSED = (UNTAGGED, PLACED, LEAVING, COMMANDED)
"""What the others rest on, of a state: no frame of the region is anybody's; a frame holds a content if it is or was
somebody's, no two the same, and what is tagged of it is of a page of its VM's monitors; a frame that is taken from a VM, and
that a vCPU may still have a translation to, holds what was that VM's; a command is under way for whose
the device is.
"""
TRACKED, UNCLEAN, RESIDENT, UNWRITTEN = "tracked", "unclean", "resident", "unwritten"
"""What layers' own invariants need of the others' steps. P13: what is written counts as not sent. T5: no frame that is
written counts as clean, but by the host's operations, which are that layer's own. C8: once a monitor's step has begun, all
of its memory is there, and a sweep meets all that is tagged. O12: to memory of shared objects no VM's kernel, walker or
device writes, nor the VMM for anybody.
"""
ACROSS = ("S1", "S2", "S3", "S4", "S5", "S7", "S8", "S9")
KEPT = (*ACROSS, *SUPPOSED, TRACKED, UNCLEAN, RESIDENT, UNWRITTEN)
"""What is asked of steps."""

WHOLE = vmm.WHOLE
BASE = "start"
"""The base case among the steps: the machine as it is made."""
_TPT, _VMM = f"{TPT_LAYER}.", f"{VMM_LAYER}."
BLOCK, GRANULE, SWEEP, BIND = f"{_VMM}block", "monitor.granule", "monitor.sweep", "monitor.bind"
"""What the VMM writes, by whatever operation; what a monitor does to a granule, or to all of a page; and which contents its
pages have.
"""


def steps() -> dict[str, str]:
    """The steps, by name, with their kind."""
    of_tpt = {f"{_TPT}{name}": "tpt" for name in (*tpt.WALK_STEPS, *tpt_spec.OPERATIONS)}
    of_vmm = {f"{_VMM}{name}": "vmm" for name in vmm_spec.OPERATIONS}
    return {BASE: "base", **of_tpt, **of_vmm, BLOCK: "memory", GRANULE: "monitor", SWEEP: "monitor", BIND: "monitor"}


def parts(name: str) -> tuple[str, ...]:
    """The parts that a step is proved in."""
    if name.startswith(_VMM) and name != BLOCK:
        return tuple(each for each in vmm.parts(name.removeprefix(_VMM)) if not each.startswith(vmm.ALONE))
    return (WHOLE,)


def asked_in(name: str) -> tuple[str, ...]:
    """What is asked of a step: of what the VMM's operations write, tags and contents are asked where a block is written."""
    if name == BASE:
        return SUPPOSED
    if name == BLOCK:
        return ("S3", "S4", PLACED)
    if name.startswith(_VMM):
        return ("S1", "S2", "S7", "S8", "S9", COMMANDED, UNCLEAN, UNWRITTEN)
    if name == BIND:
        return ("S5",)
    left_out = ("S5", "S7") if name in (GRANULE, SWEEP) else ("S5", "S7", RESIDENT)
    if name.removeprefix(_TPT) in tpt.WALK_STEPS:
        # Within an operation: nothing changes but memory and caches (`apart` of `capvisor prove tpt`), of tags what S3 says.
        left_out += ("S4", "S9", UNTAGGED, PLACED, COMMANDED)
    return tuple(each for each in KEPT if each not in left_out)


# -- steps -----------------------------------------------------------------------------------------------------------------


def _base(stack: AnyStack) -> Step:
    """The machine as it is made."""
    stack.make_new()
    return Step(stack, VMM_LAYER, BASE)


def _of_tpt(stack: AnyStack, name: str) -> Step:
    """An operation of translation pass-through."""
    operands = []
    for each, kind in tpt_spec.OPERATIONS[name].operands:
        operands.append(stack.given.word(each, OPERAND_BITS[kind]))
        if kind is tpt_spec.OperandKind.FRAME:
            stack.frames_at.append(operands[-1])
        elif kind is tpt_spec.OperandKind.SWAP_SLOT:
            stack.slots_at.append(operands[-1])
    stack.tpt.begin()
    if name not in tpt.LEANS_ON:
        return stack_system.perform_tpt(stack, name, *operands)
    with tpt.by_steps(stack.tpt):
        return stack_system.perform_tpt(stack, name, *operands)


@contextmanager
def _noting_walks(stack: AnyStack, vcpu: Any) -> Iterator[None]:
    """Note what a reference of a walk has made of it."""
    advance = paging.advance

    def noted(space: Any, walk: Any) -> Any:
        after = advance(space, walk)
        stack.walked.append((vcpu, after))
        return after

    vars(paging)["advance"] = noted
    try:
        yield
    finally:
        vars(paging)["advance"] = advance


def _of_walk(stack: AnyStack, name: str) -> Step:
    """One reference of a walk within an operation."""
    system, vcpu = stack.tpt, stack.given.word("vcpu", OPERAND_BITS[tpt_spec.OperandKind.VCPU])
    before = stack.begin(TPT_LAYER, Via.CPU, Principal(Who.VM, system.vcpus.get(vcpu).vm), vcpu)
    try:
        with _noting_walks(stack, vcpu):
            inner, _beside = tpt._step_of_walk(system, tpt.WALK_STEPS[name])
    except Halt as stopped:
        return Step(stack, TPT_LAYER, name, (vcpu,), stopped.code, None, None, stack.end(), before, False)
    return Step(stack, TPT_LAYER, name, (vcpu,), inner.code, inner.fault, inner, stack.end(), before, inner.is_completed)


def _of_vmm(stack: AnyStack, name: str, part: str) -> Step:
    """A part of an operation of the VMM's machine."""
    system = stack.vmm
    operands, conditions = vmm._operands(stack.given, name, part)
    for condition in conditions:
        stack.given.assume(condition)
    system.hooks = (AnyExtension(system, touches=name == "mediate").hooks,)
    stack.tpt.begin()
    system.begin()
    return stack_system.perform_vmm(stack, name, *operands)


def _of_block(stack: AnyStack) -> Step:
    """A block that the VMM writes for somebody, or itself, as its mediator does."""
    given, system = stack.given, stack.vmm
    frame, number = given.word("frame", vmm_state.FRAME_BITS), given.word("block", vmm_spec.BLOCK_SHIFT)
    *others, last = range(vmm_spec.BLOCKS_PER_FRAME)
    block = next((each for each in others if number == each), last)
    stack.frames_at.append(frame)
    actor = next(each for each in _ACTORS if each is _ACTORS[-1] or given.flag(f"is_{each.value}"))
    stack.tpt.begin()
    system.begin()
    system._blocks = system.memory = _OneBlock(stack.memory, _Address(frame, block))
    before = stack.begin(VMM_LAYER, Via.CPU, Principal(Who.HOST))
    is_completed = True
    try:
        address = frame << vmm_spec.BLOCK_SHIFT | block
        system.write(actor.value, given.word("number", DEVICE_BITS), address, given.word("word", 64))
    except Refused:
        is_completed = False
    return Step(stack, VMM_LAYER, BLOCK, (), accesses=stack.end(), before=before, is_completed=is_completed)


class _Address(NamedTuple):
    """The address of a block, of which it is known which of its frame's it is."""

    frame: Any
    block: int

    def __rshift__(self, _bits: int) -> Any:
        return self.frame

    def __and__(self, _mask: int) -> int:
        return self.block


class _OneBlock(Blocks):
    """The VMM's view, of one block."""

    def __init__(self, memory: Any, address: _Address) -> None:
        super().__init__(memory)
        self._address: Any = address

    def __setitem__(self, _address: Any, word: Any) -> None:
        super().__setitem__(self._address, word)


_ACTORS = (Via.CPU, Via.DEVICE, Via.MEDIATOR, Via.EXTENSION)


class _AnyPage(Pages):
    """A monitor's memory, of which one page, any, is looked at; which frame it is in is found as the reference does."""

    def __init__(self, stack: AnyStack, layer: str, vm: Any, page: Any) -> None:
        self._stack, self.layer, self.vm, self.base, self.count = stack, layer, vm, page << FRAME_SHIFT, 1
        self.bound = []
        self.found = None
        self.frames_found: list[Any] = []

    def _bind(self, contents: list[Any]) -> None:
        """Which content a page is bound to is asked where pages are bound (S5)."""

    def resolve(self, vcpu: Any) -> None:
        """As Pages.resolve; which content a page is bound to is supposed to be as that has found it."""
        stack: Any = self._stack
        super().resolve(vcpu)
        self.frames_found = list(self.found or ())
        (frame,) = self.frames_found
        self.found: Any = _OnePage(frame)
        if isinstance(frame, Fault):
            return
        stack.frames_at.append(frame)
        if stack.policy.pages_bound:
            is_there, content = stack.contents.row(frame)
            stack.given.assume(is_there & (stack.bound_in(content) == self.vm))


class _OnePage(tuple[Any, ...]):
    """The frame of the page that is looked at, whichever it is."""

    def __new__(cls, frame: Any) -> "_OnePage":
        return super().__new__(cls, (frame,))

    def __getitem__(self, _page: Any) -> Any:
        return next(iter(self))


def _of_monitor(stack: AnyStack, name: str) -> Step:
    """What a step of a monitor, or of one of its guests, does to memory, once it has begun."""
    given, system = stack.given, stack.tpt
    vm, vcpu = given.word("vm", VM_BITS), given.word("vcpu", OPERAND_BITS[tpt_spec.OperandKind.VCPU])
    layer = CVM if given.flag("is_cvm") else ORC
    number = given.word("index", NUMBER_BITS)
    given.assume((vm >= FIRST_VM) & (vcpu < system.vcpu_count) & (system.vcpus.get(vcpu).vm == vm))
    vars(stack)["vcpu_of"] = lambda _vm: vcpu
    stack.pages = {layer: _AnyPage(stack, layer, vm, given.word("page", 52))}
    system.begin()
    whom = next(each for each in _WHOM if each is _WHOM[-1] or given.flag(f"is_{each.value}"))
    try:
        with tpt.by_steps(system), stack_system.entered(stack, layer, name, whom, given.word("who", 16)) as whole:
            page: Any = stack.pages[layer]
            if name == SWEEP:
                stack.memory = _Swept(stack.memory, stack.granule)
                page.map(lambda _number, granule: granule._replace(tag=False))
                stack.memory = stack.memory.memory
                stack.is_swept = not_(stack.memory.get(stack.frames_at[-1], stack.granule).tag)
            elif given.flag("stores"):
                page.set(number, Granule(given.flag("tag"), given.word("upper", 64), given.word("lower", 64)))  # type: ignore[arg-type]
            else:
                page.get(number)
            return whole(None)
    except stack_system.NotTaken as stopped:
        return stopped.step
    except NoVm:  # supposed not to be
        given.assume(False)
        return Step(stack, layer, name, before=stack.before(), is_completed=False)


_WHOM = (Who.CVM, Who.TENANT, Who.MONITOR)


class _Content(int):
    """A content, any number, as an element of sets: which of these are the same is decided where it is asked."""

    number: Any

    def __new__(cls, number: Any) -> "_Content":
        made = super().__new__(cls, 0)
        made.number = number
        return made

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and bool(self.number == other.number)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return 0


def _of_binding(stack: AnyStack) -> Step:
    """A monitor of two pages finds them, beside another one of one page: more pages are only more reasons to refuse one."""
    given = stack.given
    stack.pages = {CVM: Pages.__new__(Pages), ORC: Pages.__new__(Pages)}
    for number, (layer, count) in enumerate(((CVM, 2), (ORC, 1))):
        pages: Any = stack.pages[layer]
        pages._stack, pages.layer, pages.vm, pages.base, pages.count, pages.found = stack, layer, FIRST_VM, 0, count, None
        names = [f"bound_{number}_{page}" for page in range(count)]
        pages.bound = [_Content(given.word(each, CONTENT_BITS)) if given.flag(f"is_{each}") else None for each in names]
    known = [each for each in stack.bound if each is not None]
    for number, each in enumerate(known):
        for other in known[:number]:
            given.assume(each.number != other.number)
    vars(stack)["content_of"] = lambda frame: _Content(stack.contents.row(frame)[1])
    vars(stack.tpt)["translated"] = lambda *_arguments: stack.tpt.fresh("found", FRAME_BITS)
    stack.tpt.begin()
    before = stack.begin(CVM, Via.HART, Principal(Who.MONITOR))
    try:
        stack.pages[CVM].resolve(0)
    except Halt as stopped:
        return Step(stack, CVM, BIND, (), stopped.code, None, None, stack.end(), before, False)
    return Step(stack, CVM, BIND, (), accesses=stack.end(), before=before)


class _Swept:
    """Memory of which one granule of a frame, any, isn't empty."""

    def __init__(self, memory: Any, number: Any) -> None:
        self.memory, self._number = memory, number

    def of_frame(self, frame: Any) -> "_Swept":
        """The granules of a frame that aren't empty."""
        self._frame = frame
        return self

    def items(self) -> Iterator[tuple[Any, Granule]]:
        """By number."""
        yield self._number, self.memory.get(self._frame, self._number)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)


def _take(stack: AnyStack, name: str, part: str) -> Step:
    """The step of that name."""
    if name == BASE:
        return _base(stack)
    if name == BIND:
        return _of_binding(stack)
    if name == BLOCK:
        return _of_block(stack)
    if name in (GRANULE, SWEEP):
        return _of_monitor(stack, name)
    if name.startswith(_VMM):
        return _of_vmm(stack, name.removeprefix(_VMM), part)
    of_tpt = name.removeprefix(_TPT)
    return _of_walk(stack, of_tpt) if of_tpt in tpt.WALK_STEPS else _of_tpt(stack, of_tpt)


# -- hypotheses and goals --------------------------------------------------------------------------------------------------


def _suppose(stack: AnyStack, first: State) -> None:
    """Suppose what is said of states, within layers and across them, at the places that were looked at."""
    system, given, place = stack.tpt, stack.given, stack.tpt.place
    frames = [frame for (frame,) in system._of("frame", place.frame)]
    devices = [device for (device,) in stack.vmm._looked_at.get(("device",), ())]
    parts = [(UNTAGGED, [first.is_untagged(each) for each in frames])]
    vcpus, slots = ([each[-1] for each in system._of(*of)] for of in (("vcpu", place.vcpu), ("slot", 0, place.slot)))
    of_vcpus = [first.is_holders(vcpu, slot, frame) for vcpu in vcpus for slot in slots for frame in frames]
    of_vcpus += [first.is_walkers(vcpu, first.walks.get(vcpu), frame) for vcpu in vcpus for frame in frames]
    of_vcpus += [first.is_walkers(vcpu, walk, frame) for vcpu, walk, _is_whole in system._walks for frame in frames]
    parts += [(LEAVING, of_vcpus)]
    parts += [(COMMANDED, [first.is_commanded(each) for each in (stack.vmm.place.device, *devices)])]
    placed = [first.is_one_place(stack.frames_at, stack.slots_at)]
    placed += [first.is_placed(each) for each in stack.frames_at] + [first.is_placed_away(each) for each in stack.slots_at]
    for name, conditions in [*parts, (PLACED, placed)]:
        for condition in conditions if name in SUPPOSED else ():
            stack.labels[len(given.assumptions)] = name
            given.assume(condition)
    for layer in (system, stack.vmm) if stack.vmm.first is not None else (system,):
        layer.suppose()
        stack.labels |= {number: f"{layer_name(layer, stack)}.{name}" for number, name in layer.labels.items()}


def layer_name(system: Any, stack: AnyStack) -> str:
    """Which layer's system that is."""
    return VMM_LAYER if system is stack.vmm else TPT_LAYER


def _goals(stack: AnyStack, step: Step, name: str, asked: tuple[str, ...]) -> dict[str, list[Any]]:
    """What is asked of a step, at any place."""
    if name == BIND:
        pairs = [Place(page=page, other=other) for page in range(len(stack.bound)) for other in range(len(stack.bound))]
        return {"S5": [STACK_INVARIANTS["S5"].holds(step, place) for place in pairs]}
    system, now = stack.tpt, stack.state()
    frame, slot, vcpu = system.place.frame, system.place.swap_slot, system.place.vcpu
    goals: dict[str, list[Any]] = {
        UNTAGGED: [now.is_untagged(frame)],
        LEAVING: [now.is_holders(vcpu, system.place.slot, frame), now.is_walkers(vcpu, now.walks.get(vcpu), frame)],
        COMMANDED: [now.is_commanded(stack.vmm.place.device)],
        PLACED: [now.is_placed(frame), now.is_placed_away(slot), now.is_one_place(stack.frames_at[:2], stack.slots_at[:2])],
    }
    if name == BASE:
        return {each: goals[each] for each in asked}
    if set(asked) & {"S3", "S4"}:
        is_away, away = stack.put_away.row(slot)
        contents = (stack.content_of(frame), away)
        kept, kept_away = (STACK_INVARIANTS["S3"].holds(step, Place(content=(each, stack.granule))) for each in contents)
        goals["S3"] = [kept, implies(is_away, kept_away)]
        goals["S4"] = [STACK_INVARIANTS["S4"].holds(step, Place(frame, stack.granule))]
    goals[LEAVING] += [now.is_walkers(vcpu, walk, frame) for vcpu, walk in stack.walked]
    written = [access for access in step.accesses if access.is_write]
    goals[TRACKED] = [not_(stack.vmm.clean.get(access.frame)) for access in written]
    by_others = [access.frame for access in written if access.via is not Via.BOOKS]
    goals[UNCLEAN] = [not_(system.frames.get(each).is_clean) for each in by_others]
    goals[RESIDENT] = [stack.is_swept]
    goals[RESIDENT] += [not isinstance(found, Fault) for pages in stack.pages.values() for found in pages.frames_found]  # type: ignore[attr-defined]
    others = [access.frame for access in written if access.via not in (Via.BOOKS, Via.HART)]
    goals[UNWRITTEN] = [stack.vmm.in_region(each) | not_(stack.is_kept(each)) for each in others]
    for each in ("S1", "S2", "S7", "S8", "S9"):
        goals[each] = [STACK_INVARIANTS[each].holds(step, Place(frame=frame))]
    goals["S1"] += stack.narrowed
    if name.startswith(_VMM):
        # No table is among the blocks that the VMM writes, its own among them.
        blocks = getattr(stack.vmm.memory, "written", [])
        goals["S8"] += [not_(stack.memory.is_table(address >> vmm_spec.BLOCK_SHIFT)) for address in blocks]
    return {each: goals[each] for each in asked}


def ways(name: str, part: str = WHOLE, policy: StackPolicy = INTENDED, asked: tuple[str, ...] = ()) -> list[Way]:
    """Every way through a part of a step, with the goals of what is asked, or of all."""
    attempts: list[AnyStack] = []
    known = Known()
    asked = asked or asked_in(name)

    def run() -> tuple[bool, dict[str, tuple[z3.BoolRef, ...]], frozenset[str]]:
        stack = AnyStack(Given(), policy, known)
        attempts.append(stack)
        first = stack.state()
        step = _take(stack, name, part)
        seen = frozenset(stack.guards.seen)
        stack.guards.seen.clear()
        goals = _goals(stack, step, name, asked)
        if name != BASE:
            _suppose(stack, first)
        parts = {each: tuple(part for goal in of for part in lazy.conjuncts(term_of(goal))) for each, of in goals.items()}
        return step.is_completed, parts, seen

    paths = symbolic.explore(run, most=5000)
    found = []
    for path, stack in zip(paths, attempts, strict=True):
        completed, goals, guards = path.result
        supposed = stack.given.assumptions
        labels = ("",) * len(path.conditions) + tuple(stack.labels.get(number, "") for number in range(len(supposed)))
        conditions = (*path.conditions, *map(term_of, supposed))
        found.append(Way(conditions, goals, completed, labels, guards, frozenset(stack.guards.seen)))
    return found


_TOGETHER_S = 20.0
"""How long a goal is asked together with all others of its step, before it is asked alone."""


def prove(
    name: str, part: str = WHOLE, policy: StackPolicy = INTENDED, timeout_s: float = 60, asked: tuple[str, ...] = ()
) -> Proved:
    """Whether each of what is asked is kept in a part of a step, on every way, at any place."""
    asked = asked or asked_in(name)
    found = asked_of(ways(name, part, policy, asked), asked, min(timeout_s, _TOGETHER_S), leaner_ms=1)
    for each in [each for each, kept in found.kept.items() if kept.result == "unknown"]:
        # Asked alone, fewer places are looked at, and less is supposed.
        found.kept[each] = asked_of(ways(name, part, policy, (each,)), (each,), timeout_s, leaner_ms=1).kept[each]
    return found


def prove_step(
    step: str, part: str, policy: StackPolicy, _supposed: tuple[str, ...] = KEPT, timeout_s: float = 60
) -> StepOutcome:
    """Ask of everything whether it can fall in a part of a step."""
    z3.z3.Z3_DEBUG = False  # Checks of arguments of z3's Python, a tenth of the time.
    return outcome_of(step, part, lambda: prove(step, part, policy, timeout_s))


PROVER = Prover("stack", prove_step)


def prove_all(
    chosen: Sequence[Key], timeout_s: float, workers: int, cache: Cache | None, finished: Callable[[], None]
) -> tuple[list[StepOutcome], bool]:
    """Prove parts of steps in parallel; the outcomes so far, and whether Ctrl-C ended it early."""
    pool, interrupted = Workers(workers), False
    outcomes: dict[Key, StepOutcome] = {}
    try:
        for job, outcome in run((Job(*each, INTENDED, KEPT, timeout_s) for each in chosen), PROVER, pool, cache):
            outcomes[job.step, job.format] = outcome
            finished()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.stop(at_once=interrupted)
    return [outcomes[each] for each in chosen if each in outcomes], interrupted
