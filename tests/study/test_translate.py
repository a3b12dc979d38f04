"""`capvisor translate` as a user sees it."""

import json
import os
import signal

import jsonschema
import pytest

from capvisor.cli import main as command
from capvisor.cli import translate
from capvisor.cli.status import Status
from capvisor.study import results, simulator
from tests.tutorial import ROOT

SCHEMA = json.loads((ROOT / "cli" / "schemas" / "translate.schema.json").read_text())
QUICK = ("--workload", "key-value", "--size", "1M", "--accesses", "20000")


@pytest.fixture
def capvisor(capsys):
    def run(*arguments):
        status = command.status_of(["translate", *(str(argument) for argument in arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return status, captured.out, captured.err

    return run


def test_a_workload_gives_a_table_json_and_pictures(capvisor, tmp_path):
    paths = [tmp_path / name for name in ("r.json", "p.png", "p.svg")]
    status, out, _err = capvisor(*QUICK, "--impl", "both", "--json", paths[0], "--plot", paths[1], "--plot", paths[2])
    assert status == Status.OK
    assert "Both simulators count the same." in out and translate.A_MODEL in out
    document = json.loads(paths[0].read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["complete"] and document["results"][0]["accesses"] == 20000
    assert paths[1].read_bytes().startswith(b"\x89PNG") and b"<svg" in paths[2].read_bytes()
    assert f"over shadow {document['results'][0]['tpt_speed_up']['shadow']:.3f}" in out


def test_the_reference_alone_prints_the_same_table(capvisor):
    assert capvisor(*QUICK, "--impl", "reference")[1] == capvisor(*QUICK)[1]


def test_a_sweep_simulates_each_value_as_it_is_alone(capvisor, tmp_path):
    status, out, _err = capvisor(
        *QUICK, "--sweep", "tlb.l2.entries=96,1536", "--json", tmp_path / "s.json", "--plot", tmp_path / "s.svg"
    )
    assert status == Status.OK and "tlb.l2.entries" in out
    document = json.loads((tmp_path / "s.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert [each["label"] for each in document["results"]] == ["96", "1536"]
    capvisor(*QUICK, "--set", "tlb.l2.entries=96", "--json", tmp_path / "one.json")
    (alone,) = json.loads((tmp_path / "one.json").read_text())["results"]
    assert alone["modes"] == document["results"][0]["modes"]
    assert alone["modes"]["native"]["walks"] > document["results"][1]["modes"]["native"]["walks"]


def test_a_warm_up_is_taken_off(capvisor, tmp_path):
    capvisor(*QUICK, "--json", tmp_path / "all.json")
    capvisor(*QUICK, "--warm-up", "5000", "--json", tmp_path / "rest.json")
    whole, rest = (json.loads((tmp_path / name).read_text())["results"][0] for name in ("all.json", "rest.json"))
    assert rest["accesses"] == 15000
    assert rest["events"]["faults"] < whole["events"]["faults"]
    status, _out, err = capvisor(*QUICK, "--warm-up", "20000")
    assert status == Status.USAGE and "nothing is left" in err


def test_a_trace_is_read_by_its_name_or_format(capvisor, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("0x1000\n0x2000\nunmap,0x1000\n0x1000\n")
    status, out, _err = capvisor(path)
    assert status == Status.OK and "3 accesses, 3 faults, 0 maps, 1 unmaps" in out
    other = path.rename(tmp_path / "t.txt")
    assert capvisor(other, "--format", "csv")[0] == Status.OK
    status, _out, err = capvisor(other)
    assert status == Status.USAGE and "give --format" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either a trace or --workload"),
        (("x.csv", *QUICK), "give either a trace or --workload"),
        (("absent.csv",), "there is no such file"),
        ((*QUICK, "--set", "levels=7"), "4 or 5 levels"),
        ((*QUICK, "--set", "levels"), "expected NAME=VALUE"),
        ((*QUICK, "--sweep", "levels=4,4"), "values that differ"),
        ((*QUICK, "--preset", "z80"), "no preset `z80`"),
        ((*QUICK, "--plot", "p.pdf"), ".png or .svg"),
        ((*QUICK, "--size", "4X"), "no size"),
        (("--workload", "gups", "--size", "4"), "a workload's data has"),
    ],
)
def test_what_cant_be_done_gets_one_message(capvisor, arguments, message):
    status, out, err = capvisor(*arguments)
    assert status == Status.USAGE and message in err and out == ""


def test_addresses_must_be_canonical_for_the_depth(capvisor, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("0x1000\n0x00ff000000000000\n0xffffffffff600000\n")
    status, _out, err = capvisor(path)
    assert status == Status.USAGE and "access 2: 0xff000000000000 is no canonical address of 4-level" in err
    assert capvisor(path, "--set", "levels=5")[0] == Status.OK


def test_plots_without_matplotlib_get_a_message(capvisor, monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    status, _out, err = capvisor(*QUICK, "--plot", tmp_path / "p.png")
    assert status == Status.USAGE and "capvisor[plots]" in err


def test_an_interruption_keeps_what_was_simulated(capvisor, monkeypatch):
    real, fed = results.Study.feed, []

    def feed(study, chunk):
        real(study, chunk)
        fed.append(chunk)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(results.Study, "feed", feed)
    status, out, _err = capvisor(*QUICK)
    assert status == Status.INCONCLUSIVE and "Interrupted" in out and len(fed) == 1


def test_simulators_that_differ_are_a_violation(capvisor, monkeypatch):
    real = simulator.Simulator.counts
    monkeypatch.setattr(simulator.Simulator, "counts", lambda self: {**real(self), "walks": real(self)["walks"] + 1})
    status, out, _err = capvisor(*QUICK, "--impl", "both")
    assert status == Status.VIOLATION and "walks is" in out


def test_the_list_names_presets_and_workloads(capvisor):
    status, out, _err = capvisor("--list")
    assert status == Status.OK and "preset zen2" in out and "workload gups" in out
