"""Golden instruction traces: both implementations do as they tell; files are read, written and refused as they should be."""

import gzip
import json
from dataclasses import replace

import pytest

from capvisor.conformance.generate_traces import generate_traces
from capvisor.conformance.machines import FastMachines, ReferenceMachine
from capvisor.conformance.replay import KINDS, capability_of, replay
from capvisor.conformance.traces import (
    READ,
    WRITE,
    DataAccess,
    Program,
    Step,
    TagAccess,
    TraceFile,
    TraceFileError,
    read,
    render,
    write,
)
from capvisor.dsl.states import describe
from capvisor.spec.formats import CC64, CC128, FORMATS
from capvisor.spec.operations import Group
from tests.quality.test_seeded_bugs import mutated
from tests.tutorial import ROOT

VECTORS = ROOT / "tests" / "vectors"
GOLDEN = [VECTORS / "rv64-xcheri-traces.jsonl.gz", VECTORS / "rv32-xcheri-traces.jsonl.gz"]
IMPLEMENTATIONS = ("reference", "fast")
by_file = pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name[:4])


@pytest.fixture(scope="module")
def golden() -> TraceFile:
    return read(GOLDEN[0])


def alone(file: TraceFile, program: Program) -> TraceFile:
    return TraceFile(file.name, file.format, (program,))


@by_file
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_every_golden_step_is_replayed(path, implementation: str) -> None:
    result = replay(read(path), implementation)
    assert (result.programs, result.failed, result.first) == (40, 0, None)
    assert result.steps > 3000 and result.comparisons > 10 * result.steps


@by_file
def test_every_kind_of_value_is_compared(path) -> None:
    file = read(path)
    compared = [replay(file, implementation).compared for implementation in IMPLEMENTATIONS]
    assert compared[0] == compared[1] and tuple(compared[0]) == KINDS
    assert all(compared[0].values()), compared[0]
    assert compared[0]["pc"] == file.steps and compared[0]["memory at the end"] == 40


@by_file
def test_what_the_reference_does_is_rendered_as_the_golden_file_byte_for_byte(path) -> None:
    file, lines = read(path), gzip.decompress(path.read_bytes()).decode().splitlines()
    for program, line in zip(file.programs, lines, strict=True):
        machine = ReferenceMachine(file.format)
        assert render(file.format, tuple(machine.step(step.word).step for step in program)) == line


@by_file
def test_what_is_written_is_read_again(path, tmp_path) -> None:
    file = read(path)
    for suffix in (".jsonl", ".jsonl.gz"):
        write(tmp_path / f"mine{suffix}", file.format, file.programs)
        assert read(tmp_path / f"mine{suffix}", file.format.name).programs == file.programs
    assert (tmp_path / "mine.jsonl").read_bytes() == gzip.decompress(path.read_bytes())


# -- what is noticed -------------------------------------------------------------------------------------------------------


def changed_step(program: Program, index: int, **values: object) -> Program:
    return (*program[:index], replace(program[index], **values), *program[index + 1 :])


def first_step(program: Program, wanted) -> int:
    return next(index for index, step in enumerate(program) if wanted(step))


def with_field(field: str, change):
    """A change of one field of a register that some step writes."""

    def changed(program: Program) -> Program:
        index = first_step(program, lambda step: 2 in step.registers and step.registers[2].tag)
        value = program[index].registers[2]
        return changed_step(program, index, registers={2: value._replace(**{field: change(getattr(value, field))})})

    return changed


def with_data(direction: str):
    def changed(program: Program) -> Program:
        index = first_step(program, lambda step: step.data and step.data[0].direction == direction)
        access = program[index].data[0]
        return changed_step(program, index, data=(access._replace(value=access.value ^ 1), *program[index].data[1:]))

    return changed


def with_tag(direction: str):
    def changed(program: Program) -> Program:
        index = first_step(program, lambda step: step.tags and step.tags[0].direction == direction)
        access = program[index].tags[0]
        return changed_step(program, index, tags=(access._replace(tag=not access.tag), *program[index].tags[1:]))

    return changed


def with_read_register(bit: int, position: int):
    """Another mcause or mtval, as the CSRRS behind a refused step reads it."""

    def changed(program: Program) -> Program:
        index = first_step(program, lambda step: step.trapped and step.assembly is not None) + position
        (number,) = program[index].registers
        value = program[index].registers[number]
        return changed_step(program, index, registers={number: value._replace(address=value.address ^ bit)})

    return changed


CHANGES = {
    "pc": (lambda program: changed_step(program, 5, pc=program[5].pc + 4), "pc"),
    "next pc": (lambda program: changed_step(program, 5, next_pc=program[5].next_pc + 4), "next pc"),
    "trap": (lambda program: changed_step(program, 5, trapped=True), "refused"),
    "fetch": (lambda program: changed_step(program, 5, trapped=True, assembly=None), "refused at its fetch"),
    "mtval": (with_read_register(1 << 5, 1), "mtval"),
    "mcause": (with_read_register(1, 2), "mcause"),
    "another register": (
        lambda program: changed_step(program, 0, registers={3: program[0].registers[9], **program[0].registers}),
        "x3 tag",
    ),
    "untold register": (lambda program: changed_step(program, 0, registers={}), "registers written"),
    "tag": (with_field("tag", lambda value: not value), "x2 tag"),
    "sealed": (with_field("sealed", lambda value: not value), "x2 sealed"),
    "permissions": (with_field("permissions", lambda value: value ^ 4), "x2 permissions"),
    "otype": (with_field("otype", lambda value: value ^ 1), "x2 otype"),
    "address": (with_field("address", lambda value: value ^ 1), "x2 address"),
    "base": (with_field("base", lambda value: value ^ 1), "x2 base"),
    "length": (with_field("length", lambda value: value ^ 1), "x2 length"),
    "data read": (with_data(READ), "data read"),
    "data written": (with_data(WRITE), "data written"),
    "tag read": (with_tag(READ), "tag read"),
    "tag written": (with_tag(WRITE), "tag written"),
    "no write": (
        lambda program: changed_step(program, 5, data=(DataAccess(WRITE, 0x8000_0000, 1, 5),)),
        "data written",
    ),
    "outside memory": (lambda program: changed_step(program, 5, data=(DataAccess(READ, 0, 8, 0),)), "data read"),
    "tag outside memory": (lambda program: changed_step(program, 5, tags=(TagAccess(READ, 0, False),)), "tag read"),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES)
def test_a_trace_that_tells_otherwise_is_noticed(golden: TraceFile, implementation: str, change, name: str) -> None:
    program = next(
        program
        for program in golden.programs
        if {READ, WRITE} <= {access.direction for step in program for access in step.tags}
        and any(step.trapped and step.assembly is not None for step in program)
    )
    assert replay(alone(golden, program), implementation).failed == 0
    result = replay(alone(golden, change(program)), implementation)
    # The fast path can't tell whether a register was written with what it held.
    if (name, implementation) == ("x3 tag", "reference"):
        name = "registers written"
    assert name in {difference.name for difference in result.first.differences}
    assert result.failed == 1 and result.first.step == len(result.first.prefix)


def test_an_access_that_a_trace_does_not_tell_is_noticed(golden: TraceFile) -> None:
    def stores(step: Step) -> bool:
        return bool(step.data) and step.data[0].direction == WRITE and step.data[0].value != 0

    program = next(program for program in golden.programs if any(map(stores, program)))
    index = first_step(program, stores)
    silent = changed_step(program, index, data=(), tags=())[: index + 1]
    at_once = replay(alone(golden, silent), "reference").first
    assert {difference.name for difference in at_once.differences} == {"data written", "tag written"}
    # The fast path doesn't record accesses: it is memory as a whole that shows them.
    (difference,) = replay(alone(golden, silent), "fast").first.differences
    assert difference.name == f"memory at {program[index].data[0].address & ~15:#x}"


def test_programs_fail_one_by_one_and_the_first_is_shown(golden: TraceFile) -> None:
    programs = list(golden.programs)
    for number in (7, 3):
        programs[number] = changed_step(programs[number], 9, next_pc=0)
    for implementation in IMPLEMENTATIONS:
        result = replay(replace(golden, programs=tuple(programs)), implementation)
        assert (result.failed, result.first.program, result.first.step) == (2, 4, 10)
        assert result.first.shortest is None  # both do the same


BUGS = [
    (
        "model.memory",
        "self.store.set(index, Granule(False,",
        "self.store.set(index, Granule(True,",
        "reference",
        "tag written",
    ),
    ("model.isa.arithmetic", "hart.capability(cs1).with_tag(False)", "hart.capability(cs1)", "reference", "tag"),
    ("model.machine", "self.mtcc.address & self.format", "self.mtcc.address + 4 & self.format", "reference", "next pc"),
    ("fastpath.isa.memory", "np.logical_and(loaded.tag, may_load, out=loaded.tag)", "loaded.tag.fill(False)", "fast", "tag"),
]


@pytest.mark.parametrize(
    ("module", "before", "after", "implementation", "name"), BUGS, ids=[f"{b[0]}: {b[2]}" for b in BUGS]
)
def test_a_seeded_bug_is_found_and_shown_short(module, before, after, implementation, name, golden: TraceFile) -> None:
    with mutated(module, before, after):
        found, other = (replay(golden, each) for each in (implementation, {"fast": "reference"}.get(implementation, "fast")))
    assert found.failed > 0 and other.failed == 0
    assert any(difference.name.endswith(name) for difference in found.first.differences)
    assert len(found.first.prefix) == found.first.step
    assert 0 < len(found.first.shortest) <= 10 and found.first.shortest[-1] == found.first.prefix[-1]
    assert replay(golden, implementation).failed == 0


def test_capabilities_of_a_trace_are_decoded(golden: TraceFile) -> None:
    machine = ReferenceMachine(CC128)
    for step in golden.programs[0]:
        machine.step(step.word)
        for number, value in step.registers.items():
            cap = capability_of(CC128, value)
            assert cap is not None and describe(cap) == describe(machine.capability(number))
    assert capability_of(CC128, value._replace(base=1, length=1 << 60)) is None


# -- words, and machines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_a_word_that_encodes_nothing_is_an_illegal_instruction(fmt) -> None:
    machine = ReferenceMachine(fmt)
    observed = machine.step(0)
    assert observed.step.trapped and (observed.mcause, observed.mtval, observed.step.next_pc) == (2, 0, 0)
    assert observed.step.assembly == "illegal 0x00000000"
    assert FastMachines(fmt, 1).step({0: observed.step})[0] == observed
    for implementation in IMPLEMENTATIONS:
        assert replay(TraceFile("one", fmt, ((observed.step,),)), implementation).failed == 0


def test_a_pc_outside_memory_is_no_matter_for_injection(golden: TraceFile) -> None:
    assert any(step.pc < 0x8000_0000 and not step.trapped for program in golden.programs for step in program)


def test_lanes_whose_program_has_ended_disturb_nothing(golden: TraceFile) -> None:
    short = golden.programs[0][:3]
    file = replace(golden, programs=(short, golden.programs[1], short))
    assert replay(file, "fast").failed == 0


# -- making ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_what_is_generated_conforms_and_reaches_everything(fmt) -> None:
    programs = tuple(generate_traces(fmt, 60, 1))
    steps = [step for program in programs for step in program]
    for implementation in IMPLEMENTATIONS:
        result = replay(TraceFile("mine", fmt, programs), implementation)
        assert result.failed == 0 and all(result.compared.values()), result
    assert 0.01 < sum(step.trapped for step in steps) / len(steps) < 0.15
    mnemonics = {step.assembly.split()[0] for step in steps if step.assembly}
    assert {"cgethigh", "cinvoke", "cseal", "sc.cap", "lc.cap", "lw.ddc", "mret", "cclear"} <= mnemonics
    for program in programs:
        assert [step.assembly and step.assembly.split()[0] for step in program[-16:]] in (
            [None] * 16,
            ["cgethigh", "cgettag"] * 8,
        )


def test_generation_depends_on_the_seed_alone() -> None:
    first, again, other = (list(generate_traces(CC64, 3, seed)) for seed in (7, 7, 8))
    assert first == again != other
    assert list(generate_traces(CC64, 5, 7))[:3] == first


def test_the_groups_that_are_drawn_are_all_there_are() -> None:
    from capvisor.conformance import generate_traces as module

    assert set(module._GROUPS) == set(Group)


# -- files that can't be used ----------------------------------------------------------------------------------------------

STEP = json.loads(gzip.decompress(GOLDEN[0].read_bytes()).split(b"\n")[0])[0]


def step_text(**changes: object) -> str:
    """A file of one program of two steps, the second one changed."""
    return json.dumps([STEP, {**STEP, **changes}])


def register_text(**changes: object) -> str:
    return step_text(reg={"x9": {**STEP["reg"]["x9"], **changes}})


WRONG = [
    ("", "no programs: the file is empty"),
    ("{", ":1: not JSON: "),
    ("[]\n", ":1: a program without steps"),
    ("{}\n", ":1: expected a JSON list of steps, found an object"),
    (json.dumps([STEP]) + "\n\n" + json.dumps([STEP]), ":2: not JSON: Expecting value at column 1"),
    ("[" * 100_000, ":1: not a list of steps: nested too deeply"),
    ("9" * 5000, ":1: "),
    ("[1]", ":1: step 1: a step: expected an object, found a number"),
    (step_text(more=1), ":1: step 2: a step has the wrong keys: unknown `more`"),
    ('[{"pc":"0x0"}]', ":1: step 1: a step has the wrong keys: missing `insn`, `asm`, `reg`, `mem`, `tags`, `npc`, `trap`"),
    ('[{"pc":"0x0","pc":"0x0"}]', ":1: the key `pc` is there twice"),
    (step_text(pc=5), ":1: step 2: pc: expected text such as 0x1F, found a number"),
    (step_text(pc="80000000"), "pc: `80000000` is no number such as 0x1F"),
    (step_text(pc="0x8000000g"), "pc: `0x8000000g` is no number such as 0x1F"),
    (step_text(pc="0x-1"), "pc: `0x-1` is no number such as 0x1F"),
    (step_text(pc="0x"), "pc: `0x` is no number such as 0x1F"),
    (step_text(npc="0x10000000000000000"), "npc: 0x10000000000000000 is too large for this machine"),
    (step_text(insn="0x100000000"), "insn: 0x100000000 is too large"),
    (step_text(asm=5), "asm: expected text or null, found a number"),
    (step_text(asm=None), "asm: null means that the instruction wasn't fetched, but trap is 0"),
    (step_text(trap=2), "trap: expected 0 or 1"),
    (step_text(trap=True), "trap: expected 0 or 1"),
    (step_text(reg=[]), "reg: expected an object, found a list"),
    (step_text(reg={"x0": STEP["reg"]["x9"]}), "reg: `x0` is no register that can be written: they are x1 to x31"),
    (step_text(reg={"x9": 5}), "reg x9: expected an object, found a number"),
    (register_text(flags="0x0"), "reg x9 has the wrong keys: unknown `flags`"),
    (register_text(tag="1"), "reg x9 tag: expected 0 or 1"),
    (register_text(perms="0x80000"), "reg x9 perms: 0x80000 is too large"),
    (register_text(length="0x20000000000000000"), "reg x9 length: 0x20000000000000000 is too large"),
    (step_text(mem="none"), "mem: expected a list, found text"),
    (step_text(mem=[["<", "0x0", "0x00"]]), 'mem: expected ["->" or "<-", address, value]'),
    (step_text(mem=[["->", "0x80000000", "0x000"]]), "mem value: 0x000 has 3 digits: expected two a byte"),
    (step_text(mem=[["->", "0x80000000", "0x000000"]]), "mem value: 0x000000 has 6 digits"),
    (step_text(mem=[["->", "0x80000000", "0x" + "0" * 64]]), "mem value: 0x"),
    (step_text(tags=[["->", "0x80000008", "0"]]), "tags: 0x80000008 isn't where a granule of 16 bytes begins"),
    (step_text(tags=[["->", "0x80000000", 0]]), 'tags: expected the tag as "0" or "1"'),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message[:60] for _, message in WRONG])
def test_a_wrong_file_is_refused_with_its_place(text: str, message: str, tmp_path) -> None:
    path = tmp_path / "rv64-wrong.jsonl"
    path.write_text(text)
    with pytest.raises(TraceFileError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


def test_damaged_and_missing_files_are_refused(tmp_path) -> None:
    path, whole = tmp_path / "rv64.jsonl.gz", GOLDEN[0].read_bytes()
    for length, message in (
        (0, "empty"),
        (20, "truncated gzip file"),
        (len(whole) // 2, "truncated"),
        (len(whole) - 1, "trunc"),
    ):
        path.write_bytes(whole[:length])
        with pytest.raises(TraceFileError, match=message):
            read(path)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for content in (bytes(damaged), b"[]\n", whole + b"more"):
        path.write_bytes(content)
        with pytest.raises(TraceFileError, match="damaged"):
            read(path)
    (tmp_path / "rv64.jsonl").write_bytes(whole)
    with pytest.raises(TraceFileError, match="not a text file"):
        read(tmp_path / "rv64.jsonl")
    with pytest.raises(TraceFileError, match="no such file"):
        read(tmp_path / "rv32.jsonl")
    with pytest.raises(TraceFileError, match=r"of which machine .* rv64\.\.\. or rv32\.\.\.,? or say --format"):
        read(tmp_path / "mine.jsonl")
