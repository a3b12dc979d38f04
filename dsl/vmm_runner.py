"""Running a program of a para-pass-through VMM: each statement is one operation or several, steps that are held against P1
to P19.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from capvisor.dsl.operation_runner import AT_THE_START, OperationFollower, OperationRun, OperationView, code_text
from capvisor.dsl.printer import print_action, print_agent, print_part
from capvisor.dsl.runner import Failure
from capvisor.dsl.syntax import Agent, Call, Measured, Program
from capvisor.dsl.system_kinds import COMMAND, COPY, DMA, PEEK, POKE, READ_SECTOR, WRITE_SECTOR
from capvisor.dsl.system_runner import AgentError, Executed, SystemVerdict
from capvisor.dsl.system_watch import Found
from capvisor.dsl.vmm_check import LIBRARY, VMM, written_operands
from capvisor.dsl.vmm_layout import NAMES, Layout, place
from capvisor.dsl.vmm_watch import VmmWatch, describe_place
from capvisor.model.vmm import System
from capvisor.model.vmm_devices import input_register, moves_by
from capvisor.model.vmm_system import perform
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    BLOCKS_PER_FRAME,
    MAPPINGS,
    OPERATIONS,
    WINDOW_SHIFT,
    Actor,
    Code,
    Register,
    Space,
    Stage,
    Transfer,
)
from capvisor.spec.vmm_policy import VmmPolicy
from capvisor.spec.vmm_words import Step

DRIVERS_SLOT = MAPPINGS - 1
"""The slot through which `peek` and `poke` reach memory."""

MOST_TIMES = 1 << 12
"""How often an operation is repeated at most."""


class View(OperationView):
    """The same with what the system's tables hold."""

    def __init__(self, system: System, values: Mapping[str, int], value: int | None) -> None:
        super().__init__(values, value)
        self._system = system

    def name(self, name: str) -> int:
        vmm = self._system.vmm[0]
        states = {
            "panicked": vmm.is_stopped,
            "microcode_changed": vmm.has_microcode,
            "handed_over": vmm.stage == Stage.HANDED_OVER,
        }
        return int(states[name]) if name in states else super().name(name)

    def element(self, name: str, *indices: int) -> int:
        """What is in a table, at a place of it."""
        system = self._system
        tables = {
            "memory": system.memory,
            "medium": system.media,
            "image": system.images,
            "deployed": system.deployed,
            "rule": system.rules,
            "remote": system.remote,
        }
        if name in tables:
            return int(tables[name][indices if len(indices) > 1 else indices[0]])
        if name == "outside":
            return int(system.vcpus[indices[0]].is_outside)
        if name == "cipher":
            return int(system.cipher.encrypt(system.keys[0], *indices))
        device, register = indices
        if not system.devices[device].is_storage:
            return int(system.registers[device, register])
        if register == Register.DATA:
            raise AgentError("what the data port gives next is no register: read it")
        return int(input_register(system, device, register))


class VmmRun(OperationRun):
    """A machine with its VMM while its program runs."""

    def __init__(
        self,
        program: Program,
        values: Mapping[str, int],
        policy: VmmPolicy,
        verdict: SystemVerdict,
        watch: Callable[[Executed], None],
        invariants: VmmWatch | None = None,
        follower: OperationFollower | None = None,
    ) -> None:
        super().__init__(program, values, verdict, watch, invariants or VmmWatch(), follower)
        assert program.system is not None
        layout = self._layout = Layout(program.system)
        self._names = {placed.number: name for name, placed in layout.devices.items()}
        region = layout.region[0], layout.region[1] + 1
        self.system = System(layout.frames, region, layout.vcpus, len(layout.devices), policy)
        self._library: dict[str, Callable[..., Code]] = {
            PEEK: self._peek,
            POKE: self._poke,
            COMMAND: self._command,
            READ_SECTOR: self._read_sector,
            WRITE_SECTOR: self._write_sector,
            DMA: self._dma,
            COPY: self._copy,
        }

    def set_up(self) -> None:
        """Put the key, devices and extensions into their places."""
        place(self.system, self._layout)
        system = self._program.system
        assert system is not None
        region = f"region {self._layout.region[0]}..{self._layout.region[1]}"
        self._watch(Executed(system.position.line, VMM, region, AT_THE_START, None, self.system, None))
        for part in system.parts:
            text = " ".join(print_part(part).split())
            self._watch(Executed(part.position.line, VMM, text, AT_THE_START, None, self.system, None))

    # -- statements --------------------------------------------------------------------------------------------------------

    def _view(self, agent: Agent) -> View:
        return View(self.system, self._values, self._given.get(print_agent(agent)))

    def _measured(self, statement: Measured) -> Failure | None:
        raise AssertionError(statement)  # the checker lets none through

    def _operation(self, agent: Agent, call: Call) -> Failure | None:
        operands = self._operands(call, written_operands(call.name), self._view(agent))
        result = call.result
        expected = Code.OK if result is None else Code[result.code]
        times = MOST_TIMES if result is not None and result.is_repeated else 1
        text = " ".join(print_action(replace(call, result=None)).split())
        for _ in range(times):
            code = self._act(agent, call.name, text, operands)
            if code is not Code.OK:
                break
        if code is expected:
            return None
        return Failure(self.line, "result", f"`{self._statement}`: {code_text(code)}, {code_text(expected)} expected")

    def _act(self, agent: Agent, name: str, text: str, operands: list[int]) -> Code:
        """What an operation, or what a driver does, ends with."""
        if name in LIBRARY:
            return self._library[name](agent, *operands)
        left_out = len(written_operands(name)) - len(operands)
        last = [NAMES["small"], NAMES["rw"]]
        return self._step(agent, name, *operands, *last[len(last) - left_out :], text=text)

    def _performer(self, agent: Agent, actor: Actor) -> tuple[int, ...]:
        """The vCPU, device or extension that an agent is."""
        if actor is Actor.GUEST:
            return (agent.thread - 1,)
        if actor is Actor.DEVICE:
            return (self._layout.devices[agent.name].number,)
        return (self._layout.extensions[agent.name].number,) if actor is Actor.EXTENSION else ()

    # -- what drivers do ---------------------------------------------------------------------------------------------------

    def _peek(self, agent: Agent, address: int) -> Code:
        """Map a block, and read it."""
        code = self._step(agent, "map", DRIVERS_SLOT, address >> BLOCK_SHIFT, NAMES["small"], NAMES["ro"])
        return code or self._step(agent, "load", DRIVERS_SLOT, address % BLOCKS_PER_FRAME)

    def _poke(self, agent: Agent, address: int, value: int) -> Code:
        """Map a block, and write it."""
        code = self._step(agent, "map", DRIVERS_SLOT, address >> BLOCK_SHIFT, NAMES["small"], NAMES["rw"])
        return code or self._step(agent, "store", DRIVERS_SLOT, address % BLOCKS_PER_FRAME, value)

    def _command(self, agent: Agent, device: int, opcode: int, lba: int, count: int) -> Code:
        """Say how many sectors, from which one on, and give the command."""
        code = self._output(agent, device, Register.COUNT, count)
        code = code or self._output(agent, device, Register.LBA, lba)
        return code or self._output(agent, device, Register.COMMAND, opcode)

    def _read_sector(self, agent: Agent, device: int, lba: int) -> Code:
        """Read a sector through the data port."""
        code = self._command(agent, device, NAMES["read_sectors"], lba, 1)
        return code or self._step(agent, "input", Space.PORT, self._port(device, Register.DATA))

    def _write_sector(self, agent: Agent, device: int, lba: int, value: int) -> Code:
        """Write a sector through the data port."""
        code = self._command(agent, device, NAMES["write_sectors"], lba, 1)
        return code or self._output(agent, device, Register.DATA, value)

    def _dma(self, agent: Agent, device: int, opcode: int, lba: int, count: int, table: int) -> Code:
        """Give a command with descriptors at an address, start it, and wait until mediator and device have done with it.

        NOTHING where they don't come to an end.
        """
        code = self._output(agent, device, Register.DESCRIPTORS, table)
        code = code or self._command(agent, device, opcode, lba, count)
        direction = NAMES["TO_MEMORY"] if moves_by(opcode, Transfer.DMA_IN) else 0
        code = code or self._output(agent, device, Register.START, NAMES["GO"] | direction)
        while code is Code.OK:
            moved = False
            for who, name, operands in ((VMM, "mediate", (device,)), (self._names[device], "transfer", ())):
                while (code := self._step(Agent(who), name, *operands)) is Code.OK:
                    moved = True
                if code is not Code.NOTHING:
                    return code
            code = self._step(agent, "input", Space.PORT, self._port(device, Register.MASTER_STATUS))
            if code is Code.OK and self._given[print_agent(agent)] == 0:
                return code
            if not moved:
                return Code.NOTHING
        return code

    def _copy(self, agent: Agent, device: int) -> Code:
        """Deploy the next sector, or go on to the one behind it where that was done."""
        deployment = self.system.deployments[device]
        if deployment.cursor == deployment.size:
            return Code.NOTHING
        code = self._step(agent, "fetch", device, deployment.cursor)
        if code is Code.OK and self.system.deployments[device].is_fetched:
            code = self._step(agent, "deploy", device)
        return code

    def _output(self, agent: Agent, device: int, register: Register, value: int) -> Code:
        return self._step(agent, "output", Space.PORT, self._port(device, register), value)

    def _port(self, device: int, register: Register) -> int:
        """Where a storage device's register is now, among the ports. Raises AgentError where there is none."""
        if not self.system.devices[device].is_storage:
            raise AgentError(f"device {device} is no storage device")
        return int(self.system.windows[device, Space.PORT]) << WINDOW_SHIFT | register

    # -- steps -------------------------------------------------------------------------------------------------------------

    def _step(self, agent: Agent, name: str, *operands: int, text: str = "") -> Code:
        """An operation by an agent."""
        actor = OPERATIONS[name].actor
        step: Step = self._perform(name, *self._performer(agent, actor), *operands)
        self._verdict.calls += actor in (Actor.VMM, Actor.EXTENSION)
        self._verdict.operations += actor in (Actor.GUEST, Actor.DEVICE)
        self._verdict.refusals += step.code is not Code.OK
        written = text or f"{name} {', '.join(f'{each:#x}' if each > 9 else str(each) for each in operands)}".rstrip()
        self._seen(agent, written, code_text(step.code), None if step.value is None else int(step.value))
        return Code(step.code)

    def _take(self, name: str, *operands: Any) -> Step:
        return perform(self.system, name, *operands)

    def _place(self, step: Step, found: Found) -> str:
        return describe_place(step, found.place, self._names)
