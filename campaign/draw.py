"""Drawing what moves of a campaign consist of: for all lanes of a unit at once, or for each lane by itself."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from capvisor.fastpath.workspace import Flags, Words

TURNS_PER_UNIT = 3
"""How far a unit is taken to get in what comes in turn; all of it is begun with by some unit."""

Move = Callable[[], None]


class Draws:
    """Chance, in all lanes of a unit."""

    def __init__(self, rng: np.random.Generator, lanes: int, hostility: float, turn: int = 0) -> None:
        """What comes in turn begins at that turn."""
        self.rng, self.lanes, self.hostility = rng, lanes, hostility
        self._everyone = np.arange(lanes)
        self._first, self._turns = turn * TURNS_PER_UNIT, Counter[str]()

    def chance(self, probability: float) -> bool:
        """Whether something happens, in all lanes."""
        return bool(self.rng.random() < probability)

    def some(self, probability: float) -> Flags:
        """Whether it does, lane by lane."""
        return self.rng.random(self.lanes, np.float32) < probability

    def one(self, values: Sequence[Any]) -> Any:
        """One of some values, for all lanes."""
        return values[int(self.rng.integers(len(values)))]

    def each(self, values: Sequence[int]) -> Words:
        """One of some values in each lane."""
        return np.array(values, np.uint64)[self.rng.integers(0, len(values), self.lanes)]

    def below(self, count: int) -> Words:
        """A number less than that in each lane."""
        return self.rng.integers(0, count, self.lanes).astype(np.uint64)

    def mixed(self, one: Words, other: Words, probability: float) -> Words:
        """The other in some lanes."""
        return np.where(self.some(probability), other, one)

    def same(self, number: int) -> Words:
        """The same in all lanes."""
        return np.full(self.lanes, number, np.uint64)

    def among(self, wanted: Flags, otherwise: Words) -> Words:
        """One of the rows that are wanted, bool[lanes, rows], in each lane; something else where there is none."""
        scores = self.rng.random(wanted.shape, np.float32) * wanted
        at = scores.argmax(axis=1)
        found: Words = np.where(scores[self._everyone, at] > 0, at.astype(np.uint64), otherwise)
        return found

    def turn(self, what: str) -> int:
        """A number that counts up, over units too: what comes in turn isn't left to chance."""
        self._turns[what] += 1
        return self._first + self._turns[what] - 1

    def order(self, moves: Sequence[tuple[Move, float]], count: int) -> list[Move]:
        """So many moves: each kind once, if there is room, and others as often as their weights say."""
        weights = np.array([weight for _move, weight in moves])
        others = max(0, count - len(moves))
        chosen = [*range(len(moves)), *self.rng.choice(len(moves), others, p=weights / weights.sum()).tolist()]
        return [moves[chosen[place]][0] for place in self.rng.permutation(len(chosen))[:count].tolist()]


def make(moves: Sequence[Move], goes_on: Callable[[], Any]) -> None:
    """Make moves one after the other, as long as there is a lane to go on in."""
    for move in moves:
        move()
        if not goes_on():
            break
