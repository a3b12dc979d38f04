"""Campaigns find what one run misses, count their checks, and give the same result for the same seed."""

from dataclasses import replace

import numpy as np
import pytest

from capvisor.dsl import campaign as campaigns
from capvisor.dsl.campaign import fuzz
from capvisor.dsl.errors import ProgramError
from capvisor.dsl.fields import FIELDS
from capvisor.dsl.lanes import LaneInt
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.runner import run, with_values
from capvisor.fastpath import bounds as fast_bounds
from capvisor.fastpath.machine import KERNELS

MACHINE = "machine cc128 { memory 0x80000000 size 4K; c1 = root }\n"
SET_UP = """let off = any u64
let len = any u64
li x5, off
li x6, len
csetaddr c2, c1, x5
csetbounds c3, c2, x6
"""


def test_a_rare_failure_is_found_and_runs_alone() -> None:
    # Bounds are exact for nearly all short lengths; that they always are is wrong.
    program = parse(MACHINE + SET_UP + "assert len < 0x2000 implies c3.length == len\n")
    campaign = fuzz(program, 50_000, 0)
    (finding,) = campaign.findings
    assert finding.failure.kind == "assertion" and finding.failure.line == 8
    assert 0x1000 <= finding.values["len"] < 0x2000
    assert 0 < finding.lanes < 25_000
    alone = parse(print_program(with_values(program, finding.values)))
    assert run(alone, finding.values).failure.line == 8


def test_the_same_seed_gives_the_same_campaign_and_another_seed_another() -> None:
    program = parse(MACHINE + SET_UP + "assert c3.base == off\n")
    first, again, other = fuzz(program, 40_000, 3), fuzz(program, 40_000, 3), fuzz(program, 40_000, 4)
    assert first == again
    assert first.findings != other.findings


def test_a_trap_that_comes_in_few_lanes_is_found() -> None:
    program = parse(MACHINE + SET_UP + "clb x7, 0(c3)  !trap LengthViolation when len == 0\n")
    kinds = {(finding.failure.line, finding.failure.kind) for finding in fuzz(program, 20_000, 0).findings}
    assert kinds == {(8, "trap")}


def test_checks_that_never_fire_are_counted() -> None:
    text = (
        SET_UP
        + "assert len == 0x123456789a implies false\nclb x7, 0(c0)  !trap TagViolation when true  !trap SealViolation\n"
    )
    campaign = fuzz(parse(MACHINE + text), 5_000, 0)
    assert campaign.untested == [8]
    assert campaign.checks == {(8, 0): 0, (9, 0): 5000}
    assert campaign.trapped["clb"] == 5000 and campaign.executed["clb"] == 5000


def test_lanes_without_values_are_discarded_and_counted() -> None:
    text = "let a = any u64\nlet b = any u64 where b < a and b & 0xff == 0x55\nli x5, a\nassert x5 > 0x55\n"
    campaign = fuzz(parse(MACHINE + text), 10_000, 0)
    assert campaign.discarded > 0
    assert campaign.lanes + campaign.discarded == 10_000
    assert not campaign.findings
    with pytest.raises(ProgramError, match="no values were found"):
        fuzz(parse(MACHINE + "let a = any u64 where a < 0\n"), 100, 0)


def test_implementations_that_differ_are_found_in_the_sample(monkeypatch) -> None:
    correct = fast_bounds.increment_is_representable

    def always(fmt, meta, address, increment, ws, out):
        correct(fmt, meta, address, increment, ws, out)
        out.fill(True)

    monkeypatch.setattr(fast_bounds, "increment_is_representable", always)
    program = parse(MACHINE + SET_UP + "cincoffset c4, c3, x5\n")
    campaign = fuzz(program, 2_000, 0, sample=64)
    (finding,) = campaign.findings
    assert finding.failure.kind == "implementations differ"
    assert "c4: reference" in finding.failure.message and "invalid" in finding.failure.message


def test_ctrl_c_keeps_what_was_done(monkeypatch) -> None:
    monkeypatch.setattr(campaigns, "CHUNK_LANES", 100)
    done: list[int] = []

    def progress(lanes: int) -> None:
        done.append(lanes)
        if len(done) == 3:
            raise KeyboardInterrupt

    campaign = fuzz(parse(MACHINE + SET_UP), 1_000, 0, progress=progress)
    assert campaign.interrupted and campaign.lanes == 300


def test_every_lane_takes_part() -> None:
    campaign = fuzz(parse(MACHINE + "let a = any u8\nli x5, a\nassert x5 < 256\n"), 33_000, 0)
    assert campaign.lanes == campaign.operations == campaign.assertions == 33_000
    assert campaign.comparisons == campaign.replayed == 48
    assert np.sum(list(campaign.executed.values())) == 33_000


def test_conditions_that_are_read_wrongly_on_the_fast_path_are_found(monkeypatch) -> None:
    wrong = replace(FIELDS["length"], read_lanes=lambda fmt, lanes, ws: LaneInt(np.full(len(lanes.meta), 7, np.uint64)))
    monkeypatch.setitem(FIELDS, "length", wrong)
    for assertion in (
        "assert c2.length == 7",
        "assert c2.length != 7",
        "clb x7, 0(c0)  !trap TagViolation when c2.length == 7",
    ):
        program = parse(MACHINE + f"csetboundsimm c2, c1, 16\n{assertion}\n")
        kinds = {finding.failure.kind for finding in fuzz(program, 100, 0).findings}
        assert "implementations differ" in kinds, assertion


def test_a_large_memory_is_looked_through_at_the_end(monkeypatch) -> None:
    def sneaky(block, *_operands):
        block.memory._halves[-1] = 1

    monkeypatch.setitem(KERNELS, "li", sneaky)
    for size, name in (("4K", "small"), ("4M", "large")):
        program = parse(f"machine cc128 {{ memory 0 size {size} }}\nli x0, 1\n")
        failure = run(program, {}).failure
        assert failure.kind == "implementations differ" and "memory at 0x" in failure.message, name
        assert any("memory at 0x" in finding.failure.message for finding in fuzz(program, 1, 0).findings)
