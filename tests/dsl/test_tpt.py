"""Programs of translation pass-through: what passes and what fails, errors of wrong ones, attacks, nothing left unseen."""

from pathlib import Path

import pytest

from capvisor.dsl import guards, tpt_watch
from capvisor.dsl.draw import fix
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.syntax import Violates
from capvisor.dsl.system import policy_named
from capvisor.dsl.system_kinds import TPT
from capvisor.dsl.system_runner import SystemVerdict, run_system
from capvisor.dsl.tpt_watch import TptWatch
from capvisor.model import tpt_system
from capvisor.spec.tag_policy import TAG_GUARDS, TAG_POLICIES
from capvisor.spec.tpt import OPERATIONS, Actor, OperandKind, Operation
from tests.tutorial import ROOT

TUTORIAL = sorted((ROOT / "programs" / "tutorial_tpt").glob("*.cap"))
ATTACKS = sorted((ROOT / TPT.attacks).glob("*.cap"))
UNGUARDED = [path for path in ATTACKS if path.name.endswith(".without.cap")]
STOPPED = [path for path in ATTACKS if path not in UNGUARDED]
SYSTEM = "system tpt { frames 32; devices 1; vm0 frames 1..8 vcpus 2 mapped; vm1 frames 9..16 mapped }\n"


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
    assert print_program(parse(print_program(parse(text)))) == text
    verdict = verdict_of(text)
    assert verdict.passed, verdict.failure


@pytest.mark.parametrize("path", STOPPED, ids=name_of)
@pytest.mark.parametrize("policy", ["intended", "intended-access"])
def test_an_attack_is_stopped_whenever_tags_are_looked_up(path: Path, policy: str) -> None:
    verdict = verdict_of(path.read_text(), policy_named(policy, TPT))
    assert not verdict.violations
    assert verdict.passed or policy == "intended-access", verdict.failure
    assert verdict.traps + verdict.refusals > 0 or "assert" in path.read_text()


@pytest.mark.parametrize("path", UNGUARDED, ids=name_of)
def test_an_attack_that_succeeds_without_a_guard_violates_nothing_with_it(path: Path) -> None:
    assert verdict_of(path.read_text()).violations
    verdict = verdict_of(path.read_text(), policy_named("intended", TPT))
    assert not verdict.passed and not verdict.violations


def test_every_attack_that_a_guard_carries_has_both_programs_and_every_guard_has_one() -> None:
    assert [path.name[:3] for path in STOPPED if path.name[0] == "d"] == [f"d{number:02}" for number in range(1, 12)]
    alone = {path.stem for path in STOPPED} - {path.name.removesuffix(".without.cap") for path in UNGUARDED}
    assert {name[:3] for name in alone} == {"d08", "d09", "d10"}
    carried = set()
    for path in UNGUARDED:
        program = parse(path.read_text())
        assert program.system is not None and len(program.system.without) == 1
        carried.update(program.system.without)
    assert carried == TAG_GUARDS.keys()


@pytest.mark.parametrize("policy", TAG_POLICIES)
def test_every_program_can_be_run_under_every_policy(policy: str) -> None:
    for path in TUTORIAL:
        assert not verdict_of(path.read_text(), policy_named(policy, TPT)).violations


# -- what passes -----------------------------------------------------------------------------------------------------------


def test_a_walk_is_measured_also_where_it_goes_step_by_step() -> None:
    text = SYSTEM + "vm0: begin_walk 0, read\n" + "vm0: step_walk\n" * 9
    walk = "expect walk refs 4\nexpect walk updates 4\nexpect walk lookups 9\n"
    assert verdict_of(text + walk).passed
    assert verdict_of(SYSTEM + "vm0: load 0\n" + walk).passed


def test_five_levels_take_five_references() -> None:
    text = SYSTEM.replace("frames 32", "frames 32; levels 5") + "vm0: load 0\nexpect walk refs 5\nexpect walk lookups 11\n"
    assert verdict_of(text).passed


def test_the_vcpus_of_a_vm_cache_for_themselves() -> None:
    text = "vm0/2: load 0\nvm0: load 0\nhost: reclaim 5\nhost: acknowledge cpu0, 5\n"
    assert verdict_of(SYSTEM + text + "vm0/2: load 0\nvm0: load 0 !fault tag frame 5\n").passed
    assert verdict_of(SYSTEM + text + "host: acknowledge cpu1, 5\nvm0/2: load 0 !fault tag\n").passed


def test_a_value_is_the_agents_own() -> None:
    text = "vm0: store 0, 7\nvm1: load 0\nvm0: load 0\nvm1: assert value == 0\nvm0: store 8, value + 1\nvm0: load 8\n"
    assert verdict_of(SYSTEM + text + "vm0: assert value == 8\n").passed


def test_any_values_are_drawn_and_may_be_bounded_by_names() -> None:
    text = SYSTEM + "let x = any u64 where x > vm1.cr3\nvm0: store 0, x\nvm0: load 0\nvm0: assert value == x\n"
    assert verdict_of(text).passed


def test_a_device_of_a_plain_vm_names_guest_frames() -> None:
    text = "system tpt { devices 1; vm0 frames 8..15 plain mapped }\nhost: attach device0, vm0\n"
    text += "device0: dma_write 4, 1, 7\nvm0: load 8\nvm0: assert value == 7 and memory[12, 1] == 7\n"
    assert verdict_of(text + "device0: dma_read 8, 0 !fault iommu frame 8\n").passed


# -- what fails, and how that is said --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "kind", "message"),
    [
        ("vm0: load 0x9000\n", 2, "result", "`vm0: load 0x9000`: fault page code 0x0, ok expected"),
        ("vm0: load 0 !fault tag frame 5\n", 2, "fault", "ok, fault tag frame 5 expected"),
        ("vm0: write_pte 13, 0, 1 !fault tag frame 5\n", 2, "fault", "fault tag frame 13, fault tag frame 5 expected"),
        ("host: assign 13, vm0, 20\n", 2, "result", "refused NOT_FREE, ok expected"),
        ("host: claim 20 -> refused NOT_FREE\n", 2, "result", "ok, refused NOT_FREE expected"),
        ("vm0: store 0, 5\nhost: assert tag[5] == vm1\n", 3, "assertion", "tag[5] = 0x2, vm1 = 0x3"),
        ("vm0: load 0\nexpect walk refs 24\n", 3, "walk", "`expect walk refs 24`: the last walk took 4"),
        ("vm0: assert value == 0\n", 2, "agent", "no operation has given it a `value` yet"),
        ("vm0: store 0, 0 - 1\n", 2, "agent", "`value` is -0x1, and not within 64 bits"),
        ("host: run cpu0, vm1, 2, 0\nvm0: load 0\n", 3, "agent", "cpu0 runs for vm1 now: say `cpu0: ...`"),
        ("expect violates T1\nvm0: load 0\n", 2, "violation", "T1 (accesses) was to be violated, and holds"),
    ],
)
def test_what_goes_wrong_is_named_with_its_place(text: str, line: int, kind: str, message: str) -> None:
    found = failure_of(text)
    assert found[:2] == (line, kind)
    assert message in found[2]


@pytest.mark.parametrize(
    ("guard", "text", "message"),
    [
        (
            "check_leaf",
            "vm0: write_pte 13, 0, 1\n",
            "`vm0: write_pte 13, 0, 1` violates T1 (accesses) at data written for vm0 in frame 13, which is vm1's",
        ),
        ("host_only_tags", "vm0: set_tag 13\n", "T4 (tags are the host's) at frame 13, from vm1's to vm0's"),
        (
            "wait_for_acknowledgements",
            "host: reclaim 5\nhost: scrub 5\n",
            "T5 (scrubbed) at frame 5, which cpu0, cpu1, cpu2 didn't acknowledge",
        ),
        (
            "flush_iotlb",
            "host: attach device0, vm0\ndevice0: dma_read 5, 0\nhost: reclaim 5\n",
            "T9 (devices) at frame 5, which is nobody's; device0, of vm0",
        ),
        (
            "check_leaf",
            "vm0: write_pte 4, 0, 13 << 12 | rw\nvm0: begin_walk 0, read\n" + "vm0: step_walk\n" * 9,
            "T3 (forgotten) at cpu0; frame 13, which is vm1's",
        ),
    ],
)
def test_a_violation_names_the_invariant_its_statement_and_the_place(guard: str, text: str, message: str) -> None:
    _line, kind, found = failure_of(text, SYSTEM.replace(" }", f"; policy without {guard} }}"))
    assert kind == "violation" and message in found


def test_a_vm_that_the_host_refuses_is_wrong_input() -> None:
    program = parse("system tpt { vm0 frames 0..7; vm1 frames 7..9 }\n")
    with pytest.raises(ProgramError, match=r"`vm1` can't start: `assign 7, 3, 0`: refused NOT_FREE") as caught:
        run_system(program, {})
    assert (caught.value.position.line, caught.value.position.column) == (1, 31)


# -- wrong programs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("vm2: load 0", 1, "nobody is called `vm2`; did you mean `vm1`?"),
        ("carol: load 0", 1, "nobody is called `carol`: there are vm0, vm1, host, cpu0"),
        ("vm1/2: load 0", 1, "`vm1` has 1 vCPU, numbered from 1"),
        ("host/2: reclaim 5", 1, "`host` is one"),
        ("load 0", 1, "say who does that"),
        ("vm0: lod 0", 6, "unknown operation `lod`; did you mean `load`?"),
        ("vm0: csetaddr c1, c2, x3", 6, "unknown operation `csetaddr`"),
        ("vm0: reclaim 5", 6, "`reclaim` is for the host"),
        ("host: load 0", 7, "`load` is for a VM's vCPU"),
        ("vm0: dma_read 5, 0", 6, "`dma_read` is for a device: `device0: ...`"),
        ("device0: load 0", 10, "`load` is for a VM's vCPU"),
        ("vm0: leave", 6, "operations have one part"),
        ("vm0: load", 6, "`load` takes `address, user`: 2 operands, the last may be left out, found 0"),
        ("host: assign 5, vm0", 7, "`assign` takes `frame, vm, guest_frame`: 3 operands, found 2"),
        ('host: reclaim "k"', 15, "`frame` is a number: it can't be text"),
        ("host: reclaim 1 == 1", 15, "`frame` needs a number, found a condition"),
        ("vm0: load x5", 11, "a system tpt has no registers"),
        ("vm0: load adress", 11, "`adress` has no value"),
        ("vm0: load 0 -> refused LARGE", 24, "`load` is never refused with LARGE: only with RANGE, NO_VM"),
        ("vm0: load 0 !fault tags", 20, "unknown fault `tags`; did you mean `tag`?"),
        ("vm0: load 0 !fault iommu", 20, "`load` never gives a fault `iommu`: it can give general, alignment, page"),
        ("vm0: load 0 !fault tag code 5", 20, "a fault `tag` has a `frame`, and no `code`"),
        ("vm0: load 0 !fault general frame 5", 20, "a fault `general` has nothing else, and no `frame`"),
        ("vm0: load 0 !fault", 19, "missing the fault's kind after `!fault`"),
        ("vm0: load 0 !fault tag -> ok", 27, "a result or a fault, not both"),
        ("vm0: load 0 !trap TagViolation", 19, "a call is refused with a code"),
        ("expect walk steps 4", 13, "a walk has refs, lookups, updates, and no `steps`"),
        ("expect walk refs", 17, "missing `refs`, `lookups` or `updates` and a number after `walk`"),
        ("expect violates T12", 1, "unknown invariant `T12`"),
        ("host: assert tags[5] == 0", 14, "there is no table `tags`; did you mean `tag`?"),
        ("host: assert tag[5, 0] == 0", 14, "`tag` is by frame"),
        ("host: assert tag[5", 19, "found end of line, expected `,` or `]`"),
        ("let host = 5", 5, "`host` can't name a value"),
        ("let x = value", 9, "a `let` can't read `value`"),
        ("let x = tag[5]", 9, "a `let` can't read `tag`"),
        ("deployer: destroy vm0", 19, "nothing is deployed in a system of kind `tpt`"),
    ],
)
@pytest.mark.parametrize("before", ["", "vm0: flush\n"], ids=["second line", "third"])
def test_a_wrong_line_is_named_with_its_place(line: str, column: int, message: str, before: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(SYSTEM + before + line + "\n", "file.cap")
    assert message in caught.value.message
    assert (caught.value.position.line, caught.value.position.column) == (2 + before.count("\n"), column)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "a system tpt needs a VM: `vm0 frames 0..7`"),
        ("vm0 frames 0..64", 25, "frames 0..64 aren't among the system's, 0..63"),
        ("vm0 frames 8..7", 25, "frames 8..7 aren't among"),
        ("vm0 frames 0", 27, "missing `..` and the last frame"),
        ("vm0 frames", 25, "missing a number after `frames`"),
        ("vm0 frames 0..7 vm1 frames 8..9", 30, "missing `;` between the system's parts: found `vm1`"),
        ("vm0 frames 0..7; vm0 frames 8..9", 31, "`vm0` is said twice"),
        ("vm0 frames 0..3 mapped", 25, "a mapped VM has 4 tables and 1 to 512 pages, here 0"),
        ("vm0 frames 0..7 vcpus 9", 36, "a VM has 1 to 8 vCPUs"),
        ("vm0 frames 0..3 vcpus 5; vm1 frames 4..7 vcpus 4", 39, "at most 8 VMs and 8 vCPUs"),
        ("cpu0 frames 0..7", 14, "`cpu0` can't name a VM: it is a word of the language"),
        ("host frames 0..7", 14, "`host` can't name a VM"),
        ("sp frames 0..7", 14, "`sp` can't name a VM: it is a register"),
        ("alice size 4K", 14, "a VM has frames: `alice frames 0..7`"),
        ("level 5; vm0 frames 0..7", 14, "a system tpt has no number `level`; did you mean `levels`?"),
        ("levels 3; vm0 frames 0..7", 21, "`levels` is 4 to 5"),
        ("levels 4; levels 4; vm0 frames 0..7", 24, "`levels` is said twice"),
        ("memory 4096 size 4K; vm0 frames 0..7", 1, "a system tpt has no `memory`: its memory is `frames 64`"),
        ("policy without check_laef; vm0 frames 0..7", 1, "unknown guard `check_laef`; did you mean `check_leaf`?"),
        ("policy prototype; vm0 frames 0..7", 1, "unknown policy `prototype`: there are intended, intended-access"),
    ],
)
def test_a_wrong_system_is_refused(text: str, column: int, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(f"system tpt {{ {text} }}\n")
    assert message in caught.value.message
    assert (caught.value.position.line, caught.value.position.column) == (1, column)


def test_cvms_have_no_frames_and_nothing_is_walked_there() -> None:
    for text, message in (
        ("system cvm { frames 64; alice size 4K }\n", "a cVM is `frames size SIZE`"),
        ("system cvm { alice size 4K; vm0 frames 0..7 }\n", "a cVM is `vm0 size SIZE`"),
        ("system cvm { alice size 4K }\nexpect walk refs 4\n", "nothing walks in a system of kind `cvm`"),
        ("system cvm { alice size 4K }\nalice: li x5, 1 !fault tag\n", "`li` gives no fault"),
        (
            'system cvm { alice size 4K }\nalice: file_revoke "k" !fault tag\n',
            "in a system of kind `cvm`, nothing gives a fault",
        ),
        ("system cvm { alice size 4K }\nalice: assert tag[5] == 0\n", "there is no table `tag` here"),
        ("machine cc128 { c1 = root }\nassert tag[5] == 0\n", "there is no table `tag` here"),
        ("machine cc128 { c1 = root }\nexpect walk refs 4\n", "agents are of a system"),
    ):
        with pytest.raises(ProgramError) as caught:
            parse(text)
        assert message in caught.value.message


# -- the language ----------------------------------------------------------------------------------------------------------

_AGENTS = {Actor.HOST: "host", Actor.GUEST: "vm0", Actor.PROCESSOR: "cpu0", Actor.DEVICE: "device0"}


@pytest.mark.parametrize("row", OPERATIONS.values(), ids=lambda row: row.name)
def test_every_operation_of_the_table_can_be_written_and_is_performed(row: Operation) -> None:
    operands = row.operands if row.actor is Actor.HOST else row.operands[1:]
    agent = _AGENTS[row.actor]
    written = ", ".join("0" for _name in operands)
    text = SYSTEM + f"{agent}: {row.name} {written}".rstrip() + "\n"
    program = parse(text)
    assert print_program(program) == text
    verdict = run_system(program, {})
    assert (verdict.operations, verdict.calls) == ((0, 1) if row.actor is Actor.HOST else (1, 0))
    for code in row.refusals:
        assert parse(f"{text.rstrip()} -> refused {code.name}\n")
    for kind in row.faults:
        assert parse(f"{text.rstrip()} !fault {kind.name.lower()}\n")
    if operands and operands[-1][1] is OperandKind.USER:
        assert parse(f"{text.rstrip().removesuffix(', 0')}\n")


def test_parsing_what_was_printed_gives_the_same_tree() -> None:
    text = (
        "system tpt{frames 1K;levels 5;devices 2;vm0 frames 0..7 vcpus 2 mapped\nvm1 frames 8..8+7 plain;"
        "policy intended-access;policy without check_leaf;policy without check_dma}\n"
        "expect violates T1,T2\nlet x = any u64 where x<vm1.cr3\n"
        "vm0/2:load 0x3000+x,user!fault page code 4 # why\ncpu2:step_walk->refused NOTHING\n"
        "expect walk refs 4*1\ndevice1:dma_write 1,2,value!fault iommu frame(3)\n"
        "host:assert(tag[x]==free)and memory[5,0]<=pending [ 5 ]+1\nhost: acknowledge cpu1,9->ok\n"
    )
    program = parse(text)
    printed = print_program(program)
    assert parse(printed) == program
    assert print_program(parse(printed)) == printed
    assert "vm0 frames 0..7 vcpus 2 mapped" in printed and "vm1 frames 8..8 + 7 plain" in printed
    assert "load 0x3000 + x, user  !fault page code 4  # why\n" in printed
    assert "assert tag[x] == free and memory[5, 0] <= pending[5] + 1\n" in printed


# -- that nothing is left unseen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in [*UNGUARDED, *TUTORIAL] if "1024" not in path.read_text()], ids=name_of)
def test_the_places_that_are_left_out_violate_nothing(path: Path, monkeypatch) -> None:
    known: set[str] = set()

    class Watch(TptWatch):
        def violated(self, step):
            found = super().violated(step)
            assert tpt_system.violated(step) - known <= {each.invariant for each in found}
            known.update(each.invariant for each in found)
            return found

    monkeypatch.setattr("capvisor.dsl.tpt_runner.TptWatch", Watch)
    assert verdict_of(path.read_text()).passed


def test_a_watch_that_looks_at_nothing_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(tpt_watch, "places_changed", lambda _step, _changed: iter(()))
    assert not verdict_of(UNGUARDED[0].read_text()).passed


@pytest.mark.parametrize("guard", TAG_GUARDS)
def test_looking_at_the_steps_that_differ_finds_what_looking_at_all_does(guard: str) -> None:
    for name in ("d06_a_walk_across_the_shootdown.cap", "d11_reuse_without_scrub.cap", "e03_a_stale_table.cap"):
        program = parse((ROOT / TPT.attacks / name).read_text())
        watch = TptWatch()
        assert guards.violated(program, TPT.intended, watch) == ()
        off = TPT.switched_off(TPT.intended, (guard,))
        assert guards.violated(program, off, TptWatch(watch.taken)) == guards.violated(program, off), name


def test_what_a_program_without_a_guard_expects_is_all_that_falls() -> None:
    for path in UNGUARDED[:4]:
        program = parse(path.read_text())
        expected = next(each.names for each in program.statements if isinstance(each, Violates))
        off = TPT.switched_off(TPT.intended, program.system.without)
        assert guards.violated(program, off) == expected
