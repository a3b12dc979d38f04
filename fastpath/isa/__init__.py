"""What each operation does to a block of lanes: the fast twin of `model.isa`, room by room.

A kernel reads all sources before it writes its target, which may be the same register. Kernels that can be refused leave
the cause of each lane in `block.cause`, by the order of the table's traps, and touch no other state of a refused lane.
Importing this package declares all kernels.
"""

from capvisor.fastpath.isa import arithmetic, atomic, comparison, control, inspection, integer, memory, sealing, system

__all__ = ["arithmetic", "atomic", "comparison", "control", "inspection", "integer", "memory", "sealing", "system"]
