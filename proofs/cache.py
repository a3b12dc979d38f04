"""Answers that were given before, kept in the user's state directory."""

import json
import sqlite3
from pathlib import Path

from capvisor.files import STATE_FILE, open_state
from capvisor.proofs.solve import Answer


class Cache:
    """Answers by key, in the database of a state folder; safe with several processes. An answer "unknown" is never kept.

    Raises OSError where the folder can't be used.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATE_FILE
        self._database = open_state(folder, "answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")

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
