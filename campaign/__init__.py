"""Campaigns: random programs on both implementations and against others, invariants as oracles, failures made small."""
