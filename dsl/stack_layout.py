"""What a program of all four systems has at its start, and how it is four programs: which statement is which layer's.

Each layer's part is a program of that kind, with the lines that are for it; the others are blank there. So checkers and runs
of the four kinds do what they do alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any, NamedTuple

from capvisor.dsl.evaluate import memory_of
from capvisor.dsl.orc_layout import MEMORY_BASE, slots_of
from capvisor.dsl.syntax import (
    Agent,
    Assert,
    Binary,
    By,
    Call,
    Create,
    Destroy,
    Element,
    Enter,
    Expression,
    Instruction,
    Integer,
    Leave,
    Let,
    Line,
    Measured,
    Name,
    Program,
    Region,
    Setting,
    Statement,
    System,
    Text,
    Unary,
)
from capvisor.dsl.system_kinds import RESUME, SYSTEM_KINDS, SystemKind
from capvisor.dsl.tpt_layout import NAMES as TPT_NAMES
from capvisor.dsl.tpt_layout import Layout as TptLayout
from capvisor.dsl.tpt_layout import Placed
from capvisor.dsl.vmm_layout import Layout as VmmLayout
from capvisor.spec.orc import SHAPE
from capvisor.spec.paging import FRAME_SHIFT, WORDS_PER_FRAME, index_shift

VMM, TPT, CVM, ORC = "vmm", "tpt", "cvm", "orc"
LAYERS = (VMM, TPT, CVM, ORC)
MONITORS = (CVM, ORC)
WITHIN = "within"
"""The setting that says in which VM a monitor is: the first one, where nothing is said."""

GUEST, HOST, BASE = "guest", "host", "base"
"""Agents: the kernel of the VMM's guest, on a vCPU of its own; the same as the host; the base of shared objects."""


class Mapped(NamedTuple):
    """Where a monitor's memory is at the start: in which VM, from which virtual address on, in which of its frames, and the
    entries of tables that its kernel writes: table, index and entry, frames as the VM's tables name them.
    """

    vm: str
    base: int
    pages: tuple[int, ...]
    frames: tuple[int, ...]
    """The same, the machine's."""
    entries: tuple[tuple[int, int, int], ...]


class Layout:
    """A program of all four, taken apart. Raises LookupError for a layer that isn't there, ValueError where a VM has too few
    frames for its monitors.
    """

    def __init__(self, program: Program) -> None:
        assert program.system is not None
        self.program = program
        self.given = {layer.kind: layer for layer in program.system.layers}
        tpt = self.given[TPT]
        self.tpt = TptLayout(tpt)
        self.vmm = VmmLayout(self.given[VMM])
        numbers = {"frames": self.vmm.frames, "devices": len(self.vmm.devices) + 1}
        self.systems: dict[str, System] = {
            VMM: with_numbers(self.given[VMM], {"vcpus": self.tpt.cpu_count + 1}),
            TPT: with_numbers(tpt, numbers),
        }
        for layer in MONITORS:
            if layer in self.given:
                settings = tuple(each for each in self.given[layer].settings if each.name != WITHIN)
                self.systems[layer] = replace(self.given[layer], settings=settings)
        self.tpt = TptLayout(self.systems[TPT])
        self._agents = dict(self._of_agents())
        self._constants = {layer: _constants(layer, self._bare(layer)) for layer in self.systems}
        self.mapped = self._mapped()

    # -- agents and statements ---------------------------------------------------------------------------------------------

    def _of_agents(self) -> Iterator[tuple[str, str]]:
        """By name, the layer of an agent's own; a VM's kernel does things in two."""
        yield from ((name, VMM) for name in (GUEST, VMM, *self.vmm.devices, *self.vmm.extensions))
        yield from ((name, TPT) for name in (HOST, *self.tpt.placed, *self.tpt.cpus(), *self.tpt.device_names()))
        if CVM in self.systems:
            yield from ((region.name, CVM) for region in self.regions())
        if ORC in self.systems:
            yield from ((name, ORC) for name in (BASE, *(tenant.name for tenant in self.systems[ORC].tenants)))

    def regions(self) -> Iterator[Region]:
        """The cVMs of the program: those of the start, and those that the deployer creates."""
        yield from self.systems[CVM].regions
        for statement in self.program.statements:
            if isinstance(statement, Create):
                yield statement.region

    @property
    def agents(self) -> tuple[str, ...]:
        """The names of all."""
        return tuple(self._agents)

    def layer_of(self, statement: Statement) -> str | None:
        """Whose a statement is; None: everybody's or nobody's. Raises LookupError for an agent that isn't."""
        match statement:
            case Create() | Destroy():
                return CVM
            case Measured():
                return TPT
            case By(agent, action):
                layer = self._agents[agent.name]
                name = action.name if isinstance(action, Call) else ""
                is_io = layer == TPT and name in SYSTEM_KINDS[VMM].calls and name not in SYSTEM_KINDS[TPT].calls
                return VMM if is_io else layer
        return None

    def own(self, statement: Any, layer: str) -> Any:
        """A statement as the layer's own program has it: a VM's kernel is its vCPU there, names of others are numbers."""
        if isinstance(statement, By):
            agent, action = statement.agent, statement.action
            if layer == VMM and agent.name in self.tpt.placed:
                cpus = self.tpt.placed[agent.name].cpus
                agent = Agent(GUEST, 1 + cpus[min(agent.thread, len(cpus)) - 1], agent.position)
            elif layer == VMM and agent.name in self.tpt.cpus():
                agent = Agent(GUEST, 1 + self.tpt.cpus()[agent.name], agent.position)
            elif agent.name == GUEST:
                agent = Agent(GUEST, self.tpt.cpu_count + 1, agent.position)
            if layer == CVM and isinstance(action, Call) and action.name == "leave":
                action = Leave(action.result, action.position)
            return replace(statement, agent=agent, action=self._renamed(action, layer))
        return statement

    def _renamed(self, action: Any, layer: str) -> Any:
        known = self._constants[layer]
        others = {name: value for other in self.systems for name, value in self._constants[other].items()}
        foreign = {name: value for name, value in {**others, **self.constants()}.items() if name not in known}
        match action:
            case Call(operands=operands, fault=fault):
                if fault is not None and fault.value is not None:
                    fault = replace(fault, value=_rewritten(fault.value, foreign))
                return replace(action, operands=_operands(operands, foreign), fault=fault)
            case Enter(operands=operands):
                return replace(action, operands=_operands(operands, foreign))
            case Instruction(operands=written):
                return replace(action, operands=tuple(_rewritten(each, foreign) for each in written))
            case Assert(condition):
                return replace(action, condition=_rewritten(condition, foreign))
        return action

    def part(self, layer: str) -> Program:
        """The program of a layer."""
        lines = [Line(self._own_line(line.statement, layer)) for line in self.program.lines]
        return Program(tuple(lines), self.program.source, self.program.text)

    def _own_line(self, statement: Statement | None, layer: str) -> Statement | None:
        if isinstance(statement, System):
            return self.systems[layer]
        if isinstance(statement, Let):
            return statement
        if statement is None or self.layer_of(statement) != layer or is_resumed(statement):
            return None
        return self.own(statement, layer)  # type: ignore[no-any-return]

    def _bare(self, layer: str) -> Program:
        """The program of a layer with what its names depend on."""
        created = [line for line in self.program.lines if isinstance(line.statement, Create) and layer == CVM]
        return Program((Line(self.systems[layer]), *created), self.program.source, self.program.text)

    # -- names -------------------------------------------------------------------------------------------------------------

    def constants_of(self, layer: str) -> dict[str, int]:
        """What names are worth in a layer's program, before it runs."""
        return self._constants[layer]

    def constants(self) -> dict[str, int]:
        """What names are worth that are the stack's own: where monitors' memory is at the start."""
        found: dict[str, int] = {}
        for layer, mapped in getattr(self, "mapped", {}).items():
            table, index, _entry = mapped.entries[-len(mapped.pages)]
            found |= {f"{layer}.frame": mapped.frames[0], f"{layer}.table": table, f"{layer}.entry": index}
        return found

    # -- where monitors are ------------------------------------------------------------------------------------------------

    def within(self, layer: str) -> str:
        """The VM that a monitor is in."""
        named = next((each.value for each in self.given[layer].settings if each.name == WITHIN), None)
        return named.name if isinstance(named, Name) else next(iter(self.tpt.placed))

    def memory(self, layer: str) -> tuple[int, int]:
        """Base and size in bytes of a monitor's memory."""
        if layer == ORC:
            return MEMORY_BASE, slots_of(self.systems[ORC]) << SHAPE.slot_shift
        return memory_of(self._bare(CVM))

    def _mapped(self) -> dict[str, Mapped]:
        taken: dict[str, int] = {}
        known: dict[str, dict[tuple[int, int], int]] = {}
        found: dict[str, Mapped] = {}
        for layer in MONITORS:
            if layer in self.systems:
                vm = self.within(layer)
                placed = self.tpt.placed[vm]
                entries = known.setdefault(vm, dict(_skeleton(placed, self.tpt.levels)))
                found[layer] = _map(self.memory(layer), vm, placed, self.tpt.levels, entries, taken)
        return found


def _map(
    memory: tuple[int, int], vm: str, placed: Placed, levels: int, known: dict[tuple[int, int], int], taken: dict[str, int]
) -> Mapped:
    """A monitor's memory in the last frames of a VM that aren't taken, and tables in those before."""
    base, size = memory
    count = -(-size >> FRAME_SHIFT)
    behind = placed.base + (placed.last + 1 - placed.first) - taken.get(vm, 0)
    first = behind - count
    least = placed.base + (levels if placed.is_mapped else 1)
    written: list[tuple[int, int, int]] = []
    leaves: list[tuple[int, int, int]] = []
    free = first - 1
    for number in range(count):
        address, table = base + (number << FRAME_SHIFT), placed.base
        for level in range(levels, 1, -1):
            index = address >> index_shift(level) & WORDS_PER_FRAME - 1
            if (table, index) not in known:
                known[table, index] = free << FRAME_SHIFT | TPT_NAMES["rw"]
                written.append((table, index, known[table, index]))
                free -= 1
            table = known[table, index] >> FRAME_SHIFT
        index = address >> FRAME_SHIFT & WORDS_PER_FRAME - 1
        leaves.append((table, index, first + number << FRAME_SHIFT | TPT_NAMES["rw"]))
    if free < least - 1:
        raise ValueError(f"`{vm}` has too few frames for the {count} pages of its monitor, and for their tables")
    taken[vm] = placed.base + (placed.last + 1 - placed.first) - free - 1
    pages = tuple(range(first, behind))
    frames = tuple(page - placed.base + placed.first for page in pages)
    return Mapped(vm, base, pages, frames, (*written, *leaves))


def _skeleton(placed: Placed, levels: int) -> Iterator[tuple[tuple[int, int], int]]:
    """The entries of a mapped VM's tables above the last level."""
    for table in range(placed.base, placed.base + levels - 1) if placed.is_mapped else ():
        yield (table, 0), table + 1 << FRAME_SHIFT | TPT_NAMES["rw"]


def with_numbers(system: System, numbers: Mapping[str, int]) -> System:
    """A system with some numbers said."""
    said = tuple(Setting(name, Integer(str(number), system.position), system.position) for name, number in numbers.items())
    return replace(system, settings=(*system.settings, *said))


def is_resumed(statement: Statement) -> bool:
    """Whether an agent does nothing but go on."""
    return isinstance(statement, By) and isinstance(statement.action, Call) and statement.action.name == RESUME


def _operands(operands: tuple[Expression | Text, ...], numbers: Mapping[str, int]) -> tuple[Expression | Text, ...]:
    """The operands of a call with some names as numbers."""
    return tuple(each if isinstance(each, Text) else _rewritten(each, numbers) for each in operands)


def _rewritten(expression: Expression, numbers: Mapping[str, int]) -> Expression:
    """An expression with some names as numbers."""
    match expression:
        case Name(name, position) if name in numbers:
            return Integer(hex(numbers[name]), position)
        case Unary(operand=operand):
            return replace(expression, operand=_rewritten(operand, numbers))
        case Binary(left=left, right=right):
            return replace(expression, left=_rewritten(left, numbers), right=_rewritten(right, numbers))
        case Element(indices=indices):
            return replace(expression, indices=tuple(_rewritten(each, numbers) for each in indices))
    return expression


def _constants(layer: str, program: Program) -> dict[str, int]:
    kind: SystemKind = SYSTEM_KINDS[layer]
    found: dict[str, int] = resolve_name(kind.constants)(program)
    return found


def constants_of(program: Program) -> dict[str, int]:
    """What a checked program's names are worth before it runs; of those that layers don't agree on, that of the first."""
    layout = Layout(program)
    found = dict(layout.constants())
    for layer in layout.systems:
        found = {**layout.constants_of(layer), **found}
    return found
