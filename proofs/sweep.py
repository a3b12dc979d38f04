"""Teeth without a list: every comparison negated and every guard dropped, one at a time, each to be noticed.

Changed are the reference's algebra and the fast path's kernels. What no theorem notices is either equivalent, and then
stands in `EQUIVALENT` with the reason, or a gap in the theorems.
"""

import ast
import copy
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass

from capvisor.proofs import solve
from capvisor.proofs.mutants import source_in_force
from capvisor.proofs.symbolic import Unfaithful
from capvisor.proofs.theorem import Obligation, obligations, queries

MODULES = (
    "capvisor.model.bounds",
    "capvisor.model.capability",
    "capvisor.fastpath.bounds",
    "capvisor.fastpath.capability",
)

_NEGATED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
}
_NEGATED_UFUNCS = {
    "equal": "not_equal",
    "not_equal": "equal",
    "less": "greater_equal",
    "greater_equal": "less",
    "less_equal": "greater",
    "greater": "less_equal",
}
_CONNECTIVES = ("logical_and", "logical_or")


@dataclass(frozen=True)
class Change:
    """One change: where, in which function, what stood there and what stands there now; and the whole changed source."""

    module: str
    function: str
    line: int
    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        """A name that outlives changes of other lines."""
        return f"{self.module.removeprefix('capvisor.')}.{self.function}: {self.before} -> {self.after}"


def changes(module: str) -> Iterator[Change]:
    """Every change of a module."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            for replacement in _replacements(node):
                before, after = ast.unparse(node), ast.unparse(replacement)
                source = ast.unparse(_Replace(node, replacement).visit(copy.deepcopy(tree)))
                yield Change(module, function.name, getattr(node, "lineno", 0), before, after, source)


class _Replace(ast.NodeTransformer):
    """Replaces the one node of a copied tree that stands where a node of the original does."""

    def __init__(self, node: ast.AST, replacement: ast.expr) -> None:
        self._place, self._kind, self._replacement = _place(node), type(node), replacement

    def visit(self, node: ast.AST) -> ast.AST:
        """As NodeTransformer.visit."""
        if type(node) is self._kind and _place(node) == self._place:
            return self._replacement
        return self.generic_visit(node)


def _place(node: ast.AST) -> tuple[int, ...]:
    names = ("lineno", "col_offset", "end_lineno", "end_col_offset")
    return tuple(getattr(node, name, -1) for name in names)


def _replacements(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _NEGATED:
        yield ast.Compare(node.left, [_NEGATED[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        if _is_condition(node.right):
            yield node.left
        if _is_condition(node.left):
            yield node.right
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        if name in _NEGATED_UFUNCS:
            yield ast.Call(ast.Attribute(node.func.value, _NEGATED_UFUNCS[name], ast.Load()), node.args, node.keywords)
        elif name in _CONNECTIVES:
            for argument in node.args:
                yield ast.Call(node.func, [argument, argument], node.keywords)


def _is_condition(node: ast.expr) -> bool:
    """Whether an operand of & or | is a guard rather than a number."""
    match node:
        case ast.Compare():
            return True
        case ast.Call(func=ast.Name(id="not_") | ast.Name(id="points_at_otype") | ast.Name(id="within_bounds")):
            return True
        case ast.Call(func=ast.Attribute(attr="permits")) | ast.Attribute(attr="tag" | "is_sealed"):
            return True
        case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr()):
            return _is_condition(left)
    return False


def theorems_for(change: Change) -> list[Obligation]:
    """The obligations that may notice a change, of the narrow format, those of the same name first."""
    fast = change.module.startswith("capvisor.fastpath")
    chosen = [each for each in obligations().values() if each.theorem.holds and each.theorem.mutants]
    chosen = [each for each in chosen if each.theorem.id.startswith("kernels.") == fast]
    # Of the wide format only what is named after the function: the narrow one lacks reserved bits and software permissions.
    chosen = [each for each in chosen if each.format.name == "cc64" or change.function in each.id]
    slow = ("directly", "tightest")
    return sorted(chosen, key=lambda each: (change.function not in each.id, any(word in each.id for word in slow)))


def noticed_by(change: Change, timeout_s: float) -> str | None:
    """The first obligation that a change breaks, or that can't be executed with it; None if it breaks none."""
    with source_in_force(change.module, change.source):
        for obligation in theorems_for(change):
            try:
                asked = queries(obligation)
            except (Unfaithful, TypeError, ValueError, OverflowError, AttributeError):
                return obligation.id
            for label in asked.labels:
                if label in ("assumptions", "cases"):
                    continue
                if solve.ask("z3", asked.conditions(label), asked.symbols, timeout_s).result == "sat":
                    return obligation.id
    return None


_SAME_LENGTH = (
    "the length doesn't depend on the address, so that base and top move together: bounds.move.precise holds with it"
)
EQUIVALENT: dict[str, str] = {
    "model.bounds.address_keeps_bounds: (base == new_base) & (top == new_top) -> base == new_base": _SAME_LENGTH,
    "model.bounds.address_keeps_bounds: (base == new_base) & (top == new_top) -> top == new_top": _SAME_LENGTH,
    "model.capability.unseal: authority.tag & cap.is_sealed -> authority.tag": (
        "the type of an unsealed capability is a reserved one, which is refused anyway: sealing.unseal holds with it"
    ),
}
"""Changes that no theorem notices, by name, and why they change nothing."""
