"""Guards: what a monitor checks or takes care of, each a switch, and the presets that public code and papers suggest.

A guard is a field of a policy. All of them on is what is intended; switching one off shows what it carries
(`capvisor guards`).
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(frozen=True)
class Guard:
    """One guard: its name, what it is, and where it was found or missed."""

    name: str
    meaning: str
    source: str


def _guard(meaning: str, source: str) -> Any:
    return field(default=True, metadata={"meaning": meaning, "source": source})


_CODE_1 = "lsds/intravisor 0.0.1"
_CODE_2 = "lsds/intravisor 0.0.2"


@dataclass(frozen=True)
class MonitorPolicy:
    """The guards of the Intravisor, a monitor of capability VMs. Source: spec/cvm.md."""

    distinct_otypes: bool = _guard(
        "what the monitor seals for each cVM, and for itself, has an object type of its own",
        f"{_CODE_1}, main.c: one sealing capability, and one object type, for all",
    )
    grants_without_store_capability: bool = _guard(
        "a granted capability doesn't permit to store capabilities", f"{_CODE_1}, utils.c, datacap_create"
    )
    grants_without_load_capability: bool = _guard(
        "a granted capability doesn't permit to load capabilities", f"missing in {_CODE_1}, utils.c, datacap_create"
    )
    local_grants: bool = _guard(
        "a granted capability is local, so that only what may store local capabilities can keep it in memory",
        f"ours: missing in {_CODE_2}, whose pure-capability cVMs may store what they are granted",
    )
    ddc_without_store_capability: bool = _guard(
        "hybrid code's DDC doesn't permit to store capabilities", f"{_CODE_1}, utils.c; dropped in {_CODE_2}"
    )
    purecap_without_store_local: bool = _guard(
        "a pure-capability cVM's data capability doesn't permit to store local capabilities",
        f"ours: missing in {_CODE_2}",
    )
    purge_slots: bool = _guard(
        "revoking a grant untags what the monitor has put into the memory of those who probed it",
        f"{_CODE_1}, host_cap_file.c, revoke",
    )
    purge_all_probers: bool = _guard(
        "revoking a grant reaches each place that it was put at, not the last one alone", f"missing in {_CODE_1}"
    )
    purge_registers: bool = _guard("revoking a grant untags it in the registers of all threads", f"missing in {_CODE_1}")
    purge_fetched: bool = _guard(
        "finishing a call revokes what the callee fetched for it", f"missing in {_CODE_1}, host_cap_calls.c"
    )
    probe_location_checked: bool = _guard(
        "a capability is put only at a place inside the caller's region, and not inside a nested one",
        f"missing in {_CODE_1}, host_cap_file.c, probe",
    )
    advertised_range_checked: bool = _guard(
        "what a cVM advertises lies in its region", f"missing in {_CODE_1}, host_cap_file.c, advertise"
    )
    pointers_checked: bool = _guard(
        "what a call's pointer names lies in the caller's region", f"missing in {_CODE_1}, utils.c, comp_to_mon"
    )
    handles_are_capabilities: bool = _guard(
        "a portal is called by a sealed capability that probing gave, not by a number",
        f"missing in {_CODE_1}, host_cap_calls.c, where a comment wishes for it",
    )
    monitor_stack: bool = _guard(
        "the monitor keeps what it works with on a stack of its own", f"missing in {_CODE_1}, asm.S: the guest's stack"
    )
    saved_context_private: bool = _guard(
        "a caller's saved context is out of the guest's reach", f"missing in {_CODE_1}, asm.S: on the guest's stack"
    )
    identity_from_hardware: bool = _guard(
        "the monitor takes a caller to be whoever the thread runs for, not whom its stack pointer names",
        f"missing in {_CODE_1}, hostcalls.c, get_cur_thread",
    )
    regions_disjoint: bool = _guard(
        "a region that isn't nested overlaps no other, a nested one lies in the outer one", f"missing in {_CODE_1}"
    )
    outer_is_hybrid: bool = _guard(
        "only hybrid cVMs are nested: who can load an inner's capability to store capabilities can give its own away",
        "ours: found by the proof of C1",
    )
    scrub_on_create: bool = _guard(
        "memory given to a new cVM is cleared", "ours: found by the proof of C1; fresh pages are empty in the public code"
    )
    registers_cleared: bool = _guard(
        "a thread that goes on for another cVM starts with empty registers", "the design: a thread belongs to one cVM"
    )
    owner_revokes: bool = _guard("only a grant's owner revokes it", f"{_CODE_1}: no guest can call revoke")


POLICIES: dict[str, MonitorPolicy] = {}
"""The presets, by name."""

_MISSING_1 = (
    *("distinct_otypes", "grants_without_load_capability", "local_grants", "purecap_without_store_local"),
    *("purge_all_probers", "purge_registers", "purge_fetched", "probe_location_checked", "advertised_range_checked"),
    *("pointers_checked", "handles_are_capabilities", "monitor_stack", "saved_context_private"),
    *("identity_from_hardware", "regions_disjoint", "outer_is_hybrid"),
)
INTENDED = POLICIES["intended"] = MonitorPolicy()
PROTOTYPE_0_0_1 = POLICIES["prototype-0.0.1"] = replace(INTENDED, **dict.fromkeys(_MISSING_1, False))
PROTOTYPE_0_0_2 = POLICIES["prototype-0.0.2"] = replace(
    PROTOTYPE_0_0_1, ddc_without_store_capability=False, grants_without_store_capability=False
)

GUARDS: dict[str, Guard] = {
    each.name: Guard(each.name, each.metadata["meaning"], each.metadata["source"]) for each in fields(MonitorPolicy)
}


def without(guard: str) -> MonitorPolicy:
    """The intended policy with one guard off. Raises KeyError for what is no guard."""
    if guard not in GUARDS:
        raise KeyError(guard)
    return replace(INTENDED, **{guard: False})
