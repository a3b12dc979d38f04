"""What strategies draw: sound where tagged, and all that is worth having is really drawn."""

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from capvisor.dsl import profiles, strategies
from capvisor.dsl.strategies import (
    MEMORY_BASE,
    MEMORY_GRANULES,
    capabilities,
    completed_operations,
    encodings,
    expression,
    is_refused,
    operations,
    states,
    words,
)
from capvisor.model import bounds, capability
from capvisor.model.machine import Trap
from capvisor.model.observation import State, watch
from capvisor.spec import formats
from capvisor.spec.formats import CC64, CC128, FORMATS, Permission
from capvisor.spec.operations import OPERATIONS, Group
from tests.tutorial import ROOT

SEARCH = settings(
    max_examples=5000, database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


def drawn(strategy: st.SearchStrategy[Any], is_wanted: Callable[[Any], bool]) -> Any:
    """One value of a strategy that is wanted; hypothesis.errors.NoSuchExample where none is found."""
    return find(strategy, is_wanted, settings=SEARCH)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
class TestCapabilities:
    def test_tagged_ones_are_sound_and_of_an_object_type_that_can_be_given(self, fmt) -> None:
        @given(capabilities(fmt, tagged=True))
        def test(cap) -> None:
            assert cap.tag and cap.is_sound
            assert cap.otype <= fmt.max_otype or cap.otype in (fmt.otype_sentry, fmt.otype_unsealed)

        test()

    @pytest.mark.parametrize("tagged", [None, False, True])
    @pytest.mark.parametrize("sealed", [None, False, True])
    def test_what_is_asked_for_is_what_is_drawn(self, fmt, tagged, sealed) -> None:
        @settings(max_examples=50)
        @given(capabilities(fmt, tagged=tagged, sealed=sealed))
        def test(cap) -> None:
            assert tagged in (None, cap.tag) and sealed in (None, cap.is_sealed)

        test()

    def test_of_each_kind_there_is_one(self, fmt) -> None:
        highest, every = fmt.address_space, fmt.permissions_mask
        kinds = {
            "tagged": lambda cap: cap.tag,
            "untagged, with bits of a derived one": lambda cap: not cap.tag and cap.is_sound and cap.meta != fmt.null_meta,
            "untagged, with bits that can't be derived": lambda cap: not cap.is_sound,
            "an integer": lambda cap: cap == capability.null(fmt, cap.address) and cap.address > 0,
            "a sentry": lambda cap: cap.tag and cap.otype == fmt.otype_sentry,
            "sealed with a type": lambda cap: cap.tag and cap.otype <= fmt.max_otype,
            "unsealed": lambda cap: cap.tag and not cap.is_sealed,
            "without a byte": lambda cap: cap.tag and cap.length == 0,
            "up to the end of the address space": lambda cap: cap.tag and cap.top == highest,
            "pointing below": lambda cap: cap.tag and cap.address < cap.base,
            "pointing above": lambda cap: cap.tag and cap.address >= cap.top,
            "without an internal exponent": lambda cap: cap.tag and 0 < cap.length < 1 << fmt.mantissa_width - 2,
            "local": lambda cap: cap.tag and not cap.permits(Permission.GLOBAL),
            "without one permission": lambda cap: cap.tag and (cap.permissions ^ every).bit_count() == 1,
            "of capability mode": lambda cap: cap.tag and cap.flags == 1,
        }
        for is_wanted in kinds.values():
            assert drawn(capabilities(fmt), is_wanted)

    def test_one_straddles_the_end_of_what_it_is_drawn_near(self, fmt) -> None:
        end = MEMORY_BASE + MEMORY_GRANULES * fmt.capability_bytes
        near = capabilities(fmt, tagged=True, near=(MEMORY_BASE, end, 64))
        assert drawn(near, lambda cap: MEMORY_BASE <= cap.base < end < cap.top < end + 4096)

    def test_an_expression_makes_it_again(self, fmt) -> None:
        @given(capabilities(fmt))
        def test(cap) -> None:
            names = {"capability": capability, **vars(formats)}
            assert eval(expression(cap), names) == cap

        test()


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_encodings_are_at_the_edges_of_their_fields(fmt) -> None:
    @given(encodings(fmt))
    def test(meta) -> None:
        assert 0 <= meta <= fmt.address_mask

    test()

    def exponent(meta: int) -> int:
        return bounds.unpack_bounds(fmt, meta)[0]

    for wanted in (0, fmt.max_exponent, fmt.max_exponent + 1, (1 << 6) - 1):
        assert drawn(encodings(fmt), lambda meta, wanted=wanted: exponent(meta) == wanted) >= 0
    assert drawn(encodings(fmt), lambda meta: not bounds.bounds_are_valid(fmt, meta))
    assert drawn(encodings(fmt), lambda meta: capability.extract(fmt.otype, meta) == fmt.otype_sentry)


@pytest.mark.parametrize("bits", [1, 12, 32, 64])
def test_words_are_of_their_width_and_reach_its_ends(bits) -> None:
    @given(words(bits, (5,)))
    def test(number) -> None:
        assert 0 <= number < 1 << bits

    test()
    assert drawn(words(bits), lambda number: number == 0) == 0
    assert drawn(words(bits), lambda number: number == (1 << bits) - 1)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_operands_are_in_their_ranges(fmt) -> None:
    @given(operations(fmt))
    def test(operation) -> None:
        name, operands = operation
        assert OPERATIONS[name].minimum_xlen <= fmt.address_width
        for kind, value in zip(OPERATIONS[name].operands, operands, strict=True):
            if not kind.is_register and kind.value != "value":
                low, high = kind.immediate_range(fmt.address_width)
                assert low <= value <= high and value % kind.alignment == 0

    test()


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
def test_every_operation_of_the_table_is_drawn(fmt) -> None:
    seen = set()
    for group in Group:

        @settings(max_examples=24, suppress_health_check=list(HealthCheck))
        @given(st.lists(operations(fmt, (group,)), min_size=30, max_size=30))
        def test(drawn_together) -> None:
            seen.update(name for name, _operands in drawn_together)

        test()
    assert seen == {name for name, row in OPERATIONS.items() if row.minimum_xlen <= fmt.address_width}


def test_operations_are_of_the_groups_that_are_asked_for() -> None:
    @given(operations(CC128, (Group.LOAD, Group.STORE)))
    def test(operation) -> None:
        assert OPERATIONS[operation[0]].group in (Group.LOAD, Group.STORE)

    test()


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda fmt: fmt.name)
class TestStates:
    def test_all_that_is_tagged_is_sound(self, fmt) -> None:
        @given(states(fmt))
        def test(hart) -> None:
            state = State(hart)
            held = [*hart.registers, *state.special.values(), *(state.granule(index) for index in range(MEMORY_GRANULES))]
            assert all(cap.is_sound for cap in held if cap.tag)
            assert hart.pc % 2 == 0 and hart.capability(0) == capability.null(fmt)

        test()

    def test_of_each_kind_there_is_one(self, fmt) -> None:
        def fetches(hart) -> bool:
            try:
                hart.check_fetch()
            except Trap:
                return False
            return True

        kinds = {
            "PCC authorises pc": fetches,
            "PCC doesn't": lambda hart: not fetches(hart),
            "a tag in memory": lambda hart: any(granule.tag for _index, granule in hart.memory.store.written()),
            "something reserved": lambda hart: hart.is_reserved,
            "a usable DDC": lambda hart: hart.ddc.tag and not hart.ddc.is_sealed,
            "an unusable one": lambda hart: not hart.ddc.tag or hart.ddc.is_sealed,
            "a special register beside PCC and DDC": lambda hart: hart.mtdc.tag,
            "a pair to invoke": lambda hart: any(
                not is_refused(hart, ("cinvoke", (a, b))) for a in range(2, 6) for b in range(2, 6)
            ),
            "a load across two granules": lambda hart: any(
                hart.capability(n).address % fmt.capability_bytes == fmt.capability_bytes - 1
                and not is_refused(hart, ("clh", (7, 0, n)))
                for n in range(2, 6)
            ),
        }
        for is_wanted in kinds.values():
            assert drawn(states(fmt), is_wanted)

    def test_most_operations_for_a_state_are_completed(self, fmt) -> None:
        counts = {False: 0, True: 0}

        @given(st.data())
        def test(data) -> None:
            hart = data.draw(states(fmt).filter(lambda hart: not is_refused(hart, ("fence", ()))))
            groups = (Group.LOAD, Group.STORE, Group.ATOMIC)
            step = watch(hart, *data.draw(completed_operations(hart, groups)))
            counts[step.trap is None] += 1

        test()
        assert counts[True] > 2 * counts[False] > 0


def failing(body: str, *decorators: str) -> str:
    lines = (
        "from hypothesis import HealthCheck, Phase, given, reproduce_failure, settings",
        "from capvisor.dsl.strategies import capabilities, operations, states",
        "from capvisor.model import capability",
        "from capvisor.spec.formats import CC64, CC128",
        *decorators,
        "@settings(print_blob=True, database=None, derandomize=True, deadline=None, phases=[Phase.generate],",
        "    report_multiple_bugs=False, suppress_health_check=list(HealthCheck))",
        "@given(hart=states(CC128), operation=operations(CC64), cap=capabilities(CC128, tagged=True))",
        "def test_something(hart, operation, cap):",
        f"    {body}",
    )
    return "\n".join(lines) + "\n"


def run_pytest(*arguments: object, folder: object = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_reproduce_failure_line_works_and_what_is_printed_is_python(tmp_path) -> None:
    (tmp_path / "test_first.py").write_text(failing("assert cap.address < 1000"))
    printed = run_pytest("test_first.py", folder=tmp_path).stdout
    # Where CI is set, pytest's short summary isn't cut and repeats the line.
    (line,) = set(re.findall(r"@reproduce_failure\(.*\)(?= as a decorator)", printed))
    shown = re.search(r"test_something\(\n(.*?)^E? *\)$", re.sub("^E  ? ? ?", "", printed, flags=re.MULTILINE), re.S | re.M)
    assert shown and ast.parse(f"f(\n{shown[1]}\n)")
    assert "hart_in_state(" in shown[1] and "capability." in shown[1]
    (tmp_path / "test_again.py").write_text(failing("assert cap.address < 1000", line))
    again = run_pytest("test_again.py", folder=tmp_path)
    assert again.returncode == 1 and "DidNotReproduce" not in again.stdout
    assert shown[1].split("cap=")[1].split("\n")[0] in again.stdout


def test_profiles_are_registered_and_the_one_for_ci_draws_the_same_every_time(tmp_path) -> None:
    profiles.register(tmp_path)
    ci, dev, campaign = (settings.get_profile(f"capvisor-{name}") for name in ("ci", "dev", "campaign"))
    assert ci.derandomize and ci.database is None and ci.print_blob
    assert not dev.derandomize and dev.max_examples < campaign.max_examples
    seen: list[list[object]] = []
    for _ in range(2):
        seen.append([])

        @settings(ci, max_examples=20)
        @given(capabilities(CC64))
        def test(cap) -> None:
            seen[-1].append(cap)

        test()
    assert seen[0] == seen[1]


def test_kept_examples_are_tried_and_only_the_users_own_are_written(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    kept = DirectoryBasedExampleDatabase(tmp_path / "kept")
    kept.save(b"key", b"kept")
    both = profiles.database(tmp_path / "kept")
    both.save(b"key", b"own")
    assert set(both.fetch(b"key")) == {b"kept", b"own"}
    both.delete(b"key", b"kept")
    assert set(kept.fetch(b"key")) == {b"kept"}
    assert set(DirectoryBasedExampleDatabase(profiles.USERS_EXAMPLES).fetch(b"key")) == {b"own"}


def test_kept_examples_are_by_default_in_the_state_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    DirectoryBasedExampleDatabase(tmp_path / "state" / "capvisor" / "hypothesis").save(b"key", b"kept")
    assert set(profiles.database().fetch(b"key")) == {b"kept"}


@pytest.mark.parametrize("name", ["strategies_example", "stateful_example"])
def test_the_examples_of_the_documentation_pass(name) -> None:
    done = run_pytest(f"docs/examples/{name}.py")
    assert done.returncode == 0, done.stdout
    assert f"examples/{name}.py" in (ROOT / "docs" / "hypothesis.md").read_text()


def test_the_documentation_names_every_strategy_and_profile() -> None:
    page = (ROOT / "docs" / "hypothesis.md").read_text()
    for name in ("words", "encodings", "capabilities", "operations", "completed_operations", "states", "programs"):
        assert f"`{name}(" in page and callable(getattr(strategies, name)), name
    assert all(f"`{name}`" in page for name in profiles.PROFILES)
