"""A state machine for Hypothesis: a guest in two implementations at once, whole states compared after every operation.

`TestGuest = GuestMachine.TestCase` is a test that pytest and unittest run. A subclass may choose the format, hold another
implementation against the reference, or add rules and invariants of its own.
"""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from capvisor.dsl.printer import instruction, print_instruction
from capvisor.dsl.states import differences, machine_in_state
from capvisor.dsl.strategies import (
    REGISTERS_IN_USE,
    GuestOperation,
    completed_operations,
    held_capabilities,
    operations,
    states,
)
from capvisor.fastpath import isa as _kernels  # declares the kernels
from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Trap
from capvisor.model.observation import ObservedHart, State, Step, watch
from capvisor.spec.formats import CC128, CapabilityFormat
from capvisor.spec.invariants import INVARIANTS, Place
from capvisor.spec.operations import Group
from capvisor.spec.registers import REGISTER_COUNT

assert _kernels


class Implementation(Protocol):
    """What a GuestMachine holds against the reference."""

    def start(self, hart: Hart) -> None:
        """Take over the state of a hart of the reference."""

    def step(self, name: str, operands: tuple[Any, ...]) -> None:
        """Execute one operation of the table, or go to the handler where it is refused."""

    def differences(self, hart: Hart, trap: Trap | None) -> list[str]:
        """What differs from the reference's hart, which has made the same step, and from its refusal; empty if nothing."""


class FastPath:
    """The fast path, as a batch machine of one lane."""

    def start(self, hart: Hart) -> None:
        self.machine = machine_in_state(hart)

    def step(self, name: str, operands: tuple[Any, ...]) -> None:
        self.machine.step(name, operands)

    def differences(self, hart: Hart, trap: Trap | None) -> list[str]:
        found = differences(hart, self.machine, 0, whole_memory=True)
        cause, value = int(self.machine.cause[0]), int(self.machine.trap_value[0])
        expected = 0 if trap is None else trap.cause.number
        if cause != expected or (trap is not None and value != trap.value):
            wanted = "completed" if trap is None else f"cause {expected:#x} with {trap.value:#x}"
            found.append(
                f"outcome: reference {wanted}, fast path {f'cause {cause:#x} with {value:#x}' if cause else 'completed'}"
            )
        return found


def _drawn(*groups: Group) -> st.SearchStrategy[GuestOperation]:
    """Operations of some groups, for the state in which the machine that draws is."""
    return st.runner().flatmap(lambda machine: completed_operations(machine.hart, groups))


def _fetches(machine: "GuestMachine") -> bool:
    return machine.may_fetch


class GuestMachine(RuleBasedStateMachine):
    """A guest that executes operations on the reference and on another implementation.

    After each operation, whole states are compared, and the invariants of `spec.invariants` are checked of the step at every
    place where something may have changed. Most operations aren't refused: from time to time the guest has capabilities from
    outside, and a PCC where its own no longer authorises anything, as after a trap into a handler that can't be executed.
    """

    format: ClassVar[CapabilityFormat] = CC128
    """The capability format of the machine."""

    implementation: ClassVar[Callable[[], Implementation]] = FastPath
    """What is held against the reference."""

    hart: ObservedHart
    """The reference's hart. Who changes its state in a rule calls `restart` afterwards."""

    last: Step | None = None
    """The last step, as it was watched."""

    @property
    def may_fetch(self) -> bool:
        """Whether PCC authorises an instruction at pc."""
        try:
            self.hart.check_fetch()
        except Trap:
            return False
        return True

    def execute(self, operation: GuestOperation) -> Step:
        """Execute one operation on both sides. Raises AssertionError where they differ, or an invariant doesn't hold."""
        name, operands = operation
        self.last = step = watch(self.hart, name, operands)
        self.other.step(name, operands)
        text = print_instruction(instruction(name, operands))
        note(f"  # {text}" + (f": {step.trap.cause.name}" if step.trap else ""))
        found = self.other.differences(self.hart, step.trap)
        if found:
            raise AssertionError(f"`{text}`: {'; '.join(found)}")
        changed = list(places(step))
        for invariant in INVARIANTS.values():
            for place in changed:
                if not invariant.holds(step, place):
                    raise AssertionError(f"`{text}`: not {invariant.name}, at {place}: {invariant.statement}")
        return step

    def restart(self) -> None:
        """Let the other implementation take over the state of the reference's hart."""
        self.other.start(self.hart)

    @initialize(hart=st.runner().flatmap(lambda machine: states(machine.format)))
    def begin(self, hart: ObservedHart) -> None:
        """Start in some state."""
        self.hart, self.other = hart, type(self).implementation()
        self.restart()

    @precondition(_fetches)
    @rule(operation=_drawn(Group.INSPECTION))
    def inspect(self, operation: GuestOperation) -> None:
        """Read a field of a capability."""
        self.execute(operation)

    @precondition(_fetches)
    @rule(operation=_drawn(Group.ARITHMETIC))
    def derive(self, operation: GuestOperation) -> None:
        """Derive a capability from another."""
        self.execute(operation)

    @precondition(_fetches)
    @rule(operation=_drawn(Group.SEALING))
    def seal(self, operation: GuestOperation) -> None:
        """Seal, unseal or build a capability."""
        self.execute(operation)

    @precondition(_fetches)
    @rule(operation=_drawn(Group.COMPARISON))
    def compare(self, operation: GuestOperation) -> None:
        """Compare or convert capabilities."""
        self.execute(operation)

    @precondition(_fetches)
    @rule(operation=_drawn(Group.LOAD))
    def load(self, operation: GuestOperation) -> None:
        """Load from memory."""
        self.execute(operation)

    @precondition(_fetches)
    @rule(operation=_drawn(Group.STORE))
    def store(self, operation: GuestOperation) -> None:
        """Store to memory."""
        self.execute(operation)

    @precondition(_fetches)
    @rule(operation=_drawn(Group.ATOMIC))
    def access_atomically(self, operation: GuestOperation) -> None:
        """Reserve, store conditionally or swap."""
        self.execute(operation)

    @precondition(_fetches)
    @rule(operation=_drawn(Group.INTEGER))
    def compute(self, operation: GuestOperation) -> None:
        """Compute with integers."""
        self.execute(operation)

    @precondition(_fetches)
    @rule(operation=_drawn(Group.CONTROL))
    def jump(self, operation: GuestOperation) -> None:
        """Branch, jump, call or invoke."""
        self.execute(operation)

    @precondition(_fetches)
    @rule(operation=_drawn(Group.SYSTEM))
    def use_system(self, operation: GuestOperation) -> None:
        """Read or write the registers of the system, trap or return."""
        self.execute(operation)

    @precondition(lambda machine: not machine.may_fetch)
    @rule(operation=st.runner().flatmap(lambda machine: operations(machine.format)), flags=st.integers(0, 1))
    def be_refused(self, operation: GuestOperation, flags: int) -> None:
        """Try an operation that PCC doesn't authorise; then have another PCC from outside, and a handler to go to."""
        self.execute(operation)
        hart = self.hart
        hart.pcc = hart.mtcc = capability.set_flags(capability.root(hart.format), flags)
        hart.pc = 0
        self.restart()

    @rule(
        register=st.integers(1, REGISTERS_IN_USE - 1),
        cap=st.runner().flatmap(lambda machine: held_capabilities(machine.format)),
    )
    def receive(self, register: int, cap: Capability) -> None:
        """Have a capability from outside, in a register."""
        self.hart.write(register, cap)
        self.restart()


def places(step: Step) -> Iterator[Place]:
    """The places where a step has changed something, and those that it names: every register, granule and byte of them."""
    before, after, fmt = step.before, step.after, step.format
    changed = {n for n in range(REGISTER_COUNT) if before.registers[n] is not after.registers[n]}
    registers = sorted({0, *step.register_operands, *changed})
    granules, addresses = {0}, {before.memory.base}
    for access in step.accesses:
        first, last = access.address, access.address + access.size_bytes - 1
        granules |= {address - before.memory.base >> fmt.granule_shift for address in (first, last)}
        addresses |= {first - 1, first, last + 1}
    for index in _changed_granules(before, after):
        granules.add(index)
        start = before.memory.base + index * fmt.capability_bytes
        addresses |= set(range(start, start + fmt.capability_bytes))
    rows = [registers, sorted(granules), sorted(addresses)]
    for number in range(max(len(row) for row in rows)):
        yield Place(*(row[number % len(row)] for row in rows))


def _changed_granules(before: State, after: State) -> Iterator[int]:
    granules = before.memory.size_bytes // before.memory.format.capability_bytes
    for index in range(granules):
        if before.memory.store.get(index) != after.memory.store.get(index):
            yield index
