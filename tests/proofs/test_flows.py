"""Non-interference: what steps leave alone, what their outcomes follow from; teeth, and systems in which all that holds."""

import itertools

import pytest

from capvisor.cli import main as command
from capvisor.cli.status import Status
from capvisor.dsl.draw import fix
from capvisor.dsl.parser import parse
from capvisor.dsl.system_runner import run_system
from capvisor.model import calls, monitor
from capvisor.proofs import flows, flows_system, flows_witness, matrix
from capvisor.proofs.flows import Task
from capvisor.proofs.flows_witness import ALICE, BOB, Scene
from capvisor.proofs.mutants import MUTANTS, Mutant, in_force
from capvisor.proofs.runner import Outcome, Settings, Verdict
from capvisor.proofs.teeth import bites
from capvisor.proofs.theorem import THEOREMS
from capvisor.spec.cvm import CALLS, Code
from capvisor.spec.flows import CHANNELS, System, systems_alike
from capvisor.spec.formats import CC64, FORMATS
from capvisor.spec.operations import OPERATIONS
from tests.shares import some
from tests.tutorial import ROOT

QUICK = (flows.BYTES, "cmove", "clc", "csw", flows_system.GUEST, "portal_finish")


def test_every_operation_and_every_call_has_an_obligation() -> None:
    assert set(CHANNELS) == set(CALLS) and set(flows_system.STEPS) == {"guest", "enter", *CALLS}
    assert not set(flows_system.STEPS) & set(OPERATIONS)
    assert set(flows.steps()) == {flows.BYTES, *OPERATIONS, *flows_system.STEPS}
    assert set(flows.cells()) == {f"flows.{name}.{fmt}" for name, formats in flows.steps().items() for fmt in formats}
    assert {name for each in flows.cells().values() for name in each.theorem.uses} <= set(THEOREMS)
    assert all(each.theorem.statement and each.theorem.source for each in flows.cells().values())


@pytest.mark.parametrize("step", some(QUICK, 2))
def test_what_is_said_of_a_step_is_proved(step: str) -> None:
    (outcome,) = flows.prove(Task(step, "cc64"), 60)
    assert (outcome.verdict, outcome.reason) == (Verdict.PROVED, "")


def test_nothing_falls_in_drawn_states_of_any_operation() -> None:
    for name, formats in flows.steps().items():
        if name in OPERATIONS:
            assert [flows.looked_at(Task(name, formats[-1]), number)[1] for number in range(3)] == [[]] * 3


# -- systems in which hypotheses hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda each: each.name)
def test_each_step_is_completed_in_systems_where_nothing_falls(fmt) -> None:
    for step in flows_system.STEPS:
        assert flows_witness.looked_at(step, fmt, 0) == (True, []), step
        assert flows_witness.looked_at(step, fmt, 1)[1] == [], step


def test_the_systems_of_a_pair_are_alike_in_what_is_seen_and_in_nothing_else() -> None:
    scenes = [Scene(CC64, secret) for secret in range(2)]
    one, other = (System(each.kept(), each.monitor) for each in scenes)
    for place, cvm_id in itertools.product(flows_witness.places(scenes[0].monitor), (ALICE, BOB)):
        assert all(systems_alike(one, other, cvm_id, place.granule, place.byte, place.number))
    assert [each.count() for each in (one.after.grants, one.after.portals, one.after.threads)] == [
        each.count() for each in (other.after.grants, other.after.portals, other.after.threads)
    ]
    differ = [
        place
        for place in flows_witness.places(scenes[0].monitor)
        if not all(systems_alike(one, other, flows_witness.CAROL, place.granule, place.byte, place.number))
    ]
    assert differ and one.after.clock != other.after.clock


# -- teeth -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", flows.TEETH)
def test_each_named_mutant_breaks_its_operation(operation: str) -> None:
    theorem = flows.cells()[f"flows.{operation}.cc64"].theorem
    found = list(bites(theorem, 20))
    assert [each.mutant.name for each in found] == list(theorem.mutants)
    assert all(each.fallen is not None for each in found)


def _of_calls(step: str, part: str, before: str, after: str) -> tuple[str, str, Mutant]:
    return step, part, Mutant(part, calls.__name__, before, after)


def _of_monitor(step: str, part: str, before: str, after: str) -> tuple[str, str, Mutant]:
    return step, part, Mutant(part, monitor.__name__, before, after)


BREAKING = {
    "a probe answers with what the file holds": _of_calls(
        "file_probe",
        "thread acting",
        "thread, row.top - row.base)\n    return monitor.put_grant(frame.caller, monitor.address(frame.caller, location), k",
        "thread, monitor.memory.read(row.base, 8))\n"
        "    return monitor.put_grant(frame.caller, monitor.address(frame.caller, location), k",
    ),
    "a capability is put into its owner's memory": _of_monitor(
        "file_probe", "memory", "self.put(address, cap)\n        index", "self.put(row.base, cap)\n        index"
    ),
    "a revocation sweeps all slots": _of_monitor(
        "file_revoke", "memory", "slot.is_slot & is_meant(slot.grant, self.grants[slot.grant])", "slot.is_slot"
    ),
    "where older files of a key were put is remembered": _of_monitor(
        "file_advertise", "rows", "slot.is_slot & (slot.grant != number)", "slot.is_slot"
    ),
    "anyone may revoke": _of_calls(
        "file_revoke", "rows", "if monitor.policy.owner_revokes and row.owner != frame.caller:", "if False:"
    ),
    "a revocation takes all that isn't the holder's own": _of_monitor(
        "portal_finish", "registers", "(high <= own.top) | (top <= low) | (high <= base)", "(high <= own.top)"
    ),
    "a word is stored beyond": _of_monitor(
        "host_time", "memory", "self.memory.write(address, WORD_BYTES", "self.memory.write(address + WORD_BYTES, WORD_BYTES"
    ),
    "a word is loaded from elsewhere": _of_monitor(
        "host_print", "host", "self.memory.read(address, WORD_BYTES)", "self.memory.read(address ^ 1 << 13, WORD_BYTES)"
    ),
    "a call starts a thread of another cVM's": _of_calls(
        "portal_call", "started", "start_thread(row.owner, row.entry, key)", "start_thread(row.caller, row.entry, key)"
    ),
    "who waits learns of another portal": _of_calls(
        "wait",
        "thread acting",
        "thread.waits_for = row.is_busy, key",
        "thread.waits_for = monitor.portals[key ^ 1].is_busy, key",
    ),
    "a frame has the time": _of_monitor(
        "enter",
        "thread acting",
        "self.refusal(number, caller, words), stack)",
        "self.refusal(number, caller, words), self.clock)",
    ),
}


@pytest.mark.parametrize("change", some(list(BREAKING), 2))
def test_a_change_to_the_monitor_makes_what_is_said_of_a_step_fall(change: str) -> None:
    step, part, mutant = BREAKING[change]
    with in_force(mutant):
        assert part in {each for number in range(2) for each in flows_witness.looked_at(step, CC64, number)[1]}


def test_without_drawn_states_the_solver_has_no_proof_either(monkeypatch) -> None:
    monkeypatch.setattr(flows, "_look", lambda *_task, **_completes: ({"drawn_state": 0}, None))
    with in_force(MUTANTS["store-any-capability"]):
        (outcome,) = flows.prove(Task("csc", "cc64"), 20)
    assert outcome.verdict is Verdict.UNKNOWN
    with in_force(BREAKING["who waits learns of another portal"][2]):
        answer, _which = flows_system.ask(flows_system.followed("wait", CC64), 1)
    assert answer.result != "unsat"


# -- verdicts --------------------------------------------------------------------------------------------------------------


def test_a_step_that_is_never_completed_is_vacuous(monkeypatch) -> None:
    monkeypatch.setattr(flows, "looked_at", lambda _task, _number: (False, []))
    (outcome,) = flows.prove(Task("cmove", "cc64"), 20)
    assert outcome.verdict is Verdict.VACUOUS


def test_a_step_that_falls_in_a_system_is_refuted_by_it() -> None:
    with in_force(BREAKING["who waits learns of another portal"][2]):
        (outcome,) = flows.prove(Task("wait", "cc64"), 0.5)
    assert outcome.verdict is Verdict.REFUTED and outcome.counterexample == {"drawn_state": 0}


def test_any_guests_step_leans_on_every_operation(monkeypatch) -> None:
    cell = flows.cells()["flows.guest.cc64"]
    needed = flows.leant_on([cell])
    assert {each.id for each in needed} == {
        f"flows.{name}.cc64"
        for name, formats in flows.steps().items()
        if "cc64" in formats and name not in flows_system.STEPS
    }

    def proved(chosen, *_how):
        verdicts = [Verdict.UNKNOWN if each.id == "flows.csc.cc64" else Verdict.PROVED for each in chosen]
        return [Outcome(each, verdict) for each, verdict in zip(chosen, verdicts, strict=True)], False

    monkeypatch.setattr(matrix, "prove", proved)
    outcomes, _interrupted = flows.prove_all([cell, *needed], Settings())
    assert outcomes[0].verdict is Verdict.UNKNOWN and "flows.csc.cc64" in outcomes[0].reason


def test_flows_are_proved_by_name_from_the_command(tmp_path, capsys) -> None:
    assert command.status_of(["prove", "flows.cmove.cc64", "--state", str(tmp_path), "--workers", "1"]) == Status.OK
    assert "2 of 2 as expected" in capsys.readouterr().out
    assert command.status_of(["prove", "flows.nothing.cc64"]) == Status.USAGE
    assert command.status_of(["prove", "--list", "flows.wait.*"]) == Status.OK


# -- what was found --------------------------------------------------------------------------------------------------------


OLD_SLOTS_STAY = BREAKING["where older files of a key were put is remembered"][2]
AN_OLD_KEY = ROOT / "programs" / "attacks" / "cvm" / "b39_an_old_key.cap"


def test_a_revocation_takes_nothing_where_an_earlier_file_of_that_key_was_put() -> None:
    program = parse(AN_OLD_KEY.read_text(), AN_OLD_KEY.name)
    assert run_system(program, fix(program, {}, 0)).passed
    with in_force(OLD_SLOTS_STAY):
        failure = run_system(program, fix(program, {}, 0)).failure
    assert failure is not None and failure.kind == "violation" and "C6" in failure.text


def test_what_has_ended_is_not_taken_back_again() -> None:
    """A call is finished after its caller was destroyed: what stands now where the buffer was put stays."""
    scene, place = Scene(CC64, 0), 0x380 >> CC64.granule_shift
    monitor_ = scene.monitor
    assert scene.call(scene.serving, "portal_fetch", 0x380) is Code.OK
    assert monitor_.granule(place).tag and monitor_.destroy(BOB) is Code.OK and not monitor_.granule(place).tag
    monitor_.put(monitor_.memory.base + (place << CC64.granule_shift), monitor_.region_data(ALICE))
    assert scene.call(scene.serving, "portal_finish") is Code.OK
    assert monitor_.granule(place).tag
    with in_force(Mutant("again", monitor.__name__, "row.is_live & (each == number)", "each == number")):
        answer, which = flows_system.ask(flows_system.respected("portal_finish", CC64), 2)
    assert answer.result != "unsat" and which == "memory"
