"""The engine that lets Hypothesis draw, shrink and remember: the same recipes, told what to choose by its choices.

An example is a shape, the numbers of one program of it, and a seed for those of some more programs of the same shape: the
engine would otherwise spend its time on choices alone.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase
from hypothesis.errors import HypothesisException

from capvisor.campaign.engine import Campaign
from capvisor.campaign.numbers import Term
from capvisor.campaign.recipes import PROFILES, Shape, draw_shape, rows_of
from capvisor.campaign.unit import STEPPINGS, LaneOperation, Outcome, fill, try_out
from capvisor.spec.formats import FORMATS, CapabilityFormat

EXAMPLE_LANES = 32
"""How many programs an example has."""

EXAMPLES_A_TEST = 100
"""After so many examples Hypothesis starts anew, with another seed."""

SHRINKING_S = 5.0
"""Seconds that Hypothesis may shrink; what is left is reduced like any failure."""


class Choices:
    """Choices from Hypothesis."""

    def __init__(self, data: st.DataObject) -> None:
        self._data = data

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        return self._data.draw(st.integers(0, count - 1)) if count > 1 else 0


class FalsifiedError(AssertionError):
    """An example failed."""


@st.composite
def shapes(draw: st.DrawFn, fmt: CapabilityFormat, profile: str = "mixed") -> Shape:
    """Shapes of a profile, any of its operations among them."""
    focus = draw(st.sampled_from(rows_of(fmt, PROFILES[profile].groups)))
    return draw_shape(Choices(draw(st.data())), fmt, PROFILES[profile], [focus])


def numbers(choices: Choices, shape: Shape, fmt: CapabilityFormat) -> list[list[int]]:
    """Numbers for the terms of a shape, operation by operation."""
    return [[_number(each, choices, fmt) for each in operands if isinstance(each, Term)] for _name, operands in shape]


def _number(term: Term, choices: Choices, fmt: CapabilityFormat) -> int:
    number = term.draw(choices.below, lambda bases, place: bases[place], lambda mantissa, distance: mantissa << distance)
    return int(number) & fmt.address_mask


def with_first(operations: list[LaneOperation], shape: Shape, first: list[list[int]]) -> list[LaneOperation]:
    """The operations with these numbers in their first lane."""
    for (_name, operands), (_same, shaped), values in zip(operations, shape, first, strict=True):
        arrays = [operand for operand, each in zip(operands, shaped, strict=True) if isinstance(each, Term)]
        for array, value in zip(arrays, values, strict=True):
            array[0] = value
    return operations


class HypothesisEngine:
    """A campaign whose programs Hypothesis draws. `run` ends as a campaign's does."""

    def __init__(self, campaign: Campaign, database: ExampleDatabase | None = None) -> None:
        """With a database, failures that were found before are tried first."""
        self._campaign, self._database = campaign, database
        self._settings = campaign.report.settings
        self._format = FORMATS[self._settings.format]

    def run(self) -> None:
        """Run tests until the campaign is over."""
        started, number = time.monotonic(), 0
        try:
            while not self._is_over(started):
                self._test(number, lambda: self._is_over(started))
                number += 1
                report = self._campaign.report
                report.growth.append((report.programs, len(report.behaviours)))
        except KeyboardInterrupt:
            self._campaign.report.interrupted = True

    def _is_over(self, started: float) -> bool:
        programs = self._settings.programs
        done = programs is not None and self._campaign.report.programs >= programs
        return done or self._campaign.is_over(started)

    def _test(self, number: int, is_over: Callable[[], bool]) -> None:
        """One test of many examples; a failure is shrunk by Hypothesis, then like any other."""
        known: dict[str, Outcome] = {}
        first: list[Any] = []

        @seed(self._settings.seed * 1_000_003 + number)
        @settings(
            max_examples=EXAMPLES_A_TEST,
            deadline=None,
            database=self._database,
            phases=[Phase.reuse, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(st.data())
        def test(data: st.DataObject) -> None:
            shape = data.draw(shapes(self._format, self._settings.profile))
            chosen = numbers(Choices(data), shape, self._format)
            more = data.draw(st.integers(0, 1 << 16))
            stepping = data.draw(st.sampled_from(STEPPINGS))
            key = repr((shape, chosen, more, stepping))
            if key in known:
                first[2:] = [known[key]]
                raise FalsifiedError
            if is_over() or (first and time.monotonic() > first[1] + SHRINKING_S):
                return
            operations = fill(shape, np.random.default_rng(more), EXAMPLE_LANES, self._format)
            operations = with_first(operations, shape, chosen)
            outcome = try_out(shape, operations, EXAMPLE_LANES, self._format, number, stepping)
            new = [each for each in outcome.failures if each.signature not in self._campaign.signatures]
            if not new:
                if not first:
                    self._campaign.merge(outcome)
                return
            signature = new[0].signature
            if first and first[0] != signature:
                return
            known[key] = outcome
            first[:] = first[:2] or [signature, time.monotonic()]
            first.append(outcome)
            raise FalsifiedError

        try:
            test()
        except FalsifiedError:
            pass
        except HypothesisException:
            # A test that Hypothesis finds flaky failed all the same.
            pass
        if first:
            self._campaign.merge(first[-1])
