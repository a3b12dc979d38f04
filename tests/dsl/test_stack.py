"""Programs of all four systems on one machine: what passes and what fails, errors of wrong ones, attacks, nothing unseen."""

from pathlib import Path

import pytest

from capvisor.cli.status import Status
from capvisor.dsl import guards
from capvisor.dsl.draw import fix
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.stack_runner import StackRun
from capvisor.dsl.stack_watch import StackWatch
from capvisor.dsl.system import policy_named
from capvisor.dsl.system_kinds import STACK
from capvisor.dsl.system_runner import SystemVerdict, run_system
from capvisor.model import stack_system
from capvisor.spec.stack import COUPLINGS
from tests.cli.conftest import capvisor
from tests.tutorial import ROOT

assert capvisor

TUTORIAL = sorted((ROOT / "programs" / "tutorial_stack").glob("*.cap"))
LAYERS = sorted((ROOT / "programs" / "layers" / "stack").glob("*.cap"))
ATTACKS = sorted((ROOT / STACK.attacks).glob("*.cap"))
UNGUARDED = [path for path in ATTACKS if path.name.endswith(".without.cap")]
STOPPED = [path for path in ATTACKS if path not in UNGUARDED]
SYSTEM = """system stack {
  vmm { region 40..63; storage disk { }; device nic { } }
  tpt { vm0 frames 2..17; vm1 frames 20..27 mapped }
  cvm { memory 0x40000000 size 8K; alice size 4K; bob size 4K }
  orc { slots 4; tenant tom }
}
"""


def name_of(path: Path) -> str:
    return path.name


def verdict_of(text: str, policy=None) -> SystemVerdict:
    program = parse(text, "file.cap")
    return run_system(program, fix(program, {}, 0), policy)


def failure_of(text: str) -> tuple[int, str, str]:
    failure = verdict_of(SYSTEM + text).failure
    assert failure is not None
    return failure.line, failure.kind, failure.text


# -- the programs that come along ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*TUTORIAL, *ATTACKS, *LAYERS], ids=name_of)
def test_a_program_passes_and_is_formatted(path):
    text = path.read_text()
    assert print_program(parse(text)) == text
    verdict = verdict_of(text)
    assert verdict.passed, verdict.failure


def test_an_attack_is_stopped_by_its_guard_and_falls_without_it_and_each_guard_carries_what_its_coupling_says():
    cells, always = guards.matrix(STACK, [(path, parse(path.read_text(), str(path))) for path in ATTACKS])
    assert always == {}
    falls: dict[str, set[str]] = {guard: set() for guard in STACK.guards}
    for cell in cells:
        if cell.program is not None:
            falls[cell.guard].add(cell.invariant)
    assert falls == {guard: set(row.carries) for guard, row in COUPLINGS.items()}


def test_attacks_come_in_pairs():
    pairs = {path.name.removesuffix(".without.cap") for path in UNGUARDED}
    assert {path.stem for path in STOPPED} - pairs == {"s15_reclaimed_under_a_capability"}
    assert pairs <= {path.stem for path in STOPPED}


# -- every step is looked at -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*TUTORIAL, *UNGUARDED[::3]], ids=name_of)
def test_the_watch_sees_what_looking_at_everything_does(path, monkeypatch):
    seen: set[str] = set()
    found: set[str] = set()
    hold = StackRun._hold

    def looked(run, step):
        found.update(stack_system.violated(step))
        hold(run, step)
        seen.update(run._verdict.violations)

    monkeypatch.setattr(StackRun, "_hold", looked)
    verdict_of(path.read_text())
    assert seen == found


def test_steps_that_another_run_has_taken_are_not_looked_at_again():
    program = parse(SYSTEM + "vm1: store 0, 5\nvm1: load 0\n")
    first = StackWatch()
    assert guards.violated(program, STACK.intended, first) == ()
    again = StackWatch(first.taken)
    assert guards.violated(program, STACK.intended, again) == ()
    assert again.taken == first.taken


# -- what is wrong ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("system stack { vmm { } }", "a stack has a layer `tpt`"),
        ("system stack { vmm { }; tpt { vm0 frames 2..9 }; tpt { } }", "`tpt` is said twice"),
        ("system stack { vmm { }; cloud { } }", "a stack has no layer `cloud`: there are vmm, tpt, cvm, orc"),
        ("system stack { vm0 frames 2..9; vmm { } }", "what a stack has is in its layers"),
        ("system stack { vmm { policy without doors }; tpt { vm0 frames 2..9 } }", "`vmm` has no policy or guard `doors`"),
        ("system stack { policy without doors; vmm { }; tpt { vm0 frames 2..9 } }", "unknown guard `doors`"),
        ("system stack { vmm { region 40..60 }; tpt { vm0 frames 30..41 } }", "a VM's frames aren't the VMM's region"),
        ("system stack { vmm { region 40..57 }; tpt { vm0 frames 2..9 } }", "the region has 20 frames or more"),
        ("system stack { vmm { region 40..63 }; tpt { frames 64; vm0 frames 2..9 } }", "`frames` is said twice"),
        ("system stack { vmm { }; tpt { vm0 frames 2..9 }; cvm { alice size 4K } }", "say where cVMs are in their VM"),
        (
            "system stack { vmm { }; tpt { vm0 frames 2..9 }; cvm { memory 0x40000800 size 4K; alice size 2K } }",
            "a monitor's memory begins at a page",
        ),
        (
            "system stack { vmm { }; tpt { vm0 frames 2..9 }; cvm { memory 0x40000000 size 32K; alice size 4K } }",
            "`vm0` has too few frames for the 8 pages",
        ),
        (
            "system stack { vmm { }; tpt { vm0 frames 2..9 }; cvm { within vm7; memory 0x40000000 size 4K } }",
            "`within` names a VM: there are vm0",
        ),
        (
            "system stack { vmm { device alice { } }; tpt { vm0 frames 2..15 }; "
            "cvm { memory 0x40000000 size 4K; alice size 2K } }",
            "`alice` is the name of two, in `vmm` and `cvm`",
        ),
        ("system stack { vmm { region 40..a }; tpt { vm0 frames 2..9 } }", "`a` has no value in what the layers have"),
        (
            "system stack { vmm { device a { }; device b { }; device c { }; device d { } }; tpt { vm0 frames 2..9 } }",
            "a stack has at most 3 devices, here 4",
        ),
        ("system stack { vmm { }; tpt { vm0 frames 2..9 vcpus 8 } }", "a stack has at most 7 vCPUs for VMs, here 8"),
        (SYSTEM + "carol: li x5, 1", "nobody is called `carol`"),
        (SYSTEM + "vm0: resume", "`resume` is for cVMs, tenants and the base"),
        (SYSTEM + "alice: resume 5", "`resume` takes nothing"),
        (SYSTEM + "alice: resume !fault moon", "unknown fault `moon`"),
        (SYSTEM + "alice: load 0", "`load` is no operation of the layer `cvm`"),
        (SYSTEM + "host: claim 30 -> refused SOON", "unknown code `SOON`"),
        (SYSTEM + "expect violates Z1", "unknown invariant `Z1`"),
        (SYSTEM + "let x = any u8\nvm1: store 0, y", "`y` has no value"),
        ("system stack { vmm { }; tpt { vm0 frames 2..9 } }\nalice: li x5, 1", "nobody is called `alice`"),
        ("system stack { vmm { }; tpt { vm0 frames 2..9 } }\ndeployer: destroy bob", "this stack has no layer `cvm`"),
    ],
)
def test_a_wrong_program_is_refused(text, message):
    with pytest.raises(ProgramError) as error:
        parse(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "line", "kind", "message"),
    [
        ("vm1: load 0  -> refused REGION", 7, "result", "refused REGION expected; it was completed"),
        ("host: claim 40", 7, "result", "refused REGION by a layer below, no refusal expected"),
        ("host: claim 40  -> refused STOPPED", 7, "result", "refused REGION by a layer below, refused STOPPED expected"),
        ("alice: resume  !fault tag", 7, "result", "fault tag expected; it was completed"),
        ("vm1: load 0\nvm1: assert value == 1", 8, "assertion", "value = 0x0"),
        ("alice: assert c5.tag", 7, "assertion", "doesn't hold"),
    ],
)
def test_what_doesnt_come_as_it_is_said_fails(text, line, kind, message):
    found = failure_of(text)
    assert found[:2] == (line, kind)
    assert message in found[2]


def test_names_of_one_layer_are_known_in_all_others():
    text = "let f = cvm.frame + 1\nhost: attach disk, vm1\nvm1: write_pte 24, 0, f\nvm1: load 0\nvm1: assert value == 17\n"
    with pytest.raises(ProgramError):
        parse(SYSTEM + text)
    assert verdict_of(SYSTEM + text.replace("let f = cvm.frame + 1\n", "").replace("0, f", "0, cvm.frame + 1")).passed


def test_a_plain_vm_hosts_monitors_too():
    text = SYSTEM.replace("vm0 frames 2..17", "levels 5; vm0 frames 2..17 plain")
    text += 'alice: file_advertise "k", 0x200, 0x100\nbob: file_probe "k", 0x300\nalice: file_revoke "k"\n'
    text += "vm0: write_pte 14, 1, 6\nvmm: assert memory[cvm.frame << 3] == 0\nvm0: write_pte 14, 0, 6\n"
    verdict = verdict_of(
        text + "vmm: assert memory[cvm.frame << 3] == 6\ndeployer: destroy bob\ndeployer: create bob size 4K\n"
    )
    assert verdict.passed, verdict.failure


def test_any_value_may_be_stored_by_a_vm():
    assert verdict_of(SYSTEM + "let x = any u64\nvm1: store 0, x\nvm1: load 0\nvm1: assert value == x\n").passed


def test_what_a_vms_kernel_reads_from_a_register_is_its_value():
    text = "host: attach disk, vm1\nvm1: output port, disk.lba, 7\nvm1: input port, disk.lba\nvm1: assert value == 7\n"
    assert verdict_of(SYSTEM + text).passed


def test_a_policy_is_the_stacks_and_each_layer_has_its_own():
    name, policy = policy_named("without:pages_bound,attach_idle", STACK)
    assert not policy.pages_bound and not policy.attach_idle and policy.tables_in_region
    text = SYSTEM.replace("vm1 frames 20..27 mapped", "vm1 frames 20..27 mapped; policy without host_only_tags")
    verdict = verdict_of(text + "vm1: set_tag 30\n", (name, policy))
    assert set(verdict.violations) >= {"T4"}


def test_a_run_is_shown_step_by_step(capvisor, tmp_path):
    path = tmp_path / "shown.cap"
    path.write_text(SYSTEM + "vm1: store 0, 5\nalice: li x5, 1\nhost: claim 40 -> refused REGION\n")
    status, out, _err = capvisor("run", "--trace", path)
    assert status == Status.OK
    assert "2 pages for cvm in frames 16..17" in out
    assert "memory 24 = [0] 0x5" in out
    assert "refused REGION" in out
