"""Programs of a para-pass-through VMM: what passes and what fails, errors of wrong ones, attacks, nothing left unseen."""

from pathlib import Path

import pytest

from capvisor.dsl import guards, vmm_watch
from capvisor.dsl.draw import fix
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.syntax import Violates
from capvisor.dsl.system import policy_named
from capvisor.dsl.system_kinds import VMM
from capvisor.dsl.system_runner import SystemVerdict, run_system
from capvisor.dsl.vmm_check import LIBRARY, written_operands
from capvisor.dsl.vmm_runner import VmmRun
from capvisor.dsl.vmm_watch import VmmWatch
from capvisor.model import vmm_system
from capvisor.spec.vmm import OPERATIONS, Actor, Code, Operation
from capvisor.spec.vmm_policy import VMM_GUARDS, VMM_POLICIES
from tests.tutorial import ROOT

TUTORIAL = sorted((ROOT / "programs" / "tutorial_vmm").glob("*.cap"))
ATTACKS = sorted((ROOT / VMM.attacks).glob("*.cap"))
UNGUARDED = [path for path in ATTACKS if path.name.endswith(".without.cap")]
OF_2009 = [path for path in ATTACKS if ".bitvisor-2009" in path.name]
STOPPED = [path for path in ATTACKS if path not in (*UNGUARDED, *OF_2009)]
ALONE = {"e08", "e11"}
"""The attacks that no guard alone carries."""
SYSTEM = (
    "system vmm { vcpus 2; device nic { }; storage disk { encrypt 0..9; deny 10..19 }; extension probe { frames 4..7 } }\n"
)


def name_of(path: Path) -> str:
    return path.name


def verdict_of(text: str, policy=None) -> SystemVerdict:
    program = parse(text, "file.cap")
    return run_system(program, fix(program, {}, 0), policy)


def failure_of(text: str, setup: str = SYSTEM) -> tuple[int, str, str]:
    failure = verdict_of(setup + text).failure
    assert failure is not None
    return failure.line, failure.kind, failure.text


def without(guard: str) -> str:
    return SYSTEM.replace(" }\n", f"; policy without {guard} }}\n")


# -- the programs that come along ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*TUTORIAL, *ATTACKS], ids=name_of)
def test_a_program_passes_and_is_formatted(path: Path) -> None:
    text = path.read_text()
    assert print_program(parse(text)) == text
    verdict = verdict_of(text)
    assert verdict.passed, verdict.failure


@pytest.mark.parametrize("path", STOPPED, ids=name_of)
def test_an_attack_is_stopped_under_the_intended_policy(path: Path) -> None:
    text = path.read_text()
    verdict = verdict_of(text, policy_named("intended", VMM))
    assert verdict.passed and not verdict.violations, verdict.failure
    assert verdict.refusals > 0 or "assert" in text


@pytest.mark.parametrize("path", UNGUARDED, ids=name_of)
def test_an_attack_that_succeeds_without_a_guard_violates_nothing_with_it(path: Path) -> None:
    assert verdict_of(path.read_text()).violations
    verdict = verdict_of(path.read_text(), policy_named("intended", VMM))
    assert not verdict.passed and not verdict.violations


def test_there_are_twelve_attacks_and_every_guard_carries_one_of_at_most_ten_lines() -> None:
    assert {path.name[:3] for path in STOPPED if path.name[0] == "e"} == {f"e{number:02}" for number in range(1, 13)}
    alone = {path.stem for path in STOPPED} - {path.name.removesuffix(".without.cap") for path in UNGUARDED}
    assert {name[:3] for name in alone} == ALONE
    carried = set()
    for path in UNGUARDED:
        program = parse(path.read_text())
        assert program.system is not None and len(program.system.without) == 1
        assert guards.length(program) <= 10, path
        carried.update(program.system.without)
    assert carried == VMM_GUARDS.keys()


@pytest.mark.parametrize("path", OF_2009, ids=name_of)
def test_what_the_public_code_of_2009_lacks_is_a_program_that_today_is_stopped(path: Path) -> None:
    preset = path.name.split(".")[1]
    assert verdict_of(path.read_text()).policy == preset and preset in VMM_POLICIES
    verdict = verdict_of(path.read_text(), policy_named("intended", VMM))
    assert not verdict.passed and not verdict.violations and verdict.refusals


def test_the_first_4_mib_were_hidden_in_2009_too() -> None:
    text = (ROOT / VMM.attacks / "e12_beyond_4_mib.bitvisor-2009.cap").read_text()
    inside = text.replace("(1024 << 3), 0x77", "(1023 << 3), 0x77")
    failure = verdict_of(inside).failure
    assert inside != text and failure is not None and "refused PANIC" in failure.text


# -- what passes -----------------------------------------------------------------------------------------------------------


def test_devices_and_extensions_are_numbered_in_the_order_in_which_they_are_said() -> None:
    text = SYSTEM + "vmm: assert nic == 1 and disk == 2 and probe == 1 and nic.port == 8 and disk.command == 16 + COMMAND\n"
    assert verdict_of(
        text + "vmm: assert disk.mmio == 0x1fd80010 and disk.mmio.lba == disk.mmio + LBA and region == 32 << 3\n"
    ).passed


def test_registers_are_where_the_program_says() -> None:
    text = "system vmm { storage disk { port 0x1f0; mmio 0x200 } }\n"
    text += "guest: output mmio, 0x200 + LBA, 7\nguest: input port, 0x1f2\nguest: assert value == 7 and disk.lba == 0x1f2\n"
    assert verdict_of(text).passed


def test_a_driver_follows_the_registers_of_its_device() -> None:
    text = SYSTEM + "guest: move_window disk, port, 0x40\nguest: write_sector disk, 5, 0x77\nguest: read_sector disk, 5\n"
    assert verdict_of(text + "guest: assert value == 0x77 and medium[disk, 5] == cipher[5, 0x77]\n").passed


def test_what_a_driver_does_ends_with_the_first_refusal() -> None:
    verdict = verdict_of(SYSTEM + "guest: dma disk, read_dma, 10, 1, 40 -> refused FAILED\n")
    assert verdict.passed and verdict.operations == 4 and verdict.refusals == 1


def test_an_operation_is_repeated_until_it_is_refused() -> None:
    text = SYSTEM + "guest: command disk, read_sectors, 0, 5\nguest: input port, disk.data -> until BLOCKED\n"
    verdict = verdict_of(text)
    assert verdict.passed and verdict.operations == 3 + 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("guest: input port, nic.port -> until BLOCKED", "ok, refused BLOCKED expected"),
        ("guest: input port, disk.data -> until STOPPED", "refused BLOCKED, refused STOPPED expected"),
    ],
)
def test_one_that_is_refused_otherwise_or_never_fails(line: str, message: str) -> None:
    assert message in failure_of(line + "\n")[2]


def test_a_value_is_the_agents_own() -> None:
    text = SYSTEM + "guest: poke 80, 7\nguest: peek 80\nguest/2: peek 81\nnic: dma_read 80\n"
    assert verdict_of(text + "guest: assert value == 7\nguest/2: assert value == 0\nnic: assert value == 7\n").passed


def test_any_values_are_drawn_and_may_be_bounded_by_names() -> None:
    text = SYSTEM + "let x = any u64 where x > key\nguest: write_sector disk, 5, x\nguest: read_sector disk, 5\n"
    assert verdict_of(text + "guest: assert value == x and medium[disk, 5] == cipher[5, x]\n").passed


def test_what_expressions_look_up_is_what_is_there() -> None:
    text = "system vmm { storage disk { image 2 }; storage other { fault 3..3 }; device nic { } }\n"
    text += "guest: output port, nic.port + 2, 9\nguest: output port, other.lba, 4\nguest: read_sector disk, 1\n"
    for condition in (
        "image[disk, 1] == image[disk, 0] + 1 and image[disk, 2] == 0",
        "deployed[disk, 1] == 1 and deployed[disk, 0] == 0 and medium[disk, 1] == image[disk, 1]",
        "rule[other, 3] == faulty and rule[other, 4] == plain and rule[disk, 3] == plain",
        "register[nic, 2] == 9 and register[other, LBA] == 4 and register[other, COMMAND] == READY",
        "outside[0] == 0 and panicked == 0 and handed_over == 0 and microcode_changed == 0 and remote[80] == 0",
        "memory[key.block] == key and cipher[5, 0] == key + (5 << 8)",
    ):
        text += f"vmm: assert {condition}\n"
    verdict = verdict_of(text)
    assert verdict.passed and verdict.assertions == 6, verdict.failure


# -- what fails, and how that is said --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "kind", "message"),
    [
        ("guest: poke key.block, 1\n", 2, "result", "`guest: poke key.block, 1`: refused PANIC, ok expected"),
        ("nic: dma_read 80 -> refused IOMMU\n", 2, "result", "ok, refused IOMMU expected"),
        ("guest: peek 80\nguest: assert value == 1\n", 3, "assertion", "value = 0x0"),
        (
            "vmm: assert medium[disk, 5] == cipher[5, 1]\n",
            2,
            "assertion",
            "medium[disk, 5] = 0x0, disk = 0x2, cipher[5, 1]",
        ),
        ("guest: assert value == 0\n", 2, "agent", "no operation has given it a `value` yet"),
        ("guest: poke 80, 0 - 1\n", 2, "agent", "`value` is -0x1, and not within 64 bits"),
        ("guest: read_sector nic, 5\n", 2, "agent", "device 1 is no storage device"),
        ("guest: read_sector 7, 5\n", 2, "agent", "device 7 is no storage device"),
        ("vmm: assert register[disk, DATA] == 0\n", 2, "agent", "what the data port gives next is no register"),
        ("expect violates P1\nguest: peek 80\n", 2, "violation", "P1 (processors) was to be violated, and holds"),
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
            "filter_mappings",
            "guest/2: map 3, 40\n",
            "`guest/2: map 3, 40` violates P1 (processors) at cpu1, slot 3; frame 40, of the region",
        ),
        (
            "iommu_hides_region",
            "nic: dma_read key.block\n",
            "P2 (DMA) at address 0x100, of the region read by nic",
        ),
        ("encrypt_writes", "guest: write_sector disk, 5, 7\n", "P3 (storage) at disk, sector 5"),
        ("refuse_denied", "guest: command disk, trim, 10, 1\n", "P14 (denied) at disk, sector 10 written"),
        ("follow_window_moves", "guest: move_window disk, port, 64\n", "P8 (interception) at port 0x200"),
        (
            "confine_extensions",
            "probe: extension_write 80, 1\n",
            "P15 (extensions) at address 0x50 written by extension 1",
        ),
        ("swallow_microcode", "guest: write_msr microcode, 1\n", "P8 (interception) at the step itself"),
        (
            "track_dma_writes",
            "vmm: begin_move\nvmm: send 10\nnic: dma_write 83, 1\n",
            "P13 (moving) at address 0x53",
        ),
    ],
)
def test_a_violation_names_the_invariant_its_statement_and_the_place(guard: str, text: str, message: str) -> None:
    _line, kind, found = failure_of(text, without(guard))
    assert kind == "violation" and message in found


# -- wrong programs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        ("gest: peek 80", 1, "nobody is called `gest`; did you mean `guest`?"),
        ("carol: peek 80", 1, "nobody is called `carol`: there are guest, vmm, nic, disk, probe"),
        ("guest/3: peek 80", 1, "`guest` has 2 vCPUs, numbered from 1"),
        ("vmm/2: mediate disk", 1, "`vmm` is one"),
        ("peek 80", 1, "say who does that"),
        ("guest: pek 80", 8, "unknown operation `pek`; did you mean `peek`?"),
        ("guest: csetaddr c1, c2, x3", 8, "unknown operation `csetaddr`"),
        ("guest: mediate disk", 8, "`mediate` is for the VMM: `vmm: ...`"),
        ("vmm: peek 80", 6, "`peek` is for the guest: `guest: ...`"),
        ("guest: copy disk", 8, "`copy` is for the VMM"),
        ("guest: dma_read 80", 8, "`dma_read` is for a device, by its name"),
        ("nic: extension_read 80", 6, "`extension_read` is for an extension, by its name"),
        ("guest: enter peek 80", 14, "operations have one part"),
        ("guest: leave", 8, "`leave` is for the VMM"),
        ("vmm: leave", 6, "`leave` takes `device`: 1 operand, found 0"),
        ("guest: map 0", 8, "`map` takes `slot, frame, level, writable`: 4 operands, the last 2 may be left out, found 1"),
        ("guest: poke 80", 8, "`poke` takes `address, value`: 2 operands, found 1"),
        ('guest: peek "k"', 13, "`address` is a number: it can't be text"),
        ("guest: peek 1 == 1", 13, "`address` needs a number, found a condition"),
        ("guest: peek x5", 13, "a system vmm has no registers"),
        ("guest: peek adress", 13, "`adress` has no value"),
        ("guest: init -> refused PANIC", 24, "`init` is never refused with PANIC: only with RANGE, STOPPED"),
        ("guest: init -> refused PANICK", 24, "unknown code `PANICK`; did you mean `PANIC`?"),
        ("guest: init -> until PANIC", 22, "`init` is never refused with PANIC"),
        ("guest: init -> until", 16, "a result is `-> ok` or `-> refused CODE`"),
        ("guest: peek 80 !fault page", 23, "in a system vmm, nothing gives a fault"),
        ("expect walk refs 4", 13, "nothing walks in a system of kind `vmm`"),
        ("expect violates P20", 1, "unknown invariant `P20`"),
        ("vmm: assert memry[5] == 0", 13, "there is no table `memry`; did you mean `memory`?"),
        ("vmm: assert medium[5] == 0", 13, "`medium` is by device, lba"),
        ("let region = 5", 5, "`region` can't name a value"),
        ("let panicked = 5", 5, "`panicked` can't name a value"),
        ("let x = panicked", 9, "a `let` can't read `panicked`"),
        ("let x = memory[5]", 9, "a `let` can't read `memory`"),
        ("deployer: destroy vm0", 19, "nothing is deployed in a system of kind `vmm`"),
    ],
)
@pytest.mark.parametrize("before", ["", "guest: init\n"], ids=["second line", "third"])
def test_a_wrong_line_is_named_with_its_place(line: str, column: int, message: str, before: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(SYSTEM + before + line + "\n", "file.cap")
    assert message in caught.value.message
    assert (caught.value.position.line, caught.value.position.column) == (2 + before.count("\n"), column)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("frames 10", 1, "the region is 18 or more of the frames 0..9, here 32..63"),
        ("frames 0", 21, "`frames` is 1 to 1048576"),
        ("vcpus 9", 20, "`vcpus` is 1 to 8"),
        ("key 1 << 64", 18, "`key` is 0 to 18446744073709551615"),
        ("frame 64", 14, "a system vmm has no number `frame`; did you mean `frames`?"),
        ("sectors 64", 14, "a system vmm has no number `sectors`: there are frames, vcpus, key, and `region 32..63`"),
        ("frames 64; frames 64", 25, "`frames` is said twice"),
        ("region 32..48", 14, "the region is 18 or more of the frames 0..63, here 32..48"),
        ("region 32..64", 14, "the region is 18 or more"),
        ("region 0..63; region 0..63", 28, "`region` is said twice"),
        ("rgion 0..63", 14, "`rgion` has no first and last"),
        ("memory 4096 size 4K", 1, "a system vmm has no `memory`: its memory is `frames 64`"),
        ("alice size 4K", 14, "a system vmm has one guest; an extension is `extension alice { frames 0..7 }`"),
        ("vm0 frames 0..7", 14, "a system vmm has one guest; an extension is `extension vm0 { frames 0..7 }`"),
        ("tenant alice", 21, "a system of kind `vmm` has no tenants and objects"),
        ("disk nvme { }", 14, "a system vmm has no `disk`: there are device, storage, extension"),
        ("device nic { }; storage nic { }", 30, "`nic` is said twice"),
        ("device guest { }", 14, "`guest` can't name a part of a system: it is a word of the language"),
        ("device sp { }", 14, "`sp` can't name a part of a system: it is a register"),
        ("device trim { }", 14, "`trim` can't name a part of a system"),
        ("device nic { port 0x301 }", 14, "`port` is a multiple of 8"),
        ("device nic { port 64K }", 32, "`port` is 0 to 65528"),
        ("device nic { image 4 }", 27, "a device has no number `image`: there are port, mmio"),
        ("device nic { encrypt 0..9 }", 27, "a device has no `encrypt`: it has numbers alone"),
        ("device nic { port 16 }; device nac { }", 38, "`nac` and `nic` both have registers at `port 0x10`"),
        ("device nic { mmio 33 << 9 }", 14, "the registers of `nic` in memory are in the region"),
        (
            "frames 1M; region 0xfec00..0xfec1f; device nic { }",
            50,
            "the registers of `nic` in memory are in the region: say where, `mmio 0x1fd84000`",
        ),
        ("storage disk { encrypt 9..0 }", 37, "`encrypt` is of 1 to 4096 sectors"),
        ("storage disk { encrypted 0..9 }", 29, "a storage has no `encrypted`; did you mean `encrypt`?"),
        ("storage disk { image 4; deny 0..1 }", 38, "a medium has an image or rules"),
        ("extension probe { }", 14, "an extension has frames, once: `extension probe { frames 0..7 }`"),
        ("extension probe { frames 0..64 }", 39, "frames 0..64 aren't among the system's, 0..63"),
        ("extension probe { frames 0..7; writable 2 }", 54, "`writable` is 0 to 1"),
        ("policy without filter_mapping", 1, "unknown guard `filter_mapping`; did you mean `filter_mappings`?"),
        ("policy prototype", 1, "unknown policy `prototype`: there are intended, bitvisor-2009"),
        ("frames 64 vcpus 2", 24, "missing `;` between the system's parts"),
        ("device nic { port 8 mmio 8 }", 34, "missing `;` between the system's parts"),
        ("region 0..63 key 5", 27, "missing `;` between the system's parts"),
        ("storage disk { deny 0..9 deny 20..29 }", 39, "missing `;` between the system's parts"),
        ("device nic { } device sound { }", 29, "missing `;` between the system's parts"),
        ("device nic", 14, "a system vmm has no number `device`"),
        ("device nic { port }", 32, "missing a number after `port`"),
        ("device nic { # x", 27, "a comment can't stand within these braces"),
        ("device nic { port 8 # x", 34, "a comment can't stand within these braces"),
        ("device nic { } # x", 29, "a comment can't stand within these braces"),
    ],
)
def test_a_wrong_system_is_refused(text: str, column: int, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(f"system vmm {{ {text} }}\n")
    assert message in caught.value.message
    assert (caught.value.position.line, caught.value.position.column) == (1, column)


def test_too_many_devices_are_refused() -> None:
    for kind, most, items in (("device", 8, ""), ("extension", 4, " frames 0..7")):
        parts = [f"{kind} part{number} {{{items} }}" for number in range(most + 1)]
        assert parse(f"system vmm {{ {'; '.join(parts[:-1])} }}\n")
        with pytest.raises(ProgramError, match=f"a system vmm has at most {most} {kind}s"):
            parse(f"system vmm {{ {'; '.join(parts)} }}\n")


def test_other_kinds_have_no_devices_and_repeat_nothing() -> None:
    for text, message in (
        ("system cvm { alice size 4K; device nic { } }\n", "a system of kind `cvm` has no `nic` of this form"),
        ("system tpt { vm0 frames 0..7; region 0..7 }\n", "a system of kind `tpt` has no `region` of this form"),
        ("system tpt { vm0 frames 0..7 }\nvm0: step_walk -> until NOTHING\n", "a result is `-> ok` or `-> refused CODE`"),
        ("system cvm { alice size 4K }\nalice: leave 5\n", "`leave` takes nothing"),
    ):
        with pytest.raises(ProgramError) as caught:
            parse(text)
        assert message in caught.value.message


# -- the language ----------------------------------------------------------------------------------------------------------

_AGENTS = {Actor.GUEST: "guest", Actor.DEVICE: "disk", Actor.VMM: "vmm", Actor.EXTENSION: "probe"}


@pytest.mark.parametrize("row", OPERATIONS.values(), ids=lambda row: row.name)
def test_every_operation_of_the_table_can_be_written_and_is_performed(row: Operation) -> None:
    written = ", ".join("2" if name == "device" else "0" for name, _kind in written_operands(row.name))
    text = SYSTEM + f"{_AGENTS[row.actor]}: {row.name} {written}".rstrip() + "\n"
    program = parse(text)
    assert print_program(program) == text
    verdict = run_system(program, {})
    assert (verdict.operations, verdict.calls) == ((1, 0) if row.actor in (Actor.GUEST, Actor.DEVICE) else (0, 1))
    for code in row.refusals:
        assert parse(f"{text.rstrip()} -> refused {code.name}\n")
        assert parse(f"{text.rstrip()} -> until {code.name}\n")


def test_what_drivers_do_is_no_operation_and_is_all_done() -> None:
    assert not LIBRARY.keys() & OPERATIONS.keys()
    run = VmmRun(parse(SYSTEM), {}, VMM.intended, SystemVerdict(parse(SYSTEM), {}), lambda _step: None)
    assert run._library.keys() == LIBRARY.keys()


def test_parsing_what_was_printed_gives_the_same_tree() -> None:
    text = (
        "system vmm{frames 1K;vcpus 2;key 0x5\nregion 512..512+63;device nic{port 0x300};"
        "storage disk{encrypt 0..9;deny 10..2*8\nimage 4};extension probe{frames 4..7;writable 1};"
        "policy bitvisor-2009;policy without encrypt_writes}\n"
        "expect violates P1,P2\nlet x = any u64 where x<key\n"
        "guest/2:poke 0x50+x,1->refused PANIC # why\nvmm:mediate disk->until NOTHING\nvmm:leave disk->refused NOT_YET\n"
        "nic:dma_write 80,value->ok\nguest:assert(medium[disk,x]==cipher [ x ,1 ])and panicked==0\n"
    ).replace("image 4", "fault 30..30")
    program = parse(text)
    printed = print_program(program)
    assert parse(printed) == program
    assert print_program(parse(printed)) == printed
    assert "storage disk { encrypt 0..9; deny 10..2 * 8; fault 30..30 }" in printed and "region 512..512 + 63" in printed
    assert "mediate disk  -> until NOTHING\n" in printed and "leave disk  -> refused NOT_YET\n" in printed


# -- that nothing is left unseen -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*UNGUARDED, *OF_2009, *TUTORIAL], ids=name_of)
def test_the_places_that_are_left_out_violate_nothing(path: Path, monkeypatch) -> None:
    known: set[str] = set()

    class Watch(VmmWatch):
        def violated(self, step):
            found = super().violated(step)
            assert vmm_system.violated(step) - known <= {each.invariant for each in found}
            known.update(each.invariant for each in found)
            return found

    monkeypatch.setattr("capvisor.dsl.vmm_runner.VmmWatch", Watch)
    assert verdict_of(path.read_text()).passed


def test_a_watch_that_looks_at_nothing_is_noticed(monkeypatch) -> None:
    monkeypatch.setattr(vmm_watch, "places_changed", lambda _step, _changed: iter(()))
    assert not verdict_of(UNGUARDED[0].read_text()).passed


@pytest.mark.parametrize("guard", VMM_GUARDS)
def test_looking_at_the_steps_that_differ_finds_what_looking_at_all_does(guard: str) -> None:
    for name in ("e07_dma_without_a_command.cap", "e09_sleep_and_wake.cap", "f19_a_write_that_is_lost.cap"):
        program = parse((ROOT / VMM.attacks / name).read_text())
        watch = VmmWatch()
        assert guards.violated(program, VMM.intended, watch) == ()
        off = VMM.switched_off(VMM.intended, (guard,))
        assert guards.violated(program, off, VmmWatch(watch.taken)) == guards.violated(program, off), name


@pytest.mark.parametrize("path", UNGUARDED, ids=name_of)
def test_what_a_program_without_a_guard_expects_is_all_that_falls(path: Path) -> None:
    program = parse(path.read_text())
    assert program.system is not None
    expected = next(each.names for each in program.statements if isinstance(each, Violates))
    assert guards.violated(program, VMM.switched_off(VMM.intended, program.system.without)) == expected


def test_a_code_is_true_where_an_operation_was_refused() -> None:
    assert not Code.OK and all(code for code in Code if code is not Code.OK)
