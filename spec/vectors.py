"""Golden vectors: the columns of each kind of file.

A file `FORMAT.OPERATION.npz` (or .csv) has one unsigned integer a row in each column. `meta` columns hold the half of a
capability that isn't the address: raw as the architecture sees it, `mem_meta` as it lies in memory. A top has 65 bits and
two columns. The format is that of the vectors made from the public C library for compressed capabilities
(CTSRD-CHERI/cheri-compressed-cap), which are in tests/vectors/.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class VectorOperation:
    """One kind of vector: what goes in and what must come out.

    A file may answer the same question by several implementations: `aliases` names columns that are held against the same
    answer. An output has to be in a file under its own name or all of its aliases.
    """

    name: str
    summary: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.inputs + self.outputs

    def columns_of(self, output: str) -> tuple[str, ...]:
        """The columns by which a file may call an output, its own name first."""
        return (output, *dict(self.aliases).get(output, ()))


VECTOR_OPERATIONS: dict[str, VectorOperation] = {
    row.name: row
    for row in (
        VectorOperation(
            "decode",
            "the fields and bounds of any bits",
            ("mem_meta", "address"),
            ("raw_meta", "base", "top_lo", "top_hi", "otype", "perms", "flags", "reserved", "bounds_valid"),
        ),
        VectorOperation(
            "setbounds",
            "bounds requested as [in_address, in_address + length)",
            ("in_meta", "in_address", "in_tag", "length"),
            ("out_meta", "out_tag", "exact", "base", "top_lo", "top_hi"),
        ),
        VectorOperation(
            "setaddr",
            "another address: is it representable by the fast and by the precise check, and what are the bounds there",
            ("in_meta", "in_address", "in_tag", "new_address"),
            ("fast", "precise", "out_tag", "base", "top_lo", "top_hi"),
            (("fast", ("lib_fast", "sail_fast")), ("precise", ("lib_precise", "sail_precise"))),
        ),
        VectorOperation(
            "crrl",
            "representable length and alignment mask (CRRL, CRAM)",
            ("length",),
            ("representable_length", "alignment_mask"),
        ),
        VectorOperation(
            "perms",
            "permissions read, replaced and read again",
            ("in_meta", "new_perms"),
            ("in_perms", "ok", "out_meta", "out_perms"),
        ),
    )
}
