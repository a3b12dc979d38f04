"""Random numbers with a bias to what breaks things."""

import numpy as np

from capvisor.fastpath.workspace import Words


def edge_numbers(rng: np.random.Generator, low: Words, high: Words, near: list[Words] | None = None) -> Words:
    """A number from low to high (both included) in each lane.

    About half are drawn evenly; the others are close to low, high, a power of two, the negative of one, one of `near`, or
    are short. The same generator state gives the same numbers.
    """
    lanes, span = len(low), high - low
    whole = span == np.uint64(2**64 - 1)
    words = rng.integers(0, 2**64, lanes, dtype=np.uint64)
    evenly = low + np.where(whole, words, words % (span + (~whole).astype(np.uint64)))
    kind = rng.integers(0, 10, lanes)
    small = rng.integers(0, 17, lanes, dtype=np.uint64)
    signed_small = small - np.uint64(8)
    power = np.uint64(1) << rng.integers(0, 64, lanes, dtype=np.uint64)
    short = words >> rng.integers(0, 64, lanes, dtype=np.uint64)
    tried = np.select(
        [kind == 0, kind == 1, kind == 2, kind == 3, (kind == 4) | (kind == 5)],
        [low + small, high - small, power + signed_small, np.uint64(0) - power + signed_small, low + short],
        evenly,
    )
    if near:
        chosen = np.stack(near)[rng.integers(0, len(near), lanes), np.arange(lanes)]
        tried = np.where((kind == 6) | (kind == 7), chosen + signed_small, tried)
    return np.where((tried >= low) & (tried <= high), tried, evenly)
