"""Loops over the bytes of text traces. Each ends a whole block of lines, or stops at the first that it can't read."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from capvisor.study.compiled import COMPILED, compiled
from capvisor.study.kernel import FETCH, LOAD, MAP, STORE, UNMAP

_NEWLINE, _RETURN, _SPACE, _COMMA, _HASH, _ZERO = b"\n\r ,#0"
_I, _L, _S, _M, _X = b"ILSMx"
_MAP, _UNMAP, _HEADERS = b"map", b"unmap", (b"address", b"kind,address")
_VALGRIND = b"=-*"
_DIGITS = np.full(256, 255, np.int64)
for _digit, _character in enumerate(b"0123456789abcdef"):
    _DIGITS[_character] = _digit
for _digit, _character in enumerate(b"ABCDEF"):
    _DIGITS[_character] = 10 + _digit
PAGE_BYTES = 4096
LONGEST_ACCESS = PAGE_BYTES
"""Bytes of one access: a number of bytes above this is no size."""


def buffer_of(text: bytes) -> Any:
    """The bytes as what the loops are quickest on."""
    return np.frombuffer(text, np.uint8) if COMPILED else text


@compiled
def _number(text: Any, place: int, base: int) -> tuple[int, int, int]:
    """The number at a place, as its upper and lower 32 bits, and where it ends: -1 if it is none or needs over 64 bits."""
    high, low, start = 0, 0, place
    while _DIGITS[text[place]] < base:
        low = low * base + _DIGITS[text[place]]
        high = high * base + (low >> 32)
        low &= 0xFFFFFFFF
        if high >> 32 != 0:
            return 0, 0, -1
        place += 1
    return high, low, place if place > start else -1


@compiled
def _word(text: Any, place: int, word: Any) -> bool:
    """Whether a word stands at a place; text has a newline at its end, and no word has one."""
    for index in range(len(word)):
        if text[place + index] != word[index]:
            return False
    return True


@compiled
def _next_line(text: Any, place: int) -> int:
    while text[place] != _NEWLINE:
        place += 1
    return place + 1


@compiled
def lackey_lines(text: Any, addresses: NDArray[np.uint64], kinds: NDArray[np.uint8], _first: bool) -> tuple[int, int, int]:
    """How many accesses and lines there were, and where the line starts that can't be read, or -1.

    A modification is one store: its load comes right before. An access that ends in another page is one to each.
    """
    count, lines, place, size = 0, 0, 0, len(text)
    while place < size:
        start, letter = place, text[place]
        if letter == _NEWLINE or letter == _VALGRIND[0] or letter == _VALGRIND[1] or letter == _VALGRIND[2]:
            place = _next_line(text, place)
            lines += 1
            continue
        if letter == _SPACE:
            place += 1
            letter = text[place]
        if letter == _I:
            kind = FETCH
        elif letter == _L:
            kind = LOAD
        elif letter in (_S, _M):
            kind = STORE
        else:
            return count, lines, start
        place += 1
        while text[place] == _SPACE:
            place += 1
        high, low, place = _number(text, place, 16)
        if place < 0 or text[place] != _COMMA:
            return count, lines, start
        over, bytes_touched, place = _number(text, place + 1, 10)
        if place < 0 or over > 0 or bytes_touched == 0 or bytes_touched > LONGEST_ACCESS:
            return count, lines, start
        if text[place] == _RETURN:
            place += 1
        if text[place] != _NEWLINE:
            return count, lines, start
        place += 1
        lines += 1
        address = (np.uint64(high) << np.uint64(32)) | np.uint64(low)
        addresses[count], kinds[count] = address, kind
        count += 1
        if low % PAGE_BYTES + bytes_touched > PAGE_BYTES:
            addresses[count], kinds[count] = address + np.uint64(bytes_touched - 1), kind
            count += 1
    return count, lines, -1


@compiled
def csv_lines(text: Any, addresses: NDArray[np.uint64], kinds: NDArray[np.uint8], first: bool) -> tuple[int, int, int]:
    """How many accesses and lines there were, and where the line starts that can't be read, or -1."""
    count, lines, place, size = 0, 0, 0, len(text)
    if first and (_word(text, 0, _HEADERS[0]) or _word(text, 0, _HEADERS[1])):
        place = _next_line(text, 0)
        lines = 1
    while place < size:
        start, letter, kind = place, text[place], LOAD
        if letter in (_NEWLINE, _HASH):
            place = _next_line(text, place)
            lines += 1
            continue
        if _word(text, place, _MAP):
            kind, place = MAP, place + 3
        elif _word(text, place, _UNMAP):
            kind, place = UNMAP, place + 5
        elif letter in (_L, _S, _I):
            kind = FETCH if letter == _I else STORE if letter == _S else LOAD
            place += 1
        if place > start:
            if text[place] != _COMMA:
                return count, lines, start
            place += 1
        base = 10
        if text[place] == _ZERO and text[place + 1] == _X:
            base, place = 16, place + 2
        high, low, place = _number(text, place, base)
        if place < 0:
            return count, lines, start
        if text[place] == _RETURN:
            place += 1
        if text[place] != _NEWLINE:
            return count, lines, start
        place += 1
        lines += 1
        addresses[count], kinds[count] = (np.uint64(high) << np.uint64(32)) | np.uint64(low), kind
        count += 1
    return count, lines, -1
