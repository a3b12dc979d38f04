"""Terms made flat: each read of an array and each result of a function is a symbol of its own."""

from collections.abc import Iterator
from typing import NamedTuple

import z3


class Result(NamedTuple):
    """What a function, or an array, gives for some arguments."""

    arguments: tuple[z3.ExprRef, ...]
    symbol: z3.ExprRef
    key: tuple[int, ...]
    """The numbers of the arguments."""
    bit: int
    """The symbol, as `Terms.symbols` has it."""
    within: int
    """The symbols in the arguments."""


class Terms:
    """Terms as they are flat. What was made flat once is known: questions on the ways through one step share it."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[z3.ExprRef, z3.ExprRef]] = {}
        self._simple: dict[int, tuple[z3.ExprRef, z3.ExprRef]] = {}
        self._results: dict[tuple[str, tuple[int, ...]], Result] = {}
        self._symbols = _Symbols()
        self.result_of: dict[int, tuple[str, Result]] = {}
        """Of the symbol of each result, as a bit, the function and the result."""
        self.of_results = 0
        """The symbols of all results."""

    def flat(self, term: z3.ExprRef) -> z3.ExprRef:
        """A term made flat, and simple."""
        known = self._simple.get(term.ast.value)
        if known is None:
            # The term is kept, so that its place isn't given to another one.
            known = self._simple[term.ast.value] = term, z3.simplify(self.term(term))
        return known[1]

    def symbols(self, term: z3.ExprRef) -> int:
        """The symbols in a flat term, each a bit of a number."""
        return self._symbols.of(term)

    def term(self, term: z3.ExprRef) -> z3.ExprRef:
        """A term made flat."""
        known = self._known.get(term.ast.value)
        if known is not None:
            return known[1]
        if z3.is_select(term):
            flat = self._read(term.arg(0), z3.simplify(self.term(term.arg(1))))
        elif term.num_args() == 0:
            flat = term
        else:
            flat = self._combined(term)
        self._known[term.ast.value] = term, flat
        return flat

    def _at(self, place: z3.Ast, within: z3.ExprRef) -> z3.ExprRef:
        """The part of a term at a place made flat: most are known, and then the library isn't asked what they are."""
        known = self._known.get(place.value)
        return known[1] if known is not None else self.term(_shown(place, within))

    def _combined(self, term: z3.ExprRef) -> z3.ExprRef:
        places = list(_places(term))
        parts = [self._at(place, term) for place in places]
        declaration = term.decl()
        if declaration.kind() == z3.Z3_OP_UNINTERPRETED:
            return self._result(declaration.name(), tuple(map(z3.simplify, parts)), term.sort())
        if all(part.ast.value == place.value for part, place in zip(parts, places, strict=True)):
            return term
        made = (z3.Ast * len(parts))(*(part.ast for part in parts))
        return _shown(z3.Z3_update_term(term.ctx.ref(), term.ast, len(parts), made), term)

    def _read(self, array: z3.ExprRef, index: z3.ExprRef) -> z3.ExprRef:
        """What an array holds at an index: what was stored last, or what was there at first."""
        if z3.is_K(array):
            return self.term(array.arg(0))
        if not z3.is_store(array):
            if array.num_args():
                raise ValueError(f"{array.decl()} of arrays can't be made flat")
            return self._result(array.decl().name(), (index,), array.sort().range())
        here = z3.simplify(index == self.term(array.arg(1)))
        if z3.is_true(here):
            return self.term(array.arg(2))
        before = self._read(array.arg(0), index)
        return before if z3.is_false(here) else z3.If(here, self.term(array.arg(2)), before)

    def _result(self, name: str, arguments: tuple[z3.ExprRef, ...], sort: z3.SortRef) -> z3.ExprRef:
        key = name, tuple(each.get_id() for each in arguments)
        if key not in self._results:
            symbol = z3.Const(f"{name}!{len(self._results)}", sort)
            within = 0
            for each in arguments:
                within |= self.symbols(each)
            result = self._results[key] = Result(arguments, symbol, key[1], self.symbols(symbol), within)
            self.result_of[result.bit] = name, result
            self.of_results |= result.bit
        return self._results[key].symbol


def _places(term: z3.ExprRef) -> Iterator[z3.Ast]:
    """Where the library has the parts of a term: what z3's Python does to show each takes longer than most uses of it."""
    context, place = term.ctx.ref(), term.ast
    return (z3.Z3_get_app_arg(context, place, number) for number in range(z3.Z3_get_app_num_args(context, place)))


def _shown(place: z3.Ast, beside: z3.ExprRef) -> z3.ExprRef:
    """What the library has at a place, as z3's Python shows it."""
    return z3.z3._to_expr_ref(place, beside.ctx)


class _Symbols:
    """The symbols in terms, each a bit of a number."""

    def __init__(self) -> None:
        self._kept: list[z3.ExprRef] = []
        self._within: dict[int, int] = {}
        self._count = 0

    def of(self, term: z3.ExprRef) -> int:
        """Those in a term."""
        found = self._within.get(term.ast.value)
        if found is None:
            # The term is kept, so that its place, and those of its parts, aren't given to others.
            self._kept.append(term)
            found = self._find(term.ctx.ref(), term.ast)
        return found

    def _find(self, context: z3.ContextObj, place: z3.Ast) -> int:
        found = 0
        parts = z3.Z3_get_app_num_args(context, place)
        for number in range(parts):
            part = z3.Z3_get_app_arg(context, place, number)
            within = self._within.get(part.value)
            found |= self._find(context, part) if within is None else within
        if not parts and z3.Z3_get_decl_kind(context, z3.Z3_get_app_decl(context, place)) == z3.Z3_OP_UNINTERPRETED:
            found = 1 << self._count
            self._count += 1
        self._within[place.value] = found
        return found
