"""Showing a run of translation pass-through step by step."""

from collections.abc import Callable, Iterator
from typing import Any

from capvisor.cli.trace import write_step
from capvisor.dsl.operation_runner import AT_THE_START
from capvisor.dsl.system_runner import Executed
from capvisor.dsl.system_watch import Snapshot, changed_keys
from capvisor.dsl.tpt_watch import snapshot
from capvisor.model.paging import DONE, READ, Walk
from capvisor.spec.paging import FREE, HOST, LEVEL_NAMES, PAGE_LEVELS, index_shift

_AGENT_COLUMNS, _TEXT_COLUMNS, _WORDS = 8, 34, 4
_SIZES = {level: size for size, level in PAGE_LEVELS.items()}


class TptTracer:
    """Prints each step: line, agent, operation, how it ended, and what it changed in tags, memory, TLBs and walks."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._before: Snapshot | None = None

    def __call__(self, step: Executed) -> None:
        before, after = self._before, snapshot(step.system)
        self._before = after
        changes = [step.outcome]
        if before is not None and step.outcome != AT_THE_START:
            changes += _changes(changed_keys(before, after), before, after)
        head = f"{step.line:>5}  {step.agent:<{_AGENT_COLUMNS}} {step.text:<{_TEXT_COLUMNS}}"
        write_step(self._write, head, changes)


def _changes(keys: dict[str, set[Any]], before: Snapshot, after: Snapshot) -> Iterator[str]:
    """What has changed, in words."""
    for frame in sorted(keys["tags"]):
        tag = after["tags"].get(frame, FREE)
        yield f"tag {frame} = {'free' if tag == FREE else 'host' if tag == HOST else f'VM {tag}'}"
    for region in sorted(keys["large"]):
        yield f"large tag {region << 9} = {'yes' if after['large'].get(region) else 'no'}"
    for frame in sorted(keys["pending"]):
        pending = after["pending"].get(frame, 0)
        cpus = ", ".join(f"cpu{number}" for number in range(pending.bit_length()) if pending >> number & 1)
        yield f"pending {frame} = {cpus or 'none'}"
    for frame in sorted(keys["memory"]):
        old, new = (each["memory"].get(frame, {}) for each in (before, after))
        words = [index for index in sorted(old.keys() | new.keys()) if old.get(index, 0) != new.get(index, 0)]
        more = ", ..." * (len(words) > _WORDS)
        yield f"memory {frame} = {', '.join(f'[{index}] {new.get(index, 0):#x}' for index in words[:_WORDS])}{more}"
    for cpu, slot in sorted(keys["translations"] - _empty_still("translations", before, after)):
        row = after["translations"].get((cpu, slot))
        if row is None or not row.is_live:
            yield f"cpu{cpu} TLB {slot} = empty"
        else:
            rights = "r" + "w" * row.is_writable + "x" * row.is_executable
            address = row.page << index_shift(row.level)
            yield f"cpu{cpu} TLB {slot} = {address:#x} is frame {row.frame}, {_SIZES[row.level]} {rights}"
    for cpu, slot in sorted(keys["tables"] - _empty_still("tables", before, after)):
        row = after["tables"].get((cpu, slot))
        shown = "empty" if row is None or not row.is_live else f"{LEVEL_NAMES[row.level]}s of {row.prefix:#x} in {row.frame}"
        yield f"cpu{cpu} walk cache {slot} = {shown}"
    for cpu in sorted(keys["walks"]):
        yield f"cpu{cpu} walk = {_walk_text(after['walks'].get(cpu, Walk()))}"
    for vm, guest_frame in sorted(keys["p2m"]):
        mapping = after["p2m"].get((vm, guest_frame))
        yield f"guest frame {guest_frame} of VM {vm} = {mapping.frame if mapping and mapping.is_mapped else 'none'}"


def _empty_still(table: str, before: Snapshot, after: Snapshot) -> set[Any]:
    """The slots that hold nothing, and did before."""
    live = [{key for key, row in each[table].items() if row.is_live} for each in (before, after)]
    return set(after[table]) - set.union(*live)


def _walk_text(walk: Walk) -> str:
    """Where a walk is."""
    if not walk.is_live:
        return "none"
    if walk.stage == DONE:
        return f"{walk.address:#x} is frame {walk.leaf_frame}, to be cached"
    does = "reads" if walk.stage == READ else "updates"
    return f"{walk.address:#x} {does} a {LEVEL_NAMES[walk.level]} in frame {walk.frame}"
