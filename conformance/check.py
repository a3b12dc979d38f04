"""Holding an implementation's answers against golden vectors."""

from dataclasses import dataclass

import numpy as np

from capvisor.conformance.answers import ANSWERS
from capvisor.conformance.errors import VectorFileError
from capvisor.conformance.files import VectorFile
from capvisor.dsl.states import describe
from capvisor.model.capability import Capability
from capvisor.spec.formats import CapabilityFormat


@dataclass(frozen=True)
class Mismatch:
    """The first row that an implementation answers otherwise: expected and actual by output column."""

    row: int
    inputs: dict[str, int]
    expected: dict[str, int]
    actual: dict[str, int]


@dataclass(frozen=True)
class Result:
    """How an implementation did on one file."""

    file: str
    format: str
    operation: str
    implementation: str
    rows: int
    failed: int
    comparisons: int
    """How many values were compared: rows times output columns of the file."""
    first: Mismatch | None


def check(file: VectorFile, implementation: str) -> Result:
    """Hold the answers of one implementation, "reference" or "fast", against a file.

    Raises VectorFileError where inputs are none of the format.
    """
    operation, fmt = file.operation, file.format
    inputs = {name: file.columns[name] for name in operation.inputs}
    _check_ranges(file)
    answers = ANSWERS[implementation](operation.name, fmt, inputs)
    wrong = np.zeros(file.rows, np.bool_)
    pairs = [
        (column, output) for output in operation.outputs for column in operation.columns_of(output) if column in file.columns
    ]
    for column, output in pairs:
        wrong |= file.columns[column] != answers[output]
    first = None
    if wrong.any():
        index = int(np.argmax(wrong))
        row = file.row(index)
        first = Mismatch(
            index,
            {name: row[name] for name in operation.inputs},
            {column: row[column] for column, _output in pairs},
            {column: int(answers[output][index]) for column, output in pairs},
        )
    return Result(
        file.name,
        fmt.name,
        operation.name,
        implementation,
        file.rows,
        int(wrong.sum()),
        file.rows * len(pairs),
        first,
    )


def _check_ranges(file: VectorFile) -> None:
    """Inputs must fit the format: addresses, metas and lengths its width, tags one bit."""
    for name in file.operation.inputs:
        limit = 1 if name == "in_tag" else file.format.permissions_mask if name == "new_perms" else file.format.address_mask
        too_large = file.columns[name] > np.uint64(limit)
        if too_large.any():
            index = int(np.argmax(too_large))
            value = int(file.columns[name][index])
            raise VectorFileError(f"{file.name}: row {index}: {name} = {value:#x} is too large for {file.format.name}")


def decoded(fmt: CapabilityFormat, columns: dict[str, int]) -> dict[str, str]:
    """The capabilities that columns describe, for people: one line for each meta column."""
    address = columns.get("in_address", columns.get("address", 0))
    lines = {}
    for name, value in columns.items():
        if name.endswith("meta"):
            raw = value ^ fmt.null_meta if name == "mem_meta" else value
            tag = columns.get("out_tag" if name == "out_meta" else "in_tag", 0)
            lines[name] = describe(Capability(fmt, bool(tag), raw, address))
    return lines
