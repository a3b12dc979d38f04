"""Teeth without a list: every comparison negated and every guard dropped, one at a time, each to be noticed.

Changed are the reference's algebra and the fast path's kernels. Each change is tried on drawn values first, which most
theorems fall with at once; what these don't show is asked of the solver. A change that survives must be equivalent: of the
reference, the changed function is proved to give what the function gives, for all inputs; of the fast path, the kernel's
own theorem says so.
"""

import ast
import importlib
import inspect
import itertools
import pickle
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from typing import Any

import z3

from capvisor.fastpath.isa.memory import Access
from capvisor.fastpath.machine import KERNELS, Block
from capvisor.fastpath.memory import MemoryBlock
from capvisor.model import bounds, capability
from capvisor.model.capability import Capability
from capvisor.proofs import contracts, drawn, isa, lane_memory, machine, solve, symbolic
from capvisor.proofs.isa import Task
from capvisor.proofs.mutants import functions, source_in_force
from capvisor.proofs.runner import Verdict
from capvisor.proofs.symbolic import Unfaithful
from capvisor.proofs.theorem import Given, Obligation, obligations, queries
from capvisor.spec.formats import FORMATS, CapabilityFormat

MODULES = (
    "capvisor.model.bounds",
    "capvisor.model.capability",
    "capvisor.fastpath.bounds",
    "capvisor.fastpath.capability",
)
"""What theorems of the algebra and of kernels must notice changes of."""

RULE_MODULES = (
    "capvisor.model.machine",
    *(f"capvisor.model.isa.{name}" for name in ("arithmetic", "atomic", "comparison", "control", "inspection")),
    *(f"capvisor.model.isa.{name}" for name in ("integer", "memory", "sealing", "system")),
)
"""What cells of the matrix must notice changes of."""

LANE_MODULES = (
    "capvisor.fastpath.memory",
    "capvisor.fastpath.machine",
    *(f"capvisor.fastpath.isa.{name}" for name in ("arithmetic", "atomic", "comparison", "control", "inspection")),
    *(f"capvisor.fastpath.isa.{name}" for name in ("integer", "memory", "sealing", "system")),
)
"""What cells of M10 must notice changes of."""

MONITOR_MODULES = ("capvisor.model.monitor", "capvisor.model.calls")
"""What the invariants of cVMs must notice changes of, or else a comparison with the fast path."""

TPT_MODULES = tuple(f"capvisor.model.{name}" for name in ("paging", "tlb", "tpt", "tpt_operations"))
"""What the theorems of translation pass-through must notice changes of."""

SWEEPS = {
    "algebra": MODULES,
    "rules": RULE_MODULES,
    "lanes": LANE_MODULES,
    "monitor": MONITOR_MODULES,
    "tpt": TPT_MODULES,
}
"""The parts of the sweep, by name. `cli.sweep` examines the changes of the monitor, by campaigns, and `tpt_sweep` of TPT."""

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


@cache
def changes(module: str) -> tuple[Change, ...]:
    """Every change of a module."""
    return tuple(_changes(module))


def _changes(module: str) -> Iterator[Change]:
    tree = ast.parse(inspect.getsource(importlib.import_module(module)))
    kept = pickle.dumps(tree)
    is_monitor = module in MONITOR_MODULES
    replacements, left_out = (_of_monitor, (*_DECLARING, "__init__")) if is_monitor else (_replacements, _DECLARING)
    replacements = _of_tpt if module in TPT_MODULES else replacements
    classes = [each for each in tree.body if isinstance(each, ast.ClassDef) and each.name not in _BOOKKEEPING]
    found = [each for body in (tree.body, *(each.body for each in classes)) for each in body]
    for function in (each for each in found if isinstance(each, ast.FunctionDef) and each.name not in left_out):
        for node in ast.walk(function):
            for replacement in replacements(node):
                before, after = _first_line(node), _first_line(replacement)
                source = ast.unparse(_Replace(node, replacement).visit(pickle.loads(kept)))
                yield Change(module, function.name, getattr(node, "lineno", 0), before, after, source)


class _Replace(ast.NodeTransformer):
    """Replaces the one node of a copied tree that stands where a node of the original does."""

    def __init__(self, node: ast.AST, replacement: ast.AST) -> None:
        self._place, self._kind, self._replacement = _place(node), type(node), replacement

    def visit(self, node: ast.AST) -> ast.AST:
        """As NodeTransformer.visit."""
        if type(node) is self._kind and _place(node) == self._place:
            return self._replacement
        return self.generic_visit(node)


def _first_line(node: ast.AST) -> str:
    """A node as a line of source, of a statement with a body the first one."""
    return ast.unparse(node).split("\n", 1)[0]


def _place(node: ast.AST) -> tuple[int, ...]:
    names = ("lineno", "col_offset", "end_lineno", "end_col_offset")
    return tuple(getattr(node, name, -1) for name in names)


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    if (isinstance(node, ast.If) and all(isinstance(each, ast.Raise) for each in node.body)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _called(node.value).startswith(_CHECKS)
    ):
        yield ast.Pass()
    elif isinstance(node, ast.If) and not isinstance(node.test, ast.Compare):
        yield ast.If(ast.Constant(True), node.body, node.orelse)
    elif isinstance(node, ast.Call) and _called(node) == "tagged_if" and isinstance(node.func, ast.Attribute):
        yield node.func.value
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _NEGATED:
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


def _of_monitor(node: ast.AST) -> Iterator[ast.AST]:
    """What stands for a node of a monitor: as elsewhere, and refusals, effects and flags are dropped too."""
    match node:
        case ast.If(body=[ast.Return() | ast.Continue()]):
            yield ast.Pass()
        case ast.Compare(ops=[ast.Is() | ast.IsNot() as identity]):
            negated = ast.IsNot() if isinstance(identity, ast.Is) else ast.Is()
            yield ast.Compare(node.left, [negated], node.comparators)
        case ast.BoolOp():
            yield from _with_one_less(node)
        case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
            if not (_is_number(node.left) or _is_number(node.right)):
                yield node.left
                # Of several operands, those that are nodes of their own on the left are left out there.
                if not (isinstance(node.left, ast.BinOp) and isinstance(node.left.op, type(node.op))):
                    yield node.right
        case ast.Assign(targets=[ast.Tuple() as targets], value=ast.Tuple() as values) if all(map(_is_kept, targets.elts)):
            both = list(zip(targets.elts, values.elts, strict=True))
            for left_out in range(len(both)):
                pairs = [each for place, each in enumerate(both) if place != left_out]
                one, other = (list(each) for each in zip(*pairs, strict=True))
                yield ast.Assign([ast.Tuple(one, ast.Store())], ast.Tuple(other, ast.Load()), lineno=node.lineno)
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Assign(targets=targets) if all(_is_kept(part) for each in targets for part in _parts(each)):
            yield ast.Pass()
        case _:
            yield from _replacements(node)


def _of_tpt(node: ast.AST) -> Iterator[ast.AST]:
    """What stands for a node of translation pass-through: as elsewhere; what checks are called is private there."""
    match node:
        case ast.Expr(value=ast.Call() as call) if _called(call).lstrip("_").startswith(("check", "refuse")):
            yield ast.Pass()
        case ast.BoolOp():
            yield from _with_one_less(node)
        case _:
            yield from _replacements(node)


def _with_one_less(node: ast.BoolOp) -> Iterator[ast.expr]:
    """An `and` or `or` without each of its parts."""
    for left_out in node.values:
        others = [each for each in node.values if each is not left_out]
        yield others[0] if len(others) == 1 else ast.BoolOp(node.op, others)


def _parts(target: ast.expr) -> list[ast.expr]:
    return target.elts if isinstance(target, ast.Tuple) else [target]


def _is_kept(target: ast.expr) -> bool:
    """Whether what is assigned to outlives the function."""
    return isinstance(target, ast.Attribute | ast.Subscript)


def _is_number(node: ast.expr) -> bool:
    """Whether an operand of & or | is a number, or a type, rather than a flag."""
    match node:
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.LShift() | ast.RShift()) | ast.Constant():
            return True
        case ast.Attribute(attr="address_mask"):
            return True
        case ast.BinOp(left=left, op=ast.BitAnd() | ast.BitOr(), right=right):
            return _is_number(left) or _is_number(right)
    return False


_DECLARING = ("call", "operation", "access_of", "declare", "declare_two", "declare_explicit")
"""Functions that are executed when rules are declared, and not when operations are."""

_BOOKKEEPING = ("BatchMachine", "Selection", "Memory")
"""Classes of the fast path that cut lanes into blocks and bring them together by operation: differential tests notice it."""

_OUTSIDE = {"mode": "cells execute operations, not words: golden words and traces notice it"}
"""Functions that no cell is about."""

_RECORD = "the record of accesses that C10 is asked of: nothing else depends on it"
_NUMBERS = "only portals of such numbers are live (C19): none is advertised under another"
_SERVES = "who serves a call isn't nested (C19), and so calls for its home"
_MADE = (
    "the monitor's and the outer cVM's code are sealed as they were made (C18), at one address; no other has these bounds"
)
_SAME = ("pcc.meta == code.meta", "pcc.address == code.address")
_ENDS = "two checks of one thing: where a range ends beyond the address space, the other one refuses"

EQUIVALENT = {
    f"model.{name}": reason
    for name, reason in {
        **{f"monitor.is_same_place: {' & '.join(f'({each})' for each in _SAME)} -> {each}": _MADE for each in _SAME},
        "monitor.mint: exact & cap.tag -> exact": _ENDS,
        "monitor.offer: exact & (size > 0) & (base + size <= self.format.address_space) -> exact & (size > 0)": _ENDS,
        "monitor.monitor_code: cvm.MONITOR_PERMISSIONS & ~Permission.STORE -> ~Permission.STORE": "all others: the same",
        "monitor.monitor_data: cvm.MONITOR_PERMISSIONS & ~Permission.EXECUTE -> ~Permission.EXECUTE": "all others: the same",
        "monitor.put_grant: self.accesses.append(MonitorAccess(caller, address, granule, True)) -> pass": _RECORD,
        "monitor.store_for: self.accesses.append(MonitorAccess(caller, address, WORD_BYTES, True)) -> pass": _RECORD,
        "monitor.load_for: self.accesses.append(MonitorAccess(caller, address, WORD_BYTES, False)) -> pass": _RECORD,
        "monitor.enter: self.accesses.append(MonitorAccess(caller, saved_at, self.format.capability_bytes, True)) -> pass": (
            _RECORD
        ),
        "monitor.invoked: outer != cvm.MONITOR and is_same_place(thread.hart.pcc, self.region_code(outer))"
        " -> is_same_place(thread.hart.pcc, self.region_code(outer))": "the monitor has no region that code could be of",
        "monitor.step: hart.mstatus, hart.privilege = (status, privilege) -> hart.privilege, = (privilege,)": (
            "a guest's mstatus is 0, and its traps leave it so"
        ),
        "monitor.needed_bytes: following and following[0][1] is ArgumentKind.SIZE -> following": (
            "what follows such an argument in the table of calls is its size"
        ),
        "calls.portal_probe: monitor.portals[key].is_live & (key < cvm.KEYS) -> monitor.portals[key].is_live": _NUMBERS,
        "calls.portal_call: row.is_live & (key < cvm.KEYS) -> row.is_live": _NUMBERS,
        "calls.wait: row.is_live & (key < cvm.KEYS) -> row.is_live": _NUMBERS,
        "calls.portal_finish: thread.serves & (frame.caller == thread.home) -> thread.serves": _SERVES,
        "calls.portal_fetch: thread.serves & row.is_live & (frame.caller == thread.home) -> thread.serves & row.is_live": (
            _SERVES
        ),
    }.items()
}
"""Changes of the monitor that change nothing, by name, and why."""

_CHECKS = ("check_", "refuse")


def _called(call: ast.Call) -> str:
    """The name of what is called, without what it is looked up in."""
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


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


# -- noticing --------------------------------------------------------------------------------------------------------------

BROKEN = (Unfaithful, TypeError, ValueError, OverflowError, AttributeError, LookupError, AssertionError)


def theorems_for(change: Change) -> list[Obligation]:
    """The obligations that may notice a change, those named after the function first, of cc64 before cc128."""
    fast = change.module.startswith("capvisor.fastpath")
    chosen = [each for each in obligations().values() if each.theorem.holds and each.theorem.mutants]
    chosen = [each for each in chosen if each.theorem.id.startswith("kernels.") == fast]
    return sorted(chosen, key=lambda each: (change.function not in each.id, each.format.address_width))


@dataclass(frozen=True)
class Finding:
    """What became of a change: who noticed it, or why it changes nothing; neither, and it is a gap."""

    change: Change
    noticed_by: str = ""
    """The obligation, or the invariant."""
    by_solver: bool = False
    compared_by: str = ""
    """How a comparison of the two implementations shows it, where no invariant does."""
    equivalent: str = ""

    @property
    def is_noticed(self) -> bool:
        return bool(self.noticed_by or self.compared_by)

    @property
    def is_explained(self) -> bool:
        return bool(self.is_noticed or self.equivalent)


def examine(change: Change, timeout_s: float) -> Finding:
    """See whether a change is noticed, and prove it equivalent if it isn't."""
    if change.module not in MODULES:
        return _examine_rule(change, timeout_s)
    chosen = theorems_for(change)
    with source_in_force(change.module, change.source):
        for obligation in chosen:
            if _falls_on_drawn_values(obligation):
                return Finding(change, noticed_by=obligation.id)
    fast = change.module.startswith("capvisor.fastpath")
    if not fast and _gives_the_same(change, timeout_s):
        return Finding(change, equivalent="the changed function gives the same for every input of either format: proved")
    with source_in_force(change.module, change.source):
        for obligation in chosen:
            result = _refutes(obligation, timeout_s)
            if result == "sat":
                return Finding(change, noticed_by=obligation.id, by_solver=True)
            if fast and result != "unsat" and change.function in obligation.id:
                return Finding(change)
        named = [each.id for each in chosen if fast and each.theorem.id == f"kernels.{change.function}"]
    return Finding(change, equivalent=f"{' and '.join(named)} hold with it" if named else "")


_STATES, _FIRST_STATES = 120, 4
"""How many drawn states each cell is looked at in, and in how many of them all are before any is in more."""


def _rows_for(change: Change) -> list[str]:
    """The rows whose step executes the changed function; of what every step goes through, some that are refused often."""
    if change.module in RULE_MODULES:
        reached = {row: contracts.names_reached(isa.executed(row)) for row in isa.rows()}
    else:
        reached = {
            row: contracts.names_looked_up(KERNELS[isa.executed(row)], Access, Block, MemoryBlock) for row in isa.rows()
        }
    return [row for row, names in reached.items() if change.function in names] or [isa.FETCH, "clw", "csc", "cjalr", "mret"]


def _examine_rule(change: Change, timeout_s: float) -> Finding:
    """See whether a change of a rule or a kernel makes a cell fall: in a drawn state, or for the solver."""
    if change.function in _OUTSIDE:
        return Finding(change, equivalent=_OUTSIDE[change.function])
    invariants = tuple(name for name in isa.columns() if name != machine.NAME)
    tasks = [
        Task(row, fmt.name, names)
        for names in ((invariants, (machine.NAME,)) if change.module in RULE_MODULES else ((machine.NAME,),))
        for row in _rows_for(change)
        for fmt in sorted(isa.rows()[row], key=lambda each: each.address_width)
    ]
    with source_in_force(change.module, change.source):
        # Most of what falls does so in one of the first states, be it in the last of the cells.
        for numbers in (range(_FIRST_STATES), range(_FIRST_STATES, _STATES)):
            for task, number in itertools.product(tasks, numbers):
                fallen = _fallen(task, number)
                if fallen:
                    return Finding(change, noticed_by=f"{isa.PREFIX}.{task.row}.{fallen[0]}.{task.format}")
        if change.module == "capvisor.fastpath.memory":
            return _examine_memory(change, timeout_s)
        holds = True
        for outcome in (outcome for task in tasks for outcome in isa.prove(task, timeout_s)):
            if outcome.verdict is Verdict.REFUTED or outcome.reason == isa.NO_PROOF:
                return Finding(change, noticed_by=outcome.obligation.id, by_solver=True)
            holds = holds and outcome.verdict is Verdict.PROVED
    if holds and change.module in LANE_MODULES:
        return Finding(change, equivalent=f"{machine.NAME} of every operation that executes it holds with it")
    return Finding(change)


def _examine_memory(change: Change, timeout_s: float) -> Finding:
    """See whether a change of the fast path's memory, in force, makes one of its theorems fall; cells suppose them."""
    holds = True
    for obligation in (each for each in obligations().values() if each.theorem.id in lane_memory.LEMMAS):
        result = "sat" if _falls_on_drawn_values(obligation) else _refutes(obligation, timeout_s)
        if result == "sat":
            return Finding(change, noticed_by=obligation.id, by_solver=True)
        holds = holds and result == "unsat"
    return Finding(change, equivalent="the theorems kernels.memory.* hold with it" if holds else "")


def _fallen(task: Task, number: int) -> list[str]:
    try:
        return isa.looked_at(task, number)[1]
    except BROKEN:
        return list(task.invariants[:1])


def _falls_on_drawn_values(obligation: Obligation) -> bool:
    try:
        return next(drawn.counterexamples(obligation), None) is not None
    except BROKEN:
        return True


def _refutes(obligation: Obligation, timeout_s: float) -> str:
    """ "sat" if a theorem falls or can't be executed any more, "unsat" if it holds, "unknown"."""
    try:
        asked = queries(obligation)
    except BROKEN:
        return "sat"
    results = {
        solve.ask("z3", asked.conditions(label), asked.symbols, timeout_s).result
        for label in asked.labels
        if label not in ("assumptions", "cases")
    }
    return "sat" if "sat" in results else "unknown" if "unknown" in results else "unsat"


def _gives_the_same(change: Change, timeout_s: float) -> bool:
    """Whether a function of the reference and its changed form are proved to give the same for all inputs, both formats."""
    return all(_differs(change, fmt, timeout_s) == "unsat" for fmt in FORMATS.values())


def _differs(change: Change, fmt: CapabilityFormat, timeout_s: float) -> str:
    function = _function(change)

    def run() -> Any:
        arguments = [_argument(fmt, name, kind) for name, kind in _parameters(function)]
        before = function(*arguments)
        with source_in_force(change.module, change.source):
            after = function(*arguments)
        return _same(before, after)

    try:
        paths = symbolic.explore(run, most=50)
    except BROKEN:
        return "unknown"
    goals = [z3.Implies(z3.And(*path.conditions), symbolic.term_of(path.result)) for path in paths]
    return solve.ask("z3", (z3.Not(z3.And(*goals)),), {}, timeout_s).result


def _function(change: Change) -> Callable[..., Any]:
    found = dict(functions(importlib.import_module(change.module)))
    return next(function for name, function in found.items() if name.rsplit(".", 1)[-1] == change.function)


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    kinds = typing.get_type_hints(function, {**vars(bounds), **vars(capability)})
    return [(name, kinds.get(name, Capability)) for name in inspect.signature(function).parameters]


def _argument(fmt: CapabilityFormat, name: str, kind: Any) -> Any:
    """Any value of a parameter; a top may have one bit more than other numbers."""
    if kind is CapabilityFormat:
        return fmt
    if kind is Capability:
        return Given().capability(fmt, name)
    if kind is bool:
        return symbolic.flag(name)
    if kind is int:
        return symbolic.unsigned(name, fmt.address_width + (name == "top"))
    raise Unfaithful(f"any value of {kind}")


def _same(before: Any, after: Any) -> Any:
    if isinstance(before, tuple):
        outcome: Any = True
        for one, other in zip(before, after, strict=True):
            outcome = outcome & _same(one, other)
        return outcome
    return before is after if isinstance(before, CapabilityFormat) else before == after


# -- the whole sweep -------------------------------------------------------------------------------------------------------


def sweep(
    modules: tuple[str, ...], timeout_s: float, workers: int, examiner: Callable[[Change, float], Finding] = examine
) -> Iterator[Finding]:
    """Examine every change of some modules, in parallel processes; the findings in the order of the changes."""
    found = [change for module in modules for change in changes(module)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_import_theorems) as pool:
        try:
            yield from pool.map(examiner, found, [timeout_s] * len(found))
        except BaseException:
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.terminate()
            raise


def _import_theorems() -> None:
    importlib.import_module("capvisor.proofs.runner")
