"""Peers that speak JSON lines: one that agrees, those that lie, and those that can't be used."""

import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from capvisor.campaign.case import MEMORY_BASE, Case
from capvisor.campaign.json_peer import JsonPeer
from capvisor.campaign.peer import PeerDifference, PeerError
from capvisor.model import isa
from capvisor.spec.formats import FORMATS
from capvisor.spec.operations import OPERATIONS, Mode
from tests.support import random_operands
from tests.tutorial import ROOT

assert isa  # imported for the rules that it declares
EXAMPLE = ROOT / "docs" / "examples" / "peer.py"
PYTHON = shlex.quote(sys.executable)
GREETING = 'import json, os, sys, time\nprint(\'{"protocol": "capvisor-peer", "version": 2}\', flush=True)\n'
PATIENCE_S, SHORT_S = 30, 0.5

# A peer that passes on what the example says, `answer`, with something changed.
LIAR = """
import json, subprocess, sys
peer = subprocess.Popen([sys.executable, {example!r}], stdout=subprocess.PIPE, text=True)
for line in peer.stdout:
    answer = json.loads(line)
    step = answer.get("step")
    {lie}
    print(json.dumps(answer), flush=True)
"""

# c2 and c3 are over memory; the capability c2 is stored, a byte loaded; an access outside of c3 is refused.
HAND_MADE = Case(
    "cc128",
    (
        ("li", (5, MEMORY_BASE + 0x20)),
        ("csetaddr", (2, 1, 5)),
        ("csetboundsimm", (3, 2, 16)),
        ("sc.cap", (2, 3)),
        ("lb.cap", (6, 3)),
        ("cincoffsetimm", (3, 3, 16)),
        ("lb.cap", (6, 3)),
        ("cmove", (7, 2)),
    ),
)
STORE, REFUSED = 3, 6

Open = Callable[..., JsonPeer]


def is_running(pid: int) -> bool:
    """Whether a process exists, zombies included."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Open]:
    """Start a peer from the text of a script; each is closed, and must leave nothing behind."""
    peers: list[JsonPeer] = []

    def opened(text: str, timeout_s: float = PATIENCE_S) -> JsonPeer:
        script = tmp_path / "peer.py"
        script.write_text(text)
        peers.append(JsonPeer(f"{PYTHON} {shlex.quote(str(script))}", PATIENCE_S))
        assert peers[-1]._process is not None
        peers[-1]._process._timeout_s = timeout_s  # Python itself takes its time to start
        return peers[-1]

    yield opened
    for peer in peers:
        pid = peer._process.pid if peer._process else None
        peer.close()
        assert pid is None or not is_running(pid)


@pytest.fixture
def lying(start: Open) -> Callable[[str], JsonPeer]:
    return lambda lie: start(LIAR.format(example=str(EXAMPLE), lie=lie))


@pytest.fixture(scope="module")
def example() -> Iterator[JsonPeer]:
    peer = JsonPeer(f"{PYTHON} {shlex.quote(str(EXAMPLE))}", PATIENCE_S)
    yield peer
    peer.close()


# -- agreement ------------------------------------------------------------------------------------------------------------


def test_the_example_has_forty_lines_at_most() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 40


def test_the_example_agrees_on_a_case_made_by_hand(example: JsonPeer) -> None:
    assert example.check(HAND_MADE) is None
    assert example.name == "fast path"


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_example_agrees_on_every_operation(example: JsonPeer, fmt: str) -> None:
    rng = np.random.default_rng(list(fmt.encode()))
    case = Case(fmt, ())
    names = [name for name, row in OPERATIONS.items() if row.minimum_xlen <= case.capability_format.address_width]
    before = example.operations
    for _ in range(3):
        chosen = [str(name) for name in rng.permutation(names)]
        # What leaves PCC useless would have all else refused: behind the others, each in a case of its own.
        leaving = [name for name in chosen if OPERATIONS[name].group.value in ("control flow", "system")]
        others = [name for name in chosen if name not in leaving]
        for group in (others, *([name] for name in leaving)):
            operations = tuple((name, random_operands(rng, case.capability_format, name)) for name in group)
            assert example.check(case.with_operations(operations)) is None
    assert example.operations - before == 3 * len(names)


def test_a_case_without_operations_has_its_start_compared(example: JsonPeer) -> None:
    assert example.check(Case("cc64", ())) is None


def test_negative_operands_and_a_long_case_reach_the_peer(example: JsonPeer) -> None:
    operations = (("li", (5, -1)), ("addi", (6, 5, -2048))) * 2000
    assert example.check(Case("cc128", operations)) is None


# -- lies -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lie", "step", "what"),
    [
        ("if step == 2: answer['registers']['c3']['address'] = '0x80000021'", 2, "c3.address"),
        ("if step == 2: answer['registers']['c3']['tag'] = 0", 2, "c3.tag"),
        ("if step == 2: answer['registers']['c3']['meta'] = '0x0'", 2, "c3.meta"),
        ("if step == 2: del answer['registers']", 2, "c3.tag"),
        ("if step == 1: answer['registers']['c9'] = answer['registers']['c2']", 1, "c9.tag"),
        ("if step == 3: del answer['memory']", 3, "memory at 0x80000020"),
        ("if step == 3: answer['memory']['0x80000000'] = answer['memory']['0x80000020']", 3, "memory at 0x80000000"),
        ("if step == 6: answer['trap']['cause'] = 'TagViolation'", 6, "trap"),
        ("if step == 6: answer['trap']['value'] = '0x1'", 6, "trap"),
        ("if step == 6: answer['trap'] = None", 6, "trap"),
        ("if step == 6: del answer['csrs']['mcause']", 6, "mcause"),
        ("if step == 6: del answer['special']['mepcc']", 6, "mepcc.address"),
        ("if step == 5: answer['trap'] = {'cause': 'Breakpoint', 'value': '0x0'}", 5, "trap"),
        ("if step == 4: answer['pc'] = '0x0'", 4, "pc"),
        ("if step == 7: answer['special'] = {'ddc': {'tag': 0, 'meta': '0x0', 'address': '0x0'}}", 7, "ddc.tag"),
        ("if step == -1: answer['registers'] |= {'c0': answer['registers']['c1']}", -1, "c0.tag"),
    ],
)  # fmt: skip
def test_a_lie_is_a_difference_at_its_step(lying: Callable[[str], JsonPeer], lie: str, step: int, what: str) -> None:
    peer = lying(lie)
    found = peer.check(HAND_MADE)
    assert found is not None
    assert (found.step, found.what) == (step, what)
    assert found.expected != found.actual
    # Once more: the rest of the case has been read, and the peer is still the same process.
    assert peer.check(HAND_MADE) == found


def test_a_difference_says_what_both_hold(lying: Callable[[str], JsonPeer]) -> None:
    peer = lying("if step == 6: answer['trap']['cause'] = 'TagViolation'")
    assert peer.check(HAND_MADE) == PeerDifference(REFUSED, "trap", "LengthViolation 0x61", "TagViolation 0x61")
    assert str(peer.check(HAND_MADE)) == "trap: reference LengthViolation 0x61, peer TagViolation 0x61"


def test_a_difference_is_reported_even_if_the_peer_then_crashes(lying: Callable[[str], JsonPeer]) -> None:
    peer = lying("if step == 2: answer['pc'] = '0x0'\n    if step == 4: sys.exit(1)")
    for _ in range(2):
        found = peer.check(HAND_MADE)
        assert found is not None and (found.step, found.what) == (2, "pc")


# -- what a peer leaves out -----------------------------------------------------------------------------------------------


def greeting_with(extra: str) -> str:
    return f"if step is None and 'protocol' in answer: answer |= {extra}"


def test_what_a_peer_does_not_report_is_not_compared_and_named(lying: Callable[[str], JsonPeer]) -> None:
    drop = "for part in ('csrs', 'special', 'trap'): answer.pop(part, None)"
    peer = lying(f"{greeting_with(repr({'reports': ['registers', 'memory', 'pc']}))}\n    {drop}")
    assert peer.check(HAND_MADE) is None
    assert peer.never_compared == ["trap", "csrs", "special"]


def test_unsupported_operations_are_left_out_and_steps_still_count_in_the_case(lying: Callable[[str], JsonPeer]) -> None:
    peer = lying(
        f"{greeting_with(repr({'unsupported': ['csetboundsimm', 'lb.cap']}))}\n    if step == 3: answer['pc'] = '0x0'"
    )
    found = peer.check(HAND_MADE)
    assert found is not None
    assert (found.step, found.what) == (5, "pc")  # the fourth of those that are left
    assert peer.never_compared == ["the address of pcc", "csetboundsimm", "lb.cap"]


def test_operations_of_the_other_mode_are_left_out_for_a_peer_that_decodes_by_pcc(lying: Callable[[str], JsonPeer]) -> None:
    peer = lying(greeting_with(repr({"decodes_by_pcc": True})))
    case = Case("cc128", (("clb", (5, 1, 0)), ("lb", (5, 1, 0)), ("cmove", (2, 1))))
    assert OPERATIONS["clb"].mode is Mode.CAPABILITY
    assert peer.check(case) is None
    assert peer.operations == 2


def test_another_format_is_refused_and_the_peer_stays(lying: Callable[[str], JsonPeer]) -> None:
    peer = lying(greeting_with(repr({"formats": ["cc128"]})))
    with pytest.raises(PeerError, match=r"^fast path: it has no cc64, but cc128$"):
        peer.check(Case("cc64", ()))
    assert peer.check(HAND_MADE) is None


# -- peers that can't be used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("/nowhere/emulator --json", "/nowhere/emulator --json: can't be started: .*No such file"),
        ("emulator 'unfinished", "can't be started: No closing quotation"),
        ("", "can't be started: the command is empty"),
        ("false", "false: exited with status 1 \\(at its start\\)"),
        ("echo hello", "what it says is no JSON \\(at its start\\): `hello`"),
        ("echo '[1]'", "what it says is no JSON object"),
        ("echo '{}'", "it doesn't greet with"),
        ('echo \'{"protocol": "capvisor-peer", "version": 3}\'', "it speaks version 3 of the protocol"),
        ('echo \'{"protocol": "capvisor-peer", "version": 2, "reports": ["x"]}\'', '`reports`: there is no "x"'),
        ('echo \'{"protocol": "capvisor-peer", "version": 2, "reports": []}\'', "it reports nothing"),
        ('echo \'{"protocol": "capvisor-peer", "version": 2, "reprots": []}\'', "the key `reprots` has no meaning"),
        ('echo \'{"protocol": "capvisor-peer", "version": 2, "formats": "cc64"}\'', "`formats` is to be a list"),
        ('echo \'{"protocol": "capvisor-peer", "version": 2, "name": 1}\'', "`name` is to be a string"),
    ],
)
def test_a_command_that_is_no_peer_is_refused_at_once(command: str, message: str) -> None:
    with pytest.raises(PeerError, match=message) as caught:
        JsonPeer(command, PATIENCE_S)
    assert "\n" not in str(caught.value)


READ = "line = sys.stdin.readline()\n"
START = "print('{\"step\": -1}', flush=True)\n"
AT_STEP_0 = r"\(in case 1, at step 0, `li x5, 0x80000020`\)"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f"{READ}{START}sys.exit('no such register\\nreally')", rf"status 1: no such register \| really {AT_STEP_0}"),
        (f"{READ}os.kill(os.getpid(), 11)", r"was ended by SIGSEGV \(in case 1, at the start\)"),
        (f"{READ}sys.exit(0)", r"exited with status 0 \(in case 1, at the start\)"),
        ("sys.stdin.close(); sys.exit(3)", r"exited with status 3 \(in case 1, at the start\)"),
        (f"{READ}os.close(1); time.sleep(60)", r"closed its output, and goes on running \(in case 1, at the start\)"),
        (f"{READ}{START}time.sleep(60)", f"no answer within 0.5 s {AT_STEP_0}"),
        ("time.sleep(60)", r"no answer within 0.5 s \(in case 1, at the start\)"),
        (
            f"{READ}{START}print('{{\"step\"', end='', flush=True); time.sleep(60)",
            'no answer within 0.5 s; of its line there is `{"step"` ' + AT_STEP_0,
        ),
        (f"{READ}{START}print('trap!' * 100)", f"what it says is no JSON {AT_STEP_0}: `(trap!)+\\.\\.\\.`"),
        (f"{READ}{START}print('[' * 100000)", "what it says is no JSON"),
        (f"{READ}{START}print('\\\\x1b[31m\\\\xff')", "what it says is no JSON"),
        (f"{READ}print('x' * (2 << 20))", "a line of more than 1048576 bytes: `x+"),
        (f"{READ}{START}print('{{\"done\": 1}}')", f"too few answers: .* {AT_STEP_0}: `{{\"done\": 1}}`"),
        (f"{READ}{START}print('{{\"step\": 5}}')", "it answers step 5 where 0 is due"),
        (f"{READ}{START}{START}", "it answers step -1 where 0 is due"),
        (f"{READ}print('{{\"step\": -1, \"register\": {{}}}}')", "the key `register` has no meaning here"),
        (f"{READ}print('{{\"step\": -1, \"registers\": []}}')", "`registers` is to be an object"),
        (f"{READ}print('{{\"step\": -1, \"registers\": {{\"c32\": 0}}}}')", "there is no register `c32` in `registers`"),
        (f"{READ}print('{{\"step\": -1, \"registers\": {{\"c1\": 0}}}}')", "`c1` is to have `tag`, `meta` and `address`"),
        (f"{READ}print('{{\"step\": -1, \"pc\": 16}}')", 'is to be a string such as "0x1f" of at most 64 bits'),
        (f"{READ}print('{{\"step\": -1, \"pc\": \"0x1_0\"}}')", "is to be a string"),
        (f"{READ}print('{{\"step\": -1, \"csrs\": {{\"mepc\": \"0x0\"}}}}')", "there is no CSR `mepc` to report"),
        (f"{READ}print('{{\"step\": -1, \"memory\": {{\"0x0\": 0}}}}')", "there is no granule of memory at 0x0"),
        (f"{READ}print('{{\"step\": -1, \"memory\": {{\"0x80000008\": 0}}}}')", "no granule of memory at 0x80000008"),
        (f"{READ}print('{{\"step\": -1, \"trap\": \"no\"}}')", "`trap` is to be null or to have"),
        (
            f"{READ}print('{{\"step\": -1, \"trap\": {{\"cause\": \"Bad\", \"value\": \"0x0\"}}}}')",
            'there is no cause "Bad"',
        ),
    ],
)  # fmt: skip
def test_a_peer_that_fails_is_reported_in_a_line_and_ended(start: Open, script: str, message: str) -> None:
    peer = start(GREETING + script, SHORT_S if "no answer" in message else PATIENCE_S)
    assert peer._process is not None
    pid = peer._process.pid
    with pytest.raises(PeerError, match=message) as caught:
        peer.check(HAND_MADE)
    assert "\n" not in str(caught.value)
    assert not is_running(pid)


def test_too_many_answers_are_told_from_a_lie(lying: Callable[[str], JsonPeer]) -> None:
    peer = lying("""if 'done' in answer: print('{"step": 8}')""")
    with pytest.raises(PeerError, match=r"^fast path: too many answers: .* \(in case 1, after its last operation\)"):
        peer.check(HAND_MADE)


def test_a_peer_that_fails_is_started_again(start: Open, tmp_path: Path) -> None:
    crash = f"if step == 4 and not __import__('os').path.exists({str(tmp_path / 'crashed')!r}):\n"
    crash += f"        open({str(tmp_path / 'crashed')!r}, 'w').close(); peer.kill(); peer.wait(); sys.exit('out of luck')"
    peer = start(LIAR.format(example=str(EXAMPLE), lie=crash))
    with pytest.raises(PeerError, match=r"exited with status 1: out of luck .*in case 1, at step 4"):
        peer.check(HAND_MADE)
    assert peer.check(HAND_MADE) is None


def test_a_peer_that_does_not_listen_or_floods_does_not_block(start: Open) -> None:
    long = Case("cc128", (("addi", (5, 5, 1)),) * 20_000)
    deaf = start(f"{GREETING}time.sleep(60)", timeout_s=SHORT_S)
    with pytest.raises(PeerError, match=r"no answer within 0\.5 s"):
        deaf.check(long)
    flooding = start(f"{GREETING}while True: print('{{}}' * 1000)", timeout_s=SHORT_S)
    with pytest.raises(PeerError, match="what it says is no JSON"):
        flooding.check(long)
    noisy = start(f"{GREETING}while True: sys.stderr.write('no! ' * 1000)", timeout_s=SHORT_S)
    with pytest.raises(PeerError, match=r"no answer within 0\.5 s"):
        noisy.check(long)


def test_what_a_peer_has_started_is_ended_with_it(start: Open, tmp_path: Path) -> None:
    child = tmp_path / "child"
    starts = f"import subprocess; open({str(child)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n"
    peer = start(f"{GREETING}{READ}{starts}time.sleep(60)", timeout_s=SHORT_S)
    with pytest.raises(PeerError, match="no answer"):
        peer.check(HAND_MADE)
    # A zombie of another parent than us is gone when that has looked after it.
    pid, deadline = int(child.read_text()), time.monotonic() + PATIENCE_S
    while is_running(pid) and " Z " not in Path(f"/proc/{pid}/stat").read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid) or " Z " in Path(f"/proc/{pid}/stat").read_text()


def test_an_interrupted_check_ends_the_peer(lying: Callable[[str], JsonPeer], monkeypatch) -> None:
    peer = lying("pass")
    assert peer._process is not None
    process = peer._process
    real = process.receive

    def interrupted() -> bytes:
        monkeypatch.setattr(process, "receive", interrupt)
        return real()

    def interrupt() -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        peer.check(HAND_MADE)
    assert not is_running(process.pid)
    assert peer.check(HAND_MADE) is None


def test_closing_lets_the_peer_finish_and_may_be_done_twice(start: Open, tmp_path: Path) -> None:
    peer = start(f"{GREETING}sys.stdin.read(); open({str(tmp_path / 'finished')!r}, 'w').close()")
    peer.close()
    peer.close()
    assert (tmp_path / "finished").exists()


def test_the_page_about_peers_names_every_field_and_part() -> None:
    page = (ROOT / "docs" / "peers.md").read_text()
    from capvisor.campaign import json_peer

    source = (ROOT / "campaign" / "json_peer.py").read_text()
    request = re.findall(r'^\s+"(\w+)": ', source, re.MULTILINE)
    for name in {*json_peer.PARTS, *json_peer.CSRS, *request, "reports", "formats", "unsupported", "decodes_by_pcc"}:
        assert f"`{name}`" in page or f'"{name}"' in page, name
