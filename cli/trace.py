"""Showing a run step by step."""

from collections.abc import Callable

from capvisor.dsl.printer import print_instruction
from capvisor.dsl.runner import Step
from capvisor.dsl.states import describe, hart_granules, lane_capability, lane_granules
from capvisor.model.capability import Capability
from capvisor.model.memory import EMPTY, Granule
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.registers import REGISTER_COUNT

_OPERATION_COLUMNS = 42


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
            pairs = enumerate(zip(self._registers, registers, strict=True))
            changes += [f"c{n} = {describe(after)}" for n, (before, after) in pairs if before != after]
            for index in sorted(granules.keys() | self._granules.keys()):
                after = granules.get(index, EMPTY)
                if after != self._granules.get(index, EMPTY):
                    address = base + index * fmt.capability_bytes
                    changes.append(f"memory {address:#x} = {_describe_granule(fmt, after)}")
        self._registers, self._granules = registers, granules
        first, *others = changes or ["no change"]
        self._write(f"{step.line:>5}  {operation:<{_OPERATION_COLUMNS}}  {first}")
        for change in others:
            self._write(f"{'':>5}  {'':<{_OPERATION_COLUMNS}}  {change}")


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
