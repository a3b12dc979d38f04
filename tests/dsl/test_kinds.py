"""Another kind of system: a row and its own rooms are all that it takes."""

import sys
from dataclasses import dataclass, replace
from enum import IntEnum
from types import SimpleNamespace

import pytest

from capvisor.cli import step_proofs, systems
from capvisor.cli.status import Status
from capvisor.cli.step_proofs import STEP_PROOFS
from capvisor.cli.systems import SYSTEM_TOOLS
from capvisor.dsl.check_system import SystemChecker
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.runner import Failure
from capvisor.dsl.syntax import Call
from capvisor.dsl.system_kinds import CVM, SYSTEM_KINDS
from capvisor.dsl.system_runner import Executed, Violation, run_system
from tests.cli.conftest import capvisor

assert capvisor


class Answer(IntEnum):
    OK = 0
    FULL = 1


@dataclass(frozen=True)
class Policy:
    lids: bool = True


class JarChecker(SystemChecker):
    """Of systems of jars, which agents `fill` up to their size."""

    def _set_up(self, system) -> None:
        self.jars = {region.name for region in system.regions}

    def _by(self, agent, action) -> None:
        if agent.name not in self.jars:
            raise self._error(f"there is no jar `{agent.name}`", agent.position)
        if not isinstance(action, Call):
            raise self._error("jars are filled, no more", action.position)
        self._result(action.result, (Answer.OK, Answer.FULL), "`fill`")


class JarRun:
    """Counts what is filled in. Without `lids`, a jar takes more than its size, which violates J1."""

    def __init__(self, program, values, policy, verdict, watch, *_others) -> None:
        self.sizes = {region.name: values[region.name] for region in program.system.regions}
        self.full = dict.fromkeys(self.sizes, 0)
        self.policy, self.verdict, self.watch, self.line = policy, verdict, watch, 0

    def set_up(self) -> None:
        pass

    def execute(self, statement) -> Failure | None:
        name, result = statement.agent.name, statement.action.result
        self.verdict.calls += 1
        code = Answer.OK
        if self.full[name] == self.sizes[name] and self.policy.lids:
            code = Answer.FULL
        else:
            self.full[name] += 1
        if self.full[name] > self.sizes[name]:
            self.verdict.violations.setdefault("J1", Violation(self.line, "fill", name))
        self.watch(Executed(self.line, name, "fill", f"-> {code.name}", None, None, None))
        expected = "OK" if result is None else result.code
        return None if code.name == expected else Failure(self.line, "result", f"{code.name}, {expected} expected")


@pytest.fixture
def jars(monkeypatch) -> None:
    def constants(program) -> dict[str, int]:
        return {region.name: region.size.value for region in program.system.regions}

    room = SimpleNamespace(JarChecker=JarChecker, JarRun=JarRun, constants=constants)
    monkeypatch.setitem(sys.modules, "jar_rooms", room)
    fill = SimpleNamespace(name="fill", number=1, arguments=(), all_refusals=(Answer.FULL,), summary="One more.")
    kind = replace(
        CVM,
        name="jars",
        policy=Policy,
        policies={"intended": Policy(), "open": Policy(lids=False)},
        guards={"lids": SimpleNamespace(name="lids", meaning="Full is full.", source="ours")},
        invariants={"J1": SimpleNamespace(name="J1", title="bounds", statement="No jar overflows.")},
        calls={"fill": fill},
        codes=Answer,
        example="system jars { a size 2 }",
        checker="jar_rooms:JarChecker",
        runner="jar_rooms:JarRun",
        constants="jar_rooms:constants",
    )
    monkeypatch.setitem(SYSTEM_KINDS, "jars", kind)
    tracer = lambda write: lambda step: write(f"{step.agent} {step.text} {step.outcome}")  # noqa: E731
    monkeypatch.setitem(systems.SYSTEM_TOOLS, "jars", replace(SYSTEM_TOOLS["cvm"], tracer=tracer))
    proofs = replace(STEP_PROOFS["cvm"], steps=lambda: {"fill": "call"}, all_steps=lambda: {"fill": "call"})
    monkeypatch.setitem(step_proofs.STEP_PROOFS, "jars", proofs)


PROGRAM = "system jars { a size 1 }\na: fill\na: fill  -> refused FULL\n"


@pytest.mark.usefixtures("jars")
def test_its_programs_are_parsed_printed_and_run() -> None:
    program = parse(PROGRAM)
    assert print_program(program) == PROGRAM
    verdict = run_system(program, {})
    assert verdict.passed and verdict.calls == 2 and verdict.policy == "intended"
    failed = run_system(parse(PROGRAM.replace("size 1", "size 1; policy open")), {})
    assert failed.failure is not None and failed.failure.text == "`fill` violates J1 (bounds) at a. No jar overflows."
    expected = parse(PROGRAM.replace("size 1", "size 1; policy open").replace("refused FULL", "ok") + "expect violates J1\n")
    assert run_system(expected, {}).passed


@pytest.mark.usefixtures("jars")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("system jars { a size 1 }\nb: fill\n", "there is no jar `b`"),
        ("system jars { a size 1 }\na: fill -> refused RANGE\n", "unknown code `RANGE`: there are FULL"),
        ("system jars { a size 1 }\ndeployer: destroy a\n", "nothing is deployed in a system of kind `jars`"),
        ("system jars { a size 1; policy shut }\n", "unknown policy `shut`"),
        ("system jars { a size 1 }\nexpect violates C1\n", "unknown invariant `C1`"),
        ("system jars { a size 1 }\na: file_revoke 1 -> ok\n", "only a call has a result"),
        ("system cvm { a size 4K }\na: fill -> ok\n", "only a call has a result"),
        ("a: fill\n", "` or `system jars { a size 2 }`, and no machine"),
    ],
)
def test_its_errors_are_its_own(text: str, message: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse(text)
    assert message in caught.value.message


@pytest.mark.usefixtures("jars")
def test_the_command_runs_lists_and_proves_it(capvisor, tmp_path) -> None:
    path = tmp_path / "a.cap"
    path.write_text(PROGRAM)
    status, out, _err = capvisor("run", path, "--trace", "--cost", "--impl", "reference")
    assert status == Status.OK and "a fill -> FULL" in out
    status, _out, err = capvisor("run", path, "--policy", "without:doors", "--impl", "reference")
    assert status == Status.USAGE and "unknown guard `doors`: there are lids" in err
    status, out, _err = capvisor("prove", "jars", "--list")
    assert status == Status.OK and "fill.cc64" in out
