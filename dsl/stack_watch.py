"""Holding every step of the four systems together against all invariants: each layer's watch sees each step, of its own
layer or of another, and what is across layers is looked at here.
"""

from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any, NamedTuple

from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.dsl.tpt_watch import nowhere, owner_text
from capvisor.model.stack import TPT_LAYER
from capvisor.model.stack_memory import owned_frames
from capvisor.model.stack_system import inner_steps, places, written_words
from capvisor.spec.stack import Who
from capvisor.spec.stack_invariants import STACK_INVARIANTS, Place, Step
from capvisor.spec.tpt_invariants import TPT_INVARIANTS

ACROSS = "across"
"""Instead of a layer, of what is between layers."""


class Found(NamedTuple):
    """An invariant that a step violates: which layer's, where, and the step as that layer has it."""

    invariant: str
    layer: str
    place: Any
    step: Any


class Taken(NamedTuple):
    """A step with all that invariants are said of: equal ones violate the same."""

    layers: dict[str, Any]
    what: tuple[Any, ...]


class StackWatch:
    """Looks at one machine's steps, one after the other, from its first on.

    `harmless` are the steps of another run, which violated nothing: those that this run begins with aren't looked at again.
    """

    def __init__(self, harmless: Sequence[Taken] = ()) -> None:
        self._harmless = harmless
        self._watches: dict[str, Any] = {}
        self._known: set[str] = set()
        self.taken: list[Taken] = []
        """The steps so far."""

    def _watch(self, layer: str) -> Any:
        """The watch of a layer, from the first step on that there is this layer in."""
        if layer not in self._watches:
            behind = self._harmless[len(self.taken) :]
            seen = [each.layers[layer] for each in behind if layer in each.layers]
            self._watches[layer] = resolve_name(SYSTEM_KINDS[layer].watch)(seen)
        return self._watches[layer]

    def violated(self, step: Step) -> list[Found]:
        """The invariants that the step violates, and that no step before it did."""
        found: list[Found] = []
        inner = inner_steps(step)
        for layer, each in inner.items():
            found += [Found(one.invariant, layer, one, each) for one in self._watch(layer).violated(each)]
        taken = Taken({layer: self._watch(layer).taken[-1] for layer in inner}, _what(step))
        is_harmless = self._harmless[len(self.taken) : len(self.taken) + 1] == [taken]
        self.taken.append(taken)
        if not is_harmless:
            self._harmless = ()
            found += [*_across(step), *_of_written_frames(step, inner[TPT_LAYER])]
        new = [each for each in found if each.invariant not in self._known]
        self._known |= {each.invariant for each in new}
        return new


def _what(step: Step) -> tuple[Any, ...]:
    """What is said of a step, beside the state after it that the layers know."""
    stack, before = step.stack, step.before
    fault = None if step.fault is None else step.fault.args
    after = stack.tagged(), owned_frames(stack.owners), stack.bound, dict(stack.started)
    return step.layer, step.name, step.operands, step.code, fault, step.accesses, step.is_completed, before[:4], after


def _across(step: Step) -> list[Found]:
    found: dict[str, Found] = {}
    for name, row in STACK_INVARIANTS.items():
        if row.of_step is not None and not row.of_step(step, Place()):
            found[name] = Found(name, ACROSS, Place(), step)
    of_places = [(name, row.of_place) for name, row in STACK_INVARIANTS.items() if row.of_place is not None]
    for place in places(step):
        for name, of_place in of_places:
            if name not in found and not of_place(step, place):
                found[name] = Found(name, ACROSS, place, step)
    return list(found.values())


def _of_written_frames(step: Step, inner: Any) -> list[Found]:
    """What translation pass-through says of frames that others have written to, of which its own tables have no row."""
    found: dict[str, Found] = {}
    for frame, word in written_words(step):
        place = nowhere(inner.system)._replace(frame=frame, word=word)
        for name, row in TPT_INVARIANTS.items():
            if name not in found and not row.holds(inner, place):
                found[name] = Found(name, TPT_LAYER, Found(name, TPT_LAYER, place, inner), inner)
    return list(found.values())


# -- in words --------------------------------------------------------------------------------------------------------------

_FOR = {Who.HOST: "the host", Who.BOOKS: "the host", Who.MONITOR: "a monitor"}


def describe_across(found: Found, vms: dict[int, str], guests: dict[tuple[Who, int], str]) -> str:
    """Where an invariant across layers doesn't hold, in words: the accesses, or the place."""
    step: Step = found.step
    row, place = STACK_INVARIANTS[found.invariant], found.place
    if place != Place():
        return _place_text(step, place, vms)
    parts = []
    for access in step.accesses:
        if row.of_step is not None and not row.of_step(step._replace(accesses=(access,)), place):
            who = access.principal
            whom = _FOR.get(who.who) or (vms.get(who.vm, "nobody") if who.who is Who.VM else guests[who.who, who.number])
            did, whose = "written" if access.is_write else "read", owner_text(access.owner, vms)
            region = ", in the region" * bool(step.stack.vmm.in_region(access.frame))
            parts.append(f"frame {access.frame}, which is {whose}{region}, {did} for {whom} by the {access.via.value}")
    return "; ".join(dict.fromkeys(parts)) or "the step itself"


def _place_text(step: Step, place: Place, vms: dict[int, str]) -> str:
    if place.content is not None:
        content, number = place.content
        where = f"frame {content[1]}" if isinstance(content, tuple) else f"content {content}"
        return f"granule {number} of {where}"
    if place.granule:
        return f"granule {place.granule} of frame {place.frame}, which is {owner_text(step.stack.owners[place.frame], vms)}"
    if place.frame:
        return f"frame {place.frame}, which is {owner_text(step.stack.owners[place.frame], vms)}"
    other = "" if place.other == place.page else f", and page {place.other}"
    return f"page {place.page} of the monitors' memory{other}"
