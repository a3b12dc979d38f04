"""The how-to of docs/cvm.md: its pieces are put into a copy of the package, and the new call is there, everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from capvisor.proofs.cvm import KEPT
from capvisor.spec.formats import FORMATS
from tests.tutorial import ROOT

PIECES = ROOT / "docs" / "examples" / "new_call"
PROGRAM = PIECES / "file_size.cap"
END_OF_CALLS = "    )\n}\nCALLS_BY_NUMBER"
PLACES = {"row": "spec/cvm.py", "rule": "model/calls.py", "kernel": "fastpath/calls.py"}
FOLDERS = ("spec", "model", "fastpath", "dsl", "campaign", "conformance", "proofs", "bench", "cli")


def piece(name: str) -> str:
    return (PIECES / f"{name}.txt").read_text()


def copy_with(folder: Path, *names: str) -> Path:
    """A copy of the package's sources in a folder, with some of the pieces where the how-to puts them."""
    package = folder / "capvisor"
    package.mkdir()
    for path in (ROOT / "package").iterdir():
        if path.is_file():
            (package / path.name).write_bytes(path.read_bytes())
    for room in FOLDERS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = package / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    for name in names:
        path = package / PLACES[name]
        text = path.read_text()
        if name == "row":
            assert text.count(END_OF_CALLS) == 1
            path.write_text(text.replace(END_OF_CALLS, piece(name) + END_OF_CALLS))
        else:
            path.write_text(f"{text}\n\n{piece(name)}")
    return folder


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    return copy_with(tmp_path_factory.mktemp("extended"), *PLACES)


def python(folder: Path, *arguments: str) -> str:
    """What Python prints, with the package in that folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_how_to_shows_its_pieces_and_is_as_short_as_it_says() -> None:
    page = (ROOT / "docs" / "cvm.md").read_text()
    for name, place in PLACES.items():
        assert f"examples/new_call/{name}.txt" in page and f"`{place}`" in page
    assert "examples/new_call/file_size.cap" in page
    assert sum(len(piece(name).splitlines()) for name in PLACES) < 40


def test_a_program_uses_the_new_call_and_it_is_listed(extended: Path) -> None:
    assert python(extended, "-m", "capvisor", "run", str(PROGRAM)).rstrip().endswith("passed")
    listed = python(extended, "-m", "capvisor", "list", "calls")
    assert "file_size         421     key" in listed


def test_the_new_call_has_obligations_and_they_are_proved(extended: Path) -> None:
    code = """
from capvisor.proofs import cvm
assert cvm.steps()["file_size"] == "leave"
print(*(f"{name}={answer.result}" for name, answer in cvm.prove("file_size", "cc64").kept.items()))
"""
    answers = dict(answer.split("=") for answer in python(extended, "-c", code).split())
    assert answers == dict.fromkeys(KEPT, "unsat")


def test_the_matrix_of_guards_and_the_sweep_take_the_new_call_in(extended: Path) -> None:
    listed = python(extended, "-m", "capvisor", "prove", "cvm", "--list", "file_size")
    assert [line.split() for line in listed.splitlines()[1:]] == [[f"file_size.{fmt}", "leave"] for fmt in FORMATS]
    code = """
from capvisor.cli.step_proofs import STEP_PROOFS
from capvisor.proofs import sweep
print("file_size" in STEP_PROOFS["cvm"].steps())
changes = sweep.changes(sweep.MONITOR_MODULES[-1])
print(any(change.function == "file_size" for change in changes))
"""
    assert python(extended, "-c", code).split() == ["True"] * 2


def test_campaigns_make_the_new_call_and_compare_what_it_does(extended: Path) -> None:
    code = """
from capvisor.campaign.cvm_attacks import play
from capvisor.fastpath.calls import CALL_KERNELS
from capvisor.spec.formats import CC64

def campaign():
    units = [play([1, turn], CC64, 16, 20, turn=turn) for turn in (4, 9)]
    made = any(name == "file_size" for unit in units for name, _code in unit.counts.calls)
    print(made, *{(each.what, each.step) for unit in units for each in unit.found})

campaign()
CALL_KERNELS["file_size"] = lambda monitor, who, key: None
campaign()
"""
    assert python(extended, "-c", code).splitlines() == ["True", "True ('differs', 'file_size')"]


def test_both_implementations_answer_the_new_call_in_the_same_way(extended: Path) -> None:
    code = """
import numpy as np
from capvisor.fastpath.calls import Callers
from capvisor.fastpath.calls import file_size as kernel
from capvisor.fastpath.monitor import BatchMonitor
from capvisor.model.calls import file_size
from capvisor.model.memory import Memory
from capvisor.model.monitor import Monitor
from capvisor.spec.cvm import Code
from capvisor.spec.formats import CC128

BASE, SIZE = 0x80000000, 0x2000
reference, fast = Monitor(Memory(CC128, BASE, SIZE)), BatchMonitor(CC128, BASE, SIZE, 1)
lane, one = np.array([0]), np.array([1], np.uint64)
reference.create(1, BASE, 0x1000)
fast.regions.put(lane, one, is_live=True, base=BASE, top=BASE + 0x1000)
thread, harts = reference.start_thread(1, 0), fast.start_thread(lane, one, one)
assert reference.offer(5, 1, BASE + 0x100, 200) is Code.OK
fast.grants.put(lane, np.array([5], np.uint64), is_live=True, base=BASE + 0x100, size=200)
for key in (5, 6, 70000):
    code = file_size(reference, thread, None, key)
    who = Callers(fast, harts)
    kernel(fast, who, np.array([key], np.uint64))
    print(who.code[0] == code.value, fast.harts.addresses[11, harts[0]] == thread.hart.integer(11), code.name)
"""
    assert python(extended, "-c", code).split() == ["True", "True", "OK", *["True", "True", "NOT_FOUND"] * 2]


def test_a_call_without_rule_or_kernel_is_noticed(tmp_path) -> None:
    """What the tables hold against each other when a piece is forgotten."""
    folder = copy_with(tmp_path, "row")
    code = """
from capvisor.fastpath.calls import CALL_KERNELS
from capvisor.model.calls import CALL_RULES
from capvisor.spec.cvm import CALLS
print(set(CALLS) - set(CALL_RULES), set(CALLS) - set(CALL_KERNELS))
"""
    assert python(folder, "-c", code).split() == ["{'file_size'}"] * 2
