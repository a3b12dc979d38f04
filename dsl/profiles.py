"""Hypothesis profiles for tests of guests, and the database of examples that they use.

`register()` makes them known; `settings.load_profile("capvisor-ci")`, or `--hypothesis-profile=capvisor-ci` of pytest,
chooses one.
"""

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.database import (
    DirectoryBasedExampleDatabase,
    ExampleDatabase,
    MultiplexedDatabase,
    ReadOnlyDatabase,
)

from capvisor.files import state_folder

USERS_EXAMPLES = Path(".hypothesis") / "examples"
"""Where Hypothesis keeps a user's examples by default, in the folder in which tests are run."""

KEPT_EXAMPLES = "hypothesis"
"""The folder of kept examples, in that of capvisor's state."""

_COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": False,  # not that of the profile in force, which on many servers is another one
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}

PROFILES: dict[str, dict[str, Any]] = {
    "capvisor-dev": _COMMON | {"max_examples": 100, "stateful_step_count": 30},
    "capvisor-ci": _COMMON | {"max_examples": 100, "stateful_step_count": 30, "derandomize": True},
    "capvisor-campaign": _COMMON
    | {"max_examples": 20_000, "stateful_step_count": 100, "suppress_health_check": list(HealthCheck)},
}
"""The settings of each profile. `capvisor-ci` draws the same in every run, and so has no database."""


def register(folder: Path | None = None) -> None:
    """Make the profiles known to Hypothesis; `folder` is that of kept examples (see `database`)."""
    for name, values in PROFILES.items():
        kept = None if values["derandomize"] else database(folder)
        settings.register_profile(name, **values, database=kept)


def database(folder: Path | None = None) -> ExampleDatabase:
    """The user's own examples, and beside them those kept in a folder, by default of capvisor's state; these are only read.

    A failure that is found is saved among the user's own. The folders needn't exist.
    """
    kept = state_folder() / KEPT_EXAMPLES if folder is None else folder
    return MultiplexedDatabase(
        DirectoryBasedExampleDatabase(USERS_EXAMPLES), ReadOnlyDatabase(DirectoryBasedExampleDatabase(kept))
    )
