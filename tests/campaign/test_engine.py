"""Campaigns: the same report whoever does the work, weaknesses said, failures made small, whoever finds them."""

import json
import os
import signal
import threading
import time

import pytest

from capvisor.campaign.engine import Campaign, Report, Settings
from capvisor.campaign.findings import program_of, text_of
from capvisor.campaign.hypothesis_engine import HypothesisEngine
from capvisor.campaign.report import as_json, sarif
from capvisor.campaign.schedulers import Here, Pool, Scheduler, SchedulerError, scheduler_of
from capvisor.campaign.subjects import ALWAYS_REFUSED
from capvisor.campaign.unit import STEPPINGS, Work, judge, perform, stepping_of
from capvisor.dsl.parser import parse
from capvisor.dsl.runner import run
from capvisor.spec.operations import OPERATIONS
from tests.campaign.support import mutated

FEW = Settings("mixed", seed=3, programs=12_000)
BUG = ("fastpath.capability", "np.less_equal(authority.address, fmt.max_otype, out=flag)", "flag.fill(True)")


def report_with(scheduler: Scheduler, settings: Settings = FEW) -> Report:
    try:
        return Campaign(settings, scheduler).run()
    finally:
        scheduler.close()


def test_the_report_is_the_same_for_any_number_of_workers_and_when_one_is_killed() -> None:
    expected = json.dumps(as_json(report_with(Here())))
    assert json.dumps(as_json(report_with(Pool(2)))) == expected
    pool = Pool(2)

    def kill_one() -> None:
        while not pool._pool._processes:
            time.sleep(0.01)
        time.sleep(1.0)
        os.kill(next(iter(pool._pool._processes)), signal.SIGKILL)

    thread = threading.Thread(target=kill_one)
    thread.start()
    report = report_with(pool)
    thread.join()
    assert report.restarts >= 1 and json.dumps(as_json(report)) == expected


def _die(_work: Work) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_always_die_end_the_campaign_with_a_message() -> None:
    with pytest.raises(SchedulerError, match="workers died"):
        report_with(Pool(1, _die))


@pytest.mark.filterwarnings("ignore")
def test_a_cluster_gives_the_same_report_also_when_one_of_its_workers_is_killed() -> None:
    from distributed import LocalCluster

    expected = json.dumps(as_json(report_with(Here())))
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        victims = [worker.process.process.pid for worker in cluster.workers.values()]
        timer = threading.Timer(1.0, lambda: os.kill(victims[0], signal.SIGKILL))
        timer.start()
        report = report_with(scheduler_of(1, cluster.scheduler_address))
        timer.cancel()
    assert json.dumps(as_json(report)) == expected


@pytest.mark.filterwarnings("ignore")
def test_a_scheduler_that_is_not_there_is_a_message() -> None:
    from capvisor.campaign.schedulers import Cluster

    with pytest.raises(SchedulerError, match="no scheduler at tcp"):
        Cluster("tcp://127.0.0.1:9", timeout_s=1.0)


def test_units_step_in_every_way_there_is() -> None:
    assert {stepping_of(shard) for shard in range(16)} == set(STEPPINGS)
    for shard in (6, 7):
        outcome = perform(Work(1, shard, 64, "cc128", "mixed"))
        assert len(outcome.shapes) == 2 and outcome.programs == 64 and not outcome.failures


def test_a_campaign_says_what_it_never_put_to_the_test() -> None:
    weak = report_with(Here(), Settings("memory", seed=1, programs=600)).weaknesses
    assert any(text.startswith("never executed: ") for text in weak)
    report = Report(Settings("mixed"), operations=100)
    report.executed.update(dict.fromkeys(OPERATIONS, 2))
    report.trapped.update(dict.fromkeys(OPERATIONS, 2))
    weak = report.weaknesses
    assert any("were refused" in text for text in weak) and any("always refused: " in text for text in weak)
    assert any(text.startswith("compared, but never changed: registers") for text in weak)
    assert any(text.startswith("never put to the test: M1") for text in weak)
    assert not any(name in text for name in ALWAYS_REFUSED for text in weak)


def test_a_failure_is_the_same_small_program_whichever_engine_finds_it(tmp_path) -> None:
    with mutated(*BUG):
        bulk = Campaign(Settings("sealing", seed=1, seconds=60, most_findings=1), Here(), tmp_path).run()
        (mine,) = bulk.findings
        for seed in range(10):
            by_hypothesis = Campaign(Settings("sealing", seed=seed, seconds=60, most_findings=1), Here())
            HypothesisEngine(by_hypothesis).run()
            (other,) = by_hypothesis.report.findings
            if other.signature == mine.signature:
                break
        assert mine.failure.case == other.failure.case and mine.signature in (
            "cseal differs registers",
            "ccseal differs registers",
        )
        assert len(mine.failure.case.operations) <= 5
        assert judge(mine.failure.case) is not None
        (path,) = tmp_path.glob("*.cap")
        text = path.read_text()
        assert "reference" in text and f"# again: capvisor run {path}" in text
        assert not run(parse(text), {}).passed
    # Without the bug the program passes, with the traps that it expects.
    assert run(parse(text), {}).passed and run(program_of(mine.failure.case), {}).passed
    log = sarif(bulk, tmp_path, "1")
    (result,) = log["runs"][0]["results"]
    steps = result["codeFlows"][0]["threadFlows"][0]["locations"]
    assert len(steps) == len(mine.failure.case.operations) and log["version"] == "2.1.0"
    lines = text_of(mine, "").splitlines()
    for step in steps:
        where = step["location"]["physicalLocation"]["region"]["startLine"]
        assert lines[where - 1].split("  !")[0].split() == step["location"]["message"]["text"].split()


def test_a_fast_path_that_raises_is_a_finding() -> None:
    with mutated("fastpath.capability", "np.logical_and(kept, unsealed, out=kept)", "raise ValueError(kept)"):
        report = report_with(Here(), Settings("caps", seed=1, programs=4096, most_findings=2))
    assert report.findings and all(each.signature.endswith("crashes ValueError") for each in report.findings)
