"""A peer: capvisor's own fast path behind the protocol of docs/peers.md. Your implementation would be where it is."""

import json
import sys

from capvisor.fastpath import isa as _kernels  # noqa: F401  declares what operations do
from capvisor.fastpath.machine import NUMBERS, SPECIAL_ROWS, BatchMachine
from capvisor.spec.formats import FORMATS
from capvisor.spec.traps import CAUSES_BY_NUMBER

ROWS = {"registers": {f"c{number}": number for number in range(32)}, "special": SPECIAL_ROWS}


def state(machine: BatchMachine) -> dict[str, dict]:
    """All that is compared, in the protocol's words; of what is said, only changes count."""
    raw = zip(machine.tags[:, 0].tolist(), machine.metas[:, 0].tolist(), machine.addresses[:, 0].tolist(), strict=True)
    rows = [{"tag": int(tag), "meta": hex(meta ^ machine.format.null_meta), "address": hex(low)} for tag, meta, low in raw]
    found = {part: {name: rows[row] for name, row in names.items()} for part, names in ROWS.items()}
    found["csrs"] = {name: hex(machine.numbers[name][0]) for name in NUMBERS[:-1]}
    granules = zip(machine.memory.tags[0].tolist(), machine.memory.halves[0].tolist(), strict=True)
    memory = [{"tag": int(tag), "meta": hex(upper), "address": hex(lower)} for tag, (lower, upper) in granules]
    size = machine.format.capability_bytes
    return found | {"memory": {hex(machine.memory.base + index * size): bits for index, bits in enumerate(memory)}}


print(json.dumps({"protocol": "capvisor-peer", "version": 2, "name": "fast path"}), flush=True)
for case in map(json.loads, sys.stdin):
    machine = BatchMachine(FORMATS[case["format"]], *(int(case["memory"][key], 16) for key in ("base", "size")), lanes=1)
    for name, bits in case["state"]["registers"].items():  # the rest of a machine is at reset
        row, meta = ROWS["registers"][name], int(bits["meta"], 16) ^ machine.format.null_meta
        machine.tags[row], machine.metas[row], machine.addresses[row] = bits["tag"], meta, int(bits["address"], 16)
    after = state(machine)
    print(json.dumps({"step": -1, "pc": hex(machine.pc[0])} | after), flush=True)
    for step, operation in enumerate(case["operations"]):
        machine.step(operation["name"], tuple(int(operand, 16) for operand in operation["operands"]))
        before, after, cause = after, state(machine), CAUSES_BY_NUMBER.get(machine.cause[0])
        trap = cause and {"cause": cause.name, "value": hex(machine.trap_value[0])}
        changes = {part: {key: bits for key, bits in after[part].items() if bits != before[part][key]} for part in after}
        print(json.dumps({"step": step, "trap": trap, "pc": hex(machine.pc[0])} | changes), flush=True)
    print(json.dumps({"done": case["case"]}), flush=True)
