"""The fast simulator against the reference, access by access."""

import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from capvisor.study.configuration import preset, preset_names, walk_maxima
from capvisor.study.generators import limited, workload
from capvisor.study.kernel import KINDS, LOGGED
from capvisor.study.reference import MODES, Outcome, Reference, counts
from capvisor.study.simulator import Chunk, Simulator

SMALL = {
    "tlb.l1i.entries": "4",
    "tlb.l1i.ways": "2",
    "tlb.l1d.entries": "8",
    "tlb.l1d.ways": "4",
    "tlb.l2.entries": "24",
    "tlb.l2.ways": "6",
    "walk_caches.pde": "3",
    "walk_caches.pdpte": "2",
    "walk_caches.pml4e": "1",
    "nested.tlb.entries": "4",
    "nested.tlb.ways": "2",
    "nested.walk_caches.pde": "2",
    "table_lines.entries": "32",
    "table_lines.ways": "4",
    "tags.entries": "8",
    "tags.ways": "2",
}
VARIANTS = {
    "as published": {},
    "small": SMALL,
    "host pages of 4 KiB": SMALL | {"host_page_size": "4K"},
    "five levels": SMALL | {"levels": "5", "host_page_size": "4K"},
    "large pages": SMALL | {"page_size": "2M", "host_page_size": "2M"},
    "huge pages": SMALL | {"page_size": "1G", "host_page_size": "1G"},
    "no walk caches": SMALL
    | {f"{which}walk_caches.{name}": "0" for which in ("", "nested.") for name in ("pde", "pdpte", "pml4e")},
    "hypercalls": SMALL | {"shadow.updates_per_hypercall": "3", "shadow.exits_per_fault": "0"},
}


def trace(seed: int, length: int, events: bool = True) -> Chunk:
    """Pages near each other and far apart, in both halves of the address space, with page-table updates."""
    random = np.random.default_rng(seed)
    near = random.integers(0, 40, length) << 12
    far = random.integers(0, 1 << 35, 30)[random.integers(0, 30, length)] << 12
    addresses = np.where(random.random(length) < 0.6, near, far).astype(np.uint64) + random.integers(0, 4096, length).astype(
        np.uint64
    )
    upper = random.random(length) < 0.2
    addresses[upper] |= np.uint64(0xFF80_0000_0000_0000 | 1 << 47 | 0x7F << 48)
    addresses[upper] |= np.uint64(0xFFFF_8000_0000_0000)
    likely = [0.4, 0.3, 0.2, 0.05, 0.05] if events else [0.5, 0.3, 0.2, 0, 0]
    return Chunk(addresses, random.choice(5, length, p=likely).astype(np.uint8))


def row_of(step: dict[str, Outcome]) -> tuple[int, ...]:
    """A step of the reference as a row of the fast simulator's log."""
    native, nested, shadow, tpt = (step[mode] for mode in MODES)
    for outcome in step.values():
        assert (outcome.level, outcome.evicted_l1, outcome.evicted_l2) == (
            native.level,
            native.evicted_l1,
            native.evicted_l2,
        )
        assert outcome.fault == native.fault
    assert shadow.references == tpt.references == native.references
    evicted = (0 if page is None else page + 1 for page in (native.evicted_l1, native.evicted_l2))
    first = (native.level, *evicted, native.references, nested.references, tpt.tag_lookups, int(native.fault), shadow.exits)
    return (*first, *(step[mode].cycles for mode in MODES))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", preset_names())
def test_both_simulators_agree_on_every_access(name, variant):
    configuration = preset(name, VARIANTS[variant])
    fast, reference = Simulator(configuration), Reference(configuration)
    chunk = trace(len(variant), 4000)
    log = np.concatenate(
        [
            fast.feed(part, log=True)
            for part in (
                Chunk(chunk.addresses[:1500], chunk.kinds[:1500]),
                Chunk(chunk.addresses[1500:], chunk.kinds[1500:]),
            )
        ]
    )
    mask = (1 << configuration.address_bits) - 1
    steps = [
        reference.step(KINDS[kind], int(address) & mask) for address, kind in zip(chunk.addresses, chunk.kinds, strict=True)
    ]
    for index, step in enumerate(steps):
        assert dict(zip(LOGGED, log[index].tolist(), strict=True)) == dict(zip(LOGGED, row_of(step), strict=True)), index
    expected = counts(steps)
    assert expected == {counter: fast.counts()[counter] for counter in expected}
    assert expected["walks"] > 0 and expected["faults"] > 0 and expected["unmaps"] > 0


@pytest.mark.parametrize(("levels", "native", "nested", "tags"), [("4", 4, 24, 5), ("5", 5, 35, 6)])
def test_the_most_references_of_a_walk_are_reached_and_never_passed(levels, native, nested, tags):
    configuration = preset(
        "skylake-sp",
        VARIANTS["no walk caches"]
        | {
            "levels": levels,
            "host_page_size": "4K",
            "walk_caches.pml5e": "0",
            "nested.walk_caches.pml5e": "0",
            "nested.tlb.entries": "1",
            "nested.tlb.ways": "1",
        },
    )
    assert walk_maxima(configuration) == (native, nested, tags)
    simulator = Simulator(configuration)
    simulator.feed(trace(1, 4000, events=False))
    found = simulator.counts()
    assert (found["native_most"], found["nested_most"], found["tag_most"]) == (native, nested, tags)


def test_the_same_results_without_compiled_code():
    """In a process of its own, since what is compiled is decided when the package is imported."""
    script = (
        "import sys; sys.modules['numba'] = None\n"
        "from capvisor.study.compiled import COMPILED\n"
        "from capvisor.study.simulator import Simulator\n"
        "from capvisor.study.configuration import preset\n"
        "from tests.study.test_simulators import SMALL, trace\n"
        "assert not COMPILED\n"
        "simulator = Simulator(preset('zen2', SMALL)); log = simulator.feed(trace(5, 3000), log=True)\n"
        "print(simulator.counters.tolist(), log.sum(axis=0).tolist())"
    )
    simulator = Simulator(preset("zen2", SMALL))
    log = simulator.feed(trace(5, 3000), log=True)
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert done.stdout.strip() == f"{simulator.counters.tolist()} {log.sum(axis=0).tolist()}", done.stderr


def peak_bytes(accesses: int) -> int:
    """The most memory that simulating so many accesses of one workload has taken at a time."""
    simulator = Simulator(preset("skylake-sp"))
    tracemalloc.start()
    try:
        for chunk in limited(workload("gups", 1 << 20, 3), accesses):
            simulator.feed(chunk)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_doesnt_grow_with_the_length_of_the_trace() -> None:
    peak_bytes(1000)  # what is compiled, and imported, at the first use
    short, long = peak_bytes(200_000), peak_bytes(4_000_000)
    assert long < 1.1 * short
