"""Answers that were given before, kept in the user's state directory."""

import json
import os
import sqlite3
from pathlib import Path

from capvisor.proofs.solve import Answer

SCHEMA_VERSION = 1


def default_folder() -> Path:
    """Where state is kept: $XDG_STATE_HOME/capvisor, by default ~/.local/state/capvisor."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "capvisor"


class Cache:
    """A SQLite file of answers by key; safe with several processes. An answer "unknown" is never kept.

    Raises OSError where the folder can't be used.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"proofs-{SCHEMA_VERSION}.sqlite"
        try:
            self._database = sqlite3.connect(self.path, timeout=30, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except sqlite3.Error as error:
            raise OSError(0, f"not a usable cache: {error}", str(self.path)) from None

    def __len__(self) -> int:
        (count,) = self._database.execute("SELECT COUNT(*) FROM answers").fetchone()
        return int(count)

    def get(self, key: str) -> Answer | None:
        """The answer kept under a key."""
        row = self._database.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return None if row is None else Answer(**json.loads(row[0]))

    def put(self, key: str, answer: Answer) -> None:
        """Keep an answer."""
        if answer.result == "unknown":
            return
        text = json.dumps({"result": answer.result, "seconds": answer.seconds, "values": answer.values})
        try:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text))
        except sqlite3.Error as error:
            raise OSError(0, f"can't keep an answer: {error}", str(self.path)) from None
