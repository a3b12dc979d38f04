"""The history of campaigns: what is kept is what is read, by several processes at once, and damage is said."""

import multiprocessing
import resource
import sqlite3
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from capvisor.campaign.case import Case
from capvisor.campaign.engine import Report, Settings
from capvisor.campaign.findings import Finding
from capvisor.campaign.history import COUNTERS, History
from capvisor.campaign.unit import Failure
from capvisor.files import STATE_FILE
from capvisor.proofs.cache import Cache
from capvisor.proofs.solve import Answer
from tests.campaign.reports import STARTED, made_up_report

PROCESSES, EACH = 4, 10


def record(folder: Path, report: Report, started: datetime = STARTED) -> int:
    return History(folder).record(report, 2.0, 3, "bulk", started)


def test_what_is_kept_is_what_is_read(tmp_path) -> None:
    report = made_up_report()
    number = record(tmp_path, report)
    (kept,) = History(tmp_path).campaigns()
    assert (kept.id, kept.started, kept.seconds, kept.workers, kept.engine) == (number, STARTED, 2.0, 3, "bulk")
    assert (kept.profile, kept.format, kept.seed, kept.compared) == ("caps", "cc64", 7, True)
    assert (kept.programs, kept.operations, kept.states_compared) == (1024, 8000, 7900)
    assert kept.operations_per_second == 4000.0 and kept.trapped_share == report.trapped_share
    assert kept.behaviours == 2 and kept.growth == ((512, 1), (1024, 2)) and not kept.interrupted
    for counter in COUNTERS:
        assert getattr(kept, counter) == getattr(report, counter) != {}, counter
    assert kept.weaknesses == tuple(report.weaknesses) != ()
    (found,) = kept.findings
    (finding,) = report.findings
    assert (found.signature, found.title, found.details) == (finding.signature, finding.title, finding.details)
    assert found.file == f"{finding.name}.cap" and found.units == 5
    assert "csetbounds c2, c1, x5" in found.program
    assert History(tmp_path).campaign(number) == kept


def test_the_latest_campaigns_come_in_the_order_in_which_they_were_kept(tmp_path) -> None:
    numbers = [record(tmp_path, Report(Settings(seed=seed))) for seed in range(5)]
    assert [each.id for each in History(tmp_path).campaigns()] == numbers == sorted(numbers)
    assert [each.seed for each in History(tmp_path).campaigns(2)] == [3, 4]
    assert len(History(tmp_path).campaigns(2**80)) == 5
    assert History(tmp_path).campaign(6) is None and History(tmp_path).campaign(2**80) is None


def test_a_new_history_is_empty(tmp_path) -> None:
    assert History(tmp_path / "new" / "folder").campaigns() == []


def test_times_are_kept_in_utc(tmp_path) -> None:
    record(tmp_path, made_up_report(), datetime(2026, 3, 1, 1, 30, tzinfo=timezone(timedelta(hours=2))))
    assert History(tmp_path).campaigns()[0].started.isoformat() == "2026-02-28T23:30:00+00:00"


def test_a_campaign_that_did_nothing_and_any_seed_can_be_kept(tmp_path) -> None:
    History(tmp_path).record(Report(Settings(seed=2**100)), 0.0, 1, "bulk", STARTED)
    (kept,) = History(tmp_path).campaigns()
    assert kept.seed == 2**100 and kept.operations_per_second == kept.trapped_share == 0.0


def test_what_a_peer_said_is_kept_printable(tmp_path) -> None:
    case = Case("cc128", (("csetbounds", (2, 1, 5)),))
    failure = Failure("peer fails", "\x1b[2J\udc80", "lock step", case, 0, 0)
    report = Report(Settings(), findings=[Finding(failure, False, ("nul \0, line\nend",))])
    record(tmp_path, report)
    (found,) = History(tmp_path).campaigns()[0].findings
    assert found.title.endswith(r"peer fails: \x1b[2J\udc80")
    assert found.details == ("nul \\x00, line\nend",)


def _record_many(folder: Path, barrier: object, process: int) -> None:
    barrier.wait()
    for number in range(EACH):
        record(folder, replace(made_up_report(), settings=Settings(seed=process * EACH + number)))


def test_processes_at_once_lose_and_mix_nothing(tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(PROCESSES)
    processes = [context.Process(target=_record_many, args=(tmp_path, barrier, place)) for place in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    campaigns = History(tmp_path).campaigns()
    assert sorted(each.seed for each in campaigns) == list(range(PROCESSES * EACH))
    assert all(len(each.growth) == 2 and len(each.findings) == 1 and each.executed for each in campaigns)


def test_campaigns_and_answers_share_a_file(tmp_path) -> None:
    cache, history = Cache(tmp_path), History(tmp_path)
    cache.put("key", Answer("unsat", 1.0, {}))
    record(tmp_path, made_up_report())
    assert cache.path == history.path
    assert cache.get("key") == Answer("unsat", 1.0, {}) and len(history.campaigns()) == 1
    assert {path.suffix for path in tmp_path.iterdir()} <= {".sqlite", ".sqlite-shm", ".sqlite-wal"}


def test_a_file_that_is_no_database_is_said_so(tmp_path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"no database, but long enough to be told from an empty file" * 20)
    for kind in (History, Cache):
        with pytest.raises(OSError, match="not a usable database: file is not a database") as caught:
            kind(tmp_path)
        assert caught.value.filename == str(tmp_path / STATE_FILE)


def test_a_folder_that_is_a_file_is_said_so(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        History(tmp_path / "file")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE campaigns SET weaknesses = '['",
        "UPDATE campaigns SET started = 'yesterday'",
        "UPDATE campaigns SET seed = 'x'",
        "UPDATE campaign_findings SET details = '7'",
        "DROP TABLE campaign_growth; CREATE TABLE campaign_growth (campaign INTEGER)",
    ],
)
def test_damaged_content_is_said_so(tmp_path, damage: str) -> None:
    record(tmp_path, made_up_report())
    database = sqlite3.connect(tmp_path / STATE_FILE)
    database.executescript(damage)
    database.close()
    with pytest.raises(OSError, match="not a usable history"):
        History(tmp_path).campaigns()


def test_damaged_pages_are_said_so(tmp_path) -> None:
    for _ in range(50):
        record(tmp_path, made_up_report())
    path = tmp_path / STATE_FILE
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(OSError, match="malformed"):
        History(tmp_path).campaigns()


def test_a_campaign_is_kept_whole_or_not_at_all_when_the_disk_is_full(tmp_path) -> None:
    history = History(tmp_path)
    record(tmp_path, made_up_report())
    large = replace(made_up_report(), growth=[(number, number) for number in range(100_000)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(OSError, match="can't keep a campaign"):
            record(tmp_path, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(history.campaigns()) == 1
    assert record(tmp_path, large) == 2 and len(history.campaigns()[1].growth) == 100_000
