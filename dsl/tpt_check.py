"""What must be right about a program of translation pass-through before it is run: who acts, what there is, operands."""

from capvisor.dsl.check import RESERVED, count, listed, suggest
from capvisor.dsl.operation_check import VALUE, OperationChecker
from capvisor.dsl.syntax import (
    Agent,
    Assert,
    Call,
    Enter,
    Fault,
    Guest,
    Instruction,
    Leave,
    Measured,
    Program,
    System,
)
from capvisor.dsl.system_kinds import SystemKind
from capvisor.dsl.tpt_layout import DEFAULTS, NAMES, Layout
from capvisor.spec.paging import LEVELS, WORDS_PER_FRAME
from capvisor.spec.registers import REGISTER_NUMBERS
from capvisor.spec.tpt import (
    MAX_DEVICES,
    MAX_FRAMES,
    MAX_VCPUS,
    MAX_VMS,
    OPERATIONS,
    Actor,
    Code,
    FaultKind,
    OperandKind,
    Operation,
)

TABLES = {"memory": ("frame", "word"), "tag": ("frame",), "pending": ("frame",)}
"""What expressions can look up, and by what."""

FAULTS: dict[str, FaultKind] = {kind.name.lower(): kind for kind in FaultKind if kind is not FaultKind.NONE}
FAULT_FIELDS = {
    FaultKind.PAGE: "code",
    FaultKind.TAG: "frame",
    FaultKind.NESTED: "frame",
    FaultKind.IOMMU: "frame",
}
"""By kind of fault, what else is said of it."""

MEASURES = ("refs", "lookups", "updates")
"""Of a walk: references to tables, tags that were looked up, and accessed and dirty bits that were set."""

_WORDS = RESERVED | {"system", "policy", "format", "expect", VALUE, *TABLES, *NAMES, *DEFAULTS}
_RANGES = {"frames": (1, MAX_FRAMES), "levels": (LEVELS[0], LEVELS[-1]), "devices": (0, MAX_DEVICES)}
_OF_CPUS = (Actor.GUEST, Actor.PROCESSOR)


class TptChecker(OperationChecker):
    """Walks through the statements of a program of translation pass-through."""

    _tables = TABLES

    def __init__(self, program: Program, kind: SystemKind) -> None:
        super().__init__(program, kind)
        self._layout: Layout | None = None

    # -- what there is -----------------------------------------------------------------------------------------------------

    def _set_up(self, system: System) -> None:
        for what, given in (("format", system.format), ("memory", system.memory_base)):
            if given is not None:
                raise self._error(f"a system tpt has no `{what}`: its memory is `frames 64`", system.position)
        for region in system.regions:
            raise self._error(f"a VM has frames: `{region.name} frames 0..7`", region.position)
        others = ", and VMs, `vm0 frames 0..7`"
        numbers = {**DEFAULTS, **self._settings(system.settings, _RANGES, "a system tpt", others)}
        if not system.guests:
            raise self._error("a system tpt needs a VM: `vm0 frames 0..7`", system.position)
        known: set[str] = set()
        cpus = 0
        for guest in system.guests:
            if guest.name in known:
                raise self._error(f"`{guest.name}` is said twice", guest.position)
            known.add(guest.name)
            cpus += self._guest(guest, numbers)
        if len(known) > MAX_VMS or cpus > MAX_VCPUS:
            raise self._error(f"a system has at most {MAX_VMS} VMs and {MAX_VCPUS} vCPUs", system.guests[-1].position)
        self._layout = Layout(system)
        self._constants = self._layout.constants()

    def _guest(self, guest: Guest, numbers: dict[str, int]) -> int:
        """How many vCPUs a VM has, if it is well said."""
        name = guest.name
        agents = [f"{kind}{number}" for kind in ("cpu", "device") for number in range(MAX_VCPUS)]
        if name in REGISTER_NUMBERS or name in _WORDS or name in agents or not name.isidentifier():
            what = "a register" if name in REGISTER_NUMBERS else "a word of the language"
            reason = what if name.isidentifier() else "no plain name"
            raise self._error(f"`{name}` can't name a VM: it is {reason}", guest.position)
        first, last = (self._constant(each, "a VM's frame") for each in (guest.first, guest.last))
        if not 0 <= first <= last < numbers["frames"]:
            message = f"frames {first}..{last} aren't among the system's, 0..{numbers['frames'] - 1}"
            raise self._error(message, guest.first.position)
        pages = last + 1 - first - numbers["levels"]
        if guest.is_mapped and not 0 < pages <= WORDS_PER_FRAME:
            message = f"a mapped VM has {numbers['levels']} tables and 1 to {WORDS_PER_FRAME} pages, here {pages}"
            raise self._error(message, guest.first.position)
        cpus = 1 if guest.vcpus is None else self._constant(guest.vcpus, "`vcpus`")
        if guest.vcpus is not None and not 1 <= cpus <= MAX_VCPUS:
            raise self._error(f"a VM has 1 to {MAX_VCPUS} vCPUs", guest.vcpus.position)
        return cpus

    # -- who does what -----------------------------------------------------------------------------------------------------

    def _by(self, agent: Agent, action: Instruction | Assert | Call | Enter | Leave) -> None:
        actors = self._actors(agent)
        match action:
            case Assert(condition):
                self._condition(condition, "`assert` needs a condition")
            case Call(name, operands, result, fault):
                row = OPERATIONS[name]
                if row.actor not in actors:
                    raise self._error(f"`{name}` is for {_AGENTS[row.actor]}", action.position)
                wanted = written_operands(row)
                optional = bool(wanted) and wanted[-1][1] is OperandKind.USER
                self._written(name, wanted, operands, action.position, int(optional))
                self._result(result, (Code.OK, *row.refusals), f"`{name}`")
                if fault is not None:
                    self._fault(row, fault)
            case Instruction():
                raise self._unknown(action)
            case Enter() | Leave():
                raise self._error("in a system tpt, operations have one part", action.position)

    def _actors(self, agent: Agent) -> tuple[Actor, ...]:
        """Who an agent is."""
        assert self._layout is not None
        placed = self._layout.placed
        if agent.name in placed:
            cpus = len(placed[agent.name].cpus)
            if not 1 <= agent.thread <= cpus:
                raise self._error(f"`{agent.name}` has {count(cpus, 'vCPU')}, numbered from 1", agent.position)
            return _OF_CPUS
        others = {"host": (Actor.HOST,), **dict.fromkeys(self._layout.cpus(), _OF_CPUS)}
        others |= dict.fromkeys(self._layout.device_names(), (Actor.DEVICE,))
        if agent.name not in others:
            names = (*placed, *others)
            known = suggest(agent.name, names) or f": there are {listed(names)}"
            raise self._error(f"nobody is called `{agent.name}`{known}", agent.position)
        if agent.thread != 1:
            raise self._error(f"`{agent.name}` is one", agent.position)
        return others[agent.name]

    def _fault(self, row: Operation, fault: Fault) -> None:
        if fault.kind not in FAULTS:
            known = suggest(fault.kind, FAULTS) or f": there are {listed(FAULTS)}"
            raise self._error(f"unknown fault `{fault.kind}`{known}", fault.position)
        kind = FAULTS[fault.kind]
        if kind not in row.faults:
            given = listed(each.name.lower() for each in row.faults) or "none"
            raise self._error(f"`{row.name}` never gives a fault `{fault.kind}`: it can give {given}", fault.position)
        if fault.field is None or fault.value is None:
            return
        field = FAULT_FIELDS.get(kind)
        if fault.field != field:
            has = f"a `{field}`" if field else "nothing else"
            raise self._error(f"a fault `{fault.kind}` has {has}, and no `{fault.field}`", fault.position)
        self._number(fault.value, f"`{field}` needs a number")

    def _measured(self, statement: Measured) -> None:
        if statement.field not in MEASURES:
            raise self._error(f"a walk has {listed(MEASURES)}, and no `{statement.field}`", statement.position)
        self._number(statement.value, f"`{statement.field}` needs a number")


_AGENTS = {
    Actor.HOST: "the host: `host: ...`",
    Actor.GUEST: "a VM's vCPU: `vm0: ...`",
    Actor.PROCESSOR: "a vCPU: `vm0: ...` or `cpu0: ...`",
    Actor.DEVICE: "a device: `device0: ...`",
}


def written_operands(row: Operation) -> tuple[tuple[str, OperandKind], ...]:
    """What is written of an operation's operands: all but the vCPU or device that performs it."""
    return row.operands if row.actor is Actor.HOST else row.operands[1:]
