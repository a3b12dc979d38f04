"""Results as JUnit XML, as build servers read them."""

from collections.abc import Iterable
from dataclasses import dataclass

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite


@dataclass(frozen=True)
class Case:
    """One result: its group and name, how long it took, and what is wrong with it, if anything is."""

    group: str
    name: str
    seconds: float
    message: str = ""
    is_error: bool = False
    """Whether nobody knows, rather than that it failed."""


def junit_xml(suite_name: str, cases: Iterable[Case]) -> str:
    """A test suite as text."""
    suite = TestSuite(suite_name)
    # All at once: each addition counts anew what is there.
    suite.add_testcases([_case(each) for each in cases])
    document = JUnitXml(f"capvisor {suite_name}")
    document.add_testsuite(suite)
    written: bytes = document.tostring()  # type: ignore[no-untyped-call]
    return written.decode()


def _case(each: Case) -> TestCase:
    case = TestCase(each.name, each.group, round(each.seconds, 3))
    if each.message:
        case.result = [(Error if each.is_error else Failure)(each.message)]
    return case
