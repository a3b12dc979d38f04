"""Theorems on a para-pass-through VMM: steps that keep invariants, and guards without which they don't."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import z3

from capvisor.model import extensions, mediator, vmm_operations
from capvisor.model import vmm_devices as hardware
from capvisor.model.bits import not_
from capvisor.model.vmm import System
from capvisor.model.vmm_operations import OPERATION_RULES
from capvisor.proofs import incremental, vmm, vmm_runner
from capvisor.proofs.symbolic import SymInt, term_of
from capvisor.proofs.tables import key_of
from capvisor.proofs.theorem import Given
from capvisor.proofs.vmm_extension import AnyExtension
from capvisor.proofs.vmm_state import INDUCTIVE, AnyCipher, AnySystem, Table
from capvisor.spec.vmm import COMMANDS, HIDDEN_FRAMES, LEVEL_FRAMES, OPERATIONS, ChannelState, Code, Handling, Register
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_policy import INTENDED, VMM_GUARDS, VMM_POLICIES, without
from capvisor.spec.vmm_words import Step, accessed, is_denied, is_mediated
from tests.shares import some
from tests.unit.vmm_broken import BROKEN, break_in


def fallen(step: str, policy=INTENDED, asked: tuple[str, ...] = ()) -> dict[str, str]:
    name, _, part = step.partition(".")
    answers = vmm.prove(name, part or vmm.WHOLE, policy, timeout_s=60, asked=asked).kept
    return {each: answer.result for each, answer in answers.items() if answer.result != "unsat"}


# -- what the steps are ----------------------------------------------------------------------------------------------------


def test_every_operation_is_a_step() -> None:
    assert set(vmm.steps()) == {vmm.BASE, vmm.PLACE_WINDOW, *OPERATIONS}
    assert set(OPERATIONS) == set(OPERATION_RULES)


def test_what_is_said_of_a_state_is_supposed_and_nothing_else() -> None:
    assert {name for name, row in VMM_INVARIANTS.items() if row.of_state} == set(INDUCTIVE)
    assert set(vmm.KEPT) == {*VMM_INVARIANTS, vmm.FITS}


def test_the_parts_of_an_output_are_every_register_and_every_command() -> None:
    """Each number and each value is in one of them; what else is in the word is any."""
    registers: dict[int, list[str]] = {int(each): [] for each in Register}
    commands: dict[int, list[str]] = {opcode: [] for opcode in (*COMMANDS, 0, 0x21, 0xFF)}
    named = {opcode: name for name, opcodes in vmm.ALIKE.items() for opcode in opcodes}
    assert named.keys() == COMMANDS.keys()
    for part in (each for each in vmm.parts("output") if not each.startswith(vmm.ALONE)):
        (_vcpu, _space, number, value), conditions = vmm._operands(Given(), "output", part)
        solver = z3.Solver()
        solver.add(*map(term_of, conditions), term_of(number >> 3 == 0x12345), term_of(value >> 8 == 0xABCDEF))
        for register, found in registers.items():
            if solver.check(term_of(number & 7 == register)) == z3.sat:
                found.append(part)
        for opcode, found in commands.items():
            if part in registers[Register.COMMAND] and solver.check(term_of(value & 0xFF == opcode)) == z3.sat:
                found.append(part)
    assert commands == {opcode: [f"command_{named.get(opcode, vmm.OTHER)}"] for opcode in commands}
    others = {int(each): [each.name.lower()] for each in Register if each is not Register.COMMAND}
    assert {each: found for each, found in registers.items() if each != Register.COMMAND} == others


def test_something_is_asked_of_each_part_whatever_falls() -> None:
    """A part of which nothing is known would keep nothing."""
    supposed = tuple(name for name in vmm.KEPT if name not in ("P3", "P5"))
    assert {each: answer.result for each, answer in vmm.prove("output", "alone_data", INTENDED, supposed).kept.items()} == {
        vmm.FITS: "unsat"
    }


# -- steps that keep all invariants ----------------------------------------------------------------------------------------


def test_a_machine_as_it_is_made_has_all_invariants() -> None:
    assert fallen(vmm.BASE) == {}


@pytest.mark.parametrize(
    "step",
    [
        "place_window",
        "map",
        "store",
        "move_window",
        "dma_write",
        "send",
        "send_next",
        "hand_over",
        "extension_write",
        "fetch",
    ],
)
def test_a_step_keeps_all_invariants(step: str) -> None:
    assert fallen(step) == {}


@pytest.mark.parametrize("part", some(["descriptors", "start", "command_other", "control", "command_flush_cache"], 2))
def test_what_the_guest_writes_to_a_register_keeps_all_invariants(part: str) -> None:
    assert fallen(f"output.{part}") == {}


GUARDED = {
    "filter_mappings": ("map", "P1"),
    "hide_whole_region": ("map", "P1"),
    "split_large_mappings": ("map", "P1"),
    "panic_on_region_write": ("map", "P1"),
    "apic_outside_region": ("write_msr", "P8"),
    "swallow_microcode": ("write_msr", "P8"),
    "hide_virtualisation": ("enter_vmx", "P8"),
    "keep_on_init": ("init", "P8"),
    "keep_on_resume": ("sleep", "P8"),
    "follow_window_moves": ("move_window", "P8"),
    "unmap_registers": ("store", "P8"),
    "windows_outside_region": ("move_window", "P8"),
    "iommu_hides_region": ("dma_write", "P2"),
    "iommu_confines_mediated": ("dma_read", "P7"),
    "read_back_registers": ("output.command_read_sectors", "P6"),
    "count_bounded": ("output.command_read_sectors", "P6"),
    "check_all_sectors": ("output.command_read_sectors", "P14"),
    "refuse_denied": ("output.command_read_sectors", "P14"),
    "refuse_unknown": ("output.command_vendor_dma", "P16"),
    "refuse_queued": ("output.command_write_queued", "P16"),
    "through_harmless": ("output.command_trim", "P14"),
    "start_gated": ("output.start", "P16"),
    "direction_checked": ("output.start", "P16"),
    "shadow_descriptors": ("output.descriptors", "P4"),
    "show_own_descriptors": ("input.descriptors", "P5"),
    "descriptors_checked_at_use": ("mediate", "P9"),
    "descriptors_outside_region": ("mediate", "P9"),
    "whole_descriptors": ("mediate", "P3"),
    "encrypt_writes": ("output.data", "P3"),
    "decrypt_reads": ("input.alone_data", "P5"),
    "block_while_busy": ("output.start", "P16"),
    "reset_follows": ("output.control", "P16"),
    "confine_extensions": ("extension_write", "P15"),
    "claim_before_command": ("output.command_read_sectors", "P12"),
    "recheck_before_write": ("deploy", "P3"),
    "leave_when_deployed": ("leave", "P12"),
    "track_cpu_writes": ("store", "P13"),
    "track_dma_writes": ("dma_write", "P13"),
    "track_mediator_writes": ("mediate", "P13"),
    "stop_before_last_round": ("store", "P13"),
    "whole_last_round": ("hand_over", "P13"),
}
"""Of each guard, a step and an invariant that falls in it without."""


@pytest.mark.parametrize("guard", some(list(VMM_GUARDS), 2))
def test_a_proof_rests_on_the_guard(guard: str) -> None:
    step, invariant = GUARDED[guard]
    assert fallen(step, without(guard), (invariant,)) == {invariant: "sat"}


COMPLETED = [
    *(name for name in OPERATIONS if name not in ("input", "output", "enter_vmx")),
    *(f"input.{part}" for part in vmm.parts("input")),
    *(
        f"output.{part}"
        for part in vmm.parts("output")
        if part not in {f"command_{row.name}" for row in COMMANDS.values() if row.handling is Handling.QUEUED}
    ),
]


@pytest.mark.parametrize("step", some(COMPLETED, 6))
def test_what_is_supposed_of_a_completed_step_can_hold(step: str) -> None:
    name, _, part = step.partition(".")
    completed = [way for way in vmm.ways(name, part or vmm.WHOLE) if way.is_completed]
    assert any(incremental.can_hold(way, timeout_s=60) for way in completed)


def _accessed(system: AnySystem, step: Step, state: ChannelState) -> Any:
    """A register of a mediated device is accessed, whose mediator is in a state before the step."""
    hook = accessed(step).hook
    return (hook != 0) & is_mediated(system.first, hook) & (system.first.channels[hook].state == state)


def _moves(system: AnySystem, step: Step, *, is_write: bool) -> Any:
    """The device that the step names is mediated, and moves data in a direction."""
    device = step.operands[0]
    channel = system.first.channels[device]
    return is_mediated(system.first, device) & (channel.state == ChannelState.MOVING) & (channel.is_write == is_write)


SITUATIONS: dict[str, tuple[str, Code, Callable[[AnySystem, Step], Any]]] = {
    "PIO read": ("input.data", Code.OK, lambda *each: _accessed(*each, ChannelState.PIO_IN)),
    "PIO write": ("output.data", Code.OK, lambda *each: _accessed(*each, ChannelState.PIO_OUT)),
    "DMA read": ("transfer", Code.OK, lambda *each: _moves(*each, is_write=False)),
    "DMA write": ("transfer", Code.OK, lambda *each: _moves(*each, is_write=True)),
    "copying out": (
        *("mediate", Code.OK),
        lambda system, step: system.first.channels[step.operands[0]].state == ChannelState.COPYING_OUT,
    ),
    "copying in": (
        *("mediate", Code.OK),
        lambda system, step: system.first.channels[step.operands[0]].state == ChannelState.COPYING_IN,
    ),
    "a read is finished": ("input.master_status", Code.OK, lambda *each: _accessed(*each, ChannelState.MOVING)),
    "DMA starts": ("output.start", Code.OK, lambda *each: _accessed(*each, ChannelState.DMA_READY)),
    "a command is issued": (
        *("output.command_write_dma", Code.OK),
        lambda system, step: accessed(step).hook != 0,
    ),
    "an extension refuses": (
        *("output.command_read_sectors", Code.FAILED),
        lambda system, step: (
            functools.reduce(operator.or_, step.answers, False)
            & not_(is_denied(system, accessed(step).hook, system.first.devices[accessed(step).hook].lba))
        ),
    ),
    "a page of the region is redirected": (
        *("map", Code.OK),
        lambda system, step: system.mappings[step.operands[0], step.operands[1]].is_zero,
    ),
    "registers are reached as memory": (
        *("load", Code.UNMAPPED),
        lambda system, step: system.first.mappings[step.operands[0], step.operands[1]].is_live,
    ),
    "a device is kept from the region": (
        *("dma_write", Code.IOMMU),
        lambda system, step: system.in_region(step.operands[1] >> 3) & not_(is_mediated(system, step.operands[0])),
    ),
}
"""By name: a step, how it ends, and what is so of it, of what is mediated."""


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_situation_in_which_the_vmm_mediates_can_be(name: str) -> None:
    """Else what is proved of it would say nothing."""
    step, code, holds = SITUATIONS[name]
    operation, _, part = step.partition(".")

    def where(system: AnySystem, done: Step) -> Any:
        return (done.code is code) and holds(system, done)

    ways = vmm.ways(operation, part or vmm.WHOLE, asked=("P19",), where=where)
    assert any(incremental.can_hold(way, timeout_s=60) for way in ways)


# -- the region of 4 MiB ---------------------------------------------------------------------------------------------------


def test_the_public_code_of_2009_lets_the_guest_map_what_lies_behind_the_first_4_mib() -> None:
    values = vmm.counterexample("map", vmm.WHOLE, VMM_POLICIES["bitvisor-2009"], "P1")
    assert values is not None
    size = LEVEL_FRAMES[values["level"]]
    first, hidden_behind = values["frame"] & -size, values["region_first"] + HIDDEN_FRAMES
    assert first < values["region_behind"] and hidden_behind < first + size


def test_steps_are_proved_by_workers() -> None:
    told: list[int] = []
    found, interrupted = vmm_runner.prove([("init", vmm.WHOLE)], INTENDED, 60, 1, None, lambda: told.append(1))
    assert [each.is_proved for each in found] == [True] and not interrupted and len(told) == 1


def test_a_policy_that_loses_an_invariant_is_told_in_which_step_it_falls_and_how() -> None:
    supposed = tuple(name for name in vmm.KEPT if name != "P1")
    policy = VMM_POLICIES["bitvisor-2009"]
    (outcome,), interrupted = vmm_runner.prove([("map", vmm.WHOLE)], policy, 60, 1, None, lambda: None, supposed)
    assert not interrupted and outcome.answers["P1"] == "sat" and "frame 0x" in outcome.reason
    assert {name for name, answer in outcome.answers.items() if answer != "unsat"} == {"P1"}


# -- teeth -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_a_machine_that_is_wrong_is_noticed_by_a_proof(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BROKEN[name]
    break_in(broken, monkeypatch)
    assert fallen(broken.step, asked=(broken.invariant,)) == {broken.invariant: "sat"}


def test_a_device_that_takes_another_sector_than_the_one_that_was_checked_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = hardware.issue

    def issue(system: System, device: int, opcode: int) -> None:
        original(system, device, opcode)
        row = system.devices[device]
        system.devices[device] = row._replace(first=row.first ^ 1)

    monkeypatch.setattr(hardware, "issue", issue)
    assert fallen("output.command_read_sectors", asked=("P6",)) == {"P6": "sat"}


def test_a_block_that_goes_to_the_medium_as_the_guest_has_it_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extensions, "outgoing", lambda _system, _device, _lba, word: (word, word))
    assert fallen("mediate", asked=("P3",)) == {"P3": "sat"}


def test_a_frame_whose_last_block_isnt_sent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vmm_operations, "BLOCKS_PER_FRAME", 7)
    assert fallen("send", asked=("P13",)) == {"P13": "sat"}


def test_a_buffer_that_is_checked_before_the_offset_is_added_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = mediator._check_buffer
    seen: list[int] = []

    def once(system: System, device: int, address: int) -> None:
        seen.append(device)
        if len(seen) % 2:
            original(system, device, address)

    monkeypatch.setattr(mediator, "_check_buffer", once)
    assert "sat" in fallen("mediate", asked=("P9",)).values()


def test_what_memory_a_machine_is_made_with_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnySystem, "in_region", lambda _system, _frame: False)
    assert fallen(vmm.BASE, asked=("P1",)) == {"P1": "sat"}


def test_a_number_that_doesnt_fit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = vmm_operations.OPERATION_RULES["send_next"]

    def unbounded(system: System) -> None:
        system.vmm[0] = system.vmm[0]._replace(next_frame=system.vmm[0].next_frame << 20)
        original(system)

    monkeypatch.setitem(vmm_operations.OPERATION_RULES, "send_next", unbounded)
    assert fallen("send_next", asked=(vmm.FITS,)) == {vmm.FITS: "sat"}


# -- the cipher, and extensions --------------------------------------------------------------------------------------------


def test_the_cipher_is_any_that_can_be_undone() -> None:
    given = Given()
    cipher = AnyCipher(given)
    key, lba, word = given.word("key", 64), given.word("lba", 48), given.word("word", 64)
    hidden = cipher.encrypt(key, lba, word)
    assert isinstance(hidden, SymInt)
    undone, done_again = cipher.decrypt(key, lba, hidden), cipher.encrypt(key, lba, cipher.decrypt(key, lba, word))
    solver = z3.Solver()
    solver.add(*map(term_of, given.assumptions))
    assert solver.check(term_of(hidden != word)) == z3.sat
    assert solver.check(term_of(cipher.encrypt(key, lba + 1, word) != hidden)) == z3.sat
    assert solver.check(term_of(undone != word)) == z3.unsat
    assert solver.check(term_of(done_again != word)) == z3.unsat


def test_whatever_an_extension_does_rests_on_its_being_confined() -> None:
    assert fallen("mediate", without("confine_extensions"), ("P15",)) == {"P15": "sat"}


def test_an_extension_answers_what_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the medium gets isn't the guest's word; what is meant is what the extension makes of it."""
    original = extensions.outgoing

    def outgoing(system: System, device: int, lba: int, word: int) -> tuple[int, int]:
        return word, original(system, device, lba, word)[1]

    monkeypatch.setattr(extensions, "outgoing", outgoing)
    assert fallen("output.data", asked=("P3",)) == {"P3": "sat"}


def test_nothing_of_a_mediator_reads_the_guests_memory_after_a_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    act, get, perform = AnyExtension._act, Table.__getitem__, vmm.perform
    performing, acted, read = [False], [0], []

    def acts(extension: AnyExtension, view: extensions.View) -> None:
        performing[0] = False
        act(extension, view)
        performing[0], acted[0] = True, acted[0] + 1

    def gets(table: Table, number: object) -> object:
        if performing[0] and acted[0] and table._fields == ("address",):
            read.append((key_of(number), key_of(table._system.key_address)))
        return get(table, number)

    def performs(system: AnySystem, *arguments: object) -> object:
        performing[0], acted[0] = True, 0
        try:
            return perform(system, *arguments)
        finally:
            performing[0] = False

    monkeypatch.setattr(AnyExtension, "_act", acts)
    monkeypatch.setattr(Table, "__getitem__", gets)
    monkeypatch.setattr(vmm, "perform", performs)
    assert vmm.ways("mediate", invariants=("P10",))
    assert read and all(number == key for number, key in read)


@pytest.mark.parametrize("step", ["input.data", "output.data", "output.command_read_sectors", "output.command_trim"])
def test_other_steps_that_call_hooks_touch_no_memory_but_the_key(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, _, part = step.partition(".")
    perform, called = vmm.perform, [0]

    def performs(system: AnySystem, *arguments: object) -> object:
        done = perform(system, *arguments)
        memory: Table = system.memory  # type: ignore[assignment]
        looked_at = {key_of(number) for (number,) in system._looked_at.get(("address",), ())}
        assert not memory.is_changed and not done.touches and looked_at <= {key_of(system.key_address)}
        called[0] += 1
        return done

    monkeypatch.setattr(vmm, "perform", performs)
    assert len(vmm.ways(name, part, invariants=("P10",))) == called[0] > 0
