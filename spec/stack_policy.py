"""Guards of the four systems together: what the layers owe each other where they share one machine, each a switch.

The guards of a layer are in its own policy; here is what none of the four has by itself. All on is what is intended; one
off shows what it carries. Source: spec/stack.md, whose last section says who needs which.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from capvisor.spec.policy import Guard


def _guard(meaning: str, source: str) -> Any:
    return field(default=True, metadata={"meaning": meaning, "source": source})


_OURS = "ours: a coupling that no layer's own specification has"
_RMP = "AMD APM vol. 2, 15.36"


@dataclass(frozen=True)
class StackPolicy:
    """The guards."""

    # -- the VMM and the tags of frames
    region_untagged: bool = _guard(
        "the host's operations on frames of the VMM's region are refused: there is no second translation to hide it behind",
        _OURS,
    )
    tables_in_region: bool = _guard("the tables of both kinds of tags lie in the VMM's region", _OURS)
    host_claims_first: bool = _guard(
        "the host's processors and its devices access frames only that it has claimed",
        f"{_RMP}, checks of writes of the hypervisor; {_OURS}",
    )
    mediator_checks_tags: bool = _guard(
        "what the VMM's mediator reads and writes for a device are frames of the device's owner", _OURS
    )
    extensions_check_tags: bool = _guard("an extension of the VMM touches frames of the host's only", _OURS)
    registers_by_owner: bool = _guard("a VM, and the host, reach the registers of their own devices only", _OURS)
    attach_idle: bool = _guard("a device changes hands only when no command is under way", _OURS)
    stop_reaches_all: bool = _guard("where the VMM has stopped the machine, nothing above it goes on", _OURS)
    track_all_writes: bool = _guard(
        "while the machine's memory is moved, what VMs, cVMs, tenants and the host's operations write is sent again", _OURS
    )
    # -- frames and capabilities
    dma_clears_tags: bool = _guard("what a device writes clears the tags of the granules", "CHERI ISAv9, tagged memory")
    pages_bound: bool = _guard(
        "a page of a monitor's memory is always the same content, whichever frame that is moved to", _OURS
    )
    resident_first: bool = _guard("a step of a monitor or its guests begins only when all of its memory is there", _OURS)
    base_memory_kept: bool = _guard(
        "what lies in the memory of shared objects is written by their base and its tenants alone", f"{_OURS}: O1, O12"
    )


INTENDED = StackPolicy()
STACK_POLICIES: dict[str, StackPolicy] = {"intended": INTENDED}
"""The presets, by name."""

STACK_GUARDS: dict[str, Guard] = {
    each.name: Guard(each.name, each.metadata["meaning"], each.metadata["source"])
    for each in fields(StackPolicy)
    if each.metadata
}


def without(guard: str, policy: StackPolicy = INTENDED) -> StackPolicy:
    """A policy, the intended one unless another is given, with one guard off. Raises KeyError for what is no guard."""
    if guard not in STACK_GUARDS:
        raise KeyError(guard)
    off: dict[str, Any] = {guard: False}
    return replace(policy, **off)
