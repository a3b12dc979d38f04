"""Theorems on a para-pass-through VMM: each step of the machine keeps each invariant of `spec.vmm_invariants`.

A step is any operation, by whomever: the guest, a device, the VMM, an extension. It is executed once by the reference, from
any state that the invariants allow (`proofs.vmm_state`), along all its ways; then each invariant is asked of any place.

What the guest does to registers is proved in parts: by register, and for the register of commands by the command.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import z3

from capvisor.model.bits import not_, select
from capvisor.model.vmm_system import perform
from capvisor.proofs import lazy, symbolic
from capvisor.proofs.incremental import Way, asked_of
from capvisor.proofs.steps import Kept, Proved
from capvisor.proofs.symbolic import SymBool, term_of
from capvisor.proofs.tables import key_of
from capvisor.proofs.theorem import Given, implies
from capvisor.proofs.vmm_extension import AnyExtension
from capvisor.proofs.vmm_state import (
    DEVICE_BITS,
    EXTENSION_BITS,
    FRAME_BITS,
    VCPU_BITS,
    WINDOW_BITS,
    AnySystem,
    Known,
)
from capvisor.spec.vmm import (
    COMMANDS,
    OPERATIONS,
    WINDOW_FRAME_SHIFT,
    WINDOW_SHIFT,
    WORD_BITS,
    Command,
    OperandKind,
    Register,
    Space,
)
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from capvisor.spec.vmm_policy import INTENDED, VmmPolicy
from capvisor.spec.vmm_words import Place, Step

BASE = "initial"
"""The base case among the steps: the machine as it is made."""

SIZES = ("frame_count", "region_first", "region_behind", "vcpu_count", "device_count")
"""Symbols that say how large the machine is."""

FITS = "fits"
KEPT = (*VMM_INVARIANTS, FITS)
"""What is asked of steps: the invariants; and that what is put into a field fits into as many bits as it has here."""

OF_ALONE = ("P3", "P5", FITS)
"""What is asked of steps without an added extension: for the rest, they are steps with one that does nothing."""

WHOLE = "all"
"""What stands for the part of a step that is proved in one."""
ALONE = "alone_"
"""Before the name of a part: without an extension of the mediator beside those that each has, of which P3 and P5 say
more.
"""

PLACE_WINDOW = "place_window"
"""A step before the machine runs: a device gets a window."""

_COMMAND = "command_"
OTHER = "other"
"""Any command that isn't in the device's table."""
OPCODE = 0xFF


def steps() -> dict[str, str]:
    """The steps, by name, with their kind."""
    return {BASE: "base", PLACE_WINDOW: "base", **{name: row.actor.value for name, row in OPERATIONS.items()}}


def parts(name: str) -> tuple[str, ...]:
    """The parts that a step is proved in."""
    found: tuple[str, ...] = (WHOLE,)
    if name in ("input", "output"):
        found = tuple(each.name.lower() for each in Register)
    if name == "output":
        commands = (*ALIKE, OTHER)
        found = (*(each for each in found if each != "command"), *(f"{_COMMAND}{each}" for each in commands))
    has_words = name in ("input", "output", "mediate")
    return (*found, f"{ALONE}{found[0]}") if has_words else found


def _alike() -> dict[str, tuple[int, ...]]:
    found: dict[Any, list[Command]] = {}
    for row in COMMANDS.values():
        found.setdefault((row.transfer, row.handling, row.has_own_data), []).append(row)
    return {rows[0].name: tuple(row.opcode for row in rows) for rows in found.values()}


ALIKE = _alike()
"""Commands that the mediator does the same with: by the name of the first one, their opcodes. They are proved in one."""


_OPERAND_BITS = {
    OperandKind.VCPU: VCPU_BITS,
    OperandKind.SLOT: 5,
    OperandKind.FRAME: FRAME_BITS,
    OperandKind.LEVEL: 3,
    OperandKind.FLAG: 1,
    OperandKind.OFFSET: WORD_BITS,
    OperandKind.ADDRESS: WORD_BITS,
    OperandKind.WORD: WORD_BITS,
    OperandKind.DEVICE: DEVICE_BITS,
    OperandKind.SPACE: 2,
    OperandKind.NUMBER: WORD_BITS,
    OperandKind.WINDOW: WORD_BITS,
    OperandKind.MSR: 32,
    OperandKind.LBA: WORD_BITS,
    OperandKind.EXTENSION: EXTENSION_BITS,
}


def _operands(given: Given, name: str, part: str) -> tuple[list[Any], list[Any]]:
    """Any operands of a part of a step, and what is so of them."""
    part = part.removeprefix(ALONE)
    operands = {each: given.word(each, _OPERAND_BITS[kind]) for each, kind in OPERATIONS[name].operands}
    if part == WHOLE:
        return list(operands.values()), []
    register, is_command = part, part.startswith(_COMMAND)
    conditions: list[Any] = []
    if is_command:
        register, command = Register.COMMAND.name.lower(), part.removeprefix(_COMMAND)
        if command == OTHER:
            conditions = [operands["value"] & OPCODE != opcode for opcode in COMMANDS]
        else:
            first, *others = ALIKE[command]
            opcode: Any = first
            for number, each in enumerate(others):
                opcode = select(given.flag(f"is_other_{number}"), each, opcode)
            operands["value"] = given.word("value_above", WORD_BITS - 8) << 8 | opcode
    operands["number"] = given.word("window", WORD_BITS - WINDOW_SHIFT) << WINDOW_SHIFT | Register[register.upper()]
    return list(operands.values()), conditions


_LEANER_MS = 50
"""How long it is tried to do without an invariant that an answer leans on: there are many answers."""


def _take(system: AnySystem, name: str, part: str) -> Step:
    """The step of that name."""
    if name == BASE:
        system.make_new()
        return Step(system, BASE)
    if name == PLACE_WINDOW:
        return _place_window(system)
    operands, conditions = _operands(system.given, name, part)
    for condition in conditions:
        system.given.assume(condition)
    if not part.startswith(ALONE):
        system.hooks = (AnyExtension(system, touches=name == "mediate").hooks,)
    system.begin()
    return perform(system, name, *operands)._replace(before=system.first)


def _place_window(system: AnySystem) -> Step:
    """A device without a window in a space gets one, where no other device's is nor the region."""
    device, window = system.given.word("device", DEVICE_BITS), system.given.word("window", WINDOW_BITS)
    space = int(Space.MEMORY if system.given.flag("in_memory") else Space.PORT)
    system.begin()
    system.given.assume((device >= 1) & (device <= system.device_count))
    system.given.assume(
        (system.decoded[space, window] == 0) & (system.decoded[space, system.windows[device, space]] != device)
    )
    if space == Space.MEMORY:
        system.given.assume(not_(system.in_region(window >> WINDOW_FRAME_SHIFT)))
    system.place_window(device, space, window)
    return Step(system, PLACE_WINDOW, before=system.first)


Parts = dict[int, z3.BoolRef]
"""What is to be shown, one by one, by the terms' numbers: once, where it is the same at several places."""


def _parts(goals: list[Any]) -> Parts:
    return {part.get_id(): part for goal in goals for part in lazy.conjuncts(term_of(goal))}


def _goals(system: AnySystem, step: Step, invariant: str) -> Parts:
    """What an invariant says at any place: of each sector that a step may have written, and of any other one."""

    def at(place: Place) -> Parts:
        return _parts([VMM_INVARIANTS[invariant].holds(step, place)])

    found: Parts = {}
    written = {tuple(map(key_of, sector)): sector for sector in system.media.written}  # type: ignore[attr-defined]
    for place in system.places:
        apart: Any = True
        with system.unnoticed():
            of_others = at(place._replace(lba=system.other_lba)) if written else {}
        for device, lba in written.values():
            apart = apart & not_((place.device == device) & (place.lba == lba))
            with system.unnoticed():
                of_device = at(place._replace(device=device))
            found |= {key: part for key, part in at(place._replace(device=device, lba=lba)).items() if key not in of_device}
        for key, part in at(place).items():
            of_sector = bool(written) and key not in of_others
            found |= _parts([implies(apart, SymBool(part))]) if of_sector else {key: part}
    return found


def ways(
    name: str,
    part: str = WHOLE,
    policy: VmmPolicy = INTENDED,
    invariants: tuple[str, ...] = KEPT,
    asked: tuple[str, ...] = (),
    where: Callable[[AnySystem, Step], Any] | None = None,
) -> list[Way]:
    """Every way through a part of a step: some invariants are supposed before it; the goals are what is asked, or all.

    `where` says of a step what else is supposed.
    """
    attempts: list[AnySystem] = []
    known = Known()

    def run() -> tuple[bool, dict[str, tuple[z3.BoolRef, ...]], frozenset[str]]:
        system = AnySystem(Given(), policy, invariants, known)
        attempts.append(system)
        step = _take(system, name, part)
        seen = frozenset(system.guards.seen)
        system.guards.seen.clear()
        goals = {each: _goals(system, step, each) for each in asked or invariants if each in VMM_INVARIANTS}
        goals[FITS] = _parts(system.narrowed)
        if where is not None:
            system.given.assume(where(system, step))
        if name != BASE:
            system.suppose()
        return step.is_completed, {each: tuple(of.values()) for each, of in goals.items()}, seen

    _any, conditions = ([], []) if name not in OPERATIONS else _operands(Given(), name, part)
    paths = symbolic.explore(run, [term_of(each) for each in conditions], most=2000)
    found = []
    for path, system in zip(paths, attempts, strict=True):
        completed, goals, guards = path.result
        supposed = system.given.assumptions
        labels = ("",) * len(path.conditions) + tuple(system.labels.get(number, "") for number in range(len(supposed)))
        every = (*path.conditions, *map(term_of, supposed))
        found.append(Way(every, goals, completed, labels, guards, frozenset(system.guards.seen)))
    return found


def prove(
    name: str,
    part: str = WHOLE,
    policy: VmmPolicy = INTENDED,
    invariants: tuple[str, ...] = KEPT,
    timeout_s: float = 60,
    asked: tuple[str, ...] = (),
) -> Proved:
    """Whether each invariant is kept in a part of a step, on every way, at any place.

    All of `invariants` are supposed before the step; those in `asked` are asked after it, or all.
    """
    of_part = tuple(each for each in invariants if each in OF_ALONE) if part.startswith(ALONE) else invariants
    asked = asked or of_part
    found = asked_of(ways(name, part, policy, invariants, asked), asked, timeout_s, _LEANER_MS)
    # Where all numbers are narrow enough there is nothing to show.
    fits = {FITS: found.kept.get(FITS, Kept("unsat"))} if FITS in asked else {}
    return replace(found, kept=found.kept | fits)


def counterexample(name: str, part: str, policy: VmmPolicy, invariant: str, timeout_s: float = 60) -> dict[str, int] | None:
    """Values with which an invariant falls in a part of a step, from a state that has all of them; None if none is found.

    They are the step's operands by name, and the machine's sizes.
    """
    names = (*(each for each, _kind in OPERATIONS[name].operands), *SIZES)
    for way in ways(name, part, policy, asked=(invariant,)):
        for goal in way.goals[invariant]:
            solver = z3.SolverFor("QF_ABV")
            solver.set("timeout", int(timeout_s * 1000))
            solver.add(*way.conditions, z3.Not(goal))
            if solver.check() == z3.sat:
                values = {str(each): solver.model()[each] for each in solver.model().decls()}
                return {each: values[each].as_long() for each in names if each in values}
    return None
