"""Loads ELF files as a dynamic linker does, byte by byte, and hashes every page: slow, and independent of study/."""

import hashlib
import struct
from pathlib import Path

PAGE = 4096
MASK = (1 << 64) - 1


class Image:
    """One object of one tenant: its pages by number as linked, and what is writable."""

    def __init__(self, path: Path, base: int) -> None:
        self.base, self.data = base, path.read_bytes()
        self.pages: dict[int, bytearray] = {}
        self.writable: dict[int, bool] = {}
        self.file_pages: dict[int, int] = {}
        offset, size, count = (*struct.unpack_from("<Q", self.data, 32), *struct.unpack_from("<HH", self.data, 54))
        rows = [struct.unpack_from("<IIQQQQQQ", self.data, offset + size * number) for number in range(count)]
        self.relro, self.tls, dynamic = (0, 0), None, None
        self.loads = [row for row in rows if row[0] == 1]
        for kind, _flags, place, address, _physical, _file, memory, alignment in rows:
            if kind == 0x6474E552:
                self.relro = address // PAGE, (address + memory) // PAGE
            elif kind == 7:
                self.tls = memory, alignment
            elif kind == 2:
                dynamic = place
        for row in self.loads:
            self._map(row)
        self.tags: dict[int, int] = {}
        while dynamic is not None:
            tag, value = struct.unpack_from("<QQ", self.data, dynamic)
            if tag == 0:
                break
            self.tags.setdefault(tag, value)
            dynamic += 16
        self.symbols = self._symbols()
        self.touched: set[int] = set()

    def _map(self, row) -> None:
        _kind, flags, place, address, _physical, size, memory, _alignment = row
        for page in range(address // PAGE, -(-(address + memory) // PAGE)):
            start = place - address + page * PAGE
            in_file = size > 0 and page * PAGE < address + size
            content = bytearray(self.data[start : start + PAGE] if in_file else b"").ljust(PAGE, b"\0")
            if in_file and memory > size and page == (address + size - 1) // PAGE:
                end = (address + size - 1) % PAGE + 1
                content[end:] = bytes(PAGE - end)
            self.pages[page], self.writable[page] = content, bool(flags & 2)
            self.file_pages[page] = start // PAGE if in_file else -1

    def _symbols(self) -> list[tuple[bytes, int, int, int, int, int]]:
        if 6 not in self.tags:
            return []
        (count,) = struct.unpack("<I", self.read(self.tags[4] + 4, 4))
        found = []
        for number in range(count):
            name, info, other, section, value, size = struct.unpack("<IBBHQQ", self.read(self.tags[6] + 24 * number, 24))
            text = b""
            while self.read(self.tags[5] + name + len(text), 1) != b"\0":
                text += self.read(self.tags[5] + name + len(text), 1)
            found.append((text, info, other, section, value, size))
        return found

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.pages[each // PAGE][each % PAGE] for each in range(address, address + size))

    def write(self, address: int, content: bytes) -> None:
        for place, value in enumerate(content, address):
            self.pages[place // PAGE][place % PAGE] = value
            self.touched.add(place // PAGE)

    def put(self, address: int, value: int, width: int = 8) -> None:
        self.write(address, (value & MASK).to_bytes(8, "little")[:width])


def load(paths: list[Path], bases: list[int]) -> list[Image]:
    """The objects of a tenant, relocated; the order of the paths is the order of search."""
    images = [Image(path, base) for path, base in zip(paths, bases, strict=True)]
    module, offsets, end, modules = {}, {}, 0, 0
    for image in images:
        if image.tls is not None:
            size, alignment = image.tls
            end = -(-(end + size) // alignment) * alignment
            modules += 1
            module[image], offsets[image] = modules, end

    def find(image, number, without=None):
        name, info, other, section, *_ = image.symbols[number]
        if info >> 4 == 0 or (section and other & 3):
            return image, image.symbols[number]
        for there in images:
            for symbol in there.symbols:
                if (
                    there is not without
                    and symbol[0] == name
                    and symbol[3]
                    and symbol[1] >> 4
                    and symbol[2] & 3 not in (1, 2)
                ):
                    return there, symbol
        return None

    copies = []
    for image in images:
        for place in range(image.tags.get(8, 0) // 24):
            address, kind, number, addend = struct.unpack("<QIIq", image.read(image.tags[7] + 24 * place, 24))
            if kind == 5:
                copies.append((image, address, number))
                continue
            there, symbol = (find(image, number) if number else (image, None)) or (image, None)
            is_thread_local = symbol is not None and symbol[1] & 15 == 6
            value = 0 if symbol is None else symbol[4]
            target = 0 if symbol is None else value if is_thread_local else there.base + value
            if kind in (1, 6, 7):
                image.put(address, target + addend)
            elif kind in (8, 37):
                image.put(address, image.base + addend)
            elif kind == 2:
                image.put(address, target + addend - image.base - address, 4)
            elif kind == 10:
                image.put(address, target + addend, 4)
            elif kind == 16:
                image.put(address, module[there])
            elif kind == 17:
                image.put(address, value + addend)
            elif kind == 18:
                image.put(address, value + addend - offsets[there])
            elif kind == 33:
                image.put(address, (0 if symbol is None else symbol[5]) + addend)
            else:
                raise AssertionError(kind)
    for image, address, number in copies:
        size = image.symbols[number][5]
        found = find(image, number, image)
        copied = image.read(address, size) if found is None else found[0].read(found[1][4], min(found[1][5], size))
        image.write(address, copied)
    return images


def resident_pages(tenants: list[list[tuple[Path, Image]]]) -> dict[str, int]:
    """Pages of these tenants together, by system: every page of every tenant is looked at."""
    every, hashes, files, objects, shadows = 0, set(), set(), {}, 0
    for tenant in tenants:
        for path, image in tenant:
            digest = hashlib.sha256(image.data).digest()
            for number, content in image.pages.items():
                every += 1
                hashes.add(hashlib.sha256(content).digest())
                in_relro = image.relro[0] <= number < image.relro[1]
                if number in image.touched or (image.writable[number] and not in_relro):
                    shadows += 1
                else:
                    files.add((path, image.file_pages[number]))
                    objects[digest, number] = None
    return {
        "NONE": every,
        "PAGES": len(hashes),
        "FILES": shadows + len(files),
        "OBJECTS": shadows + len(objects),
    }
