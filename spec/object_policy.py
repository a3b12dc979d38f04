"""Guards of object reuse: what the base verifies of an image, and what it takes care of, each a switch.

All on is what is intended; one off shows what it carries. Source: spec/orc.md, whose section 7 says who needs which.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from capvisor.spec.policy import Guard


def _guard(meaning: str, source: str) -> Any:
    return field(default=True, metadata={"meaning": meaning, "source": source})


_CODE = "lsds/intravisor 0.1.0"
_OURS = "ours: the published list of checks wasn't found"


@dataclass(frozen=True)
class ObjectPolicy:
    """The guards of the base. The first ones are what an image is verified for, V1 to V7 of spec/orc.md."""

    segments_checked: bool = _guard("V1: an image's segments are aligned and lie in its slot", _OURS)
    targets_checked: bool = _guard("V2: what is relocated lies in the image's read-only segment", _OURS)
    sources_checked: bool = _guard(
        "V2: what a relocation points at lies in the segment of the image that its kind wants", _OURS
    )
    code_without_store: bool = _guard(
        "V3: a capability to an object's code doesn't permit to store", "lsds/intravisor 0.0.2, utils.c asks for Store too"
    )
    const_without_store: bool = _guard(
        "V3: a capability to a constant doesn't permit to store",
        f"missing in {_CODE}, main.c, where a comment wishes for it",
    )
    no_shared_globals: bool = _guard(
        "V3: there are no capabilities to the shared copy of writable globals",
        f"missing in {_CODE}, main.c: such relocations are as those of any program",
    )
    tags_cleared: bool = _guard("V4: a submitted image has no capabilities in it but those that the base puts there", _OURS)
    identity_checked: bool = _guard("V5: an object is mapped only where its content is what the tenant expects", _OURS)
    revoke_before_verify: bool = _guard(
        "V6: whoever has loaded an image can't write to it from before it is verified on", "ORC abstract; the order: ours"
    )
    exports_in_code: bool = _guard("V7: what is exported lies in the image's code", _OURS)
    entries_exported: bool = _guard("V7: an entry is given only to what is exported", _OURS)

    purge_registers: bool = _guard("what isn't a tenant's any more is untagged in the registers of its threads", _OURS)
    purge_memory: bool = _guard("what isn't a tenant's any more is untagged in the tenant's memory", _OURS)
    minted_dropped: bool = _guard("a withdrawn image goes back without the capabilities that the base put there", _OURS)
    own_slots_only: bool = _guard("a tenant submits only a slot that it was given", _OURS)
    published_only: bool = _guard("a tenant maps only what is an object", _OURS)
    mapped_only: bool = _guard("a tenant gets entries only of objects that it has mapped", _OURS)
    free_slots_only: bool = _guard("only slots that are nobody's are given away", _OURS)
    scrub_on_reuse: bool = _guard(
        "a slot that is given away is cleared", f"{_CODE}, host_sc.c: fresh pages, which are empty"
    )
    tls_from_table: bool = _guard(
        "the base puts a shadow's capability where it knows the TLS arrays to be, not where the caller's TP points",
        f"missing in {_CODE}, host_sc.c, get_sc_caps",
    )
    tls_read_only: bool = _guard(
        "a tenant can't write to its TLS arrays", f"missing in {_CODE}: they lie in the tenant's memory"
    )
    caller_from_thread: bool = _guard(
        "an operation is done for the tenant whose thread asks for it, not for the number that it gives",
        f"missing in {_CODE}, host_sc.c, get_sc_caps, where a comment wishes for it",
    )
    unmap_not_running: bool = _guard("an object isn't unmapped under a thread that executes it", _OURS)
    mapped_not_collected: bool = _guard("an object isn't freed while a tenant has it mapped", _OURS)
    distinct_otypes: bool = _guard(
        "entries of each object are sealed with an object type of its own", f"missing in {_CODE}, READMEs: one for all"
    )


INTENDED = ObjectPolicy()
PROTOTYPE_0_1_0 = ObjectPolicy(
    code_without_store=False,
    const_without_store=False,
    no_shared_globals=False,
    identity_checked=False,
    tls_from_table=False,
    tls_read_only=False,
    caller_from_thread=False,
    distinct_otypes=False,
)
OBJECT_POLICIES: dict[str, ObjectPolicy] = {"intended": INTENDED, "prototype-0.1.0": PROTOTYPE_0_1_0}
"""The presets, by name. Of the prototype, what isn't seen to be missing in its code is on."""

OBJECT_GUARDS: dict[str, Guard] = {
    each.name: Guard(each.name, each.metadata["meaning"], each.metadata["source"]) for each in fields(ObjectPolicy)
}


def without(guard: str, policy: ObjectPolicy = INTENDED) -> ObjectPolicy:
    """A policy, the intended one unless another is given, with one guard off. Raises KeyError for what is no guard."""
    if guard not in OBJECT_GUARDS:
        raise KeyError(guard)
    return replace(policy, **{guard: False})
