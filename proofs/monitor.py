"""Theorems on what the monitor mints, which stand for it in the theorems on the whole system (`proofs.cvm_state`)."""

from types import SimpleNamespace
from typing import Any, cast

from capvisor.model.monitor import Monitor
from capvisor.proofs.theorem import Given, implies, theorem
from capvisor.spec import cvm
from capvisor.spec.formats import CapabilityFormat, Permission

_STORES = Permission.STORE_CAPABILITY | Permission.STORE_LOCAL_CAPABILITY
MINTED = (
    *(cvm.CODE_PERMISSIONS, cvm.HYBRID_DATA, cvm.PURECAP_DATA, cvm.GRANT_PERMISSIONS, Permission(0)),
    *(cvm.HYBRID_DATA | _STORES, cvm.PURECAP_DATA | Permission.STORE_LOCAL_CAPABILITY),
    *(cvm.GRANT_PERMISSIONS | each for each in (Permission.GLOBAL, Permission.LOAD_CAPABILITY, _STORES)),
)
"""What minted capabilities permit, under the intended policy and with one guard off."""


@theorem(
    "monitor.mint",
    "What the monitor mints, where it says that the bounds are exact, is tagged, sound and unsealed, with those bounds and "
    "permissions.",
    "ours: spec/cvm.md",
    mutants=("set-exact-ignores-top", "set-top-rounded-twice"),
)
def minted(fmt: CapabilityFormat, given: Given) -> Any:
    """For any base and size, and each set of permissions that is minted."""
    base, size = given.word("base", fmt.address_width), given.word("size", fmt.address_width + 1)
    holds: Any = True
    for permissions in MINTED:
        cap, exact = Monitor.mint(cast(Monitor, SimpleNamespace(format=fmt)), base, size, permissions)
        low, high = cap.bounds
        said = cap.tag & (low == base) & (high == base + size) & (cap.permissions == int(permissions)) & cap.is_sound
        said = said & (cap.otype == fmt.otype_unsealed) & (cap.flags == 0) & (cap.address == base)
        holds = holds & implies(exact, said)
    return holds
