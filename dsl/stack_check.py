"""What must be right about a program of all four systems before it is run: layers, agents, what the layers below refuse.

What a layer's own statements mean is for the checker of its kind.
"""

from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

from capvisor.dsl.check import listed, suggest
from capvisor.dsl.check_system import SystemChecker
from capvisor.dsl.stack_layout import CVM, LAYERS, MONITORS, ORC, TPT, VMM, WITHIN, Layout, is_resumed
from capvisor.dsl.syntax import (
    By,
    Call,
    Create,
    Destroy,
    Fault,
    Leave,
    Line,
    Measured,
    Name,
    Program,
    Result,
    Statement,
    System,
    Violates,
)
from capvisor.dsl.system_kinds import RESUME, SYSTEM_KINDS, SystemKind
from capvisor.dsl.tpt_check import FAULT_FIELDS, FAULTS
from capvisor.spec.paging import FRAME_SHIFT
from capvisor.spec.stack import FORMAT, Code, tag_table_frames
from capvisor.spec.tpt import MAX_DEVICES as TPT_MAX_DEVICES
from capvisor.spec.tpt import MAX_VCPUS
from capvisor.spec.vmm import LEAST_REGION


class StackChecker(SystemChecker):
    """Takes a program apart, and lets each layer's checker look at its own."""

    _has_layers = True

    def __init__(self, program: Program, kind: SystemKind) -> None:
        super().__init__(program, kind)
        self._layout: Layout | None = None

    def check(self) -> None:
        """Look at the stack's own, then at each layer's program."""
        self._system_first()
        layout = self._layout
        assert layout is not None
        for statement in self._program.statements:
            match statement:
                case Violates():
                    self._expected(statement)
                case By() | Create() | Destroy() | Measured():
                    self._statement(statement, layout)
        for layer in layout.systems:
            part = layout.part(layer)
            statements = (line.statement for line in part.lines)
            lines = tuple(Line(None if each is None else bare(each, layer)) for each in statements)
            kind = SYSTEM_KINDS[layer]
            checker: SystemChecker = resolve_name(kind.checker)(replace(part, lines=lines), kind)
            checker.check()
        self._resumed(layout)

    def _system_first(self) -> None:
        first = next(iter(self._program.statements), None)
        if not isinstance(first, System):
            position = self._program.system.position if self._program.system is not None else None
            assert position is not None
            raise self._error("the system must come first", position)
        self._system(first)

    # -- the layers --------------------------------------------------------------------------------------------------------

    def _set_up(self, system: System) -> None:
        parts: tuple[Any, ...] = (*system.regions, *system.guests, *system.settings, *system.tenants)
        for part in (*parts, *system.objects, *system.spans, *system.parts):
            message = f"what a stack has is in its layers: `{self._kind.example}`"
            raise self._error(message, part.position)
        known: set[str] = set()
        for layer in system.layers:
            if layer.kind not in LAYERS:
                unknown = suggest(layer.kind, LAYERS) or f": there are {listed(LAYERS)}"
                raise self._error(f"a stack has no layer `{layer.kind}`{unknown}", layer.position)
            if layer.kind in known:
                raise self._error(f"`{layer.kind}` is said twice", layer.position)
            known.add(layer.kind)
            if layer.format not in (None, FORMAT.name):
                raise self._error(f"in a stack, capabilities are of the format {FORMAT.name}", layer.position)
            self._policies(layer)
        for needed in (VMM, TPT):
            if needed not in known:
                raise self._error(f"a stack has a layer `{needed}`: `{self._kind.example}`", system.position)
        self._monitors(system)
        self._layers(system)

    def _policies(self, layer: System) -> None:
        """A layer's policy, which its own checker looks at later, is read before that."""
        kind = SYSTEM_KINDS[layer.kind]
        for name, known in ((layer.policy, kind.policies), *((guard, kind.guards) for guard in layer.without)):
            if name is not None and name not in known:
                raise self._error(f"`{layer.kind}` has no policy or guard `{name}`{suggest(name, known)}", layer.position)

    def _monitors(self, system: System) -> None:
        guests = [guest.name for layer in system.layers if layer.kind == TPT for guest in layer.guests]
        for layer in system.layers:
            for setting in layer.settings if layer.kind in MONITORS else ():
                if setting.name == WITHIN and not (isinstance(setting.value, Name) and setting.value.name in guests):
                    raise self._error(f"`{WITHIN}` names a VM: there are {listed(guests)}", setting.position)
            if layer.kind == CVM and layer.memory_base is None:
                raise self._error("say where cVMs are in their VM: `memory 0x40000000 size 16K`", layer.position)
            if layer.kind == CVM and layer.memory_base is not None:
                base = self._constant(layer.memory_base, "the memory's base")
                if base % (1 << FRAME_SHIFT):
                    message = f"a monitor's memory begins at a page, a multiple of {1 << FRAME_SHIFT:#x}"
                    raise self._error(message, layer.memory_base.position)

    def _layers(self, system: System) -> None:
        try:
            layout = self._layout = Layout(self._program)
        except LookupError as error:
            raise self._error(f"`{error.args[0]}` has no value in what the layers have", system.position) from None
        except ValueError as error:
            raise self._error(str(error), system.position) from None
        for what, number, most in (
            ("devices", len(layout.vmm.devices), TPT_MAX_DEVICES - 1),
            ("vCPUs for VMs", layout.tpt.cpu_count, MAX_VCPUS - 1),
        ):
            if number > most:
                raise self._error(f"a stack has at most {most} {what}, here {number}", system.position)
        first, last = layout.vmm.region
        needed = sum(tag_table_frames(layout.vmm.frames))
        if last + 1 - first < LEAST_REGION + needed or first < needed:
            least = f"the region has {LEAST_REGION + needed} frames or more, and {needed} before it"
            raise self._error(f"{least}, as the tables of tags are there: here {first}..{last}", system.position)
        for placed in layout.tpt.placed.values():
            if placed.first <= last and first <= placed.last:
                raise self._error("a VM's frames aren't the VMM's region", system.position)
        spans = {layer: layout.memory(layer) for layer in MONITORS if layer in layout.systems}
        if len(spans) == len(MONITORS) and layout.within(CVM) == layout.within(ORC):
            (one, size), (other, others_size) = spans.values()
            if one < other + others_size and other < one + size:
                message = f"cVMs and shared objects are in one memory: those are at {other:#x}"
                raise self._error(message, system.position)
        names: dict[str, str] = {}
        for layer in layout.systems:
            for name in _names_of(layout, layer):
                if names.setdefault(name, layer) != layer:
                    message = f"`{name}` is the name of two, in `{names[name]}` and `{layer}`"
                    raise self._error(message, layout.given[layer].position)

    # -- statements --------------------------------------------------------------------------------------------------------

    def _statement(self, statement: By | Create | Destroy | Measured, layout: Layout) -> None:
        try:
            layer = layout.layer_of(statement)
        except KeyError:
            assert isinstance(statement, By)
            agent = statement.agent
            known = suggest(agent.name, layout.agents) or f": there are {listed(layout.agents)}"
            raise self._error(f"nobody is called `{agent.name}`{known}", agent.position) from None
        if layer not in layout.systems:
            raise self._error(f"this stack has no layer `{layer}`", statement.position)
        action = statement.action if isinstance(statement, By) else None
        if isinstance(action, Call) and action.name not in (*SYSTEM_KINDS[layer].calls, RESUME, "leave"):
            known = suggest(action.name, SYSTEM_KINDS[layer].calls)
            raise self._error(f"`{action.name}` is no operation of the layer `{layer}`{known}", action.position)

    def _resumed(self, layout: Layout) -> None:
        for statement in self._program.statements:
            if isinstance(statement, By) and isinstance(statement.action, Call) and statement.action.name == RESUME:
                if layout.layer_of(statement) not in MONITORS:
                    raise self._error(f"`{RESUME}` is for cVMs, tenants and the base", statement.action.position)
                if statement.action.operands:
                    raise self._error(f"`{RESUME}` takes nothing", statement.action.position)
                expected_of(statement, layout.layer_of(statement) or "")
            if isinstance(statement, By) and isinstance(statement.action, Call) and statement.action.fault is not None:
                self._fault(statement.action.fault, layout.layer_of(statement) or "")

    def _fault(self, fault: Fault, layer: str) -> None:
        """A fault of a monitor's step is one of translating its memory."""
        if layer not in MONITORS:
            return
        if fault.kind not in FAULTS:
            known = suggest(fault.kind, FAULTS) or f": there are {listed(FAULTS)}"
            raise self._error(f"unknown fault `{fault.kind}`{known}", fault.position)
        field = FAULT_FIELDS.get(FAULTS[fault.kind])
        if fault.field is not None and fault.field != field:
            raise self._error(f"a fault `{fault.kind}` has a `{field}`, and no `{fault.field}`", fault.position)


def _names_of(layout: Layout, layer: str) -> tuple[str, ...]:
    if layer == VMM:
        return (*layout.vmm.devices, *layout.vmm.extensions)
    if layer == TPT:
        return tuple(layout.tpt.placed)
    if layer == CVM:
        return tuple(dict.fromkeys(region.name for region in layout.regions()))
    system = layout.systems[ORC]
    return (*(tenant.name for tenant in system.tenants), *(each.name for each in system.objects))


def result_of(statement: Any) -> Result | None:
    """What a statement says of how it ends, if that is with a code."""
    if isinstance(statement, By):
        return statement.action.result if isinstance(statement.action, Call | Leave) else None
    return statement.result if isinstance(statement, Create | Destroy) else None


def expected_of(statement: Any, layer: str) -> Code | Fault | None:
    """What a statement expects of the layers below: that they refuse it, or that a monitor's memory isn't there."""
    result = result_of(statement)
    own = SYSTEM_KINDS[layer].codes.__members__
    if result is not None and result.code not in own and result.code in Code.__members__:
        return Code[result.code]
    if isinstance(statement, By) and isinstance(statement.action, Call) and layer in MONITORS:
        return statement.action.fault
    return None


def bare(statement: Statement, layer: str) -> Statement | None:
    """A statement as its own layer knows it: without what it expects of the layers below."""
    if is_resumed(statement):
        return None
    expected = expected_of(statement, layer)
    if isinstance(statement, By) and isinstance(expected, Fault):
        assert isinstance(statement.action, Call)
        return replace(statement, action=replace(statement.action, fault=None))
    if isinstance(expected, Code):
        if isinstance(statement, By):
            assert isinstance(statement.action, Call | Leave)
            return replace(statement, action=replace(statement.action, result=None))
        assert isinstance(statement, Create | Destroy)
        return replace(statement, result=None)
    return statement
