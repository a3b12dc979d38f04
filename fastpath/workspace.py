"""Scratch arrays for kernels."""

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Shorts = NDArray[np.uint32]
Flags = NDArray[np.bool_]
Causes = NDArray[np.uint8]

BLOCK_LANES = 1 << 14
"""Lanes that are worked on at a time: their scratch stays in a core's second-level cache."""


class Workspace:
    """Scratch for one block of lanes, with a set of arrays for each level of kernels.

    A kernel uses the set of its own module and calls kernels of lower ones (bounds, below capability, below isa), so that
    no kernel finds its scratch overwritten by one that it has called.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.bounds: list[Words] = [np.empty(lanes, np.uint64) for _ in range(6)]
        self.bounds_shorts: list[Shorts] = [np.empty(lanes, np.uint32) for _ in range(6)]
        self.bounds_flags: list[Flags] = [np.empty(lanes, np.bool_) for _ in range(3)]
        self.capability: list[Words] = [np.empty(lanes, np.uint64) for _ in range(8)]
        self.capability_flags: list[Flags] = [np.empty(lanes, np.bool_) for _ in range(6)]
        self.isa: list[Words] = [np.empty(lanes, np.uint64) for _ in range(6)]
        self.isa_flags: list[Flags] = [np.empty(lanes, np.bool_) for _ in range(6)]

    def narrowed(self, lanes: int) -> "Workspace":
        """The same scratch, seen by a block of fewer lanes."""
        if lanes == self.lanes:
            return self
        view = Workspace(0)
        view.lanes = lanes
        for name, arrays in vars(self).items():
            if isinstance(arrays, list):
                setattr(view, name, [array[:lanes] for array in arrays])
        return view
