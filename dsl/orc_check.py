"""What must be right about a program of shared objects before it is run: who acts, what objects are made of, operands."""

from collections.abc import Iterable, Mapping

from capvisor.dsl.check import RESERVED, count, listed, suggest
from capvisor.dsl.check_system import SystemChecker
from capvisor.dsl.evaluate import evaluate
from capvisor.dsl.orc_layout import (
    CODE,
    DEFAULT_SLOTS,
    KINDS,
    MAX_SLOTS,
    OBJECT_FIELDS,
    SPARE,
    Layout,
    file_of,
    word_bytes,
)
from capvisor.dsl.syntax import (
    Agent,
    Assert,
    Call,
    Element,
    Enter,
    Export,
    Expression,
    Fault,
    FieldOf,
    Guest,
    Instruction,
    Leave,
    Let,
    Name,
    Object,
    Position,
    Program,
    Region,
    Register,
    Relocation,
    Setting,
    System,
    Tenant,
    Text,
    Word,
    walk,
)
from capvisor.dsl.system_kinds import ENTER, LOAD, PLACE, SystemKind
from capvisor.spec.orc import MAX_TENANTS, MAX_THREADS, OPERATIONS, SHAPE, Actor, Code, OperandKind
from capvisor.spec.registers import REGISTER_NUMBERS

BASE = "base"
"""The agent that does what the base does of its own accord."""

TABLES = {"owner": "slot", "identity": "slot", "memory": "address"}
"""What expressions can look up, and by what: a slot's owner, an object's identity, a word."""

_WORDS = RESERVED | {"system", "policy", "format", "expect", "deployer", BASE, SPARE, *TABLES, *KINDS}

LIBRARY = {
    PLACE: (("object", OperandKind.SLOT), ("slot", OperandKind.SLOT)),
    LOAD: (("object", OperandKind.SLOT), ("slot", OperandKind.SLOT)),
    ENTER: OPERATIONS["bind"].operands,
}
"""What a tenant's library takes for what it does."""

OPTIONAL = {"map": 2, PLACE: 1, LOAD: 1}
"""How many of the last operands may be left out."""


def operands_of(name: str) -> tuple[tuple[str, OperandKind], ...]:
    """What an operation takes, or the library."""
    return LIBRARY.get(name) or OPERATIONS[name].operands


class _Named:
    """The environment of constants with names."""

    def __init__(self, values: Mapping[str, int]) -> None:
        self._values = values

    def name(self, name: str) -> int:
        return self._values[name]

    def register(self, number: int) -> int:
        raise LookupError(number)

    def field(self, _register: int, name: str) -> int:
        raise LookupError(name)


class OrcChecker(SystemChecker):
    """Walks through the statements of a program of shared objects."""

    _has_objects = True

    def __init__(self, program: Program, kind: SystemKind) -> None:
        super().__init__(program, kind)
        self._layout: Layout | None = None
        self._constants: dict[str, int] = {}

    # -- what there is -----------------------------------------------------------------------------------------------------

    def _set_up(self, system: System) -> None:
        assert self._format is not None
        if system.memory_base is not None:
            raise self._error("a system orc has no `memory`: it is `slots 16`", system.memory_base.position)
        others: tuple[Region | Guest, ...] = (*system.regions, *system.guests)
        for other in others:
            raise self._error(f"a tenant is `tenant {other.name}`", other.position)
        slots = self._slots(system)
        if not system.tenants:
            raise self._error("a system orc needs someone to act in it: `tenant alice`", system.position)
        if len(system.tenants) > MAX_TENANTS:
            raise self._error(f"there are at most {MAX_TENANTS} tenants", system.tenants[-1].position)
        known: set[str] = set()
        named: tuple[Tenant | Object, ...] = (*system.tenants, *system.objects)
        for each in named:
            self._named(each.name, "a tenant or object", each.position)
            if each.name in known:
                raise self._error(f"`{each.name}` is said twice", each.position)
            known.add(each.name)
        for of_system in system.objects:
            self._object(of_system)
        self._layout = Layout(self._program)
        if self._layout.spare > slots:
            needed = f"{count(len(system.tenants), 'tenant')} and {count(len(system.objects), 'object')}"
            message = f"{needed} take {self._layout.spare} slots, and there are {slots}"
            raise self._error(message, system.position)
        self._constants = self._layout.constants()

    def _slots(self, system: System) -> int:
        """How many slots there are."""
        found = [setting for setting in system.settings if setting.name == "slots"]
        for setting in system.settings:
            if setting.name != "slots":
                known = ": there is `slots`, and tenants, `tenant alice`"
                raise self._error(f"a system orc has no number `{setting.name}`{known}", setting.position)
        if len(found) > 1:
            raise self._error("`slots` is said twice", found[1].position)
        number = self._constant(found[0].value, "`slots`") if found else DEFAULT_SLOTS
        if not 1 <= number <= MAX_SLOTS:
            raise self._error(f"`slots` is 1 to {MAX_SLOTS}", found[0].value.position)
        return number

    def _named(self, name: str, what: str, position: Position) -> None:
        """The name must be one that can stand for something."""
        if name in REGISTER_NUMBERS or name in _WORDS or not name.isidentifier():
            reason = "a register" if name in REGISTER_NUMBERS else "a word of the language"
            raise self._error(
                f"`{name}` can't name {what}: it is {reason if name.isidentifier() else 'no plain name'}", position
            )

    def _object(self, of_system: Object) -> None:
        """The file of an object."""
        assert self._format is not None
        names: dict[str, str] = {}
        limit = 1 << 8 * word_bytes(self._format)
        for item in of_system.items:
            match item:
                case Setting(name, value):
                    if name != CODE:
                        message = f"an object has a number `{CODE}`, and no `{name}`"
                        raise self._error(message, item.position)
                    self._in_range(value, "`code`", SHAPE.slot_bytes + 1)
                case Word(name, value) | Export(name, value):
                    self._part(name, names, item)
                    if value is not None:
                        self._in_range(value, f"`{name}`", limit if isinstance(item, Word) else SHAPE.slot_bytes)
                    names[name] = "export" if isinstance(item, Export) else "global" if item.is_global else "constant"
                case Relocation():
                    pass
        for item in of_system.items:
            if isinstance(item, Relocation):
                self._relocation(item, names)
        relocated = [(item.kind, item.name) for item in of_system.items if isinstance(item, Relocation)]
        if len({name for _kind, name in relocated}) < len(relocated):
            raise self._error(f"`{of_system.name}` has two entries for one name", of_system.position)
        file = file_of(of_system, 0, self._format)
        size = file.code + file.ro + file.data
        if size > SHAPE.slot_bytes:
            message = f"`{of_system.name}` takes {size} bytes, and a slot has {SHAPE.slot_bytes}"
            raise self._error(message, of_system.position)

    def _part(self, name: str, names: dict[str, str], item: Word | Export) -> None:
        self._named(name, "a part of an object", item.position)
        if name in OBJECT_FIELDS:
            raise self._error(f"`{name}` can't name a part of an object: every object has one", item.position)
        if name in names:
            raise self._error(f"`{name}` is said twice", item.position)

    def _in_range(self, value: Expression, what: str, limit: int) -> None:
        if not 0 <= self._constant(value, what) < limit:
            raise self._error(f"{what} is less than {limit:#x}", value.position)

    def _relocation(self, item: Relocation, names: dict[str, str]) -> None:
        """An entry of the table is for what its kind wants; `obj` is for globals, and refused by the base."""
        if item.name not in names:
            known = suggest(item.name, names) or f": there are {listed(names) or 'none yet'}"
            raise self._error(f"there is no word or export `{item.name}`{known}", item.position)
        wanted = {"func": "export", "const": "constant", "tls": "global", "obj": "global"}[item.kind]
        if names[item.name] != wanted:
            raise self._error(f"`{item.kind}` is for a name of {wanted}s: `{item.name}` is none", item.position)

    # -- names -------------------------------------------------------------------------------------------------------------

    def _let(self, let: Let) -> None:
        if let.name in self._constants:
            raise self._error(f"`{let.name}` can't name a value: it is a word of the language", let.position)
        super()._let(let)

    def _value_names(self) -> Iterable[str]:
        return (*self._lets, *self._constants)

    def _constant(self, expression: Expression, where: str) -> int:
        """The slots and files are known before anything runs: what is said of them is constant too."""
        self._number(expression, f"{where} needs a number")
        for part in walk(expression):
            known = not isinstance(part, Name) or part.name in self._constants
            if isinstance(part, Register | FieldOf | Element) or not known:
                raise self._error(f"{where} must be a constant", part.position)
        return int(evaluate(expression, _Named(self._constants)))

    def _no_registers(self, expression: Expression, where: str) -> None:
        for part in walk(expression):
            if isinstance(part, Element):
                message = f"{where} can't read `{part.name}`: its value is chosen before the program runs"
                raise self._error(message, part.position)
        super()._no_registers(expression, where)

    def _element(self, element: Element) -> bool:
        if element.name not in TABLES:
            known = suggest(element.name, TABLES) or f": there are {listed(TABLES)}"
            raise self._error(f"there is no table `{element.name}`{known}", element.position)
        if len(element.indices) != 1:
            key = TABLES[element.name]
            raise self._error(f"`{element.name}` is by {key}: `{element.name}[{key}]`", element.position)
        self._number(element.indices[0], f"`{element.name}` needs a number")
        return False

    # -- who does what -----------------------------------------------------------------------------------------------------

    def _by(self, agent: Agent, action: Instruction | Assert | Call | Enter | Leave) -> None:
        actor = self._actor(agent)
        match action:
            case Assert(condition):
                self._condition(condition, "`assert` needs a condition")
                if actor is Actor.BASE:
                    self._no_hart(condition)
            case Call(fault=Fault() as fault):
                raise self._error("in a system of kind `orc`, nothing gives a fault: say `-> refused CODE`", fault.position)
            case Call(name, operands, result):
                self._performer(name, actor, action.position)
                self._operands(name, operands, action.position)
                for operand in operands if actor is Actor.BASE else ():
                    if not isinstance(operand, Text):
                        self._no_hart(operand)
                refusals = tuple(Code) if name in LIBRARY else (Code.OK, *OPERATIONS[name].refusals)
                self._result(result, refusals, f"`{name}`")
            case Instruction():
                if actor is Actor.BASE:
                    raise self._error("the base executes no instructions", action.position)
                self._instruction(action)
            case Enter() | Leave():
                raise self._error("in a system orc, operations have one part", action.position)

    def _no_hart(self, expression: Expression) -> None:
        """The base has no registers of its own."""
        for part in walk(expression):
            if isinstance(part, Register | FieldOf):
                raise self._error("the base has no registers: use names, or `memory[address]`", part.position)

    def _actor(self, agent: Agent) -> Actor:
        """Who an agent is."""
        assert self._layout is not None
        if agent.name == BASE:
            if agent.thread != 1:
                raise self._error(f"`{BASE}` is one", agent.position)
            return Actor.BASE
        if agent.name not in self._layout.tenants:
            names = (*self._layout.tenants, BASE)
            known = suggest(agent.name, names) or f": there are {listed(names)}"
            raise self._error(f"nobody is called `{agent.name}`{known}", agent.position)
        if not 1 <= agent.thread <= MAX_THREADS:
            raise self._error(f"a tenant has at most {MAX_THREADS} threads, numbered from 1", agent.position)
        return Actor.TENANT

    def _performer(self, name: str, actor: Actor, position: Position) -> None:
        wanted = Actor.TENANT if name in LIBRARY else OPERATIONS[name].actor
        if wanted is not actor:
            who = "the base: `base: ...`" if wanted is Actor.BASE else "a tenant: `alice: ...`"
            raise self._error(f"`{name}` is for {who}", position)

    def _operands(self, name: str, operands: tuple[Expression | Text, ...], position: Position) -> None:
        """The operands of an operation, against its row of the table."""
        wanted = operands_of(name)
        least = len(wanted) - OPTIONAL.get(name, 0)
        if not least <= len(operands) <= len(wanted):
            takes = f"`{name}` takes `{listed(each for each, _kind in wanted)}`" if wanted else f"`{name}`"
            optional = "" if least == len(wanted) else f", of which the last {OPTIONAL[name]} may be left out"
            raise self._error(f"{takes}: {count(len(wanted), 'operand')}{optional}, found {len(operands)}", position)
        for (operand_name, _kind), operand in zip(wanted, operands, strict=False):
            if isinstance(operand, Text):
                raise self._error(f"`{operand_name}` is a number: it can't be text", operand.position)
            self._number(operand, f"`{operand_name}` needs a number")
        assert self._layout is not None
        has_file = isinstance(operands[0], Name) and operands[0].name in self._layout.files if operands else False
        is_loaded = name in (PLACE, LOAD)
        if not has_file and (is_loaded or (name == "map" and len(operands) == 1)):
            known = listed(self._layout.files) or "none yet"
            what = "takes the file of" if is_loaded else "knows the content of"
            raise self._error(f"`{name}` {what} one of the system's objects: there are {known}", position)
