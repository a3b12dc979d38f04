"""Programs as theorems: proved when they hold for all values, refuted by values with which they fail when run."""

from pathlib import Path

import pytest
import z3
from hypothesis import given
from hypothesis import strategies as st

from capvisor.cli import main as command
from capvisor.cli.status import Status
from capvisor.dsl.parser import parse
from capvisor.dsl.runner import run
from capvisor.model.memory import Granule, SparseStore
from capvisor.proofs import solve
from capvisor.proofs.memory import ArrayStore
from capvisor.proofs.programs import load, obligation_of
from capvisor.proofs.symbolic import term_of
from capvisor.proofs.theorem import queries, replay
from tests.tutorial import ROOT, TUTORIAL

SLOW = {"03_rounding.cap", "10_rebuilding.cap"}
MACHINE = "machine cc128 { memory 0x80000000 size 4K; c1 = root }\n"
POINTER = (
    "let at = any u64 where at < 40\nlet byte = any u8\nli x5, 0x80000000\ncsetaddr c2, c1, x5\ncsetboundsimm c2, c2, 64\n"
)
STORE = POINTER + "csc c2, 16(c2)\nli x6, at\ncincoffset c3, c2, x6\nli x7, byte\ncsb x7, 0(c3)\n"


def answer(text: str) -> solve.Answer:
    asked = queries(obligation_of(parse(text)))
    assert asked.abstract is not None
    if solve.ask("z3", asked.abstract, {}, 60).result == "unsat":
        # What is proved of any functions of bounds holds of the real ones.
        assert solve.ask("z3", asked.conditions("0"), asked.symbols, 5).result != "sat"
        return solve.Answer("unsat", 0)
    return solve.ask("z3", asked.conditions("0"), asked.symbols, 60)


@pytest.mark.parametrize("path", [path for path in TUTORIAL if path.name not in SLOW], ids=lambda path: path.name)
def test_the_tutorial_holds_for_all_values(path: Path) -> None:
    assert answer(path.read_text()).result == "unsat"


HOLDS = [
    STORE + "clbu x8, 0(c3)\nassert x8 == byte\n",
    STORE + "clc c4, 16(c2)\nassert (at < 16 or at >= 32) == c4.tag\n",
    STORE + "clc c4, 16(c2)\nassert c4.tag implies c4.base == c2.base and c4.top == c2.top\n",
    STORE + "cld x8, 1(c2)\nassert at == 4 implies x8 >> 24 & 0xff == byte\n",
    POINTER + "li x6, at\ncincoffset c3, c2, x6\nclc c4, 0(c3)  !trap LoadAddressMisaligned when at & 15 != 0\n",
    POINTER + "clb x8, 64(c2)  !trap LengthViolation\nassert x8 == 0\n",
]
FAILS = [
    STORE + "clb x8, 0(c3)\nassert x8 == byte\n",
    STORE + "clc c4, 16(c2)\nassert c4.tag\n",
    STORE + "clc c4, 16(c2)\nassert not c4.tag\n",
    POINTER + "li x6, at\ncincoffset c3, c2, x6\nclc c4, 0(c3)\n",
    POINTER + "li x6, at\ncincoffset c3, c2, x6\nclb c4, 32(c3)  !trap LengthViolation when at > 32\n",
    POINTER + "clb x8, 64(c2)  !trap LengthViolation when byte != 7\n",
    POINTER + "clb x8, 0(c2)  !trap LengthViolation when byte == 7\n",
]


@pytest.mark.parametrize("text", HOLDS)
def test_what_holds_with_a_symbolic_memory_is_proved(text: str) -> None:
    assert answer(MACHINE + text).result == "unsat"


@pytest.mark.parametrize("text", FAILS)
def test_what_fails_is_refuted_by_values_with_which_it_fails_when_it_is_run(text: str) -> None:
    found = answer(MACHINE + text)
    assert found.result == "sat" and found.values is not None
    program = parse(MACHINE + text)
    assert replay(obligation_of(program), found.values) == (True, False)
    assert run(program, found.values).failure.kind in ("assertion", "trap")


def test_the_command_proves_files_and_prints_counterexamples_as_programs(capsys, tmp_path) -> None:
    good = str(tmp_path / "good.cap")
    Path(good).write_text(MACHINE + "let mask = any u64\nli x5, mask\ncandperm c2, c1, x5\nassert c2.perms <= c1.perms\n")
    wrong = str(tmp_path / "wrong.cap")
    belief = (ROOT / "docs" / "examples" / "wrong_belief.cap").read_text()
    Path(wrong).write_text(belief.replace("cc128", "cc64").replace("u64", "u32"))
    assert command.status_of(["prove", good, "--no-cache"]) == Status.OK
    assert "PROVED" in capsys.readouterr().out
    assert command.status_of(["prove", wrong, "--state", str(tmp_path)]) == Status.VIOLATION
    out = capsys.readouterr().out
    assert "REFUTED" in out and "as a program, which fails in the same way" in out
    alone = tmp_path / "alone.cap"
    alone.write_text(
        "\n".join(line[4:] for line in out[out.index("    # A wrong") :].splitlines() if line.startswith("    ")) + "\n"
    )
    assert command.status_of(["run", str(alone)]) == Status.VIOLATION


def test_a_program_is_found_again_by_its_id() -> None:
    path = ROOT / "programs" / "tutorial" / "11_another_format.cap"
    obligation = obligation_of(parse(path.read_text(), str(path)))
    assert obligation.id == f"{path}.cc64"
    assert queries(load(obligation.id)).key() == queries(obligation).key()


@given(
    st.lists(st.tuples(st.sampled_from(["set", "clear tags", "swap"]), st.integers(0, 3), st.integers(0, 255)), max_size=6)
)
def test_a_symbolic_memory_is_swept_as_a_concrete_one(actions: list[tuple[str, int, int]]) -> None:
    symbolic, concrete = ArrayStore(64), SparseStore()
    for kind, index, value in actions:
        for store in (symbolic, concrete):
            if kind == "set":
                store.set(index, Granule(value % 2 == 1, value, value + 1))
            elif kind == "clear tags":
                store.map(lambda _index, granule: granule._replace(tag=False))
            else:
                store.map(lambda _index, granule: Granule(granule.tag, granule.lower, granule.upper))
    for index in range(4):
        found, expected = symbolic.get(index), concrete.get(index)
        assert all(z3.is_true(z3.simplify(term_of(one == other))) for one, other in zip(found, expected, strict=True)), (
            index,
            found,
            expected,
        )
