"""Programs of shared objects: what passes and what fails, errors of wrong ones, attacks, nothing left unseen."""

from pathlib import Path

import pytest

from capvisor.dsl import guards, orc_watch
from capvisor.dsl.draw import fix
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.guards import length
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.syntax import Violates
from capvisor.dsl.system import constants_of, policy_named
from capvisor.dsl.system_kinds import ORC
from capvisor.dsl.system_runner import SystemVerdict, run_system
from capvisor.model import object_system
from capvisor.spec.object_policy import OBJECT_GUARDS
from capvisor.spec.orc import OPERATIONS, Actor, Operation
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from tests.tutorial import ROOT

TUTORIAL = sorted((ROOT / "programs" / "tutorial_orc").glob("*.cap"))
ATTACKS = sorted((ROOT / ORC.attacks).glob("*.cap"))
UNGUARDED = [path for path in ATTACKS if path.name.endswith(".without.cap")]
STOPPED = [path for path in ATTACKS if path not in UNGUARDED]
SYSTEM = "system orc { tenant alice, bob; object lib { export get; global x = 5; tls x; constant k = 3; const k } }\n"


def name_of(path: Path) -> str:
    return path.name


def verdict_of(text: str, policy=None) -> SystemVerdict:
    program = parse(text, "file.cap")
    return run_system(program, fix(program, {}, 0), policy)


def failure_of(text: str, setup: str = SYSTEM) -> tuple[int, str, str]:
    failure = verdict_of(setup + text).failure
    assert failure is not None
    return failure.line, failure.kind, failure.text


# -- the programs that come along ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*TUTORIAL, *ATTACKS], ids=name_of)
def test_a_program_passes_and_is_formatted(path: Path) -> None:
    text = path.read_text()
    assert print_program(parse(text)) == text
    verdict = verdict_of(text)
    assert verdict.passed, verdict.failure
    assert path in TUTORIAL or verdict.traps + verdict.refusals > 0 or "assert" in text or verdict.violations


@pytest.mark.parametrize("path", UNGUARDED, ids=name_of)
def test_an_attack_that_succeeds_without_a_guard_violates_nothing_with_it(path: Path) -> None:
    verdict = verdict_of(path.read_text(), policy_named("intended", ORC))
    assert not verdict.passed and not verdict.violations


def test_every_attack_has_both_programs_where_a_guard_stops_it_and_every_guard_has_one() -> None:
    assert {path.name[:3] for path in STOPPED if path.name[0] == "b"} == {f"b{number:02}" for number in range(1, 12)}
    alone = {path.stem for path in STOPPED} - {path.name.removesuffix(".without.cap") for path in UNGUARDED}
    assert alone == {"b05_another_thread_pointer", "b09_whether_it_is_there", "b11_all_slots_and_threads"}
    carried = set()
    for path in UNGUARDED:
        program = parse(path.read_text())
        assert program.system is not None and len(program.system.without) == 1
        carried.update(program.system.without)
        assert length(program) <= 10, path
    assert carried == OBJECT_GUARDS.keys()


def test_every_invariant_falls_without_some_guard_but_that_refusals_change_nothing() -> None:
    fallen = set()
    for path in UNGUARDED:
        fallen |= set(next(each.names for each in parse(path.read_text()).statements if isinstance(each, Violates)))
    assert ORC_INVARIANTS.keys() - fallen == {"O7"}


# -- what passes -----------------------------------------------------------------------------------------------------------


def test_a_file_has_the_identity_of_what_its_loader_makes_wherever_it_is_put() -> None:
    text = "alice: load lib, 9\nbase: assert identity[9] == lib.identity\nbob: load lib\n"
    for setup in (SYSTEM, SYSTEM.replace("{ tenant", "{ format cc64; tenant", 1)):
        assert verdict_of(setup + text + "base: assert identity[lib] == lib.identity\n").passed


def test_names_are_worth_what_the_layout_says() -> None:
    found = constants_of(parse(SYSTEM))
    assert (found["alice"], found["bob"], found["bob.home"], found["bob.tls"], found["lib"], found["spare"]) == (
        1,
        2,
        2,
        3,
        4,
        5,
    )
    assert (found["lib.code"], found["lib.ro"], found["lib.data"]) == (64, 48, 16)
    assert (found["lib.x.got"], found["lib.k.got"], found["lib.k"], found["lib.x"], found["lib.get"]) == (64, 80, 96, 112, 0)
    assert (found["lib.base"], found["lib.tls"], found["bob.base"]) == (0x8000_1000, 64, 0x8000_0800)


def test_a_tenants_further_threads_are_numbered_as_they_start() -> None:
    text = "alice: start 8\nalice/2: li x5, 7\nalice: assert x5 == 0\nalice/2: assert x5 == 7 and x10 == alice\n"
    assert verdict_of(SYSTEM + text).passed


def test_any_values_are_drawn_and_may_be_bounded_by_names() -> None:
    text = "let e = any u16 where e > lib.get\nalice: load lib\nalice: map lib\n"
    text += "alice: bind lib, e & 0x3fe | 2 -> refused ENTRY\n"
    assert verdict_of(SYSTEM + text).passed


# -- what fails, and how that is said --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "kind", "message"),
    [
        ("alice: map lib\n", 2, "result", "`alice: map lib`: refused NO_OBJECT, ok expected"),
        ("alice: load lib -> refused FULL\n", 2, "result", "`alice: load lib -> refused FULL`: ok, refused FULL expected"),
        ("alice: allocate lib\nbob: load lib\n", 3, "result", "`bob: load lib`: refused NOT_FREE, ok expected"),
        ("alice: call lib, lib.get\n", 2, "result", "refused NOT_MAPPED, ok expected"),
        ("alice: li x5, 1\nalice: assert x5 == 2\n", 3, "assertion", "x5 = 0x1"),
        ("base: assert owner[2] == alice\n", 2, "assertion", "owner[2] = 0x2, alice = 0x1"),
        ("base: assert memory[0] == 0\n", 2, "agent", "there is no memory at 0x0"),
        ("alice: cld x5, 0(c9)\n", 2, "trap", "TagViolation"),
        ("alice: cld x5, 0(c2) !trap TagViolation\n", 2, "trap", "TagViolation"),
        ("alice/2: li x5, 1\n", 2, "agent", "there is no such thread"),
        ("base: destroy alice\nalice: li x5, 1\n", 3, "agent", "there is no such thread"),
        ("alice: allocate 0 - 1\n", 2, "agent", "-0x1 isn't within 64 bits"),
        ("expect violates O1\nalice: load lib\n", 2, "violation", "O1 (frozen objects) was to be violated, and holds"),
    ],
)
def test_what_goes_wrong_is_named_with_its_place(text: str, line: int, kind: str, message: str) -> None:
    found = failure_of(text)
    assert found[:2] == (line, kind)
    assert message in found[2]


def test_a_shadow_needs_a_free_slot() -> None:
    small = SYSTEM.replace("{ tenant", "{ slots 5; tenant", 1)
    assert failure_of("alice: load lib\nalice: map lib\n", small)[2].endswith("no slot is free for the shadow")


@pytest.mark.parametrize(
    ("guard", "text", "message"),
    [
        ("tls_read_only", "", "`the start of alice` violates O4 (thread-local storage) at alice; c4 = 0x80000400 [rwRW"),
        (
            "caller_from_thread",
            "alice: li x10, bob\nalice: allocate spare\n",
            "`alice: allocate spare` violates O5 (authority in registers) at alice; c11 = 0x80001400 [rwRW",
        ),
        (
            "tls_from_table",
            "alice: load lib\nalice: li x4, bob.base\nalice: map lib\n",
            "(authority in memory) at memory 0x80000840 = 0x80001400 [rwRW,0x80001400-0x80001800], in slot 2, HOME of bob",
        ),
        (
            "mapped_not_collected",
            "alice: load lib\nalice: map lib\nbase: collect lib\n",
            "O8 (identity) at alice; slot 4, FREE",
        ),
        (
            "unmap_not_running",
            "alice: load lib\nalice: map lib\nalice: start 0\nalice/2: call lib, lib.get\nalice: unmap lib\n",
            "O11 (one object at a time) at alice/2; pcc = 0x80001000 [rxR,",
        ),
        (
            "entries_exported",
            "alice: load lib\nalice: map lib\nalice: bind lib, 8\nalice: cmove c11, c5\n",
            "O14 (sealed as made) at alice; c11 = 0x80001008",
        ),
    ],
)
def test_a_violation_names_the_invariant_its_statement_and_the_place(guard: str, text: str, message: str) -> None:
    _line, kind, found = failure_of(text, SYSTEM.replace(" }\n", f"; policy without {guard} }}\n"))
    assert kind == "violation" and message in found


def test_tenants_that_the_base_refuses_are_wrong_input(monkeypatch) -> None:
    program = parse("system orc { tenant alice, bob }\n")
    monkeypatch.setattr("capvisor.dsl.orc_layout.Placed.__new__", lambda cls, _number, *rest: tuple.__new__(cls, (1, *rest)))
    with pytest.raises(ProgramError, match="the base refuses to create `bob`: TAKEN"):
        run_system(program, {})


# -- wrong programs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("carol: load lib", 1, "nobody is called `carol`: there are alice, bob, base"),
        ("alcie: load lib", 1, "nobody is called `alcie`; did you mean `alice`?"),
        ("alice/5: load lib", 1, "a tenant has at most 4 threads, numbered from 1"),
        ("base/2: collect lib", 1, "`base` is one"),
        ("load lib", 1, "say who does that"),
        ("alice: collect lib", 8, "`collect` is for the base: `base: ...`"),
        ("base: load lib", 7, "`load` is for a tenant: `alice: ...`"),
        ("base: li x5, 1", 7, "the base executes no instructions"),
        ("base: assert x5 == 1", 14, "the base has no registers"),
        ("base: collect x5", 15, "the base has no registers"),
        ("alice: leave", 8, "operations have one part"),
        ("alice: submit lib, 64", 8, "`submit` takes `slot, code, ro, data`: 4 operands, found 2"),
        (
            "alice: map",
            8,
            "`map` takes `object, identity, shadow`: 3 operands, of which the last 2 may be left out, found 0",
        ),
        ("alice: map 4", 8, "`map` knows the content of one of the system's objects: there are lib"),
        ("alice: load 4", 8, "`load` takes the file of one of the system's objects: there are lib"),
        ('alice: publish "k"', 16, "`slot` is a number: it can't be text"),
        ("alice: publish 1 == 1", 16, "`slot` needs a number, found a condition"),
        ("alice: publish lob", 16, "`lob` has no value"),
        ("alice: publish lib -> refused FULL", 31, "`publish` is never refused with FULL: only with RANGE, NO_TENANT"),
        ("alice: publish lib -> refused GONE", 31, "unknown code `GONE`"),
        ("alice: publish lib !fault tag", 27, "in a system of kind `orc`, nothing gives a fault"),
        ("alice: cld x5, lib(c4), 1", 8, "an address `0(c1)` is the last operand"),
        ("alice: cld x5, spare.base(c4)", 16, "0x80001400 doesn't fit the immediate of `cld`"),
        ("alice: cld x5, owner[4](c4)", 16, "the immediate of `cld` must be a constant"),
        ("alice: assert owners[4] == 0", 15, "there is no table `owners`; did you mean `owner`?"),
        ("alice: assert owner[4, 5] == 0", 15, "`owner` is by slot: `owner[slot]`"),
        ("let lib = 5", 5, "`lib` can't name a value"),
        ("let v = owner[4]", 9, "a `let` can't read `owner`"),
        ("expect violates O18", 1, "unknown invariant `O18`"),
        ("deployer: destroy alice", 19, "nothing is deployed in a system of kind `orc`"),
        ("expect walk refs 4", 13, "nothing walks in a system of kind `orc`"),
    ],
)
def test_a_wrong_line_is_named_with_its_place(line: str, column: int, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(SYSTEM + line + "\n", "file.cap")
    assert message in caught.value.message
    assert (caught.value.position.line, caught.value.position.column) == (2, column)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a system orc needs someone to act in it: `tenant alice`"),
        ("tenant a, b, c, d, e, f, g, h, i", "there are at most 8 tenants"),
        ("tenant alice, alice", "`alice` is said twice"),
        ("tenant base", "`base` can't name a tenant or object: it is a word of the language"),
        ("tenant sp", "`sp` can't name a tenant or object: it is a register"),
        ("tenant a.b", "`a.b` can't name a tenant or object: it is no plain name"),
        ("tenant alice; object alice { }", "`alice` is said twice"),
        ("alice size 4K", "a tenant is `tenant alice`"),
        ("alice frames 0..7", "a tenant is `tenant alice`"),
        ("tenant alice; frames 4", "a system orc has no number `frames`"),
        ("tenant alice; slots 0", "`slots` is 1 to 64"),
        ("tenant alice; slots 4; slots 4", "`slots` is said twice"),
        ("tenant alice; slots 1", "1 tenant and 0 objects take 2 slots, and there are 1"),
        ("memory 0x1000 size 4K; tenant alice", "a system orc has no `memory`: it is `slots 16`"),
        ("tenant alice; policy without tags", "unknown guard `tags`"),
        ("tenant alice; object lib { size 4 }", "an object has a number `code`, and no `size`"),
        ("tenant alice; object lib { code 2K }", "`code` is less than 0x401"),
        ("tenant alice; object lib { code 1K; global x = 1 }", "`lib` takes 1040 bytes, and a slot has 1024"),
        ("tenant alice; object lib { global x = 1 << 64 }", "`x` is less than"),
        ("tenant alice; object lib { global x = y }", "`y` has no value"),
        ("tenant alice; object lib { export f at 1K }", "`f` is less than 0x400"),
        ("tenant alice; object lib { export f; global f = 1 }", "`f` is said twice"),
        ("tenant alice; object lib { global base = 1 }", "`base` can't name a part of an object: it is a word"),
        ("tenant alice; object lib { global ro = 1 }", "`ro` can't name a part of an object: every object has one"),
        ("tenant alice; object lib { tls x }", "there is no word or export `x`: there are none yet"),
        ("tenant alice; object lib { global x = 1; tls y }", "there is no word or export `y`: there are x"),
        ("tenant alice; object lib { constant x = 1; tls x }", "`tls` is for a name of globals: `x` is none"),
        ("tenant alice; object lib { global x = 1; tls x; obj x }", "`lib` has two entries for one name"),
    ],
)
def test_a_wrong_system_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(f"system orc {{ {text} }}\n")
    assert message in caught.value.message


def test_other_systems_have_no_tenants_and_objects() -> None:
    for text in ("system cvm { alice size 4K; tenant bob }\n", "system tpt { vm0 frames 0..7; object lib { } }\n"):
        with pytest.raises(ProgramError, match="has no tenants and objects: `system"):
            parse(text)


# -- the language ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", OPERATIONS.values(), ids=lambda row: row.name)
def test_every_operation_of_the_table_can_be_written_and_is_performed(row: Operation) -> None:
    agent = "base" if row.actor is Actor.BASE else "alice"
    text = SYSTEM.splitlines()[0] + f"\n{agent}: {row.name} {', '.join('0' for _name in row.operands)}\n"
    program = parse(text)
    assert print_program(program) == text
    assert run_system(program, {}).calls == 1
    for code in row.refusals:
        assert parse(f"{text.rstrip()} -> refused {code.name}\n")


def test_parsing_what_was_printed_gives_the_same_tree() -> None:
    text = (
        "system orc{slots 9;format cc64;tenant alice\ntenant bob;object lib{code 32;export get at 2*4\nglobal x=1+1;tls x;"
        "constant k=7;const k;func get};object none{};policy prototype-0.1.0;policy without tags_cleared}\n"
        "expect violates O1,O2\nalice:load lib,9->refused RANGE # why\nalice/2:map lib,lib.identity+1\n"
        "base:assert owner[ lib ]==bob and memory[lib.base+4]<3\nalice:clc c5,lib.tls(c4)\nbase: create 3,spare,7->ok\n"
    )
    program = parse(text)
    printed = print_program(program)
    assert parse(printed) == program
    assert print_program(parse(printed)) == printed
    assert "  tenant alice, bob\n" in printed and "export get at 2 * 4; global x = 1 + 1; tls x" in printed
    assert "alice:   clc        c5, lib.tls(c4)\n" in printed


# -- that nothing is left unseen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", UNGUARDED[::3], ids=name_of)
def test_the_places_that_are_left_out_violate_nothing(path: Path, monkeypatch) -> None:
    known: set[str] = set()

    class Watch(orc_watch.OrcWatch):
        def violated(self, step):
            found = super().violated(step)
            assert object_system.violated(step) - known <= {each.invariant for each in found}
            known.update(each.invariant for each in found)
            return found

    monkeypatch.setattr("capvisor.dsl.orc_runner.OrcWatch", Watch)
    assert verdict_of(path.read_text()).passed


def test_a_watch_that_looks_at_nothing_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(orc_watch, "places", lambda _step: iter(()))
    assert not verdict_of(UNGUARDED[0].read_text()).passed


@pytest.mark.parametrize("guard", OBJECT_GUARDS)
def test_looking_at_the_steps_that_differ_finds_what_looking_at_all_does(guard: str) -> None:
    program = parse((ROOT / ORC.attacks / "b01_changed_after_verification.cap").read_text())
    watch = orc_watch.OrcWatch()
    assert guards.violated(program, ORC.intended, watch) == ()
    off = ORC.switched_off(ORC.intended, (guard,))
    assert guards.violated(program, off, orc_watch.OrcWatch(watch.taken)) == guards.violated(program, off)
