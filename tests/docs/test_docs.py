"""What the documentation shows is what happens: every console block is run, every page is generated and built from."""

import json
import re
import shlex
from pathlib import Path

import pytest

from capvisor.cli import main as command
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.proofs import runner
from capvisor.proofs.theorem import THEOREMS, obligations
from capvisor.spec.operations import OPERATIONS
from tests.docs.generator import load_generator
from tests.tutorial import ROOT

assert runner  # imported for the theorems that it brings along
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def sessions(page: Path) -> list[tuple[str, str]]:
    """Command and output of every command that a page shows."""
    found = []
    for block in BLOCK.findall(page.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            found.append((line, output.strip("\n")))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if sessions(page)], ids=lambda page: page.name)
def test_the_sessions_of_a_page_are_real(page: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    (ROOT / "build").mkdir(exist_ok=True)
    for line, output in sessions(page):
        program, *arguments = shlex.split(line)
        assert program == "capvisor"
        command.status_of(arguments)
        printed = "\n".join(text.rstrip() for text in capsys.readouterr().out.splitlines()).strip("\n")
        assert printed == output, line


def test_there_are_sessions_in_the_pages_a_reader_begins_with() -> None:
    assert {page.name for page in PAGES if sessions(page)} >= {"README.md", "tutorial.md", "campaigns.md", "vectors.md"}


def test_examples_are_formatted_and_the_readme_shows_one_of_them() -> None:
    for path in (ROOT / "docs" / "examples").glob("*.cap"):
        assert print_program(parse(path.read_text(), str(path))) == path.read_text()
        assert path.read_text() in (ROOT / "README.md").read_text()


def test_links_to_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([\w./-]+\.md)[^)]*\)", page.read_text()):
            if not target.startswith("reference/"):
                assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_changelog_counts_operations_and_theorems() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"{len(OPERATIONS)} operations" in changelog
    assert f"{len(THEOREMS)} theorems" in changelog


def test_every_page_of_the_reference_is_generated(tmp_path, monkeypatch) -> None:
    generate = load_generator()
    monkeypatch.setattr(generate, "REFERENCE", tmp_path / "reference")
    generate.main()
    pages = {path.stem: path.read_text() for path in (tmp_path / "reference").glob("*.md")}
    each = {path.stem: path.read_text() for path in (tmp_path / "reference" / "instructions").glob("*.md")}
    assert set(each) == {name.replace(".", "-") for name in OPERATIONS}
    for name, row in OPERATIONS.items():
        page = each[name.replace(".", "-")]
        assert row.summary in page and f"isa.{name}.M1" in page and "## Rule" in page, name
        assert all(f"`{cause}`" in page for cause in row.traps), name
    groups = {path.stem: path.read_text() for path in (tmp_path / "reference" / "proved").glob("*.md")}
    for name, theorem in THEOREMS.items():
        assert f"## {name}\n\n{theorem.statement}" in groups[name.split(".")[0]], name
    index = (ROOT / "docs" / "index.md").read_text()
    assert set(pages) == set(re.findall(r"^reference/(\w+)$", index, re.MULTILINE))
    assert all(f"`{row.name} {row.syntax}`".replace(" `", "`") in pages["operations"] for row in OPERATIONS.values())
    times = json.loads((ROOT / "docs" / "proof_times.json").read_text())["solver_seconds"]
    assert set(times) == set(obligations()), "make times"
    assert "capvisor conform" in pages["command"] and "## capvisor corpus minimize" in pages["command"]
    assert "start: line" in pages["language"]
