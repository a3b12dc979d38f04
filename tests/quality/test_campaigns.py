"""Campaigns find seeded bugs: each is one change of a source, and is to be found within a minute and made small."""

import pytest

from tests.quality.campaigns import BUGS, hunt
from tests.shares import some

PROGRAMS = 300_000
"""What one core executes in a minute. Programs are counted, and not seconds: a test has the same result everywhere."""


SOME = some(BUGS, 12)
"""A part of them, as this takes minutes: `make thorough` hunts all, and `make bugs` says how quickly."""


@pytest.mark.parametrize("bug", SOME, ids=[f"{module}: {before}" for module, before, _after in SOME])
def test_a_seeded_bug_is_found_within_a_minute_and_made_small(bug: tuple[str, str, str]) -> None:
    result = hunt(bug, "bulk", programs=PROGRAMS)
    assert result.operations is not None, "not found"
    assert result.shrunk and result.operations <= 8


def test_there_are_sixty_bugs_and_more() -> None:
    assert len(set(BUGS)) == len(BUGS) >= 60


BY_HYPOTHESIS = some([BUGS[number] for number in (0, 12, 36, 48, 60)], 2)
"""Of those that Hypothesis's engine finds within a minute, which aren't all: docs/campaigns.md."""


@pytest.mark.parametrize("bug", BY_HYPOTHESIS, ids=[f"{module}: {before}" for module, before, _after in BY_HYPOTHESIS])
def test_hypothesis_finds_them_too(bug: tuple[str, str, str]) -> None:
    # A minute, as it is on a machine that does nothing else, and that is slow.
    assert hunt(bug, "hypothesis", longest_s=300).operations is not None
