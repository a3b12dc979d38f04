"""What campaigns have done, kept in the user's state folder: in the database in which the proofs' answers are."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from capvisor import __version__
from capvisor.campaign.engine import Report
from capvisor.files import STATE_FILE, open_state

TABLES = (
    # A seed may be of any size: it is kept as text.
    """campaigns (
        id INTEGER PRIMARY KEY, started TEXT NOT NULL, seconds REAL NOT NULL, version TEXT NOT NULL, engine TEXT NOT NULL,
        workers INTEGER NOT NULL, profile TEXT NOT NULL, format TEXT NOT NULL, seed TEXT NOT NULL, compared INTEGER NOT NULL,
        programs INTEGER NOT NULL, operations INTEGER NOT NULL, states_compared INTEGER NOT NULL,
        behaviours INTEGER NOT NULL, weaknesses TEXT NOT NULL, interrupted INTEGER NOT NULL)""",
    """campaign_counters (
        campaign INTEGER NOT NULL REFERENCES campaigns, counter TEXT NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL,
        PRIMARY KEY (campaign, counter, name)) WITHOUT ROWID""",
    """campaign_growth (
        campaign INTEGER NOT NULL REFERENCES campaigns, point INTEGER NOT NULL, programs INTEGER NOT NULL,
        behaviours INTEGER NOT NULL, PRIMARY KEY (campaign, point)) WITHOUT ROWID""",
    """campaign_findings (
        campaign INTEGER NOT NULL REFERENCES campaigns, number INTEGER NOT NULL, signature TEXT NOT NULL,
        title TEXT NOT NULL, details TEXT NOT NULL, file TEXT NOT NULL, program TEXT NOT NULL, units INTEGER NOT NULL,
        PRIMARY KEY (campaign, number)) WITHOUT ROWID""",
)

COUNTERS = ("executed", "trapped", "causes", "changed", "evaluated", "concerned")
"""The counters of a report that are kept, by name."""

_COLUMNS = (
    "id, started, seconds, version, engine, workers, profile, format, seed, compared, "
    "programs, operations, states_compared, behaviours, weaknesses, interrupted"
)

_LARGEST = 2**63 - 1
"""The largest number of SQLite."""


@dataclass(frozen=True)
class PastFinding:
    """What a campaign has found."""

    signature: str
    title: str
    details: tuple[str, ...]
    file: str
    """The name of the file in the campaign's folder of findings."""
    program: str
    """The program that shows it."""
    units: int
    """In how many units of work it was seen."""


@dataclass(frozen=True)
class PastCampaign:
    """What a campaign has done. The counters are those of a report."""

    id: int
    started: datetime
    """In UTC."""
    seconds: float
    version: str
    """The version of capvisor."""
    engine: str
    workers: int
    profile: str
    format: str
    seed: int
    compared: bool
    """Whether every step was executed on the reference too."""
    programs: int
    operations: int
    states_compared: int
    behaviours: int
    weaknesses: tuple[str, ...]
    interrupted: bool
    executed: Mapping[str, int]
    trapped: Mapping[str, int]
    causes: Mapping[str, int]
    changed: Mapping[str, int]
    evaluated: Mapping[str, int]
    concerned: Mapping[str, int]
    growth: tuple[tuple[int, int], ...]
    """After so many programs, so many behaviours."""
    findings: tuple[PastFinding, ...]

    @property
    def operations_per_second(self) -> float:
        """Its throughput."""
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def trapped_share(self) -> float:
        """The share of operations that were refused."""
        return sum(self.trapped.values()) / max(self.operations, 1)


class History:
    """Campaigns in the database of a state folder; safe with several processes. No connection is kept between calls.

    Raises OSError where the folder can't be used, where the database is damaged, and where a campaign can't be kept.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STATE_FILE
        self._folder = folder
        with self._database("not a usable history"):
            pass

    def record(self, report: Report, seconds: float, workers: int, engine: str, started: datetime) -> int:
        """Keep what a campaign has done, whole or not at all; the number that it gets. A naive `started` is local time."""
        settings = report.settings
        row = (
            started.astimezone(UTC).isoformat(timespec="seconds"),
            seconds,
            __version__,
            _printable(engine),
            workers,
            settings.profile,
            settings.format,
            str(settings.seed),
            settings.compare,
            report.programs,
            report.operations,
            report.compared,
            len(report.behaviours),
            json.dumps(report.weaknesses),
            report.interrupted,
        )
        found = [_finding_row(each.as_json(), report.failures[each.signature]) for each in report.findings]
        with self._database("can't keep a campaign") as database:
            database.execute("BEGIN IMMEDIATE")
            marks = ", ".join("?" * len(row))
            number = database.execute(f"INSERT INTO campaigns VALUES (NULL, {marks})", row).lastrowid
            assert number is not None
            for counter in COUNTERS:
                counts: Mapping[str, int] = getattr(report, counter)
                values = [(number, counter, name, count) for name, count in counts.items()]
                database.executemany("INSERT INTO campaign_counters VALUES (?, ?, ?, ?)", values)
            points = [(number, place, *point) for place, point in enumerate(report.growth)]
            database.executemany("INSERT INTO campaign_growth VALUES (?, ?, ?, ?)", points)
            rows = [(number, place, *each) for place, each in enumerate(found)]
            database.executemany("INSERT INTO campaign_findings VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            database.execute("COMMIT")
        return number

    def campaigns(self, limit: int | None = None) -> list[PastCampaign]:
        """The latest campaigns, at most so many, the earliest of them first."""
        with self._reading() as database:
            query = f"SELECT {_COLUMNS} FROM campaigns ORDER BY id DESC LIMIT ?"
            rows = database.execute(query, (_LARGEST if limit is None else min(limit, _LARGEST),)).fetchall()
            return [_read(database, row) for row in reversed(rows)]

    def campaign(self, number: int) -> PastCampaign | None:
        """The campaign of this number, if there is one."""
        with self._reading() as database:
            row = database.execute(f"SELECT {_COLUMNS} FROM campaigns WHERE id = ?", (min(number, _LARGEST),)).fetchone()
            return None if row is None else _read(database, row)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The database as it is at one moment."""
        with self._database("not a usable history") as database:
            database.execute("BEGIN")
            try:
                yield database
            except (TypeError, ValueError) as error:
                raise OSError(0, f"not a usable history: {error}", str(self.path)) from None

    @contextmanager
    def _database(self, problem: str) -> Iterator[sqlite3.Connection]:
        """A connection; closing it takes back what wasn't committed."""
        with closing(open_state(self._folder, *TABLES)) as database:
            try:
                yield database
            except sqlite3.Error as error:
                raise OSError(0, f"{problem}: {error}", str(self.path)) from None


def _finding_row(finding: dict[str, Any], units: int) -> tuple[str | int, ...]:
    details = json.dumps([_printable(each) for each in finding["details"]])
    texts = (finding["signature"], finding["title"], details, finding["file"], finding["program"])
    return (*(_printable(each) for each in texts), units)


def _read(database: sqlite3.Connection, row: tuple[Any, ...]) -> PastCampaign:
    """A campaign with its counters, growth and findings."""
    values = dict(zip(_COLUMNS.split(", "), row, strict=True))
    number = values["id"]
    counters: dict[str, dict[str, int]] = {counter: {} for counter in COUNTERS}
    query = "SELECT counter, name, value FROM campaign_counters WHERE campaign = ? ORDER BY counter, name"
    for counter, name, value in database.execute(query, (number,)):
        counters.setdefault(counter, {})[name] = value
    query = "SELECT programs, behaviours FROM campaign_growth WHERE campaign = ? ORDER BY point"
    growth = tuple(database.execute(query, (number,)))
    query = (
        "SELECT signature, title, details, file, program, units FROM campaign_findings WHERE campaign = ? ORDER BY number"
    )
    found = tuple(
        PastFinding(signature, title, tuple(json.loads(details)), file, program, units)
        for signature, title, details, file, program, units in database.execute(query, (number,))
    )
    values |= {
        "started": datetime.fromisoformat(values["started"]),
        "seed": int(values["seed"]),
        "compared": bool(values["compared"]),
        "weaknesses": tuple(json.loads(values["weaknesses"])),
        "interrupted": bool(values["interrupted"]),
    }
    values |= {counter: counters[counter] for counter in COUNTERS}
    return PastCampaign(**values, growth=growth, findings=found)


def _printable(text: str) -> str:
    """The text with what can't be printed written as an escape: what a peer has said may hold anything."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode("ascii") for each in text
    )
