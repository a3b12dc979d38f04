"""The machines on which traces are replayed: both implementations, told word by word what to do, and watched.

At reset c1 to c31, DDC, PCC, MTCC and MEPCC hold the default capability, PCC is at `START`, and the mode is integer; there
are 8 MiB of memory, all zero. Those are the conditions of the golden traces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from capvisor.conformance.sail_assembly import sail_assembly
from capvisor.conformance.traces import (
    MEMORY_BYTES,
    READ,
    START,
    WRITE,
    DataAccess,
    RegisterValue,
    Step,
    TagAccess,
)
from capvisor.dsl.states import lane_capability
from capvisor.fastpath import bounds as fast_bounds
from capvisor.fastpath import capability as fast_capability
from capvisor.fastpath import isa as _kernels  # declares the kernels
from capvisor.fastpath.machine import SPECIAL_ROWS, BatchMachine
from capvisor.fastpath.workspace import Workspace
from capvisor.model import capability
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Trap
from capvisor.model.memory import EMPTY, Granule, Memory, SparseStore
from capvisor.spec.encodings import decode
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import Mode
from capvisor.spec.registers import PCC_INDEX, REGISTER_COUNT
from capvisor.spec.traps import CHERI_EXCEPTION

assert _kernels and _rules

IDLE = 0x0000_0013
"""The word of `addi x0, x0, 0`: what a lane gets whose program has ended. It touches neither memory nor a register."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a machine did in one step, as a trace tells it, and the trap registers after it."""

    step: Step
    mcause: int
    mtval: int


def content(fmt: CapabilityFormat, granule: Callable[[int], Granule], address: int, size_bytes: int) -> int | None:
    """The bytes at an address as a little-endian number, from granules by index; None where some aren't memory."""
    offset = address - START
    if not 0 <= offset <= MEMORY_BYTES - size_bytes:
        return None
    first, last = offset // fmt.capability_bytes, (offset + size_bytes - 1) // fmt.capability_bytes
    word = 0
    for place, index in enumerate(range(first, last + 1)):
        _tag, upper, lower = granule(index)
        word |= (upper << fmt.address_width | lower) << 2 * fmt.address_width * place
    return word >> 8 * (offset % fmt.capability_bytes) & (1 << 8 * size_bytes) - 1


# -- the reference ---------------------------------------------------------------------------------------------------------


class RecordingMemory(Memory):
    """A memory that records what is read and written, as a trace tells it."""

    def __init__(self, fmt: CapabilityFormat, base: int, size_bytes: int) -> None:
        super().__init__(fmt, base, size_bytes)
        self.data: list[DataAccess] = []
        self.tags: list[TagAccess] = []

    def read_granule(self, address: int) -> Granule:
        granule = super().read_granule(address)
        self._record(READ, address, self.format.capability_bytes)
        self._record_tags(READ, address, self.format.capability_bytes)
        return granule

    def write_granule(self, address: int, granule: Granule) -> None:
        super().write_granule(address, granule)
        self._record(WRITE, address, self.format.capability_bytes)
        self._record_tags(WRITE, address, self.format.capability_bytes)

    def read(self, address: int, size_bytes: int) -> int:
        value = super().read(address, size_bytes)
        self.data.append(DataAccess(READ, address, size_bytes, value))
        return value

    def write(self, address: int, size_bytes: int, value: int) -> None:
        super().write(address, size_bytes, value)
        self._record(WRITE, address, size_bytes)
        self._record_tags(WRITE, address, size_bytes)

    def _record(self, direction: str, address: int, size_bytes: int) -> None:
        """The access, with what the memory holds now."""
        held = content(self.format, self.store.get, address, size_bytes)
        assert held is not None
        self.data.append(DataAccess(direction, address, size_bytes, held))

    def _record_tags(self, direction: str, address: int, size_bytes: int) -> None:
        """The tags, as they are now, of the granules that the bytes are in."""
        size = self.format.capability_bytes
        for start in range(address - address % size, address + size_bytes, size):
            self.tags.append(TagAccess(direction, start, self.store.get((start - self.base) // size).tag))


class RecordingRegisters(list[Capability]):
    """A register file that records which registers are written, also where the value stays."""

    def __init__(self, values: Sequence[Capability]) -> None:
        super().__init__(values)
        self.written: set[int] = set()

    def __setitem__(self, register: int, value: Capability) -> None:  # type: ignore[override]
        super().__setitem__(register, value)
        self.written.add(register)


def register_value(cap: Capability) -> RegisterValue:
    """What a trace tells of a register that holds a capability."""
    base, top = cap.bounds
    return RegisterValue(
        cap.tag,
        cap.is_sealed,
        cap.permissions,
        capability.otype_as_integer(cap),
        cap.address,
        base,
        top - base & 2 * cap.format.address_space - 1,
    )


class ReferenceMachine:
    """A hart of the reference that is watched."""

    def __init__(self, fmt: CapabilityFormat) -> None:
        self.format = fmt
        self.memory = RecordingMemory(fmt, START, MEMORY_BYTES)
        root = capability.root(fmt)
        self.registers = RecordingRegisters([capability.null(fmt)] + [root] * (REGISTER_COUNT - 1))
        self.hart = Hart(self.memory, START, self.registers)
        self.hart.pcc = capability.root(fmt, START)

    @property
    def mode(self) -> Mode:
        return self.hart.mode

    def capability(self, register: int) -> Capability:
        return self.registers[register]

    def step(self, word: int) -> Observation:
        """Execute what a word encodes, and say what happened."""
        hart, before = self.hart, list(self.registers)
        pc, mode, fetched = hart.pc, hart.mode, self._may_fetch()
        self.registers.written.clear()
        self.memory.data.clear()
        self.memory.tags.clear()
        trap = hart.step_word(word)
        step = Step(
            pc,
            word if fetched else 0,
            sail_assembly(word, self.format.address_width, mode) if fetched else None,
            {number: register_value(self.registers[number]) for number in self._written(word, mode, before)},
            tuple(self.memory.data),
            tuple(self.memory.tags),
            hart.pc,
            trap is not None,
        )
        return Observation(step, hart.mcause, hart.mtval)

    def _written(self, word: int, mode: Mode, before: list[Capability]) -> list[int]:
        """The registers that a step wrote, in ascending order."""
        written = self.registers.written
        found = decode(word, self.format.address_width, mode)
        if found is not None and found[0] == "cclear":
            # The rule also puts back what those registers hold that the mask doesn't name: such a write is none.
            quarter, mask = found[1]
            named = {8 * quarter + place for place in range(8) if mask >> place & 1}
            written = written & named
        changed = {number for number, held in enumerate(before) if self.registers[number] != held}
        return sorted(written | changed)

    def _may_fetch(self) -> bool:
        try:
            self.hart.check_fetch()
        except Trap:
            return False
        return True

    def granules(self) -> dict[int, Granule]:
        """The granules of memory that aren't empty, by index."""
        store = self.memory.store
        assert isinstance(store, SparseStore)
        return {index: granule for index, granule in store.written() if granule != EMPTY}


# -- the fast path ---------------------------------------------------------------------------------------------------------


class FastMachines:
    """Harts of the fast path, one a lane, each with all of its 8 MiB of memory.

    They don't record accesses. What a trace says was accessed is looked up instead: what is read before the step, what is
    written after it, bytes and tags. Of registers, those are reported that the trace says are written and those that change.
    """

    def __init__(self, fmt: CapabilityFormat, lanes: int) -> None:
        self.format, self.lanes = fmt, lanes
        machine = self.machine = BatchMachine(fmt, START, MEMORY_BYTES, lanes)
        machine.tags[1:REGISTER_COUNT] = True
        machine.metas[1:REGISTER_COUNT] = fmt.root_meta
        machine.addresses[SPECIAL_ROWS["pcc"]] = START
        machine.pc.fill(START)
        machine.pcc_changed(np.arange(lanes))

    def mode(self, lane: int) -> Mode:
        flags = int(self.machine.metas[SPECIAL_ROWS["pcc"], lane]) >> self.format.flags.low & 1
        return Mode.CAPABILITY if flags else Mode.INTEGER

    def capability(self, register: int, lane: int) -> Capability:
        return lane_capability(self.machine, register, lane)

    def step(self, expected: dict[int, Step]) -> dict[int, Observation]:
        """Execute in each lane the word of a trace's step, and in the others nothing; say what happened, by lane."""
        machine = self.machine
        words = np.full(self.lanes, IDLE, np.uint32)
        for lane, step in expected.items():
            words[lane] = step.word
        held = machine.tags[:REGISTER_COUNT].copy(), machine.metas[:REGISTER_COUNT].copy()
        addresses, pcs = machine.addresses[:REGISTER_COUNT].copy(), machine.pc.copy()
        data = {lane: self._data(lane, step, READ) for lane, step in expected.items()}
        tags = {lane: self._tags(lane, step, READ) for lane, step in expected.items()}
        machine.step_words(words)
        changed = (
            (machine.tags[:REGISTER_COUNT] != held[0])
            | (machine.metas[:REGISTER_COUNT] != held[1])
            | (machine.addresses[:REGISTER_COUNT] != addresses)
        )
        reported = {lane: set(step.registers) for lane, step in expected.items()}
        for number, lane in np.argwhere(changed).tolist():
            if lane in reported:
                reported[lane].add(number)
        values = self._register_values([(lane, number) for lane, mine in reported.items() for number in sorted(mine)])
        observations = {}
        for lane, step in expected.items():
            mcause, mtval = int(machine.numbers["mcause"][lane]), int(machine.numbers["mtval"][lane])
            trapped = bool(machine.cause[lane])
            by_pcc = trapped and mcause == CHERI_EXCEPTION and mtval >> 5 == PCC_INDEX
            done = Step(
                int(pcs[lane]),
                step.word,
                # Whether it is the fetch that was refused isn't recorded; that it is PCC that refuses can be seen.
                (None if by_pcc else "") if step.assembly is None else step.assembly,
                {number: values[lane, number] for number in sorted(reported[lane])},
                tuple(access for _place, access in sorted((data[lane] | self._data(lane, step, WRITE)).items())),
                tuple(access for _place, access in sorted((tags[lane] | self._tags(lane, step, WRITE)).items())),
                int(machine.pc[lane]),
                trapped,
            )
            observations[lane] = Observation(done, mcause, mtval)
        return observations

    def _granule(self, lane: int, index: int) -> Granule:
        lower, upper = self.machine.memory.halves[lane, index].tolist()
        return Granule(bool(self.machine.memory.tags[lane, index]), upper, lower)

    def _data(self, lane: int, step: Step, direction: str) -> dict[int, DataAccess]:
        """What memory holds now where a step's accesses in one direction are, by their place; nothing outside memory."""
        found = {}
        for place, access in enumerate(step.data):
            if access.direction == direction:
                held = content(self.format, partial(self._granule, lane), access.address, access.size_bytes)
                if held is not None:
                    found[place] = access._replace(value=held)
        return found

    def _tags(self, lane: int, step: Step, direction: str) -> dict[int, TagAccess]:
        """The tags that memory holds now where a step's accesses to tags in one direction are, likewise."""
        found = {}
        for place, access in enumerate(step.tags):
            if access.direction == direction and 0 <= access.address - START < MEMORY_BYTES:
                granule = self._granule(lane, (access.address - START) // self.format.capability_bytes)
                found[place] = access._replace(tag=granule.tag)
        return found

    def _register_values(self, places: list[tuple[int, int]]) -> dict[tuple[int, int], RegisterValue]:
        """What a trace tells of registers, by (lane, register), all at once."""
        if not places:
            return {}
        fmt, ws = self.format, Workspace(len(places))
        lanes, numbers = np.array(places).T
        tag, meta = self.machine.tags[numbers, lanes], self.machine.metas[numbers, lanes]
        address = self.machine.addresses[numbers, lanes]
        base, top, otype, permissions = (np.empty(len(places), np.uint64) for _ in range(4))
        high, unsealed = np.empty(len(places), np.bool_), np.empty(len(places), np.bool_)
        fast_bounds.decode_bounds(fmt, meta, address, ws, base, top, high)
        fast_capability.is_unsealed(fmt, meta, ws, unsealed)
        fast_capability.get_permissions(fmt, meta, ws, permissions)
        fast_capability.get_otype(fmt, meta, ws, otype)
        # The length has one bit more than a word.
        ends = [end | above << fmt.address_width for end, above in zip(top.tolist(), high.tolist(), strict=True)]
        lengths = [end - start & 2 * fmt.address_space - 1 for start, end in zip(base.tolist(), ends, strict=True)]
        columns = [column.tolist() for column in (tag, ~unsealed, permissions, otype, address, base)]
        return dict(zip(places, map(RegisterValue, *columns, lengths), strict=True))

    def granules(self, lane: int) -> dict[int, Granule]:
        """The granules of a lane's memory that aren't empty, by index: all of it is looked through."""
        halves = np.flatnonzero(self.machine.memory.halves[lane].reshape(-1)) >> 1
        used = np.union1d(halves, np.flatnonzero(self.machine.memory.tags[lane]))
        return {index: self._granule(lane, index) for index in used.tolist()}
