"""Running a program of translation pass-through: each statement is an operation, a step that is held against T1 to T13."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from capvisor.dsl.errors import ProgramError
from capvisor.dsl.evaluate import evaluate
from capvisor.dsl.operation_runner import AT_THE_START, OperationFollower, OperationRun, OperationView, code_text
from capvisor.dsl.printer import print_action, print_agent
from capvisor.dsl.runner import Failure
from capvisor.dsl.syntax import Agent, Call, Measured, Program
from capvisor.dsl.system_runner import AgentError, Executed, SystemVerdict
from capvisor.dsl.system_watch import Found
from capvisor.dsl.tpt_check import FAULT_FIELDS, FAULTS, MEASURES, written_operands
from capvisor.dsl.tpt_layout import NAMES, Layout
from capvisor.dsl.tpt_watch import TptWatch, describe_place
from capvisor.model.tags import TagTable
from capvisor.model.tpt import System
from capvisor.model.tpt_system import perform
from capvisor.spec.tag_policy import TagPolicy
from capvisor.spec.tpt import OPERATIONS, Actor, Code, OperandKind
from capvisor.spec.tpt_invariants import Step


class CountedTags(TagTable):
    """Tags that count how often they are looked up: each page once, however large."""

    lookups = 0

    def looked_up(self, frame: int) -> int:
        self.lookups += 1
        return super().looked_up(frame)

    def uniform(self, base: int, count: int, owner: int) -> bool:
        before = self.lookups
        found = super().uniform(base, count, owner)
        self.lookups = before + 1
        return found


class View(OperationView):
    """The same with what the system's tables hold."""

    def __init__(self, system: System, values: Mapping[str, int], value: int | None) -> None:
        super().__init__(values, value)
        self._system = system

    def element(self, name: str, *indices: int) -> int:
        """A word of memory, a frame's own tag, or how many vCPUs have still to acknowledge it."""
        if name == "memory":
            return self._system.memory.get(*indices)
        frame = indices[0]
        return self._system.tags[frame] if name == "tag" else self._system.pending[frame].bit_count()


class TptRun(OperationRun):
    """A system with translation pass-through while its program runs."""

    def __init__(
        self,
        program: Program,
        values: Mapping[str, int],
        policy: TagPolicy,
        verdict: SystemVerdict,
        watch: Callable[[Executed], None],
        invariants: TptWatch | None = None,
        follower: OperationFollower | None = None,
    ) -> None:
        assert program.system is not None
        super().__init__(program, values, verdict, watch, invariants or TptWatch(), follower)
        self._layout = Layout(program.system)
        self._names = {placed.number: name for name, placed in self._layout.placed.items()}
        self._tags = CountedTags(self._layout.frames)
        layout = self._layout
        self.system = System(layout.frames, layout.cpu_count, layout.devices, policy, tags=self._tags)
        self._walk = dict.fromkeys(MEASURES, 0)
        self._looked_up = 0
        """How many tags the last step looked up: what invariants look up is no look-up of the walker's."""

    # -- the start ---------------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Make the VMs, give them their frames, let vCPUs run for them. Raises ProgramError where the host refuses."""
        assert self._program.system is not None
        for guest in self._program.system.guests:
            self.line, self._statement = guest.position.line, f"the start of {guest.name}"
            for name, *operands in self._layout.start_of(guest.name):
                step = self._perform(name, *operands)
                if not step.is_completed:
                    text = f"`{name} {', '.join(map(str, operands))}`: {outcome_of(step)}"
                    message = f"`{guest.name}` can't start: {text}"
                    raise ProgramError(message, guest.position, self._program.source, self._program.text)
            placed = self._layout.placed[guest.name]
            self._watch(
                Executed(
                    self.line,
                    "host",
                    f"{guest.name} frames {placed.first}..{placed.last}",
                    AT_THE_START,
                    None,
                    self.system,
                    None,
                )
            )

    # -- statements --------------------------------------------------------------------------------------------------------

    def _view(self, agent: Agent) -> View:
        return View(self.system, self._values, self._given.get(print_agent(agent)))

    def _measured(self, statement: Measured) -> Failure | None:
        self._verdict.assertions += 1
        expected = evaluate(statement.value, View(self.system, self._values, None))
        found = self._walk[statement.field]
        if found == expected:
            return None
        return Failure(self.line, "walk", f"`{self._statement}`: the last walk took {found}")

    def _operation(self, agent: Agent, call: Call) -> Failure | None:
        view, row = self._view(agent), OPERATIONS[call.name]
        operands = [*self._performer(agent, row.actor), *self._operands(call, written_operands(row), view)]
        if len(operands) < len(row.operands):
            assert row.operands[-1][1] is OperandKind.USER
            operands.append(NAMES["supervisor"])
        step = self._perform(call.name, *operands)
        self._count(row.actor, step)
        self._measure(step)
        text = " ".join(print_action(replace(call, result=None, fault=None)).split())
        self._seen(agent, text, outcome_of(step), step.value)
        return self._compared(call, step, view)

    def _performer(self, agent: Agent, actor: Actor) -> tuple[int, ...]:
        """The vCPU or device that an agent is. Raises AgentError where a VM's vCPU runs for another one."""
        if actor is Actor.HOST:
            return ()
        if actor is Actor.DEVICE:
            return (self._layout.device_names()[agent.name],)
        if agent.name not in self._layout.placed:
            return (self._layout.cpus()[agent.name],)
        placed = self._layout.placed[agent.name]
        cpu = placed.cpus[agent.thread - 1]
        running = self.system.vcpus[cpu].vm
        if running != placed.number:
            raise AgentError(f"cpu{cpu} runs for {self._names[running]} now: say `cpu{cpu}: ...`")
        return (cpu,)

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _take(self, name: str, *operands: Any) -> Step:
        before = self._tags.lookups
        step = perform(self.system, name, *operands)
        self._looked_up = self._tags.lookups - before
        return step

    def _place(self, step: Step, found: Found) -> str:
        return describe_place(step, found.place, self._names)

    def _count(self, actor: Actor, step: Step) -> None:
        self._verdict.calls += actor is Actor.HOST
        self._verdict.operations += actor is not Actor.HOST
        self._verdict.refusals += step.code is not Code.OK
        self._verdict.traps += step.fault is not None

    def _measure(self, step: Step) -> None:
        """What the walk took: that of the last access, or so far that of the last one that was begun."""
        kinds = {kind for _name, kind in OPERATIONS[step.name].operands}
        if OperandKind.USER in kinds:
            self._walk = dict.fromkeys(MEASURES, 0)
        if OperandKind.USER in kinds or step.name == "step_walk":
            counts = (_touches(step, "table"), self._looked_up, _touches(step, "update"))
            self._walk = {name: self._walk[name] + each for name, each in zip(MEASURES, counts, strict=True)}

    def _compared(self, call: Call, step: Step, view: View) -> Failure | None:
        """Whether an operation ended as the program says; well, if it says nothing."""
        found = outcome_of(step)
        if call.fault is None:
            code = Code.OK if call.result is None else Code[call.result.code]
            if step.fault is None and step.code is code:
                return None
            return Failure(self.line, "result", f"`{self._statement}`: {found}, {code_text(code)} expected")
        kind = FAULTS[call.fault.kind]
        wanted = None if call.fault.value is None else evaluate(call.fault.value, view)
        expected = f"fault {call.fault.kind}" + (
            "" if wanted is None else f" {call.fault.field} {_field_text(call.fault.field or '', wanted)}"
        )
        is_kind = step.fault is not None and step.fault.kind is kind
        if is_kind and (wanted is None or getattr(step.fault, FAULT_FIELDS[kind]) == wanted):
            return None
        return Failure(self.line, "fault", f"`{self._statement}`: {found}, {expected} expected")


def _touches(step: Step, kind: str) -> int:
    return sum(touch.kind == kind for touch in step.touches)


def _field_text(field: str, value: int) -> str:
    """Error codes are bits, frames are numbers."""
    return f"{value:#x}" if field == "code" else str(value)


def outcome_of(step: Step) -> str:
    """How a step ended, in the words of the language."""
    if step.fault is None:
        return code_text(step.code)
    field = FAULT_FIELDS.get(step.fault.kind)
    named = "" if field is None else f" {field} {_field_text(field, getattr(step.fault, field))}"
    return f"fault {step.fault.kind.name.lower()}{named}"
