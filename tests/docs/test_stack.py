"""The page on all four systems says what the tables say."""

from capvisor.spec.stack import COUPLINGS, Code
from capvisor.spec.stack_invariants import STACK_INVARIANTS
from capvisor.spec.stack_policy import STACK_GUARDS
from tests.tutorial import ROOT

PAGE = (ROOT / "docs" / "stack.md").read_text()
SPECIFICATION = (ROOT / "spec" / "stack.md").read_text()


def test_the_page_has_every_coupling_as_the_table_says_it():
    for guard, row in COUPLINGS.items():
        shown = (
            f"| `{guard}`: {STACK_GUARDS[guard].meaning} | `{row.layer.value}` | {row.supposes} | {', '.join(row.carries)} |"
        )
        assert shown in PAGE


def test_the_specification_has_every_guard_refusal_and_invariant():
    for guard in STACK_GUARDS:
        assert guard in SPECIFICATION, guard
    for code in Code:
        assert code is Code.OK or (code.name in SPECIFICATION and code.name in PAGE), code
    for name, row in STACK_INVARIANTS.items():
        assert f"- {name} *{row.title}*" in SPECIFICATION, name
