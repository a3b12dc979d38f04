"""Running a program of all four systems on one machine: each layer's run does its own, on the layer as the stack has it, and
every step is held against the invariants of all layers and of what is between them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from capvisor.dsl.cvm_runner import CvmRun
from capvisor.dsl.cvm_watch import describe_place as describe_cvm_place
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.evaluate import evaluate
from capvisor.dsl.orc_runner import OrcRun
from capvisor.dsl.orc_watch import describe_place as describe_orc_place
from capvisor.dsl.printer import print_agent, print_statement
from capvisor.dsl.runner import Failure
from capvisor.dsl.stack_check import bare, expected_of
from capvisor.dsl.stack_layout import CVM, MONITORS, ORC, TPT, VMM, Layout, is_resumed
from capvisor.dsl.stack_watch import ACROSS, Found, StackWatch, describe_across
from capvisor.dsl.syntax import Agent, By, Create, Destroy, Fault, Measured, Program
from capvisor.dsl.system import policy_of
from capvisor.dsl.system_runner import Executed, SystemVerdict, Violation
from capvisor.dsl.tpt_check import FAULT_FIELDS, FAULTS
from capvisor.dsl.tpt_runner import CountedTags, TptRun, outcome_of
from capvisor.dsl.tpt_watch import describe_place as describe_tpt_place
from capvisor.dsl.vmm_runner import VmmRun
from capvisor.dsl.vmm_watch import describe_place as describe_vmm_place
from capvisor.model.machine import Trap
from capvisor.model.object_tables import TenantThread
from capvisor.model.stack import Stack
from capvisor.model.stack_system import NotTaken, entered, perform_tpt, perform_vmm
from capvisor.model.tables import Thread
from capvisor.spec import cvm
from capvisor.spec.stack import Code, Who
from capvisor.spec.stack_invariants import Step
from capvisor.spec.stack_policy import StackPolicy
from capvisor.spec.tpt_invariants import Step as TptStep


class Refused(Exception):  # noqa: N818 - neither is this an error
    """The layers below didn't let a step begin, or go on."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.code, step.fault)
        self.step = step

    def outcome(self) -> str:
        """How it ended, in the words of the language."""
        if self.step.fault is not None:
            return outcome_of(TptStep(None, self.step.name, fault=self.step.fault))
        return f"refused {self.step.code.name}"


class Silent:
    """A watch of a layer's own run: the stack looks at its steps."""

    taken: tuple[Any, ...] = ()

    def violated(self, _step: Any) -> tuple[Any, ...]:
        return ()


class StackVmmRun(VmmRun):
    """A VMM's part of a program."""

    stack_run: "StackRun"

    def _take(self, name: str, *operands: Any) -> Any:
        return self.stack_run.taken(perform_vmm(self.stack_run.stack, name, *operands))


class StackTptRun(TptRun):
    """Translation pass-through's part of a program."""

    stack_run: "StackRun"

    def adopt(self, tags: CountedTags, system: Any) -> None:
        """Be about the stack's VMs."""
        self._tags, self.system = tags, system

    def _take(self, name: str, *operands: Any) -> Any:
        before = self._tags.lookups
        step = perform_tpt(self.stack_run.stack, name, *operands)
        self._looked_up = self._tags.lookups - before
        return self.stack_run.taken(step)

    def must(self, name: str, *operands: Any) -> bool:
        """An operation of the start: whether it was completed."""
        return bool(self._perform(name, *operands).is_completed)


class StackCvmRun(CvmRun):
    """The part of a program that is the cVMs'."""

    stack_run: "StackRun"

    def threads_by_name(self) -> dict[int, str]:
        """The threads' names, by number."""
        return {number: print_agent(agent)[:-1] for number, agent in self._agents.items()}

    def names(self) -> dict[int, str]:
        """The cVMs' names, by number."""
        return self._names

    def _instruction(self, thread: Thread, name: str, numbers: tuple[int, ...], call: str | None = None) -> Trap | None:
        with self.stack_run.entered(CVM, name, Who.CVM, thread.domain):
            return super()._instruction(thread, name, numbers, call)

    def _leave(self, thread: Thread) -> cvm.Code:
        with self.stack_run.entered(CVM, "leave", Who.MONITOR):
            return super()._leave(thread)

    def _deploy(self, name: str, text: str, *arguments: int, **options: int) -> cvm.Code:
        with self.stack_run.entered(CVM, name, Who.MONITOR):
            return super()._deploy(name, text, *arguments, **options)

    def _done(self, step: Any, *arguments: Any) -> None:
        self.stack_run.done(step)
        super()._done(step, *arguments)


class StackOrcRun(OrcRun):
    """The part of a program that is about shared objects."""

    stack_run: "StackRun"

    def names(self) -> dict[int, str]:
        """The tenants' names, by number."""
        return self._names

    def _instruction(self, thread: TenantThread, name: str, numbers: tuple[int, ...]) -> Trap | None:
        with self.stack_run.entered(ORC, name, Who.TENANT, thread.tenant):
            return super()._instruction(thread, name, numbers)

    def _perform(self, thread: TenantThread | None, name: str, *operands: int) -> Any:
        with self.stack_run.entered(ORC, name, Who.MONITOR):
            return super()._perform(thread, name, *operands)

    def _hold(self, step: Any) -> None:
        self.stack_run.done(step)


_RUNS: dict[str, type[Any]] = {VMM: StackVmmRun, TPT: StackTptRun, CVM: StackCvmRun, ORC: StackOrcRun}


class StackRun:
    """All four systems while their program runs."""

    def __init__(
        self,
        program: Program,
        values: Mapping[str, int],
        policy: StackPolicy,
        verdict: SystemVerdict,
        watch: Callable[[Executed], None],
        invariants: StackWatch | None = None,
        _follower: None = None,
    ) -> None:
        self._program, self._verdict, self._watch = program, verdict, watch
        self._layout = layout = Layout(program)
        self._invariants = invariants or StackWatch()
        policies = {layer: policy_of(system)[1] for layer, system in layout.systems.items()}
        first, last = layout.vmm.region
        tags = CountedTags(layout.vmm.frames)
        self.stack = Stack(
            layout.vmm.frames,
            (first, last + 1),
            layout.tpt.cpu_count,
            len(layout.vmm.devices),
            policy,
            policies[VMM],
            policies[TPT],
            tags,
        )
        self._runs: dict[str, Any] = {}
        for layer in layout.systems:
            known = {**values, **layout.constants(), **layout.constants_of(layer)}
            run = _RUNS[layer](layout.part(layer), known, policies[layer], verdict, watch, Silent())
            run.stack_run = self
            self._runs[layer] = run
        self._runs[VMM].system = self.stack.vmm
        self._runs[TPT].adopt(tags, self.stack.tpt)
        for layer in layout.mapped:
            self.stack.host(layer, self._runs[layer].monitor, layout.tpt.placed[layout.mapped[layer].vm].number)
        self._vms = {placed.number: name for name, placed in layout.tpt.placed.items()}
        self._whole: Callable[[Any], Step] | None = None
        self.line = 0
        self._statement = ""

    # -- the start ---------------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Set all layers up, from the machine upwards; kernels of VMs map the memory of monitors. Raises ProgramError."""
        for layer, run in self._runs.items():
            system = self._layout.given[layer]
            self.line, self._statement = system.position.line, f"the start of {layer}"
            try:
                if layer in MONITORS:
                    self._map(layer)
                run.set_up()
            except Refused as refused:
                message = f"`{layer}` can't start: {refused.outcome()}"
                raise ProgramError(message, system.position, self._program.source, self._program.text) from None

    def _map(self, layer: str) -> None:
        mapped = self._layout.mapped[layer]
        cpu = self._layout.tpt.placed[mapped.vm].cpus[0]
        for table, index, entry in mapped.entries:
            assert self._runs[TPT].must("write_pte", cpu, table, index, entry)
        text = f"{len(mapped.pages)} pages for {layer} in frames {mapped.frames[0]}..{mapped.frames[-1]}"
        self._watch(Executed(self.line, mapped.vm, text, "at the start", None, self.stack.tpt, None))

    # -- statements --------------------------------------------------------------------------------------------------------

    def execute(self, statement: By | Create | Destroy | Measured) -> Failure | None:
        """Execute a statement; what went wrong."""
        self._statement = " ".join(print_statement(statement).split())
        layer = self._layout.layer_of(statement)
        assert layer is not None
        expected, run = expected_of(statement, layer), self._runs[layer]
        run.line = self.line
        try:
            if is_resumed(statement):
                self._resume(layer)
                failure = None
            else:
                failure = run.execute(self._layout.own(bare(statement, layer), layer))
                self._give(statement, layer)
        except Refused as refused:
            self._verdict.refusals += refused.step.fault is None
            self._verdict.traps += refused.step.fault is not None
            agent = print_agent(statement.agent)[:-1] if isinstance(statement, By) else "deployer"
            system = self.stack.monitors.get(layer) or run.system
            self._watch(Executed(self.line, agent, self._statement, refused.outcome(), None, system, None))
            return self._compared(expected, refused)
        if expected is None:
            return failure
        ended = "it was completed" if failure is None else failure.message
        return Failure(self.line, "result", f"`{self._statement}`: {_expected_text(expected)} expected; {ended}")

    def _compared(self, expected: Code | Fault | None, refused: Refused) -> Failure | None:
        """Whether the layers below have refused a step as the program says."""
        step = refused.step
        if isinstance(expected, Code) and step.code is expected:
            return None
        if isinstance(expected, Fault) and step.fault is not None and step.fault.kind is FAULTS[expected.kind]:
            if expected.value is None:
                return None
            wanted = evaluate(expected.value, self._runs[TPT]._view(Agent("host")))
            if getattr(step.fault, FAULT_FIELDS[step.fault.kind]) == wanted:
                return None
        said = "no refusal" if expected is None else _expected_text(expected)
        return Failure(self.line, "result", f"`{self._statement}`: {refused.outcome()} by a layer below, {said} expected")

    def _resume(self, layer: str) -> None:
        """Go on, if the monitor's memory is there."""
        with self.entered(layer, "resume", Who.MONITOR):
            self.done(None)

    def _give(self, statement: Any, layer: str) -> None:
        """What a VM's kernel has read from a register it has as its value."""
        if layer == VMM and isinstance(statement, By) and statement.agent.name in self._layout.tpt.placed:
            agent = self._layout.own(statement, VMM).agent
            given = self._runs[VMM]._given.get(print_agent(agent))
            if given is not None:
                self._runs[TPT]._given[print_agent(statement.agent)] = given

    # -- steps -------------------------------------------------------------------------------------------------------------

    def taken(self, step: Step) -> Any:
        """A step of the VMM's or of translation pass-through's: the layer's own. Raises Refused where it didn't begin."""
        self._hold(step)
        if step.inner is None:
            raise Refused(step)
        return step.inner

    @contextmanager
    def entered(self, layer: str, name: str, who: Who, number: int = 0) -> Iterator[None]:
        """A step of a monitor's or of one of its guests, which says `done` within. Raises Refused."""
        try:
            with entered(self.stack, layer, name, who, number) as whole:
                self._whole = whole
                yield
        except NotTaken as stopped:
            self._hold(stopped.step)
            raise Refused(stopped.step) from None

    def done(self, inner: Any) -> None:
        """The step that was entered is over."""
        assert self._whole is not None
        self._hold(self._whole(inner))

    def _hold(self, step: Step) -> None:
        """Hold a step against all invariants."""
        for found in self._invariants.violated(step):
            self._verdict.violations[found.invariant] = Violation(self.line, self._statement, self._place(found))

    def _place(self, found: Found) -> str:
        """Where an invariant doesn't hold, in words."""
        if found.layer == ACROSS:
            return describe_across(found, self._vms, self._guests())
        inner = found.step
        if found.layer == VMM:
            devices = {placed.number: name for name, placed in self._layout.vmm.devices.items()}
            return describe_vmm_place(inner, found.place.place, devices)
        if found.layer == TPT:
            return describe_tpt_place(inner, found.place.place, self._vms)
        run = self._runs[found.layer]
        if found.layer == CVM:
            return describe_cvm_place(inner, found.place.place, run.names(), run.threads_by_name())
        return describe_orc_place(inner, found.place, run.names())

    def _guests(self) -> dict[tuple[Who, int], str]:
        """The names of cVMs and tenants."""
        kinds = ((Who.CVM, CVM), (Who.TENANT, ORC))
        return {
            (who, number): name
            for who, layer in kinds
            if layer in self._runs
            for number, name in self._runs[layer].names().items()
        }


def _expected_text(expected: Code | Fault) -> str:
    return f"refused {expected.name}" if isinstance(expected, Code) else f"fault {expected.kind}"
