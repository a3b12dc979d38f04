"""Holding every step of a system against the invariants of its kind: what is the same for kinds with tables.

What is said of a place depends on a few rows of the system's tables. So only the places are looked at again of which one
has changed, and what is said of the step itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Snapshot = dict[str, dict[Any, Any]]
"""A copy of all tables by name, each by the keys of its rows."""


def changed_keys(before: Snapshot, after: Snapshot) -> dict[str, set[Any]]:
    """By table, the keys of the rows that differ."""
    return {
        name: set()
        if table == before[name]
        else {key for key in table.keys() | before[name].keys() if table.get(key) != before[name].get(key)}
        for name, table in after.items()
    }


class Found(NamedTuple):
    """An invariant that a step violates, and where."""

    invariant: str
    place: Any


class Taken(NamedTuple):
    """A step with all that invariants are said of: equal ones violate the same."""

    after: Snapshot
    what: tuple[Any, ...]


class TableWatch:
    """Looks at one system's steps, one after the other, from its first on.

    `harmless` are the steps of another run, which violated nothing: those that this run begins with aren't looked at again.
    """

    _invariants: Mapping[str, Any] = {}
    """Each with `holds`, of a step and a place."""

    def __init__(self, harmless: Sequence[Taken] = ()) -> None:
        self._before: Snapshot | None = None
        self._known: set[str] = set()
        self._harmless = harmless
        self.taken: list[Taken] = []
        """The steps so far."""

    # -- what a kind says --------------------------------------------------------------------------------------------------

    def _snapshot(self, step: Any) -> Snapshot:
        """The state after a step."""
        raise NotImplementedError

    def _what(self, step: Any) -> tuple[Any, ...]:
        """What is said of a step, beside the state after it."""
        raise NotImplementedError

    def _looked(self, step: Any, changed: Mapping[str, set[Any]]) -> Iterable[Any]:
        """The places of a step that a changed row has a part in; all where nothing is known of what has changed."""
        raise NotImplementedError

    def _nowhere(self, step: Any) -> Any:
        """A place with nothing in it."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------------------------------

    def violated(self, step: Any) -> list[Found]:
        """The invariants that the step violates, and that no step before it did."""
        before, after = self._before, self._snapshot(step)
        self._before = after
        self.taken.append(Taken(after, self._what(step)))
        if self._harmless[len(self.taken) - 1 : len(self.taken)] == self.taken[-1:]:
            return []
        was_harmless, self._harmless = self._harmless, ()
        # After the first step that differs, everything is looked at once.
        looked = list(self._looked(step, {} if before is None or was_harmless else changed_keys(before, after)))
        found: list[Found] = []
        for name, invariant in self._invariants.items():
            if name not in self._known:
                place = next((place for place in looked if not invariant.holds(step, place)), None)
                if place is not None:
                    self._known.add(name)
                    found.append(Found(name, self._smallest(invariant, step, place)))
        return found

    def _smallest(self, invariant: Any, step: Any, place: Any) -> Any:
        """The part of a place that the invariant still doesn't hold at."""
        for field, empty in self._nowhere(step)._asdict().items():
            fewer = place._replace(**{field: empty})
            if not invariant.holds(step, fewer):
                place = fewer
        return place
