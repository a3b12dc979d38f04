"""Constants of the formats, against what the sources print."""

from capvisor.model import capability
from capvisor.spec.formats import CC64, CC128, FORMATS
from capvisor.spec.operations import OPERATIONS, Group
from capvisor.spec.registers import REGISTER_NUMBERS
from capvisor.spec.traps import CAUSES, CAUSES_BY_NAME


def test_null_and_root_metas_are_those_of_the_c_library() -> None:
    # cheri-compressed-cap, CC128_MEM_XOR_MASK and CC64_MEM_XOR_MASK; the roots are what in_meta of the golden vectors shows.
    assert CC128.null_meta == 0x00001FFFFC018004
    assert CC64.null_meta == 0x7C302
    assert CC128.root_meta == 0xFFFF1FFFFC018004
    assert CC64.root_meta == 0xFFF7C302


def test_fields_cover_meta_without_overlap() -> None:
    for fmt in FORMATS.values():
        fields = (fmt.software_permissions, fmt.permissions, fmt.reserved, fmt.flags, fmt.otype, fmt.bounds)
        assert sum(field.in_place for field in fields) == fmt.address_mask
        assert fmt.bounds.in_place == fmt.internal_exponent.in_place | fmt.top.in_place | fmt.bottom.in_place


def test_null_is_all_zeros_in_memory_and_roots_have_everything() -> None:
    for fmt in FORMATS.values():
        assert capability.memory_meta(capability.null(fmt)) == 0
        root = capability.root(fmt)
        assert root.bounds == (0, fmt.address_space)
        assert root.permissions == fmt.permissions_mask
        assert root.tag and not root.is_sealed


def test_trap_numbers_and_names_are_unique() -> None:
    assert len({cause.number for cause in CAUSES}) == len(CAUSES)
    assert all(0 < cause.number < 256 for cause in CAUSES)
    assert len(CAUSES_BY_NAME) == len(CAUSES)


def test_the_operation_table_names_known_causes_and_operands() -> None:
    for row in OPERATIONS.values():
        assert set(row.traps) <= set(CAUSES_BY_NAME)
        assert row.operands or row.group is Group.SYSTEM
        assert row.summary and row.source


def test_registers_have_the_names_of_the_calling_convention() -> None:
    assert [REGISTER_NUMBERS[name] for name in ("zero", "cra", "sp", "ct0", "fp", "s1", "ca0", "s2", "t6")] == [
        *(0, 1, 2, 5, 8, 9, 10, 18, 31)
    ]
