"""Cases that are many of one kind: `make test` takes some of them, always the same ones, and `make thorough` all."""

import os
from collections.abc import Sequence
from typing import TypeVar

TAKES_ALL = os.environ.get("CAPVISOR_TESTS") == "all"

Case = TypeVar("Case")


def some(cases: Sequence[Case], every: int) -> Sequence[Case]:
    """One case of so many, the first among them; all of them, where all are wanted."""
    return cases if TAKES_ALL else cases[::every]
