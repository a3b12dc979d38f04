"""Programs of systems: what passes and what fails, the errors of wrong ones, attacks, and that nothing is left unseen."""

import contextlib
from pathlib import Path

import pytest

from capvisor.dsl import cvm_layout, cvm_watch, system
from capvisor.dsl.cvm_watch import InvariantWatch, every_place
from capvisor.dsl.draw import fix
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.system_kinds import CVM
from capvisor.dsl.system_runner import SystemVerdict, run_system
from capvisor.model.monitor import CALL_RULES, Monitor
from capvisor.spec.cvm import CALLS, CALLS_BY_NUMBER, ArgumentKind, Call, Code
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.policy import INTENDED, POLICIES
from tests.tutorial import ROOT

TUTORIAL = sorted((ROOT / "programs" / "tutorial_cvm").glob("*.cap"))
ATTACKS = sorted((ROOT / "programs" / "attacks" / "cvm").glob("*.cap"))
UNGUARDED = [path for path in ATTACKS if path.name.endswith(".without.cap")]
STOPPED = [path for path in ATTACKS if path not in UNGUARDED]
SYSTEM = "system cvm { alice size 4K; bob size 4K }\n"
PROBED = (
    'alice: file_advertise "k", 0x100, 256\nbob: file_probe "k", 0x40\nbob: li x6, bob.base + 0x40\nbob: lc.ddc c5, (x6)\n'
)


def name_of(path: Path) -> str:
    return path.name


def verdict_of(text: str, seed: int = 0, policy=None) -> SystemVerdict:
    program = parse(text, "file.cap")
    return run_system(program, fix(program, {}, seed), policy)


def failure_of(text: str, setup: str = SYSTEM) -> tuple[int, str, str]:
    failure = verdict_of(setup + text).failure
    assert failure is not None
    return failure.line, failure.kind, failure.text


# -- the programs that come along ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*TUTORIAL, *ATTACKS], ids=name_of)
def test_a_program_passes_and_is_formatted(path: Path) -> None:
    text = path.read_text()
    assert print_program(parse(text)) == text
    for seed in range(2):
        verdict = verdict_of(text, seed)
        assert verdict.passed, verdict.failure
        assert verdict.operations > 0


@pytest.mark.parametrize("path", STOPPED, ids=name_of)
def test_an_attack_is_stopped_under_the_intended_policy(path: Path) -> None:
    verdict = verdict_of(path.read_text(), policy=("intended", INTENDED))
    assert verdict.passed and not verdict.violations
    text = path.read_text()
    assert verdict.traps + verdict.refusals > 0 or "assert" in text or "-> refused" in text


@pytest.mark.parametrize("path", UNGUARDED, ids=name_of)
def test_an_attack_that_succeeds_without_a_guard_violates_nothing_with_it(path: Path) -> None:
    assert verdict_of(path.read_text()).violations
    with contextlib.suppress(ProgramError):  # the monitor may refuse to create what the system has at the start
        verdict = verdict_of(path.read_text(), policy=("intended", INTENDED))
        assert not verdict.passed and not verdict.violations


def test_there_are_fifteen_attacks_and_eleven_of_them_are_carried_by_a_guard() -> None:
    assert [path.name[:3] for path in STOPPED if path.name.startswith("a")] == [f"a{number:02}" for number in range(1, 16)]
    assert [path.name[:3] for path in UNGUARDED if path.name.startswith("a")] == [f"a{number:02}" for number in range(4, 15)]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_program_can_be_run_under_every_policy(policy: str) -> None:
    for path in TUTORIAL:
        verdict_of(path.read_text(), policy=system.policy_named(policy, CVM))


# -- what fails, and how that is said --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "kind", "message"),
    [
        ("bob: li x5, alice.base\nbob: ld.ddc x6, (x5)\n", 3, "trap", "LengthViolation, no trap expected"),
        ("bob: li x5, bob.base\nbob: ld.ddc x6, (x5) !trap TagViolation\n", 3, "trap", "completed, TagViolation expected"),
        ('bob: file_revoke "k"\n', 2, "result", '`bob: file_revoke "k"`: refused NOT_FOUND, ok expected'),
        ("bob: host_time 8 -> refused RANGE\n", 2, "result", "ok, refused RANGE expected"),
        ("bob: li x5, 7\nbob: assert x5 == bob.base\n", 3, "assertion", "x5 = 0x7, bob.base = 0x80001000"),
        ("bob/2: li x5, 1\n", 2, "agent", "there is no such thread (yet)"),
        ("bob: leave\n", 2, "agent", "the thread isn't in the monitor"),
        ("bob: enter host_time 8\nbob: li x5, 1\n", 3, "agent", "the thread is in the monitor: `leave` comes first"),
        ("bob: thread_exit\nbob: li x5, 1\n", 3, "agent", "the thread has ended"),
        ("bob: enter alice\n", 2, "agent", "doesn't run for a cVM nested in `alice`"),
        ("bob: li x6, bob.store + 0x20\nbob: sd.ddc x0, (x6)\nbob: host_time 8\n", 4, "agent", "`cinvoke c28, c29`: TagVi"),
        ("deployer: destroy bob\nbob: li x5, 1\n", 3, "agent", "the thread has ended"),
        ("deployer: create carol size 4K at bob.base\n", 2, "result", "refused RANGE, ok expected"),
        ("expect violates C8\nbob: li x5, 1\n", 2, "violation", "C8 (revocation) was to be violated, and holds"),
        ('alice: portal_advertise "p", 0\nbob: portal_probe "p"\nbob: cmove c20, c11\nbob: portal_call c20, 0, 64\n'
         "bob: wait c20\nbob: li x5, 1\n", 7, "agent", "the thread waits for a call to be over"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_named_with_its_place(text: str, line: int, kind: str, message: str) -> None:
    found = failure_of(text)
    assert found[:2] == (line, kind)
    assert message in found[2]


def test_a_violation_that_is_not_expected_names_the_invariant_its_statement_and_the_place() -> None:
    setup = SYSTEM.replace(" }", "; policy without purge_registers }")
    line, kind, message = failure_of(PROBED + 'alice: file_revoke "k"\n', setup)
    assert (line, kind) == (6, "violation")
    assert message.startswith('`alice: file_revoke "k"` violates C1 (authority) at bob; c5 = 0x80000100 [rw,')
    assert CVM_INVARIANTS["C1"].statement in message
    # One of the two that are violated isn't expected.
    line, kind, message = failure_of("expect violates C1\n" + PROBED + 'alice: file_revoke "k"\n', setup)
    assert (line, kind) == (7, "violation") and "violates C8 (revocation)" in message and "with key 22365" in message


def test_a_system_that_the_monitor_refuses_is_wrong_input() -> None:
    program = parse("system cvm { alice size 4K; bob size 4K at alice.base }\n")
    with pytest.raises(ProgramError, match="refuses to create `bob`: RANGE"):
        run_system(program, {})
    assert verdict_of(program.text.replace(" }", "; policy without regions_disjoint }")).violations.keys() == {"C2"}


# -- wrong programs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("alice:", 7, "missing what the agent does after `:`"),
        ("alice/2 li x5, 1", 9, "missing `:` after the agent: found `li`"),
        ("alice/0: li x5, 1", 1, "threads are numbered from 1"),
        ("alce: li x5, 1", 1, "no cVM is called `alce`; did you mean `alice`?"),
        ("li x5, 1", 1, "say who does that, as in `alice: li x5, 1`"),
        ("given c1 = capability(1, 2, 3)", 7, "`given` is for a machine"),
        ("machine cc128 { }", 1, "a program has a system or a machine, not both"),
        ("system cvm { carol size 4K }", 1, "a program has one system"),
        ("alice: csetadr c2, c1, x5", 8, "unknown operation `csetadr`; did you mean `csetaddr`?"),
        ("alice: enter file_revok", 14, "`file_revok` is no call and no cVM; did you mean `file_revoke`?"),
        ("alice: enter bob 5", 18, "`bob` is a cVM: it is entered with the registers as they are"),
        ("alice: wait c11 ->", 19, "missing `ok` or `refused CODE` after `->`"),
        ("alice: wait c11 -> okay", 20, "a result is `-> ok` or `-> refused CODE`"),
        ("alice: wait c11 -> refused BAD_HANDEL", 28, "unknown code `BAD_HANDEL`; did you mean `BAD_HANDLE`?"),
        ("alice: wait c11 -> refused RANGE", 28, "`wait` is never refused with RANGE: only with BAD_HANDLE"),
        ("alice: wait c11 !trap TagViolation", 23, "a call is refused with a code"),
        ("alice: li x5, 1 -> ok", 20, "only a call has a result (`->`)"),
        ("alice: file_revok -> ok", 22, "`file_revok` is none; did you mean `file_revoke`?"),
        ('alice: file_revok "k"', 19, "`file_revok` is no call, and takes no text; did you mean `file_revoke`?"),
        ("alice: portal_open 1", 8, "unknown operation `portal_open`; did you mean `portal_probe`?"),
        ('alice: li x5, "k"', 15, "`li` is no call, and takes no text"),
        ('alice: file_revoke "k', 20, 'missing `"` at the end of the text'),
        ('alice: file_advertise "k", 0x100', 8, "`file_advertise` takes `key, pointer, size`: 3 operands, found 2"),
        ('alice: file_advertise "k" 0x100, 256', 27, 'missing `,` after `"k"`: found `0x100`'),
        ('alice: file_advertise "k", "l", 256', 28, "`pointer` is no key: it can't be text"),
        ("alice: portal_call c20, x10, 5", 25, "x10 holds an earlier argument by then"),
        ("alice: portal_call c20, x5 + 1, 5", 25, "`pointer` is a register, or a number without any"),
        ("alice: file_revoke 1 == 1", 20, "`key` needs a number, found a condition"),
        ("bob: li x5, alice.bse", 13, "`alice.bse` has no value; did you mean `alice.base`?"),
        ("deployer: create", 17, "the deployer can `create NAME size SIZE` and `destroy NAME`"),
        ("deployer: create carol", 23, "missing `size` and the region's size"),
        ("deployer: create alice size 8K", 18, "`alice` is the name of a region already"),
        ("deployer: destroy carol", 19, "no cVM is called `carol`: there are alice, bob"),
        ("deployer: create expect size 4K", 18, "`expect` can't name a cVM: it is a word of the language"),
        ("expect violates C1, C99", 1, "unknown invariant `C99`; did you mean `C9`?"),
        ("expect C1", 8, "missing `violates` and the invariants after `expect`"),
    ],
)
@pytest.mark.parametrize("before", ["", "alice: li x5, 1\n"], ids=["second line", "third"])
def test_a_wrong_line_is_named_with_its_place(line: str, column: int, message: str, before: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(SYSTEM + before + line + "\n", "file.cap")
    assert message in caught.value.message
    assert (caught.value.position.line, caught.value.position.column) == (2 + before.count("\n"), column)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice: li x5, 1", "agents are of a system"),
        ("machine cc128 { }\nexpect violates C1", "agents are of a system"),
        ("let x = 5\nalice: li x5, 1", "agents are of a system: the program needs `system cvm { alice size 4K }`"),
        ("let x = 5\n" + SYSTEM, "the system must come first"),
        ("system bvm { alice size 4K }", "unknown kind of system `bvm`"),
        ("system cvm { }", "a system needs someone to act in it"),
        ("system cvm { alice }", "missing `size` and the region's size"),
        ("system cvm alice size 4K", "missing `{` after the system's kind"),
        ("system cvm { alice size 4K bob size 4K }", "missing `;` between the system's parts"),
        ("system cvm { alice size 4K; alice size 4K }", "`alice` is said twice"),
        ("system cvm { alice size 0 }", "a region has at least one byte"),
        ("system cvm { alice size 2K in bob }", "no cVM is called `bob`: there are none yet"),
        ("system cvm { sp size 4K }", "`sp` can't name a cVM: it is a register"),
        ("system cvm { format cc127; alice size 4K }", "unknown capability format `cc127`; did you mean `cc128`?"),
        ("system cvm { memory 0 size 16K; alice size 4K }", "a system's memory can't begin at address 0"),
        ("system cvm { policy intended; policy intended; alice size 4K }", "a system has one policy"),
        ("system cvm { policy intendd; alice size 4K }", "unknown policy `intendd`; did you mean `intended`?"),
        (
            "system cvm { policy without purge_slot; alice size 4K }",
            "unknown guard `purge_slot`; did you mean `purge_slots`?",
        ),
        ("system cvm { # x", "a comment can't stand within these braces"),
    ],
)
def test_a_wrong_system_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(text)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        (
            "alice size 4K; bob size 4K at 0x80000800",
            29,
            "[0x80000800, 0x80001800) overlaps `alice`, [0x80000000, 0x80001000)",
        ),
        ("alice size 2M", 14, "[0x80000000, 0x80200000) isn't within memory, [0x80000000, 0x80100000)"),
        (
            "libos size 4K; app size 4K in libos",
            29,
            "isn't within `libos`, below its store of capabilities: [0x80000000, 0x80000fc0)",
        ),
        ("libos size 4K purecap; app size 1K in libos", 37, "one of `app`, `libos` is purecap"),
        ("alice size 64", 14, "64 bytes aren't more than its store of capabilities, which takes 64"),
        ("alice size 4100", 14, "[0x80000000, 0x80001004) aren't bounds that a capability can have"),
        ("; ".join(f"vm{number} size 4K" for number in range(11)), 144, "FULL; its table holds 10 cVMs"),
    ],
)
def test_a_system_that_the_monitor_refuses_is_said_with_the_reason(text: str, column: int, why: str) -> None:
    with pytest.raises(ProgramError) as caught:
        verdict_of(f"system cvm {{ {text} }}\n")
    assert why in caught.value.message and caught.value.position.column == column


def test_two_texts_for_one_key_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("capvisor.dsl.cvm_check.key_number", len)
    with pytest.raises(ProgramError, match='"cd" and "ab" stand for the same key, 2 of 65536'):
        parse(SYSTEM + 'alice: file_revoke "ab" -> refused NOT_FOUND\nalice: file_revoke "cd" -> refused NOT_FOUND\n')


# -- the language ----------------------------------------------------------------------------------------------------------

_OPERANDS = {ArgumentKind.KEY: '"k"', ArgumentKind.HANDLE: "c20"}


@pytest.mark.parametrize("row", CALLS.values(), ids=lambda row: row.name)
def test_every_call_of_the_table_can_be_written_and_reaches_the_monitor(row: Call) -> None:
    operands = ", ".join(_OPERANDS.get(kind, "0x40") for _name, kind in row.arguments)
    text = SYSTEM + f"alice: enter {row.name} {operands}".rstrip() + "\n"
    program = parse(text)
    assert print_program(program) == text
    verdict = run_system(program, {})
    assert verdict.passed and verdict.operations == len(row.arguments) + 6
    for code in row.all_refusals:
        assert parse(text.replace("enter ", "").rstrip() + f" -> refused {code.name}\n")


def test_a_new_row_of_the_table_is_a_statement_at_once(monkeypatch) -> None:
    row = Call("host_double", 77, (("size", ArgumentKind.SIZE),), "x11 = twice a number", "this test", (Code.FULL,))
    monkeypatch.setitem(CALLS, row.name, row)
    monkeypatch.setitem(CALLS_BY_NUMBER, row.number, row)
    monkeypatch.setitem(
        CALL_RULES, row.name, lambda monitor, thread, _frame, size: monitor.answer(thread, 2 * size) or Code.OK
    )
    assert verdict_of(SYSTEM + "alice: host_double 21 -> ok\nalice: assert x11 == 42\n").passed


def test_parsing_what_was_printed_gives_the_same_tree() -> None:
    text = (
        "system cvm{format cc128;memory 0x80000000 size 64K;alice size 4K\n"
        "bob size 4K at 0x80008000 purecap; libos size 8K\napp size 2K in libos; policy prototype-0.0.1;"
        "policy without purge_slots;policy without local_grants}\n"
        "expect violates C1,C18\nlet x = any u64 where x<bob.top\n"
        "alice:file_advertise 5,x+1,alice.size*2->refused RANGE # why\n"
        'bob/2 : enter file_probe "a # b",x5\nbob/2:leave->ok\nalice: enter wait c11\napp: enter libos\napp:leave\n'
        "deployer: create carol size 4K in alice->refused EXISTS\ndeployer: destroy carol\nalice: portal_finish\n"
        "bob:cld x7,8 ( c5 )!trap TagViolation when x7==1\nbob:assert not c5.tag\n"
    )
    program = parse(text)
    printed = print_program(program)
    assert parse(printed) == program
    assert print_program(parse(printed)) == printed
    assert "\nalice: file_advertise 5, x + 1, alice.size * 2  -> refused RANGE  # why\n" in printed
    assert '\nbob/2: enter file_probe "a # b", x5\n' in printed


def test_regions_lie_one_after_the_other_and_nested_ones_from_the_middle() -> None:
    regions = "a size 256; b size 64K; c size 1K in b; d size 1K in b; e size 1K at b.top"
    text = f"system cvm {{ memory 0x80000100 size 1M; {regions} }}\n"
    placed = cvm_layout.layout_of(parse(text)).placed
    assert [hex(each.base) for each in placed.values()] == [
        *("0x80000100", "0x80000200", "0x80008200"),
        "0x80008600",
        "0x80010200",
    ]
    assert verdict_of(text).passed


def test_values_are_drawn_once_a_run_and_may_be_bounded_by_regions() -> None:
    text = SYSTEM + "let x = any u64 where x >= bob.base and x < bob.top\nbob: li x5, x\nbob: assert x5 >= bob.base\n"
    assert verdict_of(text).values.keys() == {"x"}
    assert len({verdict_of(text, seed).values["x"] for seed in range(8)}) > 1


def test_compartments_are_created_again_and_tables_of_them_are_limited() -> None:
    text = SYSTEM + "alice: li x5, 7\ndeployer: create alice size 4K -> refused EXISTS\ndeployer: destroy alice\n"
    text += "deployer: create alice size 4K\nalice: assert x5 == 0\n"
    text += (
        "".join(f"deployer: create c{number}x size 4K\n" for number in range(8))
        + "deployer: create d size 4K -> refused FULL\n"
    )
    assert verdict_of(text).passed


def test_a_purecap_compartment_calls_by_its_stack_pointer_and_cc64_works_too() -> None:
    text = "system cvm { format cc64; alice size 4K purecap; bob size 4K }\n" + PROBED
    verdict = verdict_of(text + "bob: assert c5.length == 256\nalice: thread_create 0x10\nalice/2: assert x10 == 0\n")
    assert verdict.passed and verdict.calls == 3


# -- that nothing is left unseen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*UNGUARDED[1:8:3], TUTORIAL[3]], ids=name_of)
def test_the_places_that_are_left_out_violate_nothing(path: Path, monkeypatch) -> None:
    steps = 0

    class Watch(InvariantWatch):
        def violated(self, step):
            nonlocal steps
            steps += 1
            known = set(self._known)
            found = super().violated(step)
            everywhere = {
                name
                for name, row in CVM_INVARIANTS.items()
                if name not in known and not all(row.holds(step, place) for place in every_place(step.monitor))
            }
            assert everywhere == {each.invariant for each in found}
            return found

    monkeypatch.setattr("capvisor.dsl.cvm_runner.InvariantWatch", Watch)
    assert verdict_of(path.read_text()).passed
    assert steps > 20


def test_a_watch_that_looks_at_nothing_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(cvm_watch, "_places_of", lambda monitor, keys: iter(()))
    assert not verdict_of(UNGUARDED[2].read_text()).passed


def test_a_monitor_that_forgets_to_check_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(Monitor, "is_checked", lambda self, kind: False)
    line, kind, message = failure_of("bob: host_time alice.base - bob.base\n")
    assert (line, kind) == (2, "violation") and "C10 (no confused deputy)" in message


# -- what it costs ---------------------------------------------------------------------------------------------------------


def test_costs_are_counted_by_mechanism() -> None:
    verdict = verdict_of(SYSTEM + PROBED + "bob: ld.cap x7, (c5)\nbob: sw.cap x7, (c5)\nbob: host_time 0x80\n")
    cost = verdict.costs
    assert (cost["CP_File"].calls, cost["CP_File"].crossings, cost["CP_File"].capability_operations) == (2, 4, 6)
    assert (cost["CP_File"].copies, cost["CP_File"].bytes_copied) == (2, 12)
    assert (cost["host"].calls, cost["host"].copies, cost["host"].bytes_copied) == (1, 1, 8)
    assert cost["guests' own code"].capability_operations == 1
