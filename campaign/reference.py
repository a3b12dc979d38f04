"""The reference's side of a comparison: many programs executed on it, and everything that they write, by step."""

import contextlib
import gc
import itertools
import threading
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from capvisor.campaign.case import Case, Operation
from capvisor.campaign.recipes import COMPARISONS
from capvisor.fastpath import isa as _kernels  # declares the kernels
from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS, BatchMachine
from capvisor.fastpath.workspace import Flags
from capvisor.model import bounds, capability
from capvisor.model import isa as _rules  # declares the rules
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart
from capvisor.model.memory import Granule, Memory, SparseStore
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.registers import REGISTER_COUNT, SPECIAL_REGISTERS, Privilege

assert _kernels and _rules

COMPARED_ROWS = REGISTER_COUNT + len(SPECIAL_ROWS)
"""Rows of registers that mean something: c0 to c31 and the special ones."""

_SPECIALS = len(SPECIAL_ROWS)
_STATE = attrgetter(*sorted(SPECIAL_ROWS, key=SPECIAL_ROWS.__getitem__), *NUMBERS, "is_reserved")
"""A hart's special registers, in the order of their rows, and its numbers."""

_CSRS = tuple(name for name in NUMBERS if name != "reservation")


_put = list.__setitem__


class _Registers(list[Capability]):
    """A register file that says what is written to it."""

    lane = 0
    log: list[tuple[int, ...]]

    def __setitem__(self, register: int, value: Capability) -> None:  # type: ignore[override]
        _put(self, register, value)
        _format, tag, meta, address = value
        self.log.append((self.lane, register, tag, meta, address))


class _Store(SparseStore):
    """A memory's granules, which say what is written to them."""

    lane = 0
    log: list[tuple[int, ...]]

    def set(self, index: int, granule: Granule) -> None:
        self._written[index] = granule
        tag, upper, lower = granule
        self.log.append((self.lane, index, tag, upper, lower))


_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def _decoding_once(own: CapabilityFormat) -> Iterator[None]:
    """While a recording is made, the reference decodes the bounds of equal capabilities once: most have been seen before."""
    known: dict[tuple[int, int], tuple[int, int]] = {}

    def remembered(fmt: CapabilityFormat, meta: int, address: int) -> tuple[int, int]:
        if fmt is not own:
            return decode(fmt, meta, address)
        found = known.get((meta, address))
        if found is None:
            found = known[meta, address] = decode(fmt, meta, address)
        return found

    with _ONE_AT_A_TIME:
        decode, bounds.decode_bounds = bounds.decode_bounds, remembered
        try:
            yield
        finally:
            bounds.decode_bounds = decode


class Recording:
    """What programs of one length do on the reference, all from the same state: every write, by step."""

    def __init__(self, case: Case, programs: Sequence[Sequence[Operation]]) -> None:
        steps, lanes = len(programs[0]), len(programs)
        self.pc = np.zeros((lanes, steps), np.uint64)
        self.cause = np.zeros((lanes, steps), np.uint8)
        self.trap_value = np.zeros((lanes, steps), np.uint64)
        self.rows: list[list[tuple[int, ...]]] = [[] for _ in range(steps)]
        self.granules: list[list[tuple[int, ...]]] = [[] for _ in range(steps)]
        self.numbers: list[list[tuple[Any, ...]]] = [[] for _ in range(steps)]
        # A recording is many small tuples, none of them in a cycle: looking for cycles would take a tenth of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            with _decoding_once(case.capability_format):
                for lane, program in enumerate(programs):
                    self._execute(case, lane, program)
        finally:
            if collecting:
                gc.enable()

    def _execute(self, case: Case, lane: int, program: Sequence[Operation]) -> None:
        fmt = case.capability_format
        registers = _Registers([capability.null(fmt)] * REGISTER_COUNT)
        store = _Store()
        hart = Hart(Memory(fmt, case.memory_base, case.memory_bytes, store), 0, registers)
        for register in case.roots:
            list.__setitem__(registers, register, capability.root(fmt))
        registers.lane = store.lane = lane
        state, pcs, step_hart = _STATE(hart), [], hart.step
        causes, values = self.cause[lane], self.trap_value[lane]
        for step, (name, operands) in enumerate(program):
            registers.log = rows = self.rows[step]
            store.log = self.granules[step]
            trap = step_hart(name, operands)
            pcs.append(hart.pc)
            if trap is not None:
                causes[step], values[step] = trap.cause.number, trap.value
            now = _STATE(hart)
            if now != state:
                for place, (old, new) in enumerate(zip(state[:_SPECIALS], now, strict=False)):
                    if old is not new:
                        rows.append((lane, REGISTER_COUNT + place, *new[1:]))
                if now[_SPECIALS:] != state[_SPECIALS:]:
                    self.numbers[step].append((lane, *now[_SPECIALS:]))
                state = now
        self.pc[lane] = pcs


class Mirror:
    """The reference's states, one a lane, in arrays like the fast path's: what a recording says, step by step."""

    def __init__(self, case: Case, recording: Recording) -> None:
        lanes, fmt = len(recording.pc), case.capability_format
        self._recording = recording
        self.tags = np.zeros((COMPARED_ROWS, lanes), np.bool_)
        self.metas = np.full((COMPARED_ROWS, lanes), fmt.null_meta, np.uint64)
        self.addresses = np.zeros((COMPARED_ROWS, lanes), np.uint64)
        granules = case.memory_bytes // fmt.capability_bytes
        self.granule_tags = np.zeros((lanes, granules), np.bool_)
        self.halves = np.zeros((lanes, granules, 2), np.uint64)
        self.numbers = {name: np.zeros(lanes, np.uint64) for name in NUMBERS}
        self.numbers["privilege"].fill(Privilege.MACHINE)
        self.is_reserved = np.zeros(lanes, np.bool_)
        self.pc = np.zeros(lanes, np.uint64)
        for row in [*case.roots, *(SPECIAL_ROWS[name] for name, each in SPECIAL_REGISTERS.items() if each.resets_to_root)]:
            self.tags[row], self.metas[row] = True, fmt.root_meta
        self.changed = dict.fromkeys(COMPARISONS, 0)
        """In how many lanes and steps each part of the state was changed by the reference, and so put to the test."""

    def advance(self, step: int) -> None:
        """Go on by one step."""
        recording, changed = self._recording, self.changed
        if recording.rows[step]:
            lanes, rows, tags, metas, addresses = _columns(recording.rows[step])
            rows, lanes = rows.astype(np.intp), lanes.astype(np.intp)
            self.tags[rows, lanes], self.metas[rows, lanes], self.addresses[rows, lanes] = tags, metas, addresses
            merged = int(np.count_nonzero(rows < REGISTER_COUNT))
            changed["registers"] += merged
            changed["special registers"] += len(rows) - merged
        if recording.granules[step]:
            lanes, places, tags, upper, lower = _columns(recording.granules[step])
            places, lanes = places.astype(np.intp), lanes.astype(np.intp)
            self.granule_tags[lanes, places] = tags
            self.halves[lanes, places, 0], self.halves[lanes, places, 1] = lower, upper
            changed["memory"] += len(places)
        if recording.numbers[step]:
            columns = _columns(recording.numbers[step])
            lanes = columns[0].astype(np.intp)
            reserved = self.is_reserved.copy()
            for name, column in zip(NUMBERS, columns[1:-1], strict=True):
                self.numbers[name][lanes] = column
            self.is_reserved[lanes] = columns[-1]
            changed["CSRs"] += len(lanes)
            changed["reservation"] += int(np.count_nonzero(reserved != self.is_reserved))
        self.pc = recording.pc[:, step]
        changed["pc"] += len(self.pc)
        changed["trap"] += int(np.count_nonzero(recording.cause[:, step]))

    def differing(self, machine: BatchMachine, step: int) -> Flags:
        """The lanes whose whole state differs from the fast path's after a step, or what the step came to."""
        return np.asarray(self.parts(machine, step).any(axis=0))

    def parts(self, machine: BatchMachine, step: int) -> Flags:
        """Where each of `COMPARISONS` differs: bool[len(COMPARISONS), lanes]."""
        recording, lanes = self._recording, len(self.pc)
        parts = np.zeros((len(COMPARISONS), lanes), np.bool_)
        wrong = self.tags != machine.tags[:COMPARED_ROWS]
        wrong |= self.metas != machine.metas[:COMPARED_ROWS]
        wrong |= self.addresses != machine.addresses[:COMPARED_ROWS]
        if wrong.any():
            parts[0], parts[1] = wrong[:REGISTER_COUNT].any(axis=0), wrong[REGISTER_COUNT:].any(axis=0)
        for name in _CSRS:
            parts[2] |= self.numbers[name] != machine.numbers[name]
        np.not_equal(self.pc, machine.pc, out=parts[3])
        parts[4] = (self.granule_tags != machine.memory.tags).any(axis=1)
        parts[4] |= (self.halves != machine.memory.halves).any(axis=(1, 2))
        other = self.numbers["reservation"] != machine.numbers["reservation"]
        parts[5] = (self.is_reserved != machine.is_reserved) | self.is_reserved & other
        cause, value = recording.cause[:, step], recording.trap_value[:, step]
        parts[6] = (cause != machine.cause) | (cause != 0) & (value != machine.trap_value)
        return parts


def _columns(rows: list[tuple[Any, ...]]) -> list[Any]:
    """The columns of rows of numbers, as arrays."""
    width = len(rows[0])
    flat = np.fromiter(itertools.chain.from_iterable(rows), np.uint64, width * len(rows))
    return list(flat.reshape(-1, width).T)


def batch_machine(case: Case, lanes: int, block_lanes: int, memory_type: Any = None) -> BatchMachine:
    """The fast path's machine in the case's state at the start."""
    kinds = {} if memory_type is None else {"memory_type": memory_type}
    machine = BatchMachine(case.capability_format, case.memory_base, case.memory_bytes, lanes, block_lanes, **kinds)
    for register in case.roots:
        machine.tags[register], machine.metas[register] = True, case.capability_format.root_meta
    return machine
