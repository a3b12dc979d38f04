"""Ctrl-C reaches the command and all that work for it, perhaps twice: it says what was finished, and keeps it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from capvisor.proofs.cache import Cache
from capvisor.proofs.cvm import KEPT
from capvisor.proofs.runner import Workers, interrupted_once
from capvisor.proofs.steps import Job, StepOutcome, key_of, to_keep
from capvisor.spec.policy import INTENDED


def _wait_for_workers(process: subprocess.Popen[str]) -> None:
    """Until some process that the command has started is at work, or the command has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if any(_ticks(int(each)) > 50 for each in children):
            return
        time.sleep(0.05)


def _ticks(number: int) -> int:
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("bounds.null.cc64", "monotone.set_bounds.cc128"), ("bounds.null.cc64", "interrupted: what was answered is kept")),
        (("cvm", "ecall.cc64", "create.cc64"), ("1 of 2 steps keep", "ended early: what was proved is kept")),
    ],
    ids=["theorems", "steps"],
)
def test_ctrl_c_in_a_terminal_twice_keeps_what_is_finished(
    capvisor, tmp_path: Path, asked: tuple[str, ...], said: tuple[str, ...]
) -> None:
    options = ("--workers", "1", "--state", str(tmp_path))
    if asked[0] == "cvm":
        known = StepOutcome("ecall", "cc64", dict.fromkeys(KEPT, "unsat"), 1.0)
        Cache(tmp_path).put(key_of("cvm", Job("ecall", "cc64", INTENDED, tuple(KEPT), 0), is_proved=True), to_keep(known))
    else:
        assert capvisor("prove", asked[0], *options)[0] == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "capvisor", "prove", *asked, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _wait_for_workers(process)
    for _ in range(2):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2 and not err
    assert all(text in out for text in said)


def _interrupt_yourself() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "still here"


def test_a_worker_is_not_interrupted() -> None:
    workers = Workers(1)
    try:
        assert workers.submit(_interrupt_yourself).result(timeout=60) == "still here"
    finally:
        workers.stop(at_once=True)


def test_only_the_first_ctrl_c_interrupts_and_without_one_nothing_is_changed() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupted_once():
        pass
    assert signal.getsignal(signal.SIGINT) is before
    try:
        with pytest.raises(KeyboardInterrupt), interrupted_once():
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
