"""Files that are written whole or not at all, and the state that is kept for a user from one run to the next."""

import os
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

STATE_FILE = "state-1.sqlite"
"""The one database of a state folder. The number changes with the form of its tables."""

BUSY_TIMEOUT_S = 30.0
"""How long to wait for another process that writes to the database."""


def state_folder() -> Path:
    """Where state is kept: $XDG_STATE_HOME/capvisor, by default ~/.local/state/capvisor."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "capvisor"


def open_state(folder: Path, *tables: str) -> sqlite3.Connection:
    """The database of a state folder, both made if need be, with these tables; safe with several processes.

    `tables` are their columns, each as in `answers (key TEXT PRIMARY KEY)`. Raises OSError where the folder can't be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STATE_FILE
    database = None
    try:
        database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        _let_readers_and_a_writer_coexist(database)
        for table in tables:
            database.execute(f"CREATE TABLE IF NOT EXISTS {table}")
    except sqlite3.Error as error:
        if database is not None:
            database.close()
        raise OSError(0, f"not a usable database: {error}", str(path)) from None
    return database


def _let_readers_and_a_writer_coexist(database: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. Where another process is about to do so, this one does without."""
    try:
        database.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # an extended code has more above
            raise


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Have `write` fill a file that appears under its name only when it is complete.

    A link's target is replaced, not the link; an existing file keeps its mode; what is no regular file (a pipe, a device) is
    written to directly. Raises OSError, and leaves nothing behind then.
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as stream:
            write(stream)
        return
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", suffix=".part", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        temporary.chmod(mode)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
