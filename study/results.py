"""What a simulation found, mode by mode, and how it is compared."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from capvisor.study.configuration import Configuration, settings_of, walk_maxima
from capvisor.study.kernel import KINDS
from capvisor.study.reference import MODES, Outcome, Reference, counts
from capvisor.study.simulator import Chunk, Simulator, canonical

MOST = ("native_most", "nested_most", "tag_most")
"""Counters that are maxima, which a warm-up isn't taken from."""


@dataclass(frozen=True)
class ModeResult:
    """One mode's figures. References, look-ups and cycles are totals; `slow_down` is against native cycles."""

    mode: str
    l1_misses: int
    walks: int
    references: int
    most_references: int
    line_misses: int
    tag_lookups: int
    tag_misses: int
    exits: int
    hypercalls: int
    cycles: int
    slow_down: float


@dataclass(frozen=True)
class Result:
    """The figures of all modes for one configuration."""

    label: str
    configuration: Configuration
    counts: Mapping[str, int]

    @property
    def modes(self) -> list[ModeResult]:
        """The four modes, native first."""
        return [self._mode(mode) for mode in MODES]

    def speed_up(self, over: str) -> float:
        """By which TPT is quicker than another mode."""
        return self.counts[f"{over}_cycles"] / self.counts["tpt_cycles"]

    def _mode(self, mode: str) -> ModeResult:
        found, walk = self.counts, "nested" if mode == "nested" else "native"
        return ModeResult(
            mode,
            found["l1_misses"],
            found["walks"],
            found[f"{walk}_references"],
            found[f"{walk}_most"],
            found[f"{walk}_line_misses"],
            found["tag_lookups"] if mode == "tpt" else 0,
            found["tag_misses"] if mode == "tpt" else 0,
            found["exits"] if mode == "shadow" else 0,
            found["hypercalls"] if mode == "shadow" else 0,
            found[f"{mode}_cycles"],
            found[f"{mode}_cycles"] / found["native_cycles"],
        )


class Counting(Protocol):
    """What simulates chunks and counts."""

    configuration: Configuration

    def feed(self, chunk: Chunk) -> Any:
        """Translate a chunk."""

    def counts(self) -> dict[str, int]:
        """The totals so far."""


class ReferenceSimulator:
    """The reference simulator, fed with chunks."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._reference = Reference(configuration)
        self._counts: dict[str, int] = {}

    def feed(self, chunk: Chunk) -> None:
        """Translate a chunk, one access after the other. Raises StudyError for an address that isn't canonical."""
        addresses = canonical(chunk, self.configuration, self._counts.get("accesses", 0)).tolist()
        for name, value in counts(self._steps(addresses, chunk.kinds.tolist())).items():
            before = self._counts.get(name, 0)
            self._counts[name] = max(before, value) if name in MOST else before + value

    def counts(self) -> dict[str, int]:
        """The totals so far."""
        return dict(self._counts)

    def _steps(self, addresses: Iterable[int], kinds: Iterable[int]) -> Iterator[dict[str, Outcome]]:
        for address, kind in zip(addresses, kinds, strict=True):
            yield self._reference.step(KINDS[kind], address)


class Study:
    """Configurations side by side over one trace; the first `warm_up` accesses and events don't count."""

    def __init__(self, configurations: Mapping[str, Configuration], implementation: str = "fast", warm_up: int = 0) -> None:
        make: type[Simulator] | type[ReferenceSimulator] = ReferenceSimulator if implementation == "reference" else Simulator
        self._simulators: dict[str, Counting] = {label: make(each) for label, each in configurations.items()}
        self._checks: dict[str, Counting] = {}
        if implementation == "both":
            self._checks = {label: ReferenceSimulator(each) for label, each in configurations.items()}
        self._warm_up = warm_up
        self._before: dict[str, dict[str, int]] = {}

    def feed(self, chunk: Chunk) -> None:
        """Simulate a chunk in every configuration."""
        if self._warm_up:
            first = Chunk(chunk.addresses[: self._warm_up], chunk.kinds[: self._warm_up])
            chunk = Chunk(chunk.addresses[self._warm_up :], chunk.kinds[self._warm_up :])
            self._feed(first)
            self._warm_up -= len(first.addresses)
            self._before = {label: each.counts() for label, each in self._simulators.items()}
        if len(chunk.addresses):
            self._feed(chunk)

    def _feed(self, chunk: Chunk) -> None:
        for simulator in (*self._simulators.values(), *self._checks.values()):
            simulator.feed(chunk)

    def results(self) -> list[Result]:
        """The figures so far, of what counts; none before anything does."""
        results = []
        for label, simulator in self._simulators.items():
            before = self._before.get(label, {})
            found = {
                name: value if name in MOST else value - before.get(name, 0) for name, value in simulator.counts().items()
            }
            if found.get("native_cycles", 0) > 0:
                results.append(Result(label, simulator.configuration, found))
        return results

    def differences(self) -> list[str]:
        """Where the two simulators differ, a line each; empty also where only one ran."""
        lines = []
        for label, check in self._checks.items():
            found = self._simulators[label].counts()
            for name, expected in check.counts().items():
                if found[name] != expected:
                    lines.append(f"{label}: {name} is {expected} in the reference, {found[name]} in the fast simulator")
        return lines


def as_json(result: Result) -> dict[str, Any]:
    """A result with all its settings."""
    maxima = walk_maxima(result.configuration)
    return {
        "label": result.label,
        "configuration": {
            "name": result.configuration.name,
            "sources": list(result.configuration.sources),
            "settings": settings_of(result.configuration),
        },
        "accesses": result.counts["accesses"],
        "events": {name: result.counts[name] for name in ("faults", "maps", "unmaps")},
        "walk_maxima": maxima._asdict(),
        "modes": {each.mode: {k: v for k, v in vars(each).items() if k != "mode"} for each in result.modes},
        "tpt_speed_up": {mode: round(result.speed_up(mode), 6) for mode in MODES[:3]},
    }
