"""Golden vectors: both implementations answer them all, and files are read, written and refused as they should be."""

import numpy as np
import pytest

from capvisor.conformance.answers import fast_answers
from capvisor.conformance.check import check
from capvisor.conformance.errors import VectorFileError
from capvisor.conformance.files import read, write
from capvisor.conformance.generate import generate
from capvisor.fastpath import bounds as fast_bounds
from capvisor.model import bounds
from capvisor.spec.formats import CC64, FORMATS
from capvisor.spec.vectors import VECTOR_OPERATIONS
from tests.tutorial import ROOT

GOLDEN = sorted((ROOT / "tests" / "vectors").glob("*.npz"))


def test_there_are_golden_vectors_of_every_format_and_operation() -> None:
    assert {path.stem for path in GOLDEN} == {f"{fmt}.{name}" for fmt in FORMATS for name in VECTOR_OPERATIONS}


@pytest.mark.parametrize("implementation", ["reference", "fast"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_golden_row_is_answered(path, implementation: str) -> None:
    result = check(read(path), implementation)
    assert (result.rows, result.failed) == (2000, 0), result.first
    assert result.comparisons >= 2 * result.rows


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
@pytest.mark.parametrize("operation", VECTOR_OPERATIONS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_what_is_generated_conforms(fmt, operation: str, suffix: str, tmp_path) -> None:
    path = tmp_path / f"{fmt.name}.{operation}{suffix}"
    write(path, generate(fmt, operation, 300, 1))
    vectors = read(path)
    for implementation in ("reference", "fast"):
        result = check(vectors, implementation)
        assert (result.rows, result.failed) == (300, 0), result.first


def test_generation_depends_on_the_seed_alone() -> None:
    first, again = (generate(CC64, "setbounds", 50, 7) for _ in range(2))
    other = generate(CC64, "setbounds", 50, 8)
    assert all((first[name] == again[name]).all() for name in first)
    assert not all((first[name] == other[name]).all() for name in first)


def test_generated_vectors_reach_both_answers_of_every_question() -> None:
    columns = generate(FORMATS["cc128"], "setaddr", 3000, 0) | generate(FORMATS["cc128"], "setbounds", 3000, 0)
    for name in ("fast", "precise", "out_tag", "in_tag", "exact"):
        assert 0 < columns[name].sum() < 3000, name
    decode = generate(FORMATS["cc128"], "decode", 3000, 0)
    assert 0 < decode["top_hi"].sum() < 3000


@pytest.mark.parametrize("implementation", ["reference", "fast"])
def test_a_wrong_implementation_fails_and_its_first_row_is_shown(monkeypatch, implementation: str) -> None:
    if implementation == "reference":
        correct = bounds.set_bounds
        monkeypatch.setattr(bounds, "set_bounds", lambda fmt, meta, base, top: (correct(fmt, meta, base, top)[0], True))
    else:
        correct_fast = fast_bounds.set_bounds

        def wrong(fmt, meta, base, length, ws, out_meta, exact):
            correct_fast(fmt, meta, base, length, ws, out_meta, exact)
            exact.fill(True)

        monkeypatch.setattr(fast_bounds, "set_bounds", wrong)
    result = check(read(ROOT / "tests" / "vectors" / "cc128.setbounds.npz"), implementation)
    assert 0 < result.failed < result.rows
    assert result.first.expected["exact"] == 0 and result.first.actual["exact"] == 1


def test_fast_answers_have_every_column() -> None:
    for name, row in VECTOR_OPERATIONS.items():
        inputs = {column: np.zeros(3, np.uint64) for column in row.inputs}
        assert set(fast_answers(name, CC64, inputs)) == set(row.outputs)


def crrl_columns() -> dict[str, np.ndarray]:
    return generate(CC64, "crrl", 4, 0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("cc64.crrl.npz", lambda c: c.pop("length"), "wrong columns for crrl: missing length"),
        ("cc64.crrl.npz", lambda c: c.update(more=c["length"]), "unknown more"),
        ("cc64.crrl.npz", lambda c: c.update(length=c["length"][:2]), "columns have different lengths"),
        ("cc64.crrl.npz", lambda c: c.update(length=c["length"].astype(np.float64)), "expected unsigned integers"),
        ("cc64.crrl.npz", lambda c: c.update({n: v[:0] for n, v in c.items()}), "no rows"),
        ("cc63.crrl.npz", lambda c: None, "unknown format `cc63`"),
        ("cc64.crll.npz", lambda c: None, "unknown operation `crll`"),
        ("crrl.npz", lambda c: None, "unknown format"),
    ],
)
def test_a_wrong_file_is_refused(name: str, change, message: str, tmp_path) -> None:
    columns = crrl_columns()
    change(columns)
    np.savez(tmp_path / name, **columns)
    with pytest.raises(VectorFileError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("length,representable_length,alignment_mask\n1,2\n", ":2: 2 values in 3 columns"),
        ("length,representable_length,alignment_mask\n1,x,3\n", ":2: `x` in column `representable_length` is no number"),
        ("length,representable_length,alignment_mask\n1,-1,3\n", "isn't an unsigned 64-bit number"),
        ("", "missing length"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(text: str, message: str, tmp_path) -> None:
    path = tmp_path / "cc64.crrl.csv"
    path.write_text(text)
    with pytest.raises(VectorFileError, match=message):
        read(path)


def test_truncated_and_missing_files_are_refused(tmp_path) -> None:
    whole = (ROOT / "tests" / "vectors" / "cc64.crrl.npz").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path = tmp_path / "cc64.crrl.npz"
        path.write_bytes(whole[:length])
        with pytest.raises(VectorFileError, match=r"not a whole \.npz file"):
            read(path)
    with pytest.raises(VectorFileError, match="no such file"):
        read(tmp_path / "cc64.perms.npz")
    with pytest.raises(VectorFileError, match=r"are \.npz or \.csv files"):
        read(ROOT / "README.md")


def test_inputs_that_are_none_of_the_format_are_refused(tmp_path) -> None:
    columns = crrl_columns()
    columns["length"] = columns["length"] + np.uint64(2**32)
    write(tmp_path / "cc64.crrl.npz", columns)
    with pytest.raises(VectorFileError, match="too large for cc64"):
        check(read(tmp_path / "cc64.crrl.npz"), "fast")
