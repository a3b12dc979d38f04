"""Asking a solver one question, within bounds."""

import time
from dataclasses import dataclass

import z3

SOLVERS = ("z3", "bitwuzla")


class SolverMissing(Exception):  # noqa: N818 - said to the user, who can install it
    """A solver that isn't installed."""


@dataclass(frozen=True)
class Answer:
    """What a solver said: "sat" with values for the symbols, "unsat", or "unknown" with the reason."""

    result: str
    seconds: float
    values: dict[str, int] | None = None
    reason: str = ""


def version(solver: str) -> str:
    """Name and version of a solver. Raises SolverMissing."""
    if solver == "z3":
        return f"z3 {z3.get_version_string()}"
    try:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        return f"bitwuzla {installed('bitwuzla')}"
    except PackageNotFoundError:
        raise SolverMissing(f"the solver {solver} isn't installed: pip install 'capvisor[solvers]'") from None


def smtlib(conditions: tuple[z3.BoolRef, ...], status: str = "unknown") -> str:
    """A question as SMT-LIB 2, with the answer that is expected of it."""
    solver = z3.Solver()
    solver.add(*(z3.simplify(condition) for condition in _standard(conditions)))
    text = str(solver.to_smt2())
    logic = "QF_BV" if _only_bits(conditions) else "ALL"
    return f"(set-logic {logic})\n(set-info :status {status})\n" + text.replace("(set-info :status unknown)\n", "")


Symbols = dict[str, z3.ExprRef]


def ask(solver: str, conditions: tuple[z3.BoolRef, ...], symbols: Symbols, timeout_s: float, rlimit: int = 0) -> Answer:
    """Whether some values of the symbols satisfy all conditions; `rlimit` bounds Z3's steps, where it isn't 0."""
    if solver == "z3":
        return _ask_z3(conditions, symbols, timeout_s, rlimit)
    return _ask_bitwuzla(conditions, symbols, timeout_s)


def _ask_z3(conditions: tuple[z3.BoolRef, ...], symbols: Symbols, timeout_s: float, rlimit: int) -> Answer:
    solver = z3.SolverFor("QF_BV") if _only_bits(conditions) else z3.Solver()
    solver.set("timeout", max(1, int(timeout_s * 1000)))
    solver.set("rlimit", rlimit)
    solver.add(*conditions)
    start = time.perf_counter()
    result = solver.check()
    seconds = time.perf_counter() - start
    if result == z3.unknown:
        return Answer("unknown", seconds, reason=solver.reason_unknown())
    if result == z3.unsat:
        return Answer("unsat", seconds)
    model = solver.model()
    values = {}
    for name, symbol in symbols.items():
        value = model.eval(symbol, model_completion=True)
        values[name] = int(z3.is_true(value)) if z3.is_bool(symbol) else int(value.as_long())
    return Answer("sat", seconds, values)


def _standard(conditions: tuple[z3.BoolRef, ...]) -> tuple[z3.BoolRef, ...]:
    """The conditions without the bits of a float, for which SMT-LIB has no function: they are any bits that give that float.

    That is the same as long as the float isn't NaN, which none of the fast path's is.
    """
    floats: dict[int, z3.ExprRef] = {}
    pending: list[z3.ExprRef] = list(conditions)
    seen: set[int] = set()
    while pending:
        term = pending.pop()
        if term.get_id() in seen:
            continue
        seen.add(term.get_id())
        pending += term.children()
        if z3.is_app_of(term, z3.Z3_OP_FPA_TO_IEEE_BV):
            floats[term.get_id()] = term
    replaced = [(term, z3.BitVec(f"bits_of_float_{number}", term.size())) for number, term in enumerate(floats.values())]
    means = (z3.fpBVToFP(bits, term.arg(0).sort()) == term.arg(0) for term, bits in replaced)
    return tuple(z3.substitute(condition, *replaced) for condition in (*conditions, *means))


def _only_bits(conditions: tuple[z3.BoolRef, ...]) -> bool:
    """Whether there is nothing but bit-vectors and truth values in them."""
    goal = z3.Goal()
    goal.add(*conditions)
    return bool(z3.Probe("is-qfbv")(goal))


def _ask_bitwuzla(conditions: tuple[z3.BoolRef, ...], symbols: Symbols, timeout_s: float) -> Answer:
    import bitwuzla

    options = bitwuzla.Options()
    options.set(bitwuzla.Option.PRODUCE_MODELS, True)
    options.set(bitwuzla.Option.TIME_LIMIT_PER, max(1, int(timeout_s * 1000)))
    manager = bitwuzla.TermManager()
    parser = bitwuzla.Parser(manager, options)
    start = time.perf_counter()
    parser.parse(smtlib(conditions).replace("(check-sat)", ""), True, False)
    engine = parser.bitwuzla()
    result = engine.check_sat()
    seconds = time.perf_counter() - start
    if result == bitwuzla.Result.UNSAT:
        return Answer("unsat", seconds)
    if result != bitwuzla.Result.SAT:
        return Answer("unknown", seconds, reason="time limit")
    declared = {str(term.symbol()): term for term in parser.get_declared_funs()}
    values = {}
    for name in symbols:
        term = declared.get(name)
        value = 0 if term is None else engine.get_value(term).value(10)
        values[name] = int(value)
    return Answer("sat", seconds, values)
