"""How the four systems stand on each other: what each supposes of what lies below it, and what gives it that.

A para-pass-through VMM has the machine; its guest is a host of translation pass-through; in a guest of that run an
Intravisor with its cVMs and a base with its tenants. Every supposition that a layer's proofs make about what they don't
model is a row here: given by invariants or theorems of other layers and guards of the stack, or trusted, with the reason.
`capvisor prove stack` shows them.
"""

from dataclasses import dataclass

from capvisor.spec.orc_invariants import ORC_INVARIANTS


@dataclass(frozen=True)
class Layer:
    """A system, as a layer."""

    name: str
    title: str
    principals: str
    """Who is kept apart from whom."""
    passes: str
    """What isn't intercepted."""
    checked: str
    """What hardware checks."""
    mediated: str
    """What the trusted base does itself."""
    parts: tuple[str, ...]
    """The modules of the reference that are this layer's own, in `model/`."""


LAYERS: dict[str, Layer] = {
    row.name: row
    for row in (
        Layer(
            "vmm",
            "para-pass-through VMM",
            "the guest, its devices, extensions, and the VMM",
            "almost all I/O, interrupts, and the guest's own drivers",
            "mappings that the VMM fills in, the IOMMU",
            "commands and DMA descriptors of chosen devices, mappings of its own region",
            ("vmm", "mediator", "vmm_operations", "vmm_system", "extensions"),
        ),
        Layer(
            "tpt",
            "translation pass-through",
            "VMs of one host",
            "page tables with the machine's frames, without exits",
            "a tag of each frame, when a translation is cached",
            "changes of tags, shoot-downs",
            ("paging", "tags", "tlb", "tpt", "tpt_operations", "tpt_system"),
        ),
        Layer(
            "cvm",
            "capability VMs",
            "cVMs in one address space",
            "instructions, also those on shared buffers",
            "capabilities: bounds, permissions, object types",
            "granting, revoking, setting up calls",
            ("calls", "guests", "monitor", "system", "tables"),
        ),
        Layer(
            "orc",
            "object reuse with capabilities",
            "tenants that share objects",
            "loading and relocating objects, executing them",
            "capabilities, and the TLS array of each thread",
            "verifying images, making slots, entries and shadows",
            ("object_operations", "object_system", "object_tables", "objects"),
        ),
    )
}
"""From the machine upwards."""


HELD = ("register", "ddc", "pcc")
"""Where a thread has what authorises an access of its own, or a fetch."""


@dataclass(frozen=True)
class Supposition:
    """What a layer's proofs suppose of what they don't model."""

    name: str
    layer: str
    statement: str
    guards: tuple[str, ...] = ()
    """Of `spec.stack_policy`: what the stack does for it."""
    invariants: tuple[str, ...] = ()
    """What gives it, and is proved of every step: of a layer, as `tpt.T1`, or of all together, as `stack.S3`."""
    steps: tuple[str, ...] = ()
    """Steps of systems of which it is proved, as `cvm.outside`."""
    theorems: tuple[str, ...] = ()
    """Theorems that say that what gives it does."""
    checked: tuple[str, ...] = ()
    """Invariants that are checked while the stack runs, and not proved: across layers, or of a layer at others' steps."""
    trusted: str = ""
    """Why nothing does, and whom one trusts."""


SUPPOSITIONS: dict[str, Supposition] = {
    row.name: row
    for row in (
        Supposition(
            "vmm.hardware",
            "vmm",
            "The processor traps what it is told to and translates by the VMM's mappings; the IOMMU obeys its domains.",
            trusted="the machine: nothing lies below it",
        ),
        Supposition(
            "vmm.guest",
            "vmm",
            "Of the guest nothing is supposed: a host of translation pass-through is one of many.",
            trusted="nobody: the invariants hold of any guest",
        ),
        Supposition(
            "vmm.processors",
            "vmm",
            "What its guest's processors do to memory the VMM has looked at, though VMs translate by tables of their own.",
            guards=("region_untagged",),
            invariants=("vmm.P1", "tpt.T1", "tpt.T2", "tpt.T3", "tpt.T8", "stack.untagged", "stack.S1", "stack.S2"),
            theorems=("composition.region",),
        ),
        Supposition(
            "vmm.user",
            "vmm",
            "A mediated device has one user, to whom all of its buffers belong.",
            guards=("mediator_checks_tags", "registers_by_owner", "attach_idle"),
            invariants=("stack.S2", "stack.S7", "stack.commanded"),
            theorems=("composition.frames",),
        ),
        Supposition(
            "vmm.stops",
            "vmm",
            "All of its guest stops when it stops the guest.",
            guards=("stop_reaches_all",),
            invariants=("stack.S9",),
        ),
        Supposition(
            "vmm.moving",
            "vmm",
            "Every write to memory that is being moved to another machine is seen; none is made once the guest is stopped.",
            guards=("track_all_writes",),
            invariants=("vmm.P13", "stack.tracked", "stack.S9"),
        ),
        Supposition(
            "tpt.memory",
            "tpt",
            "Nothing below the host writes to its frames but what itself, its guests and their devices ask for, so that a "
            "clean frame stays clean.",
            guards=("host_claims_first", "extensions_check_tags", "mediator_checks_tags"),
            invariants=("vmm.P1", "vmm.P2", "vmm.P17", "tpt.T5", "tpt.T13", "stack.S1", "stack.S2", "stack.unclean"),
            theorems=("composition.frames", "composition.region"),
        ),
        Supposition(
            "tpt.devices",
            "tpt",
            "What accesses memory for a VM's device is looked up: also what the VMM copies for a mediated one.",
            guards=("mediator_checks_tags",),
            invariants=("vmm.P2", "vmm.P7", "tpt.T9", "stack.S2"),
            theorems=("composition.frames",),
        ),
        Supposition(
            "tpt.tags",
            "tpt",
            "Tags are where no guest, device or host can write, and only the host's operations change them.",
            guards=("tables_in_region", "region_untagged"),
            invariants=("tpt.T4", "tpt.T8", "stack.untagged", "stack.S1", "stack.S8"),
            theorems=("composition.region",),
        ),
        Supposition(
            "tpt.host",
            "tpt",
            "The host follows its operations.",
            trusted="the host: it is the trusted base of this layer, though not of the VMM's",
        ),
        Supposition(
            "cvm.memory",
            "cvm",
            "What lies below the Intravisor makes no capability: it may change its memory, but only to what isn't tagged.",
            guards=("dma_clears_tags", "tables_in_region"),
            invariants=("tpt.T5", "stack.S3", "stack.S4", "stack.S5", "stack.placed"),
            steps=("cvm.outside",),
        ),
        Supposition(
            "cvm.private",
            "cvm",
            "Nobody else's guests and devices access the memory of the guest that it runs in.",
            invariants=("tpt.T1", "tpt.T2", "tpt.T3", "tpt.T9", "stack.S2"),
            theorems=("composition.frames", "composition.guests"),
        ),
        Supposition(
            "cvm.pages",
            "cvm",
            "No two of its addresses are one byte of the machine, and a page is always the same content.",
            guards=("pages_bound",),
            invariants=("tpt.T5", "tpt.T11", "stack.S5", "stack.placed"),
        ),
        Supposition(
            "cvm.resident",
            "cvm",
            "A sweep over its memory meets all of it.",
            guards=("resident_first",),
            invariants=("stack.resident",),
        ),
        Supposition(
            "cvm.machine",
            "cvm",
            "An instruction does what the model of the hart says.",
            invariants=("cvm.M8",),
            trusted="the processor; of the model, `capvisor prove --matrix` proves what each instruction keeps",
        ),
        Supposition(
            "cvm.apart",
            "cvm",
            "In one guest, two cVMs meet where their regions, nestings and live grants say.",
            invariants=(
                *(f"cvm.{name}" for name in ("C1", "C2", "C6", "C7", "C8", "C16", "C17", "C18", "C19")),
                *("stack.S2", "stack.S5", "stack.placed"),
            ),
            theorems=(
                *(f"composition.cvm_{place}" for place in HELD),
                "composition.granules",
                "composition.cvms",
                "composition.stack",
            ),
        ),
        Supposition(
            "orc.apart",
            "orc",
            "In one guest, two tenants meet in objects that both have mapped, where neither can store.",
            invariants=(
                *(f"orc.{name}" for name, row in ORC_INVARIANTS.items() if row.is_of_state),
                *("stack.S2", "stack.S5", "stack.placed"),
            ),
            theorems=(
                *(f"composition.tenant_{place}" for place in HELD),
                "composition.granules",
                "composition.tenants",
                "composition.stack",
            ),
        ),
        Supposition(
            "orc.memory",
            "orc",
            "Nobody else writes to its memory, which holds no capability but what it and its tenants have put there.",
            guards=("base_memory_kept", "dma_clears_tags", "tables_in_region"),
            invariants=(
                *(f"tpt.{name}" for name in ("T1", "T2", "T3", "T5", "T9")),
                *(f"stack.{name}" for name in ("S2", "S3", "S4", "S5", "placed", "unwritten")),
            ),
            theorems=("composition.frames", "composition.guests"),
        ),
        Supposition(
            "orc.pages",
            "orc",
            "No two of its addresses are one byte of the machine, nor one with another monitor's; sweeps meet all of them.",
            guards=("pages_bound", "resident_first"),
            invariants=("tpt.T5", "tpt.T11", "stack.S5", "stack.placed", "stack.resident"),
        ),
    )
}
"""By name; the layers from the machine upwards."""
