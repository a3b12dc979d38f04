"""Guards of a para-pass-through VMM: what it intercepts and checks while everything else passes, each a switch.

All on is what is intended; one off shows what it carries. Source: spec/vmm.md, section 10 says who needs which.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from capvisor.spec.policy import Guard


def _guard(meaning: str, source: str) -> Any:
    return field(default=True, metadata={"meaning": meaning, "source": source})


_PUBLIC = "BitVisor, public code"
_GUIDE = "BitVisor, driver guide"
_ASPLOS = "BMcast abstract (ASPLOS 2015)"
_OURS = "ours: not said in what is public"


@dataclass(frozen=True)
class VmmPolicy:
    """The guards."""

    # -- memory, as the processor sees it
    filter_mappings: bool = _guard("a page of the VMM's becomes the zero page where the guest maps it", _PUBLIC)
    hide_whole_region: bool = _guard(
        "all frames of the region are the VMM's, not those of its first 4 MiB alone",
        f"missing in {_PUBLIC} of 2009, cpu_mmu_spt.c, phys_in_vmm",
    )
    split_large_mappings: bool = _guard("a large page that overlaps the region is mapped frame by frame", _PUBLIC)
    panic_on_region_write: bool = _guard("a write to the region stops the machine", _PUBLIC)
    apic_outside_region: bool = _guard("moving the local APIC into the region stops the machine", _PUBLIC)
    # -- what could end interception
    swallow_microcode: bool = _guard("updates of microcode are dropped", _PUBLIC)
    hide_virtualisation: bool = _guard("the guest has no virtualisation extensions", _PUBLIC)
    keep_on_init: bool = _guard("a processor that is started anew stays under the VMM", _PUBLIC)
    keep_on_resume: bool = _guard("the VMM gets the machine back before the guest when it wakes from sleep", _PUBLIC)
    follow_window_moves: bool = _guard("where a mediated device's registers move to, the VMM intercepts", _GUIDE)
    unmap_registers: bool = _guard("no processor or device reaches a mediated device's registers as memory", _OURS)
    windows_outside_region: bool = _guard("no device's registers are moved over the region", _OURS)
    # -- DMA
    iommu_hides_region: bool = _guard("the domain of pass-through devices lacks the region", _PUBLIC)
    iommu_confines_mediated: bool = _guard("a mediated device's domain has its shadow pages only", _PUBLIC)
    # -- the storage mediator
    read_back_registers: bool = _guard("address and count are read back from the device when a command is issued", _PUBLIC)
    count_bounded: bool = _guard("a command moves no more than the shadow buffer holds", _PUBLIC)
    check_all_sectors: bool = _guard("each sector of a command is checked, not the first one alone", _PUBLIC)
    refuse_denied: bool = _guard("a command to a sector that is denied isn't issued", _PUBLIC)
    refuse_unknown: bool = _guard(
        "a command that isn't in the table isn't issued", f"missing in {_PUBLIC}: it fails, but is sent"
    )
    refuse_queued: bool = _guard("queued and packet commands aren't issued", _PUBLIC)
    through_harmless: bool = _guard("of the commands let through none changes a sector that is encrypted or denied", _OURS)
    start_gated: bool = _guard("DMA starts only after a command for it", _PUBLIC)
    direction_checked: bool = _guard("DMA starts only in the direction of its command", _OURS)
    shadow_descriptors: bool = _guard("the device gets the VMM's descriptors, never the guest's", _PUBLIC)
    show_own_descriptors: bool = _guard("the guest reads back the descriptor pointer that it wrote", _PUBLIC)
    descriptors_checked_at_use: bool = _guard(
        "a descriptor that is used is checked, not another reading of it", f"{_PUBLIC}: the check repeated in each loop"
    )
    descriptors_outside_region: bool = _guard("a descriptor that names the region stops the machine", _PUBLIC)
    whole_descriptors: bool = _guard("descriptors that end before the command does abort it", _OURS)
    encrypt_writes: bool = _guard("what goes to an encrypted sector is encrypted", _PUBLIC)
    decrypt_reads: bool = _guard("what comes from an encrypted sector is decrypted", _PUBLIC)
    block_while_busy: bool = _guard("what the guest writes to registers while a command is under way is dropped", _OURS)
    reset_follows: bool = _guard("a reset of the device resets its mediator", _OURS)
    # -- extensions
    confine_extensions: bool = _guard("an extension touches what its policy says", _OURS)
    claim_before_command: bool = _guard(
        "sectors not deployed yet are filled in before a command to them is issued", f"{_ASPLOS}; {_OURS}"
    )
    recheck_before_write: bool = _guard(
        "what was fetched in the background is written only to a sector that is still to be deployed", f"{_ASPLOS}; {_OURS}"
    )
    leave_when_deployed: bool = _guard("the VMM leaves only when all is deployed and no command is under way", _ASPLOS)
    track_cpu_writes: bool = _guard("what processors write while memory is moved is sent again", _OURS)
    track_dma_writes: bool = _guard("what devices write while memory is moved is sent again", _OURS)
    track_mediator_writes: bool = _guard("what mediators write to the guest's memory while it is moved is sent again", _OURS)
    stop_before_last_round: bool = _guard("nothing runs while what is left is sent", _OURS)
    whole_last_round: bool = _guard("the last round goes over every frame", _OURS)


INTENDED = VmmPolicy()
_BITVISOR_2009 = replace(INTENDED, hide_whole_region=False, refuse_unknown=False)
VMM_POLICIES: dict[str, VmmPolicy] = {
    "intended": INTENDED,
    "bitvisor-2009": _BITVISOR_2009,
    "bitvisor-2009-without-vtd": replace(_BITVISOR_2009, iommu_hides_region=False, iommu_confines_mediated=False),
}
"""The presets, by name: what public code of March 2009 does where it was read, and otherwise what is intended.

Off is only what was read in that code. That trim is let through was read in later code: `through_harmless` is on.
"""

VMM_GUARDS: dict[str, Guard] = {
    each.name: Guard(each.name, each.metadata["meaning"], each.metadata["source"])
    for each in fields(VmmPolicy)
    if each.metadata
}


def without(guard: str, policy: VmmPolicy = INTENDED) -> VmmPolicy:
    """A policy, the intended one unless another is given, with one guard off. Raises KeyError for what is no guard."""
    if guard not in VMM_GUARDS:
        raise KeyError(guard)
    off: dict[str, Any] = {guard: False}
    return replace(policy, **off)
