"""A counterexample of a theorem as a program, which `capvisor run` fails on in the same way.

A theorem is about functions of the reference; what stands here says it of the operations that are made of them. The
theorem's capabilities are c1, c2, .. in the order in which it takes them, its words are names; c31 is the root. What is said
here is not what is proved, and needn't be as strong: a program is shown only once it has been run, and fails.
"""

import itertools
import re
import textwrap

from capvisor.dsl.errors import ProgramError
from capvisor.dsl.parser import parse
from capvisor.dsl.printer import print_program
from capvisor.dsl.runner import Implementation, run
from capvisor.proofs import drawn
from capvisor.proofs.theorem import Obligation
from capvisor.spec.formats import CapabilityFormat, Permission

_NARROW = "li x5, base\ncsetaddr c2, c31, x5\nli x6, top - base\n"
_SET = f"{_NARROW}csetbounds c3, c2, x6\n"
_EXACT = f"{_NARROW}csetboundsexact c3, c2, x6\n"
_TIGHTEST = (
    f"{_SET}assert c1.valid and c1.base >= c3.base and c1.base <= base and c1.top >= top and c1.top <= c3.top implies "
    "c1.base == c3.base and c1.top == c3.top\n"
)
_SAME_BOUNDS = "c2.base == c1.base and c2.top == c1.top"
_MOVE_FREELY = (
    "given c2 = capability(1, (c_meta | unsealed) ^ null, c_address)\n"
    "li x5, new_address - c_address\ncincoffset c3, c2, x5\n"
)
_ROUND = "li x5, length\ncrrl x6, x5\n"
_POINTS = "c2.tag and c2.base <= c2.address and c2.address < c2.top"

# What each derivation of `capability.DERIVATIONS` is as an operation; c3 is the result.
_DERIVE = {
    "set_bounds": "li x5, n\ncsetbounds c3, c1, x5\n",
    "set_address": "li x5, n\ncsetaddr c3, c1, x5\n",
    "increment_address": "li x5, n\ncincoffset c3, c1, x5\n",
    "set_offset": "li x5, n\ncsetoffset c3, c1, x5\n",
    "and_permissions": "li x5, n\ncandperm c3, c1, x5\n",
    "set_flags": "li x5, n\ncsetflags c3, c1, x5\n",
    "seal": "cseal c3, c1, c2\n",
    "conditional_seal": "ccseal c3, c1, c2\n",
    "unseal": "cunseal c3, c1, c2\n",
    "seal_entry": "csealentry c3, c1\n",
    "copy_type": "ccopytype c3, c1, c2\n",
    "build": "cbuildcap c3, c1, c2\n",
}

_STATED: dict[str, str] = {
    "bounds.null": "li x5, address\nassert c5.perms == 0 and not c5.tag and not c5.sealed\n"
    "assert c5.base == 0 and c5.top == space\n",
    "bounds.root": "li x5, address\ncsetaddr c6, c31, x5\nassert c6.tag and c6.valid and c6.base == 0 and c6.top == space\n",
    "bounds.memory_form": "li x5, 0x1000\ncsetaddr c30, c31, x5\ncsc c1, 0(c30)\nclc c2, 0(c30)\ncseqx x6, c1, c2\n"
    "assert x6 == 1\n",
    "bounds.ordered": "assert c1.valid implies c1.base <= c1.top\n",
    "bounds.valid_top": "assert c1.valid implies c1.top <= space\n",
    "bounds.invalid_order": "assert c1.base <= c1.top\n",
    "bounds.set.covers": f"{_SET}assert c3.base <= base and c3.top >= top\n",
    "bounds.set.exact": f"{_EXACT}assert c3.tag == (c3.base == base and c3.top == top)\n",
    "bounds.set.valid": f"{_SET}assert c3.valid\n",
    "bounds.set.top": f"{_SET}assert c3.top <= space\n",
    "bounds.set.rest": "given c2 = capability(1, meta ^ null, base)\nli x6, top - base\ncsetbounds c3, c2, x6\n"
    "cgethigh x7, c2\ncgethigh x8, c3\nassert (x7 ^ x8) & ~bounds_bits == 0\n",
    "bounds.set.tightest": _TIGHTEST,
    "bounds.set.tightest_directly": _TIGHTEST,
    "bounds.set.monotone_directly": "li x5, base\ncsetaddr c2, c1, x5\nli x6, top - base\ncsetbounds c3, c2, x6\n"
    "assert c3.base >= c1.base and c3.top <= c1.top\n",
    "bounds.set.small": f"{_EXACT}assert c3.tag\n",
    "bounds.set.empty": "li x5, base\ncsetaddr c2, c31, x5\ncsetboundsexact c3, c2, x0\nassert c3.tag and c3.length == 0\n",
    "bounds.set.again": "cgetbase x5, c1\ncsetaddr c2, c1, x5\ncgetlen x6, c1\ncsetbounds c3, c2, x6\n"
    "assert c3.base == c1.base and c3.top == c1.top\n",
    "bounds.move.precise": f"li x5, new_address\ncsetaddr c2, c1, x5\nassert c2.tag == ({_SAME_BOUNDS})\n",
    "bounds.move.fast_sound": f"li x5, increment\ncincoffset c2, c1, x5\nassert c2.tag implies {_SAME_BOUNDS}\n",
    "bounds.move.fast_in_bounds": f"{_MOVE_FREELY}assert c3.tag\n",
    "bounds.move.one_past": f"{_MOVE_FREELY}assert c3.tag\n",
    "bounds.round.recipe": f"{_ROUND}cram x7, x5\nli x8, base\nand x8, x8, x7\ncsetaddr c2, c31, x8\n"
    "csetboundsexact c3, c2, x6\nassert c3.tag\n",
    "bounds.round.up": f"{_ROUND}assert x6 >= length or x6 == 0\n",
    "bounds.round.no_wrap": f"{_ROUND}assert x6 >= length\n",
    "bounds.round.idempotent": f"{_ROUND}crrl x7, x6\nassert x7 == x6\n",
    "bounds.round.same_mask": f"{_ROUND}cram x7, x5\ncram x8, x6\nassert x6 != 0 or length == 0 implies x7 == x8\n",
    "bounds.round.monotone": "li x5, short\ncrrl x6, x5\nli x7, long\ncrrl x8, x7\nassert x6 <= x8\n",
    "permissions.and": "li x5, mask\ncandperm c2, c1, x5\nassert c2.perms == c1.perms & mask\n"
    f"assert {_SAME_BOUNDS} and c2.otype == c1.otype and c2.flags == c1.flags\n",
    "permissions.monotone": "li x5, mask\ncandperm c2, c1, x5\nassert c2.perms & c1.perms == c2.perms\n",
    "flags.set": f"li x5, flags\ncsetflags c2, c1, x5\nassert c2.flags == flags & 1 and {_SAME_BOUNDS}\n"
    "assert c2.perms == c1.perms and c2.otype == c1.otype\n",
    "sealing.seal": "cseal c3, c1, c2\n"
    f"assert c3.tag == (c1.tag and not c1.sealed and {_POINTS} and not c2.sealed and c2.perms & may_seal != 0 and "
    "c2.address <= max_otype)\nassert c3.tag implies c3.otype == c2.address and c3.perms == c1.perms\n",
    "sealing.unseal": "cunseal c3, c1, c2\n"
    f"assert c3.tag == (c1.tag and c1.sealed and c1.otype <= max_otype and {_POINTS} and not c2.sealed and "
    "c2.perms & may_unseal != 0 and c2.address == c1.otype)\n"
    "assert c3.tag implies not c3.sealed and c3.perms & ~1 == c1.perms & ~1 and c3.perms & 1 == c1.perms & c2.perms & 1\n",
    "sealing.inverse": "cseal c3, c1, c2\ncunseal c4, c3, c2\ncseqx x5, c4, c1\nassert c3.tag implies x5 == 1\n",
    "sealing.conditional": "cseal c3, c1, c2\nccseal c4, c1, c2\ncseqx x5, c4, c1\ncseqx x6, c4, c3\n"
    f"assert {_POINTS} and not c1.sealed and c2.address != space - 1 implies not c4.tag or x6 == 1\n"
    f"assert not ({_POINTS} and not c1.sealed and c2.address != space - 1) implies x5 == 1\n",
    "sealing.entry": "csealentry c2, c1\nassert c2.tag == (c1.tag and not c1.sealed) and c2.otype == sentry\n"
    "assert c2.perms == c1.perms\n",
    "sealing.reserved": "cseal c3, c1, c2\ncsealentry c4, c1\ncunseal c5, c4, c2\n"
    "assert (c3.tag implies c3.otype <= max_otype) and not c5.tag\n",
    "build.subset": "cbuildcap c3, c1, c2\nassert c3.tag implies c1.tag and not c1.sealed and c1.base <= c3.base and "
    "c3.base <= c3.top and c3.top <= c1.top and c3.perms & c1.perms == c3.perms\n",
    "build.recovers": "li x5, base\ncsetaddr c2, c31, x5\nli x6, length\ncsetbounds c3, c2, x6\nli x7, increment\n"
    "cincoffset c4, c3, x7\nccleartag c5, c4\ncbuildcap c6, c31, c5\ncseqx x8, c6, c4\nassert c4.tag implies x8 == 1\n",
    "copy_type": "ccopytype c3, c1, c2\nassert c3.tag implies c3.address == c2.otype and c2.otype <= max_otype and "
    "c3.base == c1.base and c3.top == c1.top and c1.tag and not c1.sealed\n",
    "subset.reflexive": "ctestsubset x5, c1, c1\nassert x5 == 1\n",
    "subset.transitive": "ctestsubset x5, c2, c1\nctestsubset x6, c3, c2\nctestsubset x7, c3, c1\n"
    "assert x5 == 1 and x6 == 1 implies x7 == 1 and c3.base <= c1.base and c1.top <= c3.top\n",
    "subset.equal": "cseqx x5, c1, c2\nctestsubset x6, c1, c2\ncgethigh x7, c1\ncgethigh x8, c2\n"
    "assert (x5 == 1) == (c1.tag == c2.tag and c1.address == c2.address and x7 == x8)\nassert x5 == 1 implies x6 == 1\n",
    # Kernels: both implementations are run, and compared.
    "kernels.decode_bounds": "cgetbase x5, c1\ncgettop x6, c1\n",
    "kernels.encode_bounds": "li x5, base\ncsetaddr c2, c31, x5\nli x6, length\ncsetbounds c3, c2, x6\n"
    "csetboundsexact c4, c2, x6\n",
    "kernels.set_bounds": "given c2 = capability(1, meta ^ null, base)\nli x6, length\ncsetbounds c3, c2, x6\n",
    "kernels.address_keeps_bounds": "li x5, new_address\ncsetaddr c2, c1, x5\n",
    "kernels.increment_is_representable": "li x5, increment\ncincoffset c2, c1, x5\n",
    "kernels.alignment_mask": "li x5, length\ncram x6, x5\n",
    "kernels.representable_length": _ROUND,
    "kernels.is_unsealed": "cgetsealed x5, c1\n",
    "kernels.has_ordinary_otype": "cgettype x5, c1\nccopytype c2, c31, c1\n",
    "kernels.get_permissions": "cgetperm x5, c1\n",
    "kernels.get_flags": "cgetflags x5, c1\n",
    "kernels.get_otype": "cgettype x5, c1\n",
    "kernels.get_base": "cgetbase x5, c1\n",
    "kernels.get_top": "cgettop x5, c1\n",
    "kernels.get_length": "cgetlen x5, c1\n",
    "kernels.get_offset": "cgetoffset x5, c1\n",
    "kernels.set_bounds_of": "li x5, length\ncsetbounds c2, c1, x5\n",
    "kernels.is_subset": "ctestsubset x5, c2, c1\n",
    "kernels.equal": "cseqx x5, c1, c2\n",
    **{f"kernels.{name}": text for name, text in _DERIVE.items() if name != "set_bounds"},
    **{f"tags.{name}": f"{text}assert c3.tag implies c1.tag\n" for name, text in _DERIVE.items()},
    **{f"sealed.{name}": f"{text}assert not c3.tag\n" for name, text in _DERIVE.items()},
    **{
        f"monotone.{name}": f"{text}assert c3.tag implies c3.base >= c1.base and c3.top <= c1.top and "
        "c3.perms & c1.perms == c3.perms\n"
        for name, text in _DERIVE.items()
    },
    **{
        f"invariant.{name}": f"{text}assert c3.tag implies c3.valid and c3.base <= c3.top and c3.top <= space\n"
        for name, text in _DERIVE.items()
    },
}


def program_of(obligation: Obligation, values: dict[str, int]) -> str | None:
    """A counterexample as a program that fails; None if the language can't say it, or what it says doesn't fail."""
    stated = _STATED.get(obligation.theorem.id)
    if stated is None:
        return None
    capabilities = [name.removesuffix("meta") for name in values if name == "meta" or name.endswith("_meta")]
    capabilities = [name for name in capabilities if f"{name}address" in values]
    given = [_given(number, name, values) for number, name in enumerate(capabilities, start=1)]
    body = "\n".join([*given, stated])
    words = set(re.findall(r"[a-z_]+", body))
    lets = {name: value for name, value in {**_facts(obligation.format), **values}.items() if name in words}
    text = "\n".join(
        [
            f"# A counterexample of {obligation.id}:",
            *(f"#   {line}" for line in textwrap.wrap(obligation.theorem.statement, 110)),
            f"machine {obligation.format.name} {{ memory 0x1000 size 4K; c31 = root }}",
            *(f"let {name} = {value:#x}" for name, value in lets.items()),
            body,
        ]
    )
    try:
        program = parse(text, obligation.id)
    except ProgramError:  # an operation that the format's machine doesn't have
        return None
    # What a theorem says of the reference must fail on the reference; a kernel's differs from it.
    alone = not obligation.theorem.id.startswith("kernels.")
    fails = not run(program, lets, Implementation.REFERENCE if alone else Implementation.BOTH).passed
    return print_program(program) if fails else None


def any_program_of(obligation: Obligation, values: dict[str, int]) -> str | None:
    """As `program_of`; where the language can't say these values, of others that were drawn."""
    tried = itertools.chain([values], drawn.counterexamples(obligation))
    return next(filter(None, (program_of(obligation, each) for each in tried)), None)


def _given(register: int, name: str, values: dict[str, int]) -> str:
    if f"{name}tag" in values:
        return f"given c{register} = capability({name}tag, {name}meta ^ null, {name}address)"
    # A theorem about bounds alone: of a capability that is tagged and unsealed, so that operations look at nothing else.
    return f"given c{register} = capability(1, ({name}meta | unsealed) ^ null, {name}address)"


def _facts(fmt: CapabilityFormat) -> dict[str, int]:
    return {
        "null": fmt.null_meta,
        "space": fmt.address_space,
        "unsealed": fmt.otype.in_place,
        "bounds_bits": fmt.bounds.in_place,
        "max_otype": fmt.max_otype,
        "sentry": fmt.otype_sentry,
        "may_seal": int(Permission.SEAL),
        "may_unseal": int(Permission.UNSEAL),
    }
