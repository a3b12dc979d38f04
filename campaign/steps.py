"""Programs of many agents made small: steps left out, then whole agents, then numbers made simple, whatever the system is.

What a step is, whose it is and whether a program still fails is for the campaign to say. What comes out depends on the
program alone, not on how fast the machine is: the number of programs tried is limited, not the time.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

Step = TypeVar("Step")


class StepReduction(Generic[Step]):
    """The reduction of one program: `steps` is the smallest so far that fails; `tried` how many were tried."""

    def __init__(
        self,
        steps: Sequence[Step],
        fails: Callable[[Sequence[Step]], bool],
        most_tried: int,
        agent_of: Callable[[Step], str],
        simpler: Callable[[Step], Iterable[Step]] = lambda _step: (),
    ) -> None:
        """`simpler` has what a step may be replaced by; an agent called "" is never left out as a whole."""
        self.steps, self.tried = list(steps), 0
        self._fails, self._most = fails, most_tried
        self._agent_of, self._simpler = agent_of, simpler

    def run(self) -> list[Step]:
        """The smallest program found; the given one, if it doesn't fail."""
        if not self._try(self.steps):
            return self.steps
        while self.tried < self._most:
            before = list(self.steps)
            self._without_agents()
            self._without_runs()
            self._with_simpler_steps()
            if self.steps == before:
                break
        return self.steps

    def _try(self, steps: Sequence[Step]) -> bool:
        if self.tried >= self._most:
            return False
        self.tried += 1
        if not self._fails(steps):
            return False
        self.steps = list(steps)
        return True

    def _without_agents(self) -> None:
        for agent in dict.fromkeys(map(self._agent_of, self.steps)):
            fewer = [each for each in self.steps if self._agent_of(each) != agent]
            if agent and 0 < len(fewer) < len(self.steps):
                self._try(fewer)

    def _without_runs(self) -> None:
        """Leave out runs of steps, from the end to the start, the longest first."""
        size = max(1, len(self.steps) // 2)
        while size:
            end = len(self.steps)
            while end > 0:
                start = max(0, end - size)
                self._try(self.steps[:start] + self.steps[end:])
                end = min(start, len(self.steps))
            size //= 2

    def _with_simpler_steps(self) -> None:
        for place in range(len(self.steps)):
            for step in self._simpler(self.steps[place]):
                if self._try([*self.steps[:place], step, *self.steps[place + 1 :]]):
                    break
