"""Making a program shorter on which the two implementations differ.

What a trace expects is known for its own steps alone, so that none can be left out. But where the implementations differ
from each other, either judges the other on any steps.
"""

from capvisor.conformance.machines import FastMachines, ReferenceMachine
from capvisor.conformance.traces import Step
from capvisor.dsl.states import differences
from capvisor.spec.formats import CapabilityFormat


def shortest_difference(fmt: CapabilityFormat, words: list[int]) -> tuple[int, ...] | None:
    """The places of steps after which the implementations differ, of which none can be left out; None if they don't differ.

    Steps are left out in runs that become shorter and shorter, then one by one until none can be.
    """
    places = _until_different(fmt, words, list(range(len(words))))
    if places is None:
        return None
    size = len(places)
    while size:
        start, removed = 0, False
        while start < len(places):
            shorter = _until_different(fmt, words, places[:start] + places[start + size :])
            if shorter is None:
                start += size
            else:
                places, removed = shorter, True
        if not removed or size > 1:
            size //= 2
    return tuple(places)


def _until_different(fmt: CapabilityFormat, words: list[int], places: list[int]) -> list[int] | None:
    """Those of the places up to the step after which whole states differ."""
    reference, fast = ReferenceMachine(fmt), FastMachines(fmt, 1)
    for count, place in enumerate(places, start=1):
        reference.step(words[place])
        fast.step({0: Step(0, words[place], "", {}, (), (), 0, False)})
        if differences(reference.hart, fast.machine, 0):
            return places[:count]
    return None
