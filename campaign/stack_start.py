"""The machine that a campaign of all four systems starts with, and what is done before anything else."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from capvisor.dsl.cvm_layout import layout_of
from capvisor.dsl.orc_layout import Layout as OrcLayout
from capvisor.dsl.parser import parse
from capvisor.dsl.stack_layout import Layout
from capvisor.dsl.syntax import Program
from capvisor.fastpath.stack import CVM, ORC
from capvisor.model.stack import TPT_LAYER

INSTRUCTION, LEAVE, OPERATION, DEPLOY = "instruction", "leave", "operation", "deploy"
"""What monitors' guests, and monitors, do: beside the operations of the VMM and of translation pass-through."""


class LaneEvent(NamedTuple):
    """What is done in one lane, as `Event` has it of all."""

    layer: str
    kind: str
    name: str
    operands: tuple[Any, ...]
    thread: int | None = None


class Deployment(NamedTuple):
    """The machine at the start, as a program says it."""

    devices: int = 3
    has_probe: bool = True

    def text(self, policy: Sequence[str] = ()) -> str:
        """The machine, in the language."""
        devices = ("storage disk { }", "device nic { }", "device bus { }")[: self.devices]
        probe = ["extension probe { frames 0..25; writable 1 }"] if self.has_probe else []
        items = [
            *policy,
            f"vmm {{ {'; '.join(['frames 46', 'region 26..45', *devices, *probe])} }}",
            "tpt { vm0 frames 2..13; vm1 frames 14..19 mapped }",
            "cvm { memory 0x40000000 size 8K; alice size 4K; bob size 4K }",
            "orc { slots 4; tenant tom }",
        ]
        return f"system stack {{ {'; '.join(items)} }}"

    def program(self) -> Program:
        """The program that has nothing but this machine."""
        return _program(self)

    def layout(self) -> Layout:
        """What names stand for, and where everything is."""
        return _layout(self)

    def start(self) -> Iterator[LaneEvent]:
        """What is done before anything else: VMs are made, their kernels map the memory of monitors, these are set up."""
        layout = self.layout()
        for name in layout.tpt.placed:
            for operation, *operands in layout.tpt.start_of(name):
                yield LaneEvent(TPT_LAYER, TPT_LAYER, operation, tuple(operands))
        for layer in (CVM, ORC):
            mapped = layout.mapped[layer]
            for entry in mapped.entries:
                cpu = layout.tpt.placed[mapped.vm].cpus[0]
                yield LaneEvent(TPT_LAYER, TPT_LAYER, "write_pte", (cpu, *entry))
            if layer == CVM:
                for region in layout_of(layout.part(CVM)).placed.values():
                    yield LaneEvent(CVM, DEPLOY, "create", (region.number, region.base, region.size))
                    yield LaneEvent(CVM, DEPLOY, "start_thread", (region.number, 0))
            else:
                for tenant in OrcLayout(layout.part(ORC)).tenants.values():
                    yield LaneEvent(ORC, OPERATION, "create", tuple(tenant))


@lru_cache
def _program(deployment: Deployment) -> Program:
    return parse(deployment.text() + "\n")


@lru_cache
def _layout(deployment: Deployment) -> Layout:
    return Layout(_program(deployment))
