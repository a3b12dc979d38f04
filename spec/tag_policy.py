"""Guards of translation pass-through: what the tag check covers, what the host takes care of, each a switch.

All on is what is intended; one off shows what it carries. Source: spec/tpt.md, whose section 9 says who needs which.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from capvisor.spec.policy import Guard

TagCheck = Literal["fill", "access"]
"""When a tag is looked up: when a translation is cached, or also each time that what is cached is used."""


def _guard(meaning: str, source: str) -> Any:
    return field(default=True, metadata={"meaning": meaning, "source": source})


_ABSTRACT = "TPT abstract (ATC 2023): the host enforces isolation with physical-memory tags"
_RMP = "AMD APM vol. 2, 15.36"
_OURS = "ours: not said in what is public"


@dataclass(frozen=True)
class TagPolicy:
    """The guards, and the variant of the check."""

    check_leaf: bool = _guard("the tag of the page is looked up before a translation is used", _ABSTRACT)
    check_root: bool = _guard("the tag of the frame that CR3 names is looked up at each walk", _OURS)
    check_table_reads: bool = _guard("the tag of each other table is looked up before the walker reads it", _OURS)
    check_accessed_dirty_writes: bool = _guard(
        "a table's tag is looked up again when the walker sets an accessed or dirty bit in it", _OURS
    )
    uniform_large_pages: bool = _guard("all frames of a large page have one owner, not the first one alone", _RMP)
    retag_before_shootdown: bool = _guard(
        "a reclaimed frame loses its tag before the processors are asked to forget it", f"{_RMP}; {_OURS}"
    )
    wait_for_acknowledgements: bool = _guard(
        "a reclaimed frame isn't scrubbed, copied or given away before all processors have forgotten it", _OURS
    )
    abort_walks_on_acknowledge: bool = _guard(
        "a processor that acknowledges drops the walk that it has under way", f"{_OURS}: found by review"
    )
    shootdown_covers_large_pages: bool = _guard(
        "acknowledging drops every translation of a page that contains the frame", f"{_OURS}: found by review"
    )
    shootdown_reaches_walk_caches: bool = _guard(
        "acknowledging drops what the page-walk caches say of the frame", "Intel SDM vol. 3A, 4.10.4"
    )
    scrub_on_reuse: bool = _guard("a frame that a VM gets has been cleared", _OURS)
    free_frames_only: bool = _guard("the host scrubs, takes and gives away only frames that are nobody's", _RMP)
    split_before_retag: bool = _guard("a large tag is split before one of its frames changes hands", f"{_RMP}, PSMASH")
    merge_one_owner: bool = _guard("frames are merged under a large tag only if one VM owns them all", _RMP)
    host_only_tags: bool = _guard("a guest can't change a tag", f"{_RMP}, RMPUPDATE")
    check_dma: bool = _guard("the tag of a frame is looked up before a device accesses it", f"{_RMP}, IOMMU")
    flush_iotlb: bool = _guard(
        "what the IOMMU has checked of a frame or a device is forgotten when either changes hands", _OURS
    )
    flush_on_asid_reuse: bool = _guard(
        "what a processor caches under an ASID is dropped when another VM gets it", "AMD APM vol. 2, 15.16"
    )
    abort_walks_on_switch: bool = _guard("a processor that changes to another VM drops the walk under way", _OURS)
    unmap_on_reclaim: bool = _guard(
        "a reclaimed frame leaves the host's map of guest frames, by which plain guests are translated", _OURS
    )
    tag_check: TagCheck = "fill"


INTENDED = TagPolicy()
TAG_POLICIES: dict[str, TagPolicy] = {"intended": INTENDED, "intended-access": replace(INTENDED, tag_check="access")}
"""The presets, by name."""

TAG_GUARDS: dict[str, Guard] = {
    each.name: Guard(each.name, each.metadata["meaning"], each.metadata["source"])
    for each in fields(TagPolicy)
    if each.metadata
}


def without(guard: str, policy: TagPolicy = INTENDED) -> TagPolicy:
    """A policy, the intended one unless another is given, with one guard off. Raises KeyError for what is no guard."""
    if guard not in TAG_GUARDS:
        raise KeyError(guard)
    off: dict[str, Any] = {guard: False}
    return replace(policy, **off)
