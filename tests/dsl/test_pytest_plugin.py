"""The pytest plugin: programs are tests, failures are readable, files of others are left alone."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from capvisor.cli import main as command
from capvisor.dsl import pytest_items
from capvisor.dsl.runner import Failure
from tests.tutorial import ROOT, TUTORIAL

pytest_plugins = ["pytester"]

MACHINE = "machine cc128 { memory 0x80000000 size 4K; c1 = root }\n"
WRONG_BELIEF = (ROOT / "docs" / "examples" / "wrong_belief.cap").read_text()
QUIET = ("-p", "no:cacheprovider", "-p", "no:randomly")


def program(pytester, text: str, name: str = "program.cap") -> Path:
    path = pytester.path / name
    path.write_text(text)
    return path


def output(result) -> str:
    return result.stdout.str()


def test_a_program_that_holds_passes_under_the_name_of_its_file(pytester) -> None:
    program(pytester, MACHINE + "clb x5, 0(c0)  !trap TagViolation\nassert x5 == 0\n", "loads.cap")
    result = pytester.runpytest(*QUIET, "-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["loads.cap::loads PASSED*"])


def test_programs_and_python_tests_are_collected_side_by_side_and_chosen_by_name(pytester) -> None:
    pytester.makepyfile(test_it="def test_it(): pass")
    (pytester.path / "sub").mkdir()
    program(pytester, MACHINE, "sub/one.cap")
    program(pytester, MACHINE, "two.cap")
    pytester.runpytest(*QUIET).assert_outcomes(passed=3)
    pytester.runpytest(*QUIET, "-k", "one").assert_outcomes(passed=1, deselected=2)
    pytester.runpytest(*QUIET, "sub/one.cap::one").assert_outcomes(passed=1)


def test_an_expectation_that_fails_is_readable(pytester) -> None:
    program(pytester, MACHINE + "clb x5, 0(c0)   !trap SealViolation\n")
    result = pytester.runpytest(*QUIET)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "program.cap:2: trap: `clb        x5, 0(c0)`: TagViolation, SealViolation expected",
            "    clb x5, 0(c0)   !trap SealViolation",
            "  again: capvisor run program.cap",
            "FAILED program.cap::program - trap: *",
        ]
    )
    assert "Traceback" not in output(result) and "pytest_items" not in output(result)


def test_an_assertion_that_fails_is_readable(pytester) -> None:
    program(pytester, MACHINE + "li x5, 1\nassert x5 == 2\n")
    result = pytester.runpytest(*QUIET, "--tb=short")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["program.cap:3: assertion: `assert x5 == 2` doesn't hold: x5 = 0x1", "    assert x5 == 2", "  again: *"]
    )
    one_line = pytester.runpytest(*QUIET, "--tb=line")
    one_line.stdout.fnmatch_lines(["program.cap:3: assertion: *"])


def test_a_failure_of_any_values_says_which_and_how_to_see_it_again(pytester, monkeypatch, capsys) -> None:
    program(pytester, WRONG_BELIEF)
    result = pytester.runpytest(*QUIET)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["  with: base = 0x*, len = 0x*"])
    (again,) = re.findall(r"again: capvisor (.*)", output(result))
    monkeypatch.chdir(pytester.path)
    capsys.readouterr()
    assert command.status_of(shlex.split(again)) == 1
    assert "program.cap:10: assertion" in capsys.readouterr().out


RARE = MACHINE + "let a = any u64\nlet b = any u64 where b < 256\nli x5, a\nli x6, b\nassert b < 0xfc\n"


def test_values_are_tried_in_as_many_lanes_as_is_said(pytester) -> None:
    program(pytester, RARE)
    pytester.runpytest(*QUIET, "--cap-lanes=0").assert_outcomes(passed=1)
    result = pytester.runpytest(*QUIET, "--cap-lanes=5000")
    result.assert_outcomes(failed=1)
    result.stdout.re_match_lines([r"program.cap:6: assertion: .* \(\d+ of 5000 lanes\)", "    assert b < 0xfc"])
    refused = pytester.runpytest(*QUIET, "--cap-lanes=-1")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR


def test_a_check_that_never_fired_is_told(pytester) -> None:
    program(pytester, MACHINE + "let a = any u64\nli x5, a\nassert a == 0x123456789a implies false\n")
    result = pytester.runpytest(*QUIET, "-rP")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["line 4: its condition held in none of 256 lanes*"])


def test_values_that_cannot_be_found_fail_the_program_with_the_reason(pytester) -> None:
    program(pytester, MACHINE + "let a = any u64 where a < 0\n")
    result = pytester.runpytest(*QUIET)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["program.cap:2: can't be run: *"])
    assert "Traceback" not in output(result)


def test_a_program_that_does_not_parse_is_an_error_with_the_parsers_message(pytester) -> None:
    program(pytester, MACHINE + "csetaddr c2 c1, x5\n")
    program(pytester, "\xff\n", "latin.cap").write_bytes(b"\xff\n")
    result = pytester.runpytest(*QUIET)
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        [
            "latin.cap: not a text file (UTF-8)",
            "program.cap:2:13: missing `,` after `c2`*",
            "    csetaddr c2 c1, x5",
            "*^",
        ]
    )
    assert "Traceback" not in output(result)


def test_binary_files_and_other_suffixes_are_left_alone(pytester) -> None:
    (pytester.path / "packets.cap").write_bytes(b"\xd4\xc3\xb2\xa1\x02\0\x04\0")
    program(pytester, "nonsense", "program.caps")
    program(pytester, MACHINE)
    pytester.runpytest(*QUIET).assert_outcomes(passed=1)


def test_it_can_be_switched_off(pytester) -> None:
    program(pytester, "nonsense")
    assert pytester.runpytest(*QUIET, "--no-cap").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    pytester.makeini("[pytest]\ncap_files = false")
    assert pytester.runpytest(*QUIET).ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_reports_for_machines_have_the_message(pytester) -> None:
    program(pytester, MACHINE + "li x5, 1\nassert x5 == 2\n")
    pytester.runpytest(*QUIET, "--junit-xml=report.xml")
    report = (pytester.path / "report.xml").read_text()
    assert 'name="program"' in report and 'message="assertion: `assert x5 == 2` doesn\'t hold: x5 = 0x1"' in report


def test_workers_of_xdist_show_the_same(pytester) -> None:
    program(pytester, MACHINE + "li x5, 1\nassert x5 == 2\n")
    result = pytester.runpytest_subprocess(*QUIET, "-n", "1")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["program.cap:3: assertion: *", "    assert x5 == 2", "  again: *"])


def test_implementations_that_differ_fail_a_program(pytester, monkeypatch) -> None:
    def differing(given, values):
        verdict = original(given, values)
        verdict.failure = Failure(2, "implementations differ", "c5: reference 0x0, fast path 0x1")
        return verdict

    original = pytest_items.run
    monkeypatch.setattr(pytest_items, "run", differing)
    program(pytester, MACHINE + "li x5, 1\n")
    result = pytester.runpytest_inprocess(*QUIET)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["program.cap:2: implementations differ: c5: *"])


def test_ctrl_c_in_a_campaign_ends_the_run(pytester, monkeypatch) -> None:
    original = pytest_items.fuzz

    def interrupted(*arguments):
        campaign = original(*arguments)
        campaign.interrupted = True
        return campaign

    monkeypatch.setattr(pytest_items, "fuzz", interrupted)
    program(pytester, MACHINE + "let a = any u8\nli x5, a\n")
    assert pytester.inline_run(*QUIET, no_reraise_ctrlc=True).ret == pytest.ExitCode.INTERRUPTED


def test_the_tutorial_passes_and_this_repositorys_own_run_does_not_collect_it(pytester) -> None:
    for path in TUTORIAL:
        program(pytester, path.read_text(), path.name)
    pytester.runpytest(*QUIET).assert_outcomes(passed=len(TUTORIAL))
    assert not list((ROOT / "tests").rglob("*.cap"))
    assert 'testpaths = ["tests"]' in (ROOT / "pyproject.toml").read_text()


def test_a_run_without_programs_loads_neither_the_language_nor_numpy() -> None:
    heavy = ("lark", "numpy", "z3", "hypothesis")
    text = f"import sys, capvisor.dsl.pytest_plugin; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_can_be_used_without_pytest() -> None:
    text = (
        "import sys; sys.modules['pytest'] = None; from capvisor.cli.verbs import capvisor;"
        "[capvisor.get_command(None, each) for each in capvisor.list_commands(None)]"
    )
    subprocess.run([sys.executable, "-c", text], check=True)


def test_the_page_shows_a_real_failure(pytester) -> None:
    page = (ROOT / "docs" / "pytest.md").read_text()
    shown = re.search(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert shown
    program(pytester, WRONG_BELIEF, "wrong_belief.cap")
    printed = output(pytester.runpytest(*QUIET))
    assert shown[1].strip() in "\n".join(line.rstrip() for line in printed.splitlines())
    assert "--no-cap" in page and "--cap-lanes" in page and "cap_files" in page


def test_programs_of_systems_are_tests_too(pytester) -> None:
    program(pytester, "system cvm { alice size 4K }\nalice: host_time 8\n", "good.cap")
    program(pytester, "system cvm { alice size 4K }\nalice: host_time 8K\n", "bad.cap")
    result = pytester.runpytest(*QUIET)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["bad.cap:2: result: `alice: host_time 8K`: refused RANGE, ok expected"])
