"""Programs of translation pass-through on both implementations: each operation done once more where states are compared."""

from contextlib import suppress
from typing import Any

import numpy as np

from capvisor.campaign.systems import CrashError
from capvisor.campaign.tpt_systems import Size, Systems
from capvisor.dsl.syntax import Program
from capvisor.dsl.tpt_layout import Layout
from capvisor.spec.tag_policy import TagPolicy


class TptPair:
    """Follows a run: one lane of the fast path and a system of the reference, compared after every operation."""

    def __init__(self, program: Program, policy: TagPolicy) -> None:
        assert program.system is not None
        layout = Layout(program.system)
        self._systems = Systems(Size(layout.frames, layout.cpu_count, layout.devices), 1, policy, oracles=False)

    @property
    def compared(self) -> int:
        """How many states were compared."""
        return self._systems.counts.compared

    def step(self, name: str, operands: tuple[Any, ...]) -> None:
        """An operation."""
        numbers = tuple(np.full(1, each, np.uint64) for each in operands)
        # Where the fast path ends with an error, that is among what was found.
        with suppress(CrashError):
            self._systems.step(name, numbers)

    def difference(self) -> str | None:
        """The first operation whose ends or states differ, and how; None where there is none."""
        for found in self._systems.found:
            return f"{found.step}: {found.what}: {'; '.join(found.details)}"
        return None
