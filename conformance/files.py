"""Files of golden vectors, as npz or CSV."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capvisor.conformance.errors import VectorFileError
from capvisor.fastpath.workspace import Words
from capvisor.files import write_whole
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.vectors import VECTOR_OPERATIONS, VectorOperation

SUFFIXES = (".npz", ".csv")


@dataclass(frozen=True)
class VectorFile:
    """Golden vectors: uint64 columns of one length, by name."""

    name: str
    format: CapabilityFormat
    operation: VectorOperation
    columns: dict[str, Words]

    @property
    def rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def row(self, index: int) -> dict[str, int]:
        return {name: int(values[index]) for name, values in self.columns.items()}


def describe_name(path: Path) -> tuple[str, str] | None:
    """Format and operation that a file's name, `FORMAT.OPERATION[.more].npz`, says; None for any other name."""
    parts = path.name.split(".")
    if path.suffix not in SUFFIXES or len(parts) < 3:
        return None
    return parts[0], parts[1]


def read(path: Path, format_name: str | None = None, operation_name: str | None = None) -> VectorFile:
    """Read a file; its name says format and operation, unless they are given. Raises VectorFileError."""
    if not path.exists():
        raise VectorFileError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise VectorFileError(f"{path}: golden vectors are .npz or .csv files, instruction traces .jsonl.gz or .jsonl files")
    described = describe_name(path) or (None, None)
    format_name, operation_name = format_name or described[0], operation_name or described[1]
    if format_name not in FORMATS:
        known = ", ".join(FORMATS)
        raise VectorFileError(
            f"{path}: unknown format `{format_name}` (known: {known}); files are named FORMAT.OPERATION.npz, "
            "or say --format and --operation"
        )
    if operation_name not in VECTOR_OPERATIONS:
        known = ", ".join(VECTOR_OPERATIONS)
        raise VectorFileError(f"{path}: unknown operation `{operation_name}` (known: {known})")
    columns = _read_npz(path) if path.suffix == ".npz" else _read_csv(path)
    operation = VECTOR_OPERATIONS[operation_name]
    _check_columns(path, operation, columns)
    return VectorFile(path.name, FORMATS[format_name], operation, columns)


def _read_npz(path: Path) -> dict[str, Words]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise VectorFileError(f"{path}: can't be read: {error.strerror or error}") from None
    except Exception as error:
        # numpy, zipfile and zlib raise whatever comes first on a damaged file.
        raise VectorFileError(f"{path}: not a whole .npz file: {type(error).__name__}: {error}") from None
    columns = {}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise VectorFileError(f"{path}: `{name}` is no array")
        if array.ndim != 1 or array.dtype.kind not in "ub":
            raise VectorFileError(
                f"{path}: column `{name}` is {array.dtype} of {array.ndim} dimensions; expected unsigned integers in one"
            )
        columns[name] = array.astype(np.uint64)
    return columns


def _read_csv(path: Path) -> dict[str, Words]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise VectorFileError(f"{path}: can't be read: {error}") from None
    try:
        rows = [(number, row) for number, row in enumerate(csv.reader(io.StringIO(text)), start=1) if row]
    except csv.Error as error:
        raise VectorFileError(f"{path}: no CSV file: {error}") from None
    names = [name.strip() for name in rows[0][1]] if rows else []
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise VectorFileError(f"{path}: two columns are called {', '.join(doubled)}")
    values: list[list[int]] = [[] for _ in names]
    for number, row in rows[1:]:
        if len(row) != len(names):
            raise VectorFileError(f"{path}:{number}: {len(row)} values in {len(names)} columns")
        for name, column, word in zip(names, values, row, strict=True):
            column.append(_csv_number(path, number, name, word.strip()))
    return {name: np.array(column, np.uint64) for name, column in zip(names, values, strict=True)}


def _csv_number(path: Path, line: int, column: str, word: str) -> int:
    try:
        value = int(word, 16) if word[:2].lower() == "0x" else int(word)
    except ValueError:
        raise VectorFileError(f"{path}:{line}: `{word[:40]}` in column `{column}` is no number") from None
    if not 0 <= value < 1 << 64:
        raise VectorFileError(f"{path}:{line}: {word[:40]} in column `{column}` isn't an unsigned 64-bit number")
    return value


def _check_columns(path: Path, operation: VectorOperation, columns: dict[str, Words]) -> None:
    known = {name for output in operation.outputs for name in operation.columns_of(output)} | set(operation.inputs)
    missing = [name for name in operation.inputs if name not in columns]
    missing += [
        " or ".join(operation.columns_of(output))
        for output in operation.outputs
        if not any(name in columns for name in operation.columns_of(output))
    ]
    unknown = [name for name in columns if name not in known]
    if missing or unknown:
        complaints = [f"missing {', '.join(missing)}"] if missing else []
        complaints += [f"unknown {', '.join(unknown)}"] if unknown else []
        raise VectorFileError(f"{path}: wrong columns for {operation.name}: {'; '.join(complaints)}")
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise VectorFileError(f"{path}: columns have different lengths")
    if lengths == {0}:
        raise VectorFileError(f"{path}: no rows")


def write(path: Path, columns: dict[str, Words]) -> None:
    """Write columns as .npz or .csv, as the name says; a file appears whole or not at all. Raises OSError."""
    if path.suffix == ".npz":
        write_whole(path, lambda file: np.savez_compressed(file, **columns))  # type: ignore[arg-type]
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([hex(value) for value in row] for row in zip(*(c.tolist() for c in columns.values()), strict=True))
    write_whole(path, lambda file: file.write(text.getvalue().encode()))
