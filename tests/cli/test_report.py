"""`capvisor report`: the table, one campaign's details, JSON and the page."""

import json
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from capvisor.campaign.engine import Report, Settings
from capvisor.campaign.history import History
from capvisor.cli.status import Status
from capvisor.dsl.parser import parse
from capvisor.dsl.syntax import Instruction
from capvisor.files import STATE_FILE
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from tests.campaign.reports import STARTED, made_up_report

VOID = {"meta"}
"""Elements without an end."""

HOSTILE = "<script>alert(\"x\")</script> & 'quoted' </pre> <!-- ]]>"


class Page(HTMLParser):
    """Reads a page, and keeps what is in it. An end that doesn't belong to what is open is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@pytest.fixture
def state(tmp_path) -> Path:
    """A folder with three campaigns in its history, the second one with a finding whose details are hostile."""
    folder = tmp_path / "state"
    history = History(folder)
    history.record(Report(Settings("mixed", seed=1), programs=100, interrupted=True), 1.0, 1, "hypothesis", STARTED)
    history.record(made_up_report(details=(HOSTILE,)), 2.0, 2, "bulk", STARTED + timedelta(hours=1))
    history.record(made_up_report("memory"), 0.5, 2, "bulk", STARTED + timedelta(hours=2))
    return folder


def page_of(capvisor, state: Path, *arguments: object) -> Page:
    path = state.parent / "page.html"
    status, _out, _err = capvisor("report", "--state", state, "--html", path, *arguments)
    assert status == Status.OK
    return Page(path.read_text())


def test_the_table_has_a_row_for_each_campaign(capvisor, state) -> None:
    status, out, err = capvisor("report", "--state", state)
    assert status == Status.OK and not err
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["1", "2026-03-01", "12:30", "mixed", "cc128", "1", "hypothesis", "100", "0", "0", "0", "0", "3", "interrupted"],
        ["2", "2026-03-01", "13:30", "caps", "cc64", "7", "bulk", "1,024", "8,000", "4,000", "2", "1", "3"],
        ["3", "2026-03-01", "14:30", "memory", "cc64", "7", "bulk", "1,024", "8,000", "16,000", "2", "1", "3"],
    ]
    status, out, _err = capvisor("report", "--state", state, "--last", 1)
    assert [line.split()[0] for line in out.splitlines()] == ["id", "3"]


def test_one_campaign_is_shown_with_everything_that_is_known_of_it(capvisor, state) -> None:
    status, out, _err = capvisor("report", "--state", state, "--campaign", 2)
    assert status == Status.OK
    rows = [line.split() for line in out.splitlines()]
    for row in (
        "cld 2,000 1,500 75.0%",
        "csetbounds 6,000 0 0.0%",
        "TagViolation 1,000",
        "registers 5,000",
        "M1, monotonicity 8,000 5,000",
        f"512 1 {'#' * 25}",
        f"1,024 2 {'#' * 50}",
    ):
        assert row.split() in rows, row
    assert "inconclusive: never executed" in out and "inconclusive: never put to the test: M7, M8" in out
    assert "`csetbounds c2, c1, x5`: the implementations differ in registers" in out
    assert HOSTILE in out and "seen in 5 units of work" in out


def test_the_finding_of_a_report_is_a_program(capvisor, state) -> None:
    capvisor("report", "--state", state, "--campaign", 2, "--json", state / "out.json")
    (finding,) = json.loads((state / "out.json").read_text())["campaigns"][0]["findings"]
    operations = [each for each in parse(finding["program"], "finding").statements if isinstance(each, Instruction)]
    assert [each.name for each in operations] == ["li", "csetbounds"]


def test_json_says_all_that_is_kept(capvisor, state) -> None:
    assert capvisor("report", "--state", state, "--json", state / "out.json")[0] == Status.OK
    document = json.loads((state / "out.json").read_text())
    assert document["kind"] == "report" and [each["id"] for each in document["campaigns"]] == [1, 2, 3]
    second = document["campaigns"][1]
    assert second["started"] == "2026-03-01T13:30:15+00:00" and second["operations_per_second"] == 4000.0
    assert second["executed"] == {"cld": 2000, "csetbounds": 6000} and second["trapped"] == {"cld": 1500}
    assert second["growth"] == [[512, 1], [1024, 2]] and second["findings"][0]["details"] == [HOSTILE]


def test_the_page_is_well_formed_and_has_everything(capvisor, state) -> None:
    page = page_of(capvisor, state)
    assert page.tags.count("svg") == 3 and page.tags.count("table") == 1
    assert page.tags.count("polyline") == 2 and page.tags.count("pre") == 2
    assert sum(value.startswith("bar ") for name, value in page.attributes if name == "class") == 3 + 2
    for text in ("16,000", "cc64", "hypothesis", "interrupted", "3,000 of 4,000", "0 of 12,000", "csetbounds c2, c1, x5"):
        assert text in page.text, text
    assert page.text.index("3,000 of 4,000") < page.text.index("0 of 12,000")


def test_the_page_escapes_what_it_shows(capvisor, state) -> None:
    page = page_of(capvisor, state)
    assert HOSTILE in page.text and "script" not in page.tags
    assert "<script" not in (state.parent / "page.html").read_text()


def test_the_page_needs_nothing_from_elsewhere(capvisor, state) -> None:
    page = page_of(capvisor, state)
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not {"src", "href", "xlink:href", "onload", "onclick"} & {name for name, _value in page.attributes}
    text = (state.parent / "page.html").read_text()
    assert "url(" not in text and "@import" not in text and "http" not in text


def test_the_page_of_one_campaign_has_that_one_alone(capvisor, state) -> None:
    page = page_of(capvisor, state, "--campaign", 3)
    assert page.tags.count("polyline") == 1 and "hypothesis" not in page.text


def test_many_campaigns_of_any_size_are_plotted_within_the_frame(capvisor, tmp_path) -> None:
    history = History(tmp_path / "state")
    for size in range(60):
        many = 10 ** (size % 15)
        growth = [(point * size * many, many) for point in range(1, 500)][: size * 9]
        history.record(Report(Settings(), operations=many, growth=growth), 1e-3, 1, "bulk", STARTED)
    page = page_of(capvisor, tmp_path / "state", "--last", 60)
    places = [value for name, value in page.attributes if name == "points"]
    assert len(places) == 59 and all(len(each.split()) <= 200 for each in places)
    assert all(0 <= float(number) <= 760 for each in places for number in each.replace(",", " ").split())


@pytest.mark.parametrize("made", [False, True], ids=["no folder", "no campaigns"])
def test_an_empty_history_is_no_error(capvisor, tmp_path, made: bool) -> None:
    folder = tmp_path / "state"
    if made:
        History(folder)
    outputs = ["--json", tmp_path / "out.json", "--html", tmp_path / "out.html"]
    status, out, err = capvisor("report", "--state", folder, *outputs)
    assert status == Status.OK and not err
    assert out == f"no campaigns are kept in {folder / STATE_FILE}: `capvisor fuzz` without files adds one\n"
    assert json.loads((tmp_path / "out.json").read_text())["campaigns"] == []
    assert "No campaigns are kept." in Page((tmp_path / "out.html").read_text()).text
    assert folder.exists() == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--campaign", 4], "there is no campaign 4 in"),
        (["--campaign", 1, "--last", 2], "--last and --campaign both say what to show"),
        (["--last", 0], "0 is not in the range x>=1"),
        (["--html", "missing/page.html"], "there is no folder missing"),
        (["--html", f"state/{STATE_FILE}"], "it is an input"),
        (["--state", "damaged"], "not a usable database: file is not a database"),
    ],
)
def test_wrong_use_gets_one_clear_message(capvisor, state, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(state.parent)
    Path("damaged").mkdir()
    (Path("damaged") / STATE_FILE).write_bytes(b"no database " * 100)
    status, out, err = capvisor("report", "--state", "state", *arguments)
    assert status == Status.USAGE and not out
    assert message in err and err.startswith("capvisor: ")
    assert len(History(state).campaigns()) == 3


def test_the_state_is_where_the_environment_says(capvisor, state, monkeypatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(state.parent))
    state.rename(state.parent / "capvisor")
    status, out, _err = capvisor("report")
    assert status == Status.OK and "hypothesis" in out


def test_invariants_have_the_titles_of_what_the_campaign_is_about(capvisor, tmp_path) -> None:
    report = made_up_report("cvm")
    report.evaluated.clear()
    report.evaluated.update({"C1": 100, "C19": 7, "C99": 1})
    History(tmp_path).record(report, 1.0, 1, "bulk", STARTED)
    status, out, _err = capvisor("report", "--state", tmp_path, "--campaign", 1)
    assert status == Status.OK
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(line.startswith(f"C1, {CVM_INVARIANTS['C1'].title} 100") for line in lines)
    assert any(line.startswith(f"C19, {CVM_INVARIANTS['C19'].title} 7") for line in lines)
    assert any(line.startswith("C99 1") for line in lines)
