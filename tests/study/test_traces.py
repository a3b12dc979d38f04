"""Readers of traces: what they read, and what they say of what they can't."""

import gzip
import io
import lzma
import sys

import numpy as np
import pytest

from capvisor.study import traces
from capvisor.study.errors import StudyError
from capvisor.study.kernel import FETCH, LOAD, MAP, STORE, UNMAP
from capvisor.study.traces import CHAMPSIM_RECORD, STANDARD_INPUT, format_of, read_trace

LACKEY = """==7== Lackey, an example Valgrind tool
==7==
I  04016b80,3
 S 1ffefff0a8,8
 L 0bad0ff8,16
 M DEADBEEF,4
I  ffffffffff600400,2
"""
READ = [
    (0x04016B80, FETCH),
    (0x1FFEFFF0A8, STORE),
    (0x0BAD0FF8, LOAD),
    (0x0BAD1007, LOAD),
    (0xDEADBEEF, STORE),
    (0xFFFFFFFFFF600400, FETCH),
]


def everything(path, format_name):
    chunks = list(read_trace(path, format_name))
    return [(int(a), int(k)) for chunk in chunks for a, k in zip(chunk.addresses, chunk.kinds, strict=True)]


def written(tmp_path, content, name="trace"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lackey_is_read_an_access_across_pages_as_two(tmp_path, ending):
    assert everything(written(tmp_path, LACKEY.replace("\n", ending)), "lackey") == READ


@pytest.mark.parametrize("opener", [gzip.compress, lzma.compress])
def test_compressed_traces_and_a_last_line_without_its_end(tmp_path, opener):
    suffix = {gzip.compress: ".gz", lzma.compress: ".xz"}[opener]
    path = written(tmp_path, opener(LACKEY.rstrip("\n").encode()), f"t.lackey{suffix}")
    assert format_of(path) == "lackey"
    assert everything(path, "lackey") == READ


def test_blocks_cut_lines_anywhere(tmp_path, monkeypatch):
    path = written(tmp_path, LACKEY * 20)
    for size in (40, 41, 67, 100):
        monkeypatch.setattr(traces, "BLOCK_BYTES", size)
        assert everything(path, "lackey") == READ * 20


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LACKEY.encode())))
    assert everything(STANDARD_INPUT, "lackey") == READ


@pytest.mark.parametrize(
    "bad",
    [
        " S 1ffe",
        "I  ,3",
        " L 12,",
        " L 12,0",
        " L 12,5000",
        " Q 12,4",
        "hello",
        " S 12345678123456789,8",
        "I  12,3x",
        " L 1g,3",
        " L 12,99999999999999999999",
    ],
)
def test_a_lackey_line_that_cant_be_read_is_named_by_line_and_byte(tmp_path, bad):
    path = written(tmp_path, f"I  04016b80,3\n{bad}\n S 12,4\n")
    with pytest.raises(StudyError, match=r"line 2, byte 15: `.*expected"):
        everything(path, "lackey")


def test_a_line_is_named_in_later_blocks_too(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "BLOCK_BYTES", 64)
    path = written(tmp_path, "I  04016b80,3\n" * 1000 + "oops\n")
    with pytest.raises(StudyError, match=r"line 1001, byte 14001: `oops`"):
        everything(path, "lackey")
    path = written(tmp_path, "I" * 1000)
    with pytest.raises(StudyError, match="without end"):
        everything(path, "lackey")


def test_csv_of_addresses_and_kinds(tmp_path):
    text = "kind,address\nL,0x1000\nS,4097\n# a comment\nI,0xFFFFFFFFFFFFFFFF\nmap,0x2000\nunmap,8192\n77\n"
    expected = [(0x1000, LOAD), (4097, STORE), ((1 << 64) - 1, FETCH), (0x2000, MAP), (8192, UNMAP), (77, LOAD)]
    assert everything(written(tmp_path, text), "csv") == expected
    assert everything(written(tmp_path, "address\n18446744073709551615\n"), "csv") == [((1 << 64) - 1, LOAD)]


@pytest.mark.parametrize("bad", ["L 5", "0x", "18446744073709551616", "unmapped,3", "-1", "1.5", "map,", "L,address"])
def test_a_csv_line_that_cant_be_read_is_named(tmp_path, bad):
    with pytest.raises(StudyError, match="line 3, byte 7: "):
        everything(written(tmp_path, f"12\n13\n{bad}\n"), "csv")


def test_champsim_records_give_the_fetch_the_loads_and_the_stores(tmp_path):
    assert CHAMPSIM_RECORD.itemsize == 64
    records = np.zeros(2, CHAMPSIM_RECORD)
    records["ip"] = 0x400000, 0x400004
    records["source_memory"][0, :2] = 0x1000, 0x2000
    records["destination_memory"][1, 1] = 0x3000
    path = written(tmp_path, lzma.compress(records.tobytes()), "t.champsimtrace.xz")
    assert format_of(path) == "champsim"
    assert everything(path, "champsim") == [
        (0x400000, FETCH),
        (0x1000, LOAD),
        (0x2000, LOAD),
        (0x400004, FETCH),
        (0x3000, STORE),
    ]
    with pytest.raises(StudyError, match=r"record 2, byte 65: 36 bytes where ChampSim's have 64"):
        everything(written(tmp_path, records.tobytes()[:100]), "champsim")
    with pytest.raises(StudyError, match="record 1, byte 1"):
        everything(written(tmp_path, b""), "champsim")


def test_a_compressed_trace_that_ends_early(tmp_path):
    for compress, suffix in ((gzip.compress, ".gz"), (lzma.compress, ".xz")):
        whole = compress(np.random.default_rng(1).bytes(6400))
        with pytest.raises(StudyError, match="compressed"):
            everything(written(tmp_path, whole[:-20], f"t{suffix}"), "champsim")
        with pytest.raises(StudyError, match="compressed"):
            everything(written(tmp_path, b"no such thing at all", f"u{suffix}"), "champsim")


def test_npz_is_streamed_with_or_without_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "BLOCK_BYTES", 64)
    addresses = np.arange(100, dtype=np.uint64) << np.uint64(12)
    kinds = (np.arange(100) % 5).astype(np.uint8)
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "t.npz", address=addresses, kind=kinds)
        assert everything(tmp_path / "t.npz", "npz") == list(zip(addresses.tolist(), kinds.tolist(), strict=True))
    np.savez(tmp_path / "t.npz", address=addresses)
    assert everything(tmp_path / "t.npz", "npz") == [(address, LOAD) for address in addresses.tolist()]


def test_npz_files_that_cant_be_used(tmp_path):
    path = tmp_path / "t.npz"
    for arrays, message in [
        ({"other": np.zeros(2)}, "no array `address`"),
        ({"address": np.zeros(2)}, "whole numbers"),
        ({"address": np.zeros((2, 2), np.uint64)}, "one dimension"),
        ({"address": np.zeros(0, np.uint64)}, "no access"),
        ({"address": np.zeros(2, np.uint64), "kind": np.zeros(3, np.uint8)}, r"uint8\[2\]"),
        ({"address": np.zeros(2, np.uint64), "kind": np.full(2, 9, np.uint8)}, "kind 9"),
    ]:
        np.savez(path, **arrays)
        with pytest.raises(StudyError, match=message):
            everything(path, "npz")
    with pytest.raises(StudyError, match="not a whole NPZ"):
        everything(written(tmp_path, b"PK nothing"), "npz")
    with pytest.raises(StudyError, match="can't be streamed"):
        everything(STANDARD_INPUT, "npz")


def test_a_trace_that_isnt_there_or_is_empty(tmp_path):
    for name in ("lackey", "csv", "champsim", "npz"):
        with pytest.raises(StudyError, match="no such file"):
            everything(tmp_path / "absent", name)
    for name in ("lackey", "csv"):
        with pytest.raises(StudyError, match="no access"):
            everything(written(tmp_path, ""), name)
    with pytest.raises(StudyError, match="directory"):
        everything(tmp_path, "lackey")


def test_every_byte_read_is_told(tmp_path):
    told = []
    path = written(tmp_path, LACKEY * 50)
    list(read_trace(path, "lackey", told.append))
    assert sum(told) == path.stat().st_size
