"""What each operation does: one rule an operation, its bands always in the same order.

OPERANDS reads registers, CHECKS refuses (in the architecture's order), EFFECT writes. A rule whose whole sense is one
expression has EFFECT alone. Source of every rule: its row in `spec.operations`. Importing this package declares all rules.
"""

from capvisor.model.isa import arithmetic, atomic, comparison, control, inspection, integer, memory, sealing, system

__all__ = ["arithmetic", "atomic", "comparison", "control", "inspection", "integer", "memory", "sealing", "system"]
