"""What must be right about a program of a para-pass-through VMM before it is run: who acts, what there is, operands."""

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
    Part,
    Position,
    Program,
    Region,
    Setting,
    Span,
    System,
)
from capvisor.dsl.system_kinds import COMMAND, COPY, DMA, PEEK, POKE, READ_SECTOR, WRITE_SECTOR, SystemKind
from capvisor.dsl.vmm_layout import (
    DEFAULTS,
    DEVICE,
    EXTENSION,
    FRAMES,
    IMAGE,
    NAMES,
    REGION,
    RULES,
    SPACES,
    STORAGE,
    WRITABLE,
    Layout,
    numbers_of,
)
from capvisor.model.vmm import is_possible
from capvisor.spec.registers import REGISTER_NUMBERS
from capvisor.spec.vmm import (
    LEAST_REGION,
    MAX_DEVICES,
    MAX_EXTENSIONS,
    MAX_FRAMES,
    MAX_VCPUS,
    MEMORY_NUMBERS,
    OPERATIONS,
    PORTS,
    WINDOW_FRAME_SHIFT,
    WINDOW_SHIFT,
    WORD_BITS,
    Actor,
    Code,
    OperandKind,
    Space,
)
from capvisor.spec.vmm import Register as DeviceRegister

GUEST, VMM = "guest", "vmm"
"""Agents of every system; devices and extensions act under their own names."""

TABLES = {
    "memory": ("address",),
    "medium": ("device", "lba"),
    "image": ("device", "lba"),
    "deployed": ("device", "lba"),
    "rule": ("device", "lba"),
    "register": ("device", "number"),
    "cipher": ("lba", "word"),
    "remote": ("address",),
    "outside": ("vcpu",),
}
"""What expressions can look up, and by what: what is in memory and on media, what is to be deployed and was, rules, what the
hardware's registers hold, what a word is when it is encrypted, what was sent to the other machine, which vCPUs run outside
the VMM's control.
"""

STATES = (VALUE, "panicked", "microcode_changed", "handed_over")
"""Whether the VMM has stopped the machine, the guest has changed the microcode, it runs on the other machine."""

LBA = ("lba", OperandKind.LBA)
_DEVICE, _VALUE, _ADDRESS = ("device", OperandKind.DEVICE), ("value", OperandKind.WORD), ("address", OperandKind.ADDRESS)
_OPCODE, _COUNT = ("opcode", OperandKind.WORD), ("count", OperandKind.WORD)
LIBRARY: dict[str, tuple[Actor, tuple[tuple[str, OperandKind], ...]]] = {
    PEEK: (Actor.GUEST, (_ADDRESS,)),
    POKE: (Actor.GUEST, (_ADDRESS, _VALUE)),
    COMMAND: (Actor.GUEST, (_DEVICE, _OPCODE, LBA, _COUNT)),
    READ_SECTOR: (Actor.GUEST, (_DEVICE, LBA)),
    WRITE_SECTOR: (Actor.GUEST, (_DEVICE, LBA, _VALUE)),
    DMA: (Actor.GUEST, (_DEVICE, _OPCODE, LBA, _COUNT, _ADDRESS)),
    COPY: (Actor.VMM, (_DEVICE,)),
}
"""What a guest's driver and the VMM's background copy do: who, and what they take. Each is several operations."""

OPTIONAL = {"map": 2}
"""How many of the last operands may be left out."""

LONGEST = 1 << 12
"""How many sectors a rule may be said of at once, or an image have."""

_ALL_WORDS = (1 << WORD_BITS) - 1
_RANGES = {"frames": (1, MAX_FRAMES), "vcpus": (1, MAX_VCPUS), "key": (0, _ALL_WORDS)}
_NUMBERS = {Space.PORT: PORTS, Space.MEMORY: MEMORY_NUMBERS}
_PLACES = {name: (0, _NUMBERS[space] - len(DeviceRegister)) for name, space in SPACES.items()}
_OF_KINDS = {DEVICE: _PLACES, STORAGE: _PLACES | {IMAGE: (1, LONGEST)}, EXTENSION: {WRITABLE: (0, 1)}}
_SPANS_OF_KINDS: dict[str, tuple[str, ...]] = {DEVICE: (), STORAGE: tuple(RULES), EXTENSION: (FRAMES,)}
_WORDS = RESERVED | {"system", "policy", "format", "expect", "deployer", GUEST, VMM, REGION, *STATES, *TABLES, *NAMES}
_WORDS |= {*DEFAULTS, *_OF_KINDS}


class VmmChecker(OperationChecker):
    """Walks through the statements of a program of a para-pass-through VMM."""

    _tables = TABLES
    _states = STATES
    _has_parts = True
    _repeats = True

    def __init__(self, program: Program, kind: SystemKind) -> None:
        super().__init__(program, kind)
        self._layout: Layout | None = None

    # -- what there is -----------------------------------------------------------------------------------------------------

    def _set_up(self, system: System) -> None:
        for what, given in (("format", system.format), ("memory", system.memory_base)):
            if given is not None:
                raise self._error(f"a system vmm has no `{what}`: its memory is `frames 64`", system.position)
        others: tuple[Region | Guest, ...] = (*system.regions, *system.guests)
        for other in others:
            raise self._error(f"a system vmm has one guest; an extension is `{_extension(other.name)}`", other.position)
        ends = ", and `region 32..63`, devices, `storage disk { }`, and extensions"
        numbers = {**DEFAULTS, **self._settings(system.settings, _RANGES, "a system vmm", ends)}
        known: set[str] = set()
        for part in system.parts:
            self._part(part, numbers["frames"])
            if part.name in known:
                raise self._error(f"`{part.name}` is said twice", part.position)
            known.add(part.name)
        for kinds, most in (((DEVICE, STORAGE), MAX_DEVICES), ((EXTENSION,), MAX_EXTENSIONS)):
            found = [part for part in system.parts if part.kind in kinds]
            if len(found) > most:
                raise self._error(f"a system vmm has at most {count(most, f'{kinds[0]}')}", found[most].position)
        self._region(system, numbers)
        self._layout = Layout(system)
        self._windows(system, self._layout)
        self._constants = self._layout.constants()

    def _region(self, system: System, numbers: dict[str, int]) -> None:
        for span in system.spans:
            if span.name != REGION:
                raise self._error(f"`{span.name}` has no first and last: there is `region 32..63`", span.position)
        if len(system.spans) > 1:
            raise self._error(f"`{REGION}` is said twice", system.spans[1].position)
        for span in system.spans:
            for end in (span.first, span.last):
                self._constant(end, "the region")
        first, last = Layout(system).region
        if not is_possible(numbers["frames"], first, last + 1, numbers["vcpus"], 0):
            message = f"the region is {LEAST_REGION} or more of the frames 0..{numbers['frames'] - 1}, here {first}..{last}"
            raise self._error(message, system.spans[0].position if system.spans else system.position)

    def _part(self, part: Part, frames: int) -> None:
        """A device or an extension."""
        if part.kind not in _OF_KINDS:
            known = suggest(part.kind, _OF_KINDS) or f": there are {listed(_OF_KINDS)}"
            raise self._error(f"a system vmm has no `{part.kind}`{known}", part.position)
        name = part.name
        if name in REGISTER_NUMBERS or name in _WORDS or not name.isidentifier():
            what = "a register" if name in REGISTER_NUMBERS else "a word of the language"
            reason = what if name.isidentifier() else "no plain name"
            raise self._error(f"`{name}` can't name a part of a system: it is {reason}", part.position)
        spans = [item for item in part.items if isinstance(item, Span)]
        others = "".join(f", `{each} 0..9`" for each in _SPANS_OF_KINDS[part.kind])
        what = f"{'an' if part.kind == EXTENSION else 'a'} {part.kind}"
        settings = [item for item in part.items if isinstance(item, Setting)]
        numbers = self._settings(settings, _OF_KINDS[part.kind], what, others)
        for space in SPACES:
            if numbers.get(space, 0) % len(DeviceRegister):
                raise self._error(
                    f"`{space}` is a multiple of {len(DeviceRegister)}: a window's first number", part.position
                )
        for span in spans:
            self._span(part, span, frames)
        if IMAGE in numbers and spans:
            raise self._error("what is deployed has no rules: a medium has an image or rules", spans[0].position)
        if part.kind == EXTENSION and len(spans) != 1:
            raise self._error(f"an extension has frames, once: `{_extension(name)}`", part.position)

    def _span(self, part: Part, span: Span, frames: int) -> None:
        """What is said of sectors, or of frames."""
        known = _SPANS_OF_KINDS[part.kind]
        if span.name not in known:
            has = listed(f"`{each} 0..9`" for each in known) or "numbers alone"
            message = f"a {part.kind} has no `{span.name}`{suggest(span.name, known) or f': it has {has}'}"
            raise self._error(message, span.position)
        first, last = (self._constant(each, f"`{span.name}`") for each in (span.first, span.last))
        if span.name == FRAMES and not 0 <= first <= last < frames:
            message = f"frames {first}..{last} aren't among the system's, 0..{frames - 1}"
            raise self._error(message, span.first.position)
        if span.name != FRAMES and not 0 <= first <= last < first + LONGEST:
            raise self._error(f"`{span.name}` is of 1 to {LONGEST} sectors, from 0 on", span.first.position)

    def _windows(self, system: System, layout: Layout) -> None:
        """No two devices' registers are in one place, and none in the region."""
        taken: dict[tuple[Space, int], str] = {}
        first, last = layout.region
        for part in system.parts:
            if part.kind == EXTENSION:
                continue
            for name, space in SPACES.items():
                window = layout.devices[part.name].windows[space]
                if (space, window) in taken:
                    where = f"`{name} {window << WINDOW_SHIFT:#x}`"
                    message = f"`{part.name}` and `{taken[space, window]}` both have registers at {where}"
                    raise self._error(message, part.position)
                taken[space, window] = part.name
                if space is Space.MEMORY and first <= window >> WINDOW_FRAME_SHIFT <= last:
                    is_said = name in numbers_of(part.items)
                    hint = "" if is_said else f": say where, `{name} {last + 1 << WINDOW_SHIFT + WINDOW_FRAME_SHIFT:#x}`"
                    raise self._error(f"the registers of `{part.name}` in memory are in the region{hint}", part.position)

    # -- who does what -----------------------------------------------------------------------------------------------------

    def _by(self, agent: Agent, action: Instruction | Assert | Call | Enter | Leave) -> None:
        actor = self._actor(agent)
        match action:
            case Assert(condition):
                self._condition(condition, "`assert` needs a condition")
            case Call(fault=Fault() as fault):
                raise self._error("in a system vmm, nothing gives a fault: say `-> refused CODE`", fault.position)
            case Call(name, operands, result):
                self._performer(name, actor, action.position)
                self._written(name, written_operands(name), operands, action.position, OPTIONAL.get(name, 0))
                self._result(result, tuple(Code) if name in LIBRARY else (Code.OK, *OPERATIONS[name].refusals), f"`{name}`")
            case Instruction():
                raise self._unknown(action)
            case Enter() | Leave():
                raise self._error("in a system vmm, operations have one part", action.position)

    def _actor(self, agent: Agent) -> Actor:
        """Who an agent is."""
        assert self._layout is not None
        if agent.name == GUEST:
            if not 1 <= agent.thread <= self._layout.vcpus:
                message = f"`{GUEST}` has {count(self._layout.vcpus, 'vCPU')}, numbered from 1"
                raise self._error(message, agent.position)
            return Actor.GUEST
        others = {VMM: Actor.VMM}
        others |= dict.fromkeys(self._layout.devices, Actor.DEVICE) | dict.fromkeys(self._layout.extensions, Actor.EXTENSION)
        if agent.name not in others:
            names = (GUEST, *others)
            known = suggest(agent.name, names) or f": there are {listed(names)}"
            raise self._error(f"nobody is called `{agent.name}`{known}", agent.position)
        if agent.thread != 1:
            raise self._error(f"`{agent.name}` is one", agent.position)
        return others[agent.name]

    def _performer(self, name: str, actor: Actor, position: Position) -> None:
        wanted = LIBRARY[name][0] if name in LIBRARY else OPERATIONS[name].actor
        if wanted is not actor:
            raise self._error(f"`{name}` is for {_AGENTS[wanted]}", position)


def _extension(name: str) -> str:
    return f"{EXTENSION} {name} {{ {FRAMES} 0..7 }}"


_AGENTS = {
    Actor.GUEST: "the guest: `guest: ...`",
    Actor.DEVICE: "a device, by its name: `disk: ...`",
    Actor.VMM: "the VMM: `vmm: ...`",
    Actor.EXTENSION: "an extension, by its name: `probe: ...`",
}


def written_operands(name: str) -> tuple[tuple[str, OperandKind], ...]:
    """What is written of an operation's operands: all but the vCPU, device or extension that performs it."""
    if name in LIBRARY:
        return LIBRARY[name][1]
    row = OPERATIONS[name]
    return row.operands if row.actor is Actor.VMM else row.operands[1:]
