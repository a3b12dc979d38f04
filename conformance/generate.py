"""Golden vectors from the reference, for testing other implementations."""

from collections.abc import Callable

import numpy as np

from capvisor.conformance.answers import reference_answers
from capvisor.dsl.edges import edge_numbers
from capvisor.fastpath.workspace import Words
from capvisor.model import capability
from capvisor.spec.formats import CapabilityFormat
from capvisor.spec.vectors import VECTOR_OPERATIONS

BATCH_ROWS = 10_000


def generate(
    fmt: CapabilityFormat, operation: str, rows: int, seed: int, progress: Callable[[int], None] = lambda rows: None
) -> dict[str, Words]:
    """`rows` rows of every column of an operation. The same arguments give the same rows, whatever is done between."""
    batches = []
    for number, start in enumerate(range(0, rows, BATCH_ROWS)):
        count = min(BATCH_ROWS, rows - start)
        inputs = _Inputs(fmt, np.random.default_rng([seed, number]), count).for_operation(operation)
        batches.append(inputs | reference_answers(operation, fmt, inputs))
        progress(count)
    row = VECTOR_OPERATIONS[operation]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in row.columns}


class _Inputs:
    """Inputs drawn with a bias to edges."""

    def __init__(self, fmt: CapabilityFormat, rng: np.random.Generator, rows: int) -> None:
        self.fmt, self.rng, self.rows = fmt, rng, rows

    def numbers(self, near: list[Words] | None = None, highest: int | None = None) -> Words:
        high = self.fmt.address_mask if highest is None else highest
        return edge_numbers(self.rng, np.zeros(self.rows, np.uint64), np.full(self.rows, high, np.uint64), near)

    def for_operation(self, operation: str) -> dict[str, Words]:
        if operation == "crrl":
            return {"length": self.numbers()}
        if operation == "decode":
            derived = self.derived()
            null = np.uint64(self.fmt.null_meta)
            any_bits = self.rng.integers(0, 2, self.rows) == 0
            meta = np.where(any_bits, self.numbers(), derived["in_meta"] ^ null)
            return {"mem_meta": meta, "address": derived["in_address"]}
        if operation == "perms":
            possible = np.uint64(self.fmt.permissions_mask)
            return {"in_meta": self.numbers(), "new_perms": self.numbers() & possible}
        derived = self.derived()
        base = derived["in_address"]
        if operation == "setaddr":
            return derived | {"new_address": self.numbers([base])}
        length = self.numbers(highest=self.fmt.address_mask)
        return derived | {"length": length}

    def derived(self) -> dict[str, Words]:
        """Capabilities that software can have: the root narrowed or not, moved about, some untagged or sealed."""
        address, length, moves = self.numbers(), self.numbers(), self.numbers()
        kinds = self.rng.integers(0, 8, self.rows)
        shifts = self.rng.integers(0, self.fmt.address_width, self.rows)
        caps = []
        for a, size, move, kind, shift in zip(
            address.tolist(), length.tolist(), moves.tolist(), kinds.tolist(), shifts.tolist(), strict=True
        ):
            cap = capability.root(self.fmt, a)
            if kind != 0:
                cap, _exact = capability.set_bounds(cap, size >> shift)
            if kind in (1, 2):
                moved = capability.increment_address(cap, move >> shift)
                cap = moved if moved.tag else cap
            if kind == 3:
                cap = capability.set_otype(cap, move & self.fmt.otype.mask)
            caps.append(cap)
        return {
            "in_meta": np.array([cap.meta for cap in caps], np.uint64),
            "in_address": np.array([cap.address for cap in caps], np.uint64),
            "in_tag": np.array([cap.tag for cap in caps], np.uint64),
        }
