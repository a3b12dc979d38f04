"""A peer behind a command that speaks JSON lines; docs/peers.md has the protocol.

A peer answers with what an operation changed, or with more. Its answers are applied to what it was believed to hold, and
the whole of that is compared with the reference: a change that is not reported is found as well as one that is wrong.
"""

import contextlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from capvisor.campaign.case import Case, Operation
from capvisor.campaign.peer import PeerDifference, PeerError
from capvisor.campaign.peer_process import PeerProcess, shortened
from capvisor.dsl.printer import instruction, print_instruction
from capvisor.dsl.states import hart_granules
from capvisor.model import capability
from capvisor.model.capability import Capability
from capvisor.model.machine import Hart, Trap
from capvisor.spec.encodings import encodings
from capvisor.spec.formats import FORMATS, CapabilityFormat
from capvisor.spec.operations import OPERATIONS
from capvisor.spec.registers import REGISTER_COUNT, SPECIAL_REGISTERS, STATE_NUMBERS
from capvisor.spec.traps import CAUSES_BY_NAME

PROTOCOL, VERSION = "capvisor-peer", 2

PARTS = ("trap", "pc", "csrs", "registers", "special", "memory")
"""What a peer can report; a difference is looked for in this order."""

CSRS = STATE_NUMBERS
"""The mode, and the CSRs that are state of their own: mtvec and mepc are the addresses of MTCC and MEPCC."""

_REGISTERS = tuple(f"c{number}" for number in range(REGISTER_COUNT))
_HEXADECIMAL = re.compile("0x[0-9a-fA-F]{1,16}")

_Bits = tuple[int, int, int]
"""A capability or a granule as the protocol has it: its tag, the upper half as it lies in memory, the lower half."""

_EMPTY: _Bits = (0, 0, 0)


class _MalformedError(Exception):
    """What is wrong with a line."""


# -- what a peer says of itself -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Greeting:
    """A peer's first line."""

    name: str
    reports: frozenset[str]
    formats: frozenset[str]
    unsupported: frozenset[str]
    """Operations that are left out of its cases."""
    decodes_by_pcc: bool
    """Whether it reads words in the mode that its PCC is in: operations of the other mode are left out."""


def _greeting(said: dict[str, Any], command: str) -> Greeting:
    if said.get("protocol") != PROTOCOL:
        raise _MalformedError(f'it doesn\'t greet with `"protocol": "{PROTOCOL}"`')
    if said.get("version") != VERSION:
        raise _MalformedError(f"it speaks version {said.get('version')!r} of the protocol, and this is version {VERSION}")
    _no_others(said, ("protocol", "version", "name", "reports", "formats", "unsupported", "decodes_by_pcc"))
    name, by_pcc = said.get("name", command), said.get("decodes_by_pcc", False)
    if not isinstance(name, str) or not isinstance(by_pcc, bool):
        raise _MalformedError("`name` is to be a string, `decodes_by_pcc` a truth value")
    reports = _names(said, "reports", PARTS, PARTS)
    if not reports:
        raise _MalformedError("it reports nothing that could be compared")
    return Greeting(
        " ".join(name.split()),
        reports,
        _names(said, "formats", tuple(FORMATS), tuple(FORMATS)),
        _names(said, "unsupported", tuple(OPERATIONS), ()),
        by_pcc,
    )


def _names(said: dict[str, Any], key: str, known: tuple[str, ...], default: tuple[str, ...]) -> frozenset[str]:
    """A list of names, each of them known."""
    names = said.get(key, list(default))
    if not isinstance(names, list):
        raise _MalformedError(f"`{key}` is to be a list")
    for name in names:
        if name not in known:
            raise _MalformedError(f"`{key}`: there is no {json.dumps(name)}")
    return frozenset(names)


def _no_others(said: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in said:
        if key not in known:
            raise _MalformedError(f"the key `{key}` has no meaning here")


# -- states ---------------------------------------------------------------------------------------------------------------


@dataclass
class _State:
    """What is compared: capabilities in registers and granules, granules that are not empty only; pc and the CSRs."""

    capabilities: dict[str, _Bits] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)


def _bits(cap: Capability) -> _Bits:
    return int(cap.tag), capability.memory_meta(cap), cap.address


def _granule_name(address: int) -> str:
    return f"memory at {address:#x}"


def _state(hart: Hart, reports: frozenset[str]) -> _State:
    """The reference's state, as far as it is compared."""
    state = _State()
    if "pc" in reports:
        state.numbers["pc"] = hart.pc
    if "csrs" in reports:
        state.numbers.update((name, getattr(hart, name)) for name in CSRS)
    if "registers" in reports:
        state.capabilities.update((name, _bits(hart.registers[number])) for number, name in enumerate(_REGISTERS))
    if "special" in reports:
        state.capabilities.update((name, _bits(getattr(hart, name))) for name in SPECIAL_REGISTERS)
        state.capabilities["pcc"] = _without_address(state.capabilities["pcc"])
    if "memory" in reports:
        size = hart.format.capability_bytes
        for index, granule in hart_granules(hart).items():
            bits = int(granule.tag), granule.upper, granule.lower
            if bits != _EMPTY:
                state.capabilities[_granule_name(hart.memory.base + index * size)] = bits
    return state


def _without_address(pcc: _Bits) -> _Bits:
    """PCC as it is compared: where its address is, others have pc."""
    return pcc[0], pcc[1], 0


def _first_difference(expected: _State, believed: _State) -> tuple[str, str, str] | None:
    """What differs, and how."""
    for name, number in expected.numbers.items():
        if believed.numbers[name] != number:
            return name, hex(number), hex(believed.numbers[name])
    for name in (*expected.capabilities, *sorted(believed.capabilities.keys() - expected.capabilities.keys())):
        wanted, said = expected.capabilities.get(name, _EMPTY), believed.capabilities.get(name, _EMPTY)
        if wanted != said:
            return _bits_difference(name, wanted, said)
    return None


def _bits_difference(name: str, wanted: _Bits, said: _Bits) -> tuple[str, str, str]:
    if name.startswith("memory"):
        return name, _shown(wanted), _shown(said)
    pairs = zip(("tag", "meta", "address"), wanted, said, strict=True)
    part, one, other = next(row for row in pairs if row[1] != row[2])
    return f"{name}.{part}", hex(one), hex(other)


def _shown(bits: _Bits) -> str:
    tag, meta, address = bits
    return f"tag {tag}, meta {meta:#x}, address {address:#x}"


# -- answers --------------------------------------------------------------------------------------------------------------


def _number(said: object, mask: int, what: str) -> int:
    if not isinstance(said, str) or not _HEXADECIMAL.fullmatch(said) or (number := int(said, 16)) > mask:
        raise _MalformedError(f'{what} is to be a string such as "0x1f" of at most {mask.bit_length()} bits')
    return number


def _said_bits(said: object, mask: int, what: str) -> _Bits:
    if not isinstance(said, dict) or said.keys() != {"tag", "meta", "address"}:
        raise _MalformedError(f"{what} is to have `tag`, `meta` and `address`")
    tag = said["tag"]
    if not isinstance(tag, int) or tag not in (0, 1):
        raise _MalformedError(f"the tag of {what} is to be 0 or 1")
    return (
        int(tag),
        _number(said["meta"], mask, f"the meta of {what}"),
        _number(said["address"], mask, f"the address of {what}"),
    )


def _part(answer: dict[str, Any], name: str) -> dict[str, Any]:
    part = answer.get(name, {})
    if not isinstance(part, dict):
        raise _MalformedError(f"`{name}` is to be an object")
    return part


def _apply(answer: dict[str, Any], believed: _State, case: Case) -> None:
    """Change what a peer is believed to hold by what it says."""
    mask = case.capability_format.address_mask
    if "pc" in answer:
        believed.numbers["pc"] = _number(answer["pc"], mask, "`pc`")
    for name, said in _part(answer, "csrs").items():
        if name not in CSRS:
            raise _MalformedError(f"there is no CSR `{name}` to report")
        believed.numbers[name] = _number(said, mask, f"`{name}`")
    for part, known in (("registers", _REGISTERS), ("special", tuple(SPECIAL_REGISTERS))):
        for name, said in _part(answer, part).items():
            if name not in known:
                raise _MalformedError(f"there is no register `{name}` in `{part}`")
            bits = _said_bits(said, mask, f"`{name}`")
            believed.capabilities[name] = _without_address(bits) if name == "pcc" else bits
    for text, said in _part(answer, "memory").items():
        address = _number(text, mask, "an address of `memory`")
        distance = address - case.memory_base
        if not 0 <= distance < case.memory_bytes or distance % case.capability_format.capability_bytes:
            raise _MalformedError(f"there is no granule of memory at {address:#x}")
        believed.capabilities[_granule_name(address)] = _said_bits(said, mask, f"the granule at {address:#x}")
        if believed.capabilities[_granule_name(address)] == _EMPTY:
            del believed.capabilities[_granule_name(address)]


def _said_trap(answer: dict[str, Any], fmt: CapabilityFormat) -> str:
    """The trap that a peer reports, as `_trap` has the reference's."""
    said = answer.get("trap")
    if said is None:
        return "none"
    if not isinstance(said, dict) or said.keys() != {"cause", "value"}:
        raise _MalformedError("`trap` is to be null or to have `cause` and `value`")
    if said["cause"] not in tuple(CAUSES_BY_NAME):
        raise _MalformedError(f"there is no cause {json.dumps(said['cause'])}")
    return f"{said['cause']} {_number(said['value'], fmt.address_mask, '`value`'):#x}"


def _trap(trap: Trap | None) -> str:
    return "none" if trap is None else f"{trap.cause.name} {trap.value:#x}"


# -- requests -------------------------------------------------------------------------------------------------------------


def _request(number: int, case: Case, chosen: list[int]) -> bytes:
    """The line that asks for a case."""
    fmt, hart = case.capability_format, case.hart()
    state = _state(hart, frozenset(PARTS))
    state.capabilities["pcc"] = _bits(hart.pcc)
    request = {
        "case": number,
        "format": case.format,
        "xlen": fmt.address_width,
        "memory": {"base": hex(case.memory_base), "size": hex(case.memory_bytes)},
        "state": {
            "pc": hex(hart.pc),
            "registers": {name: _written(state.capabilities[name]) for name in _REGISTERS if any(state.capabilities[name])},
            "special": {name: _written(state.capabilities[name]) for name in SPECIAL_REGISTERS},
            "csrs": {name: hex(state.numbers[name]) for name in CSRS},
        },
        "operations": [_operation(fmt, *case.operations[index]) for index in chosen],
    }
    return json.dumps(request, separators=(",", ":")).encode()


def _written(bits: _Bits) -> dict[str, int | str]:
    tag, meta, address = bits
    return {"tag": tag, "meta": hex(meta), "address": hex(address)}


def _operation(fmt: CapabilityFormat, name: str, operands: tuple[int, ...]) -> dict[str, Any]:
    row, encoding = OPERATIONS[name], encodings(fmt.address_width).get(name)
    return {
        "name": name,
        "operands": [hex(value) for value in operands],
        "assembly": _assembly(name, operands),
        "word": None if encoding is None else f"{encoding.encode(operands):#010x}",
        "mode": None if row.mode is None else row.mode.value,
    }


def _assembly(name: str, operands: tuple[int, ...]) -> str:
    return " ".join(print_instruction(instruction(name, operands)).split())


# -- the peer -------------------------------------------------------------------------------------------------------------


class JsonPeer:
    """A program that is started by a command, without a shell, and speaks JSON lines on its standard input and output.

    It is given `timeout_s` for its greeting and for each answer. It is started at once; when it has failed, and with the
    PeerError has been ended, the next check starts it again. Raises PeerError where it can't be started or doesn't greet.
    """

    def __init__(self, command: str, timeout_s: float) -> None:
        self._command, self._timeout_s = command, timeout_s
        self._cases = 0
        self._process: PeerProcess | None = None
        self._where = ""
        self._place: tuple[int, Operation] | None = None
        self.name = command
        self.operations = 0
        """Operations that it has answered."""
        self._start()

    @property
    def never_compared(self) -> list[str]:
        """What of a state and which operations are never compared, by what the peer says of itself."""
        greeting = self.greeting
        missing = [part for part in PARTS if part not in greeting.reports]
        missing += ["the address of pcc"] if "special" in greeting.reports else []
        missing += [name for name in OPERATIONS if name in greeting.unsupported]
        return missing + (["operations whose words mean another one in the mode of PCC"] if greeting.decodes_by_pcc else [])

    def check(self, case: Case) -> PeerDifference | None:
        """Have the case executed and compared; the first difference, if there is one.

        Raises PeerError, having ended the process, where the peer can't be used.
        """
        self._cases += 1
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._kill)
            if self._process is None:
                self._start()
            if case.format not in self.greeting.formats:
                on_failure.pop_all()
                raise PeerError(f"{self.name}: it has no {case.format}, but {', '.join(sorted(self.greeting.formats))}")
            found = self._compare(case, self._chosen(case))
            on_failure.pop_all()
        return found

    def close(self) -> None:
        """End the process: its input is closed, and if it doesn't exit by itself, it is killed."""
        process, self._process = self._process, None
        if process is not None:
            process.close()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def _start(self) -> None:
        self._where, self._place = "at its start", None
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._kill)
            try:
                self._process = PeerProcess(self._command, self._timeout_s)
            except PeerError as error:
                raise PeerError(f"{self.name}: {error}") from None
            line = self._receive()
            try:
                self.greeting = _greeting(_object(line), self._command)
            except _MalformedError as error:
                raise self._malformed(error, line) from None
            self.name = self.greeting.name
            on_failure.pop_all()

    def _chosen(self, case: Case) -> list[int]:
        """The indices of the operations that the peer is given."""
        if not self.greeting.decodes_by_pcc:
            return [index for index, (name, _) in enumerate(case.operations) if name not in self.greeting.unsupported]
        hart, chosen = case.hart(), []
        for index, (name, operands) in enumerate(case.operations):
            if name not in self.greeting.unsupported and OPERATIONS[name].mode in (None, hart.mode):
                chosen.append(index)
                hart.step(name, operands)
        return chosen

    def _compare(self, case: Case, chosen: list[int]) -> PeerDifference | None:
        assert self._process is not None
        hart, reports = case.hart(), self.greeting.reports
        believed = _state(hart, reports)
        self._where, self._place = f"in case {self._cases}, at the start", None
        self._process.send(_request(self._cases, case, chosen))
        for step, index in enumerate((-1, *chosen), start=-1):
            trap = None
            if index >= 0:
                self._place = index, case.operations[index]
                trap = hart.step(*case.operations[index])
            said = self._answer(step, believed, case)
            self.operations += index >= 0
            wanted = _trap(trap)
            if "trap" in reports and said != wanted:
                found: tuple[str, str, str] | None = ("trap", wanted, said)
            else:
                expected = _state(hart, reports)
                found = None if expected == believed else _first_difference(expected, believed)
            if found is not None:
                self._finish(len(chosen) - 1 - step)
                return PeerDifference(index, *found)
        self._where, self._place = f"in case {self._cases}, after its last operation", None
        self._done()
        return None

    def _answer(self, step: int, believed: _State, case: Case) -> str:
        """Take one answer, and apply it; the trap that it reports."""
        line = self._receive()
        try:
            answer = _object(line)
            if "done" in answer:
                raise _MalformedError("too few answers: it is done before it has answered every operation")
            if answer.get("step") != step:
                raise _MalformedError(f"it answers step {json.dumps(answer.get('step'))} where {step} is due")
            _no_others(answer, ("step", *(part for part in PARTS if part in self.greeting.reports)))
            _apply(answer, believed, case)
            return _said_trap(answer, case.capability_format)
        except _MalformedError as error:
            raise self._malformed(error, line) from None

    def _done(self) -> None:
        """Take the line that ends a case."""
        line = self._receive()
        try:
            said = _object(line)
            if "step" in said:
                raise _MalformedError("too many answers: it goes on when every operation has been answered")
            if said != {"done": self._cases}:
                raise _MalformedError(f'it doesn\'t end the case with `{{"done": {self._cases}}}`')
        except _MalformedError as error:
            raise self._malformed(error, line) from None

    def _finish(self, answers: int) -> None:
        """Read over the rest of a case in which a difference was found; a peer that fails at that is ended."""
        try:
            for _ in range(answers):
                self._receive()
            self._done()
        except PeerError:
            self._kill()

    def _waiting_for(self) -> str:
        """What the peer was at."""
        if self._place is None:
            return self._where
        index, operation = self._place
        return f"in case {self._cases}, at step {index}, `{_assembly(*operation)}`"

    def _receive(self) -> bytes:
        assert self._process is not None
        try:
            return self._process.receive()
        except PeerError as error:
            raise PeerError(f"{self.name}: {error} ({self._waiting_for()})") from None

    def _malformed(self, error: _MalformedError, line: bytes) -> PeerError:
        return PeerError(f"{self.name}: {error} ({self._waiting_for()}): {shortened(line)}")


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object that a line holds."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise _MalformedError("what it says is no JSON") from None
    if not isinstance(said, dict):
        raise _MalformedError("what it says is no JSON object")
    return said
