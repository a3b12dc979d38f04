"""Showing a run step by step."""

from collections.abc import Callable, Iterable
from typing import Any

from capvisor.dsl.printer import print_instruction
from capvisor.dsl.runner import Step
from capvisor.dsl.states import describe, hart_granules, lane_capability, lane_granules, store_granules
from capvisor.dsl.system_runner import Executed
from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.memory import EMPTY, Granule
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.registers import REGISTER_COUNT

_OPERATION_COLUMNS, _AGENT_COLUMNS = 42, 9


class Tracer:
    """Prints each step: line, operation, and the registers and granules that it changed, decoded."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._registers: list[Capability] = []
        self._granules: dict[int, Granule] = {}

    def __call__(self, step: Step) -> None:
        fmt, base, registers, granules = _state(step)
        if step.instruction is None:
            operation = "at the start"
            changes = [f"c{n} = {describe(cap)}" for n, cap in enumerate(registers) if cap.tag]
        else:
            operation = print_instruction(step.instruction)
            changes = [] if step.cause is None else [f"refused: {step.cause}"]
            changes += _register_changes(self._registers, registers)
            changes += _granule_changes(fmt, base, self._granules, granules)
        self._registers, self._granules = registers, granules
        write_step(self._write, f"{step.line:>5}  {operation:<{_OPERATION_COLUMNS}}", changes)


class CvmTracer:
    """Prints each step of cVMs: line, agent, operation, what changed, and who goes on where that is someone else.

    `others` gives what else has changed in the system, in words.
    """

    def __init__(self, write: Callable[[str], None], others: Callable[[Any], Iterable[str]] = lambda _system: ()) -> None:
        self._write, self._others = write, others
        self._registers: dict[str, list[Capability]] = {}
        self._granules: dict[int, Granule] = {}

    def __call__(self, step: Executed) -> None:
        memory = step.system.memory
        changes = [step.outcome] if step.outcome else []
        changes += self._others(step.system)
        if step.thread is not None:
            hart = step.thread.hart
            registers = [hart.capability(number) for number in range(REGISTER_COUNT)]
            null = [capability.null(hart.format)] * REGISTER_COUNT
            changes += _register_changes(self._registers.get(step.agent, null), registers)
            self._registers[step.agent] = registers
        granules = store_granules(memory.store)
        changes += _granule_changes(memory.format, memory.base, self._granules, granules)
        self._granules = granules
        if step.crossing is not None:
            changes.append(f"{step.crossing[0]} -> {step.crossing[1]}")
        write_step(self._write, f"{step.line:>5}  {step.agent:<{_AGENT_COLUMNS}} {step.text:<{_OPERATION_COLUMNS}}", changes)


def write_step(write: Callable[[str], None], head: str, changes: list[str]) -> None:
    """A step's line, with its first change, and a line for each other one."""
    first, *others = changes or ["no change"]
    write(f"{head}  {first}")
    for change in others:
        write(f"{'':<{len(head)}}  {change}")


def _register_changes(before: list[Capability], after: list[Capability]) -> list[str]:
    pairs = enumerate(zip(before, after, strict=True))
    return [f"c{number} = {describe(new)}" for number, (old, new) in pairs if old != new]


def _granule_changes(fmt: CapabilityFormat, base: int, before: dict[int, Granule], after: dict[int, Granule]) -> list[str]:
    changes = []
    for index in sorted(before.keys() | after.keys()):
        new = after.get(index, EMPTY)
        if new != before.get(index, EMPTY):
            changes.append(f"memory {base + index * fmt.capability_bytes:#x} = {_describe_granule(fmt, new)}")
    return changes


def _describe_granule(fmt: CapabilityFormat, granule: Granule) -> str:
    if granule.tag:
        return describe(Capability(fmt, True, granule.upper ^ fmt.null_meta, granule.lower))
    return f"{granule.upper << fmt.address_width | granule.lower:#0{2 + fmt.capability_bytes * 2}x}"


def _state(step: Step) -> tuple[CapabilityFormat, int, list[Capability], dict[int, Granule]]:
    """Format, memory base, registers and granules after a step, from the reference where it runs."""
    if step.reference is not None:
        hart = step.reference.hart
        registers = [hart.capability(number) for number in range(REGISTER_COUNT)]
        return hart.format, hart.memory.base, registers, hart_granules(hart)
    assert step.fast is not None
    machine = step.fast.machine
    registers = [lane_capability(machine, number, 0) for number in range(REGISTER_COUNT)]
    return machine.format, machine.memory.base, registers, lane_granules(machine, 0)
