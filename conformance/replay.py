"""Replaying golden traces on an implementation, and holding everything it does against what they tell."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from capvisor.conformance.machines import FastMachines, Observation, ReferenceMachine
from capvisor.conformance.shorten import shortest_difference
from capvisor.conformance.traces import START, WRITE, Program, RegisterValue, Step, TraceFile
from capvisor.dsl.states import describe
from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.memory import EMPTY, Granule
from capvisor.spec.encodings import decode
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.operations import OPERATIONS, Mode
from capvisor.spec.registers import STATUS_NUMBERS

LANES = 64
"""Programs that the fast path replays at once: with 8 MiB each up to 1.1 GB of addresses; what isn't touched takes none."""

KINDS = (
    *("pc", "next pc", "trap", "fetch refused", "mcause", "mtval", "registers written"),
    *(f"register {field}" for field in RegisterValue._fields),
    *("data read", "data written", "tag read", "tag written", "memory at the end"),
)
"""What is compared, in the order in which differences are told."""

CauseAndValue = tuple[int | None, int | None]


@dataclass(frozen=True)
class Difference:
    """One value that isn't as a trace tells it, both as text; None stands for nothing at all."""

    name: str
    expected: str | None
    actual: str | None


@dataclass(frozen=True)
class TraceMismatch:
    """The first step at which an implementation does otherwise than a file's traces tell; numbers count from 1.

    `prefix` has word and mode of every step up to that one; a word that wasn't fetched is None. `shortest` are those of its
    steps after which the two implementations still differ from each other, or None if they don't. `before` describes the
    registers that the instruction names, `decoded` the capabilities of registers that differ, by who has them.
    """

    program: int
    step: int
    differences: tuple[Difference, ...]
    before: dict[str, str]
    decoded: dict[str, str]
    prefix: tuple[tuple[int | None, Mode], ...]
    shortest: tuple[tuple[int | None, Mode], ...] | None


@dataclass(frozen=True)
class TraceResult:
    """How an implementation did on one file of traces.

    A program is replayed up to its first step that differs: `failed` counts such steps, one a program. `compared` counts the
    values that were compared by kind, each of `KINDS`.
    """

    file: str
    format: str
    implementation: str
    steps: int
    programs: int
    failed: int
    compared: dict[str, int]
    first: TraceMismatch | None

    @property
    def comparisons(self) -> int:
        return sum(self.compared.values())


def replay(file: TraceFile, implementation: str) -> TraceResult:
    """Replay a file's programs on one implementation, "reference" or "fast", and compare every step."""
    compared: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
    failures = dict(sorted(_REPLAYS[implementation](file, compared)))
    first = None
    if failures:
        number, (index, differences) = next(iter(failures.items()))
        first = _mismatch(file, implementation, number, index, differences)
    return TraceResult(
        file.name, file.format.name, implementation, file.steps, len(file.programs), len(failures), dict(compared), first
    )


Failure = tuple[int, tuple[int, list[Difference]]]
"""A program's index, and the index of the step at which it fails with what differs."""


def _replay_reference(file: TraceFile, compared: Counter[str]) -> Iterator[Failure]:
    for number, program in enumerate(file.programs):
        machine, told = ReferenceMachine(file.format), ToldMemory(file.format)
        for index, step in enumerate(program):
            observed = machine.step(step.word)
            told.apply(step)
            found = compare(step, observed, announced(file.format, program, index), compared)
            if not found and index + 1 == len(program):
                found = compare_memory(file.format, told.granules(), machine.granules(), compared)
            if found:
                yield number, (index, found)
                break


def _replay_fast(file: TraceFile, compared: Counter[str]) -> Iterator[Failure]:
    for start in range(0, len(file.programs), LANES):
        programs = file.programs[start : start + LANES]
        machines = FastMachines(file.format, len(programs))
        told = [ToldMemory(file.format) for _ in programs]
        failed: set[int] = set()
        for index in range(max(map(len, programs))):
            expected = {
                lane: program[index] for lane, program in enumerate(programs) if index < len(program) and lane not in failed
            }
            for lane, observed in machines.step(expected).items():
                program, step = programs[lane], expected[lane]
                told[lane].apply(step)
                found = compare(step, observed, announced(file.format, program, index), compared)
                if not found and index + 1 == len(program):
                    found = compare_memory(file.format, told[lane].granules(), machines.granules(lane), compared)
                if found:
                    failed.add(lane)
                    yield start + lane, (index, found)


_REPLAYS: dict[str, Callable[[TraceFile, Counter[str]], Iterator[Failure]]] = {
    "reference": _replay_reference,
    "fast": _replay_fast,
}

# -- what a trace tells of later steps, and of memory as a whole -----------------------------------------------------------


def announced(fmt: CapabilityFormat, program: Program, index: int) -> CauseAndValue:
    """mcause and mtval after a refused step, as the CSRRS that follow it at once read them; None where none does."""
    read: dict[int, int] = {}
    if program[index].trapped:
        for step in program[index + 1 : index + 3]:
            found = decode(step.word, fmt.address_width, Mode.INTEGER)
            if step.trapped or found is None or found[0] != "csrrs" or found[1][2] != 0:
                break
            destination, status_register, _source = found[1]
            if destination in step.registers:
                read[status_register] = step.registers[destination].address
    return read.get(STATUS_NUMBERS["mcause"]), read.get(STATUS_NUMBERS["mtval"])


class ToldMemory:
    """Memory as the writes that a trace tells leave it."""

    def __init__(self, fmt: CapabilityFormat) -> None:
        self.format = fmt
        self._bytes: dict[int, int] = {}
        self._tagged: set[int] = set()

    def apply(self, step: Step) -> None:
        """Do a step's writes."""
        for access in step.data:
            if access.direction == WRITE:
                for place, byte in enumerate(access.value.to_bytes(access.size_bytes, "little")):
                    self._bytes[access.address + place] = byte
        for each in step.tags:
            if each.direction == WRITE:
                (self._tagged.add if each.tag else self._tagged.discard)(each.address)

    def granules(self) -> dict[int, Granule]:
        """The granules that aren't empty, by index."""
        size, width = self.format.capability_bytes, self.format.address_width
        words: dict[int, int] = dict.fromkeys(((address - START) // size for address in self._tagged), 0)
        for address, byte in self._bytes.items():
            index, place = divmod(address - START, size)
            words[index] = words.get(index, 0) | byte << 8 * place
        found = {
            index: Granule(START + index * size in self._tagged, word >> width, word & self.format.address_mask)
            for index, word in words.items()
        }
        return {index: granule for index, granule in found.items() if granule != EMPTY}


# -- comparing -------------------------------------------------------------------------------------------------------------


def compare(expected: Step, observed: Observation, cause: CauseAndValue, compared: Counter[str]) -> list[Difference]:
    """What an implementation did otherwise in one step than a trace tells."""
    found: list[Difference] = []

    def check(kind: str, name: str, wanted: object, done: object, form: Callable[[object], str] = str) -> None:
        compared[kind] += 1
        if wanted != done:
            found.append(Difference(name, *(None if value is None else form(value) for value in (wanted, done))))

    actual = observed.step
    check("pc", "pc", expected.pc, actual.pc, _hex)
    check("next pc", "next pc", expected.next_pc, actual.next_pc, _hex)
    check("trap", "refused", expected.trapped, actual.trapped, _yes_or_no)
    if expected.assembly is None:
        check("fetch refused", "refused at its fetch", True, actual.assembly is None, _yes_or_no)
    for name, wanted, done in zip(("mcause", "mtval"), cause, (observed.mcause, observed.mtval), strict=True):
        if wanted is not None:
            check(name, name, wanted, done, _hex)
    check("registers written", "registers written", set(expected.registers), set(actual.registers), _register_names)
    for number in expected.registers.keys() & actual.registers.keys():
        pairs = zip(RegisterValue._fields, expected.registers[number], actual.registers[number], strict=True)
        for field, wanted, done in pairs:
            check(f"register {field}", f"x{number} {field}", wanted, done, _hex)
    for what, all_wanted, all_done in (("data", expected.data, actual.data), ("tag", expected.tags, actual.tags)):
        for place in range(max(len(all_wanted), len(all_done))):
            wanted_access, access = (each[place] if place < len(each) else None for each in (all_wanted, all_done))
            present = wanted_access or access
            assert present is not None
            action = "written" if present.direction == WRITE else "read"
            check(f"{what} {action}", f"{what} {action}", wanted_access, access, _access)
    return found


def compare_memory(
    fmt: CapabilityFormat, told: dict[int, Granule], held: dict[int, Granule], compared: Counter[str]
) -> list[Difference]:
    """Where memory as a whole isn't what a program's writes have made of it. It counts as one value."""
    compared["memory at the end"] += 1
    found = []
    for index in sorted(told.keys() | held.keys()):
        wanted, granule = told.get(index, EMPTY), held.get(index, EMPTY)
        if wanted != granule:
            address = START + index * fmt.capability_bytes
            texts = (
                describe(capability.from_memory(fmt, tag, upper, lower)) + f" upper half {upper:#x}"
                for tag, upper, lower in (wanted, granule)
            )
            found.append(Difference(f"memory at {address:#x}", *texts))
    return found


def _hex(value: object) -> str:
    assert isinstance(value, int)
    return hex(value)


def _yes_or_no(value: object) -> str:
    return "yes" if value else "no"


def _register_names(numbers: object) -> str:
    assert isinstance(numbers, set)
    return ", ".join(f"x{number}" for number in sorted(numbers)) or "none"


def _access(access: object) -> str:
    assert isinstance(access, tuple)
    address, *size, value = access[1:]
    return f"{hex(value)} at {address:#x}" + "".join(f", {bytes_} bytes" for bytes_ in size)


# -- explaining ------------------------------------------------------------------------------------------------------------


def _mismatch(file: TraceFile, implementation: str, number: int, index: int, differences: list[Difference]) -> TraceMismatch:
    """Replay a program once more up to the step that fails, and tell all about it."""
    fmt, steps = file.format, file.programs[number][: index + 1]
    modes, before, after = _watch(fmt, implementation, steps)
    prefix = tuple((None if step.assembly is None else step.word, mode) for step, mode in zip(steps, modes, strict=True))
    decoded = {}
    for register, value in steps[-1].registers.items():
        if any(difference.name.startswith(f"x{register} ") for difference in differences):
            told = capability_of(fmt, value)
            decoded[f"c{register} expected"] = "no capability that can be derived" if told is None else describe(told)
            decoded[f"c{register} replayed"] = describe(after[register])
    shortest = shortest_difference(fmt, [step.word for step in steps])
    return TraceMismatch(
        number + 1,
        index + 1,
        tuple(differences),
        {f"c{register}": describe(before[register]) for register in _named(fmt, steps[-1], modes[-1])},
        decoded,
        prefix,
        None if shortest is None else tuple(prefix[place] for place in shortest),
    )


def _watch(
    fmt: CapabilityFormat, implementation: str, steps: Program
) -> tuple[list[Mode], list[Capability], list[Capability]]:
    """The mode before each step, and all registers before and after the last."""
    modes, before, after = [], [], []
    reference, fast = ReferenceMachine(fmt), FastMachines(fmt, 1)
    for step in steps:
        if implementation == "reference":
            modes.append(reference.mode)
            before = list(reference.registers)
            reference.step(step.word)
            after = list(reference.registers)
        else:
            modes.append(fast.mode(0))
            before = [fast.capability(register, 0) for register in range(32)]
            fast.step({0: step})
            after = [fast.capability(register, 0) for register in range(32)]
    return modes, before, after


def _named(fmt: CapabilityFormat, step: Step, mode: Mode) -> list[int]:
    """The registers that an instruction reads, by number."""
    found = decode(step.word, fmt.address_width, mode) if step.assembly is not None else None
    if found is None:
        return []
    name, numbers = found
    kinds = OPERATIONS[name].operands
    sources = [
        value for kind, value in zip(kinds, numbers, strict=True) if kind.is_register and not kind.is_destination and value
    ]
    return sorted(set(sources))


def capability_of(fmt: CapabilityFormat, value: RegisterValue) -> Capability | None:
    """A capability of which a trace would tell this, flags aside; None where no bounds can be encoded so."""
    whole, _exact = capability.set_bounds(capability.root(fmt, value.base), value.length)
    cap = capability.set_otype(capability.set_permissions(whole, value.permissions), value.otype)
    cap = Capability(fmt, value.tag, cap.meta, value.address)
    base, top = cap.bounds
    return cap if (base, top - base) == (value.base, value.length) else None
