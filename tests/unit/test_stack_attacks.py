"""What crosses layers where the four systems share one machine: each guard of the stack, with it and without it."""

import pytest

from capvisor.model import stack_system
from capvisor.model.stack import CVM
from capvisor.spec import vmm_policy
from capvisor.spec.composition import LAYERS
from capvisor.spec.cvm import Code as CvmCode
from capvisor.spec.cvm_invariants import CVM_INVARIANTS
from capvisor.spec.orc_invariants import ORC_INVARIANTS
from capvisor.spec.paging import FRAME_SHIFT
from capvisor.spec.stack import COUPLINGS, FORMAT, VIEWS, Code, LayerName
from capvisor.spec.stack_invariants import STACK_INVARIANTS, Step
from capvisor.spec.stack_policy import STACK_GUARDS, without
from capvisor.spec.tag_policy import without as tags_without
from capvisor.spec.tpt import Code as TptCode
from capvisor.spec.tpt import FaultKind
from capvisor.spec.tpt_invariants import TPT_INVARIANTS
from capvisor.spec.vmm import Code as VmmCode
from capvisor.spec.vmm import Register
from capvisor.spec.vmm_invariants import VMM_INVARIANTS
from tests.unit.stack import (
    CPU_A,
    CPU_B,
    CPU_HOST,
    CVM_BASE,
    CVM_PAGES,
    DISK,
    FREE_FRAME,
    HOSTS_NIC,
    NIC,
    ORC_BASE,
    ORC_PAGES,
    PAGE,
    REGION,
    SECRET,
    TABLES,
    A,
    B,
    Rig,
)


def rig_without(guard: str) -> Rig:
    rig = Rig(without(guard))
    assert rig.violated == set()
    return rig


@pytest.fixture
def rig() -> Rig:
    found = Rig()
    assert found.violated == set()
    return found


# -- devices and the VMM ---------------------------------------------------------------------------------------------------


def _mediated_into_another_vm(rig: Rig) -> Step:
    """B's disk reads a sector into the memory of A's first cVM."""
    rig.start_read(CPU_B, CVM_PAGES[0] << 3, 24)
    rig.vmm("transfer", DISK)
    rig.vmm("input", CPU_B, 0, DISK << 3 | Register.MASTER_STATUS)
    return rig.vmm("mediate", DISK)


def test_the_mediator_copies_nothing_into_another_vms_frame(rig):
    step = _mediated_into_another_vm(rig)
    assert step.inner.code is VmmCode.FAILED
    assert rig.violated == set()
    assert not rig.machine.is_busy(DISK)


def test_a_mediator_that_looks_no_tags_up_is_a_confused_deputy():
    rig = rig_without("mediator_checks_tags")
    assert _mediated_into_another_vm(rig).is_completed
    assert rig.violated == {"S2"}


def test_the_mediator_reads_nothing_from_another_vms_frame_and_the_command_is_over(rig):
    rig.start_read(CPU_B, CVM_PAGES[0] << 3, 24, is_write=True)
    assert rig.machine.is_busy(DISK)
    assert rig.vmm("mediate", DISK).inner.code is VmmCode.FAILED
    assert not rig.machine.is_busy(DISK)
    rig.must("attach", DISK, A)
    assert rig.violated == set()


def test_a_mediated_read_reaches_its_vms_own_frame(rig):
    rig.machine.vmm.media[DISK, 0] = SECRET
    rig.start_read(CPU_B, 25 << 3, 24)
    rig.vmm("transfer", DISK)
    rig.vmm("input", CPU_B, 0, DISK << 3 | Register.MASTER_STATUS)
    assert rig.vmm("mediate", DISK).is_completed
    assert rig.must("load", CPU_B, 0, 0) == SECRET
    assert rig.violated == set()


def test_a_mediated_device_reaches_not_even_its_own_vms_frames_by_itself(rig):
    assert rig.tpt("dma_write", DISK, 25, 0, SECRET).inner.fault.kind is FaultKind.IOMMU
    assert rig.vmm("dma_write", DISK, 25 << 3, SECRET).inner.code is VmmCode.IOMMU
    assert rig.tpt("dma_write", NIC, 9, 0, SECRET).is_completed
    assert rig.violated == set()


def _others_registers(rig: Rig) -> Step:
    return rig.output(CPU_A, DISK, Register.LBA, 5)


def test_a_vm_reaches_no_register_of_anothers_device(rig):
    assert _others_registers(rig).code is Code.NOT_OWNER
    assert rig.violated == set()


def test_registers_for_everybody_let_one_vm_command_anothers_device():
    rig = rig_without("registers_by_owner")
    assert _others_registers(rig).is_completed
    assert rig.violated == {"S7"}


def _attached_under_a_command(rig: Rig) -> Step:
    """B's disk is to write to a frame of A's once it is A's."""
    rig.start_read(CPU_B, 10 << 3, 24)
    step = rig.tpt("attach", DISK, A)
    rig.vmm("transfer", DISK)
    return step


def test_a_device_changes_hands_only_when_idle(rig):
    assert _attached_under_a_command(rig).code is Code.BUSY
    assert rig.violated == set()
    rig.output(CPU_B, DISK, Register.CONTROL, 4)
    rig.must("attach", DISK, A)


def test_a_device_attached_under_a_command_works_for_whom_it_was():
    rig = rig_without("attach_idle")
    assert _attached_under_a_command(rig).is_completed
    assert rig.violated == {"S7"}


def _extension_in_a_vm(rig: Rig) -> Step:
    rig.machine.vmm.extensions[1] = rig.machine.vmm.extensions[1]._replace(is_live=True, first=0, behind=40, may_write=True)
    return rig.vmm("extension_write", 1, CVM_PAGES[0] << 3, SECRET)


def test_an_extension_touches_no_frame_of_a_vm(rig):
    assert _extension_in_a_vm(rig).inner.code is VmmCode.CONFINED
    assert rig.violated == set()
    assert rig.vmm("extension_write", 1, 36 << 3, SECRET).is_completed


def test_an_extension_that_looks_no_tags_up_writes_to_a_vm():
    rig = rig_without("extensions_check_tags")
    assert _extension_in_a_vm(rig).is_completed
    assert rig.violated == {"S2"}


# -- the host --------------------------------------------------------------------------------------------------------------


def _hosts_store(rig: Rig, frame: int) -> Step:
    assert rig.vmm("map", CPU_HOST, 0, frame, 0, 1).is_completed
    return rig.vmm("store", CPU_HOST, 0, 0, SECRET)


def test_the_host_stores_to_frames_that_it_has_claimed(rig):
    assert _hosts_store(rig, FREE_FRAME).inner.code is VmmCode.UNMAPPED
    assert _hosts_store(rig, 36).is_completed
    assert rig.violated == set()


def test_a_host_that_claims_nothing_dirties_a_clean_frame():
    rig = rig_without("host_claims_first")
    assert _hosts_store(rig, FREE_FRAME).is_completed
    assert rig.violated == {"S2", "T5"}


def test_the_hosts_device_goes_where_the_host_goes(rig):
    assert rig.vmm("dma_write", HOSTS_NIC, 36 << 3, SECRET).is_completed
    for frame in (FREE_FRAME, 24, CVM_PAGES[0]):
        assert rig.vmm("dma_write", HOSTS_NIC, frame << 3, SECRET).inner.code is VmmCode.IOMMU
    assert rig.violated == set()


def _region_as_a_vms_frame(rig: Rig) -> Step:
    """A frame of the VMM's region, through a page table of B's: the VMM's key is there."""
    rig.tpt("scrub", REGION[0])
    step = rig.tpt("assign", REGION[0], B, 8)
    rig.must("write_pte", CPU_B, 23, 1, REGION[0] << FRAME_SHIFT | 7)
    rig.tpt("store", CPU_B, PAGE, 7, 0)
    return step


def test_no_page_table_leads_to_the_region(rig):
    assert _region_as_a_vms_frame(rig).code is Code.REGION
    step = rig.tpt("load", CPU_B, PAGE, 0)
    assert step.inner.fault.kind is FaultKind.TAG
    assert rig.violated == set()


def test_a_tag_on_the_region_lets_a_vm_choose_the_key():
    rig = rig_without("region_untagged")
    assert _region_as_a_vms_frame(rig).is_completed
    assert rig.machine.vmm.key == 7
    assert {"S1", "P9"} <= rig.violated


def test_the_hosts_operations_leave_the_region_alone():
    rig = Rig()
    assert rig.tpt("scrub", REGION[0]).code is Code.REGION
    assert rig.machine.vmm.key == SECRET


# -- tags ------------------------------------------------------------------------------------------------------------------


def _forged_by_the_table(rig: Rig) -> Step:
    """What the second cVM has stored as numbers becomes a capability, by a store of B's to the table of tags."""
    first, second = rig.threads
    cap = first.hart.ddc
    place = CVM_BASE + PAGE + 0x100
    rig.instruction(second, "li", 5, place)
    rig.instruction(second, "li", 6, cap.address)
    rig.instruction(second, "sd.ddc", 6, 5)
    rig.instruction(second, "li", 5, place + 8)
    rig.instruction(second, "li", 6, cap.meta ^ FORMAT.null_meta)
    rig.instruction(second, "sd.ddc", 6, 5)
    step = rig.tpt("assign", TABLES[0], B, 9)
    granule = CVM_PAGES[1] * 256 + 0x10
    rig.tpt("write_pte", CPU_B, TABLES[0], granule // 64, 1 << granule % 64)
    return step


def test_the_tables_of_tags_are_in_the_region(rig):
    step = _forged_by_the_table(rig)
    assert step.is_completed  # an ordinary frame
    assert rig.violated == set()
    for frame in range(62, 64):
        assert rig.tpt("assign", frame, B, 10).code is Code.REGION
        assert rig.vmm("dma_write", HOSTS_NIC, frame << 3, 1).inner.code is VmmCode.IOMMU


def test_a_table_of_tags_in_a_vms_frame_makes_capabilities():
    rig = rig_without("tables_in_region")
    assert _forged_by_the_table(rig).is_completed
    assert {"S3", "S8", "C1"} <= rig.violated


def test_a_tag_in_a_clean_frame_is_seen():
    rig = rig_without("tables_in_region")
    assert rig.tpt("assign", TABLES[0], B, 9).is_completed
    assert rig.tpt("write_pte", CPU_B, TABLES[0], FREE_FRAME << 2, 1).is_completed
    assert {"S4", "S8"} <= rig.violated


def test_an_owner_that_changes_by_itself_is_seen(rig):
    step = rig.tpt("flush", CPU_A)
    rig.machine.owners[FREE_FRAME] = A
    assert stack_system.violated_across(step) == {"S8"}


def test_without_an_iommu_a_device_forges_capabilities_from_below_the_vmm():
    """Two layers' guards: the VMM's own, of what is its assumption on the machine."""
    rig = Rig(vmm=vmm_policy.without("iommu_hides_region"), policy=without("host_claims_first"))
    assert rig.vmm("dma_write", HOSTS_NIC, 62 << 3 | 1, 0xFFFF).is_completed
    assert {"P2", "S1", "S8"} <= rig.violated


def _dma_under_a_tag(rig: Rig) -> Step:
    """A's network card writes the address of the pair by which a cVM calls the monitor."""
    number = rig.tagged_in(CVM_PAGES[0])[-1]
    return rig.tpt("dma_write", NIC, CVM_PAGES[0], 2 * number, 0x1234)


def test_what_a_device_writes_is_no_capability(rig):
    before = rig.tagged_in(CVM_PAGES[0])
    assert _dma_under_a_tag(rig).is_completed
    assert rig.tagged_in(CVM_PAGES[0]) == before[:-1]
    assert rig.violated == set()


def test_a_device_that_leaves_tags_alone_forges_capabilities():
    rig = rig_without("dma_clears_tags")
    assert _dma_under_a_tag(rig).is_completed
    assert {"S3", "C18"} <= rig.violated


# -- pages of monitors -----------------------------------------------------------------------------------------------------


def _two_pages_in_one_frame(rig: Rig) -> Step:
    """A's kernel maps the second cVM's page to the first one's frame."""
    rig.must("write_pte", CPU_A, 5, 1, CVM_PAGES[0] << FRAME_SHIFT | 7)
    rig.must("invlpg", CPU_A, CVM_BASE + PAGE)
    return rig.hold(stack_system.instruction(rig.machine, rig.threads[1], "li", (5, CVM_BASE + PAGE))[0])


def test_a_page_of_a_monitor_is_always_the_same_content(rig):
    assert _two_pages_in_one_frame(rig).code is Code.MOVED
    assert rig.violated == set()


def test_a_page_that_is_another_lets_one_cvm_access_the_others():
    rig = rig_without("pages_bound")
    assert _two_pages_in_one_frame(rig).is_completed
    assert "S5" in rig.violated
    assert rig.instruction(rig.threads[1], "ld.ddc", 6, 5) is None
    assert "S6" in rig.violated


@pytest.mark.parametrize("frame", [CVM_PAGES[0], ORC_PAGES[1]])
def test_a_tenants_page_that_is_a_cvms_or_anothers_lets_the_tenant_access_that(frame):
    rig = rig_without("pages_bound")
    rig.must("write_pte", CPU_A, 7, 0, frame << FRAME_SHIFT | 7)
    rig.must("invlpg", CPU_A, ORC_BASE)
    rig.instruction(rig.tenant, "li", 6, SECRET)
    assert "S6" not in rig.violated
    assert rig.instruction(rig.tenant, "sd.cap", 6, 2) is None
    assert "S6" in rig.violated


def _move(rig: Rig, source: int, target: int, page: int) -> None:
    """The host moves a frame of A's, and A's kernel follows."""
    rig.must("reclaim", source)
    for vcpu in (CPU_A, CPU_B):
        rig.must("acknowledge", vcpu, source)
    rig.must("migrate", source, target)
    rig.must("write_pte", CPU_A, 5, page, target << FRAME_SHIFT | 7)


def test_a_cvms_page_is_moved_with_its_capabilities(rig):
    before = rig.tagged_in(CVM_PAGES[0])
    _move(rig, CVM_PAGES[0], FREE_FRAME, 0)
    assert rig.tagged_in(FREE_FRAME) == before
    assert rig.call(rig.threads[0], "host_time", 0x100) is CvmCode.OK
    rig.must("scrub", CVM_PAGES[0])
    assert rig.tagged_in(CVM_PAGES[0]) == []
    assert rig.violated == set()


def test_a_swapped_page_comes_back_with_its_capabilities(rig):
    frame = CVM_PAGES[0]
    rig.must("reclaim", frame)
    for vcpu in (CPU_A, CPU_B):
        rig.must("acknowledge", vcpu, frame)
    rig.must("swap_out", frame, 0)
    step, _trap = stack_system.instruction(rig.machine, rig.threads[0], "li", (5, 1))
    assert rig.hold(step).fault.kind is FaultKind.TAG
    rig.must("scrub", frame)
    rig.must("swap_in", FREE_FRAME, 0)
    rig.must("write_pte", CPU_A, 5, 0, FREE_FRAME << FRAME_SHIFT | 7)
    assert rig.call(rig.threads[0], "host_time", 0x100) is CvmCode.OK
    assert rig.violated == set()


def test_a_page_whose_content_is_lost_is_never_used_again(rig):
    frame = CVM_PAGES[0]
    rig.must("reclaim", frame)
    for vcpu in (CPU_A, CPU_B):
        rig.must("acknowledge", vcpu, frame)
    rig.must("scrub", frame)
    rig.must("assign", frame, A, 12)
    step, _trap = stack_system.instruction(rig.machine, rig.threads[0], "li", (5, 1))
    assert rig.hold(step).code is Code.MOVED
    assert rig.violated == set()


def _revoked_while_away(rig: Rig) -> Step:
    """The first cVM revokes a file while the page is away in which the second one has the capability."""
    owner, prober = rig.threads
    assert rig.call(owner, "file_advertise", 5, 0x200, 0x100) is CvmCode.OK
    assert rig.call(prober, "file_probe", 5, 0x300) is CvmCode.OK
    rig.enter(owner, "file_revoke", 5)
    frame = CVM_PAGES[1]
    rig.must("reclaim", frame)
    for vcpu in (CPU_A, CPU_B):
        rig.must("acknowledge", vcpu, frame)
    assert rig.violated == set()
    return rig.hold(stack_system.leave(rig.machine, owner)[0])


def test_revocation_waits_for_all_of_memory(rig):
    step = _revoked_while_away(rig)
    assert step.fault.kind is FaultKind.TAG
    assert rig.machine.monitors[CVM].grants[5].is_live
    rig.must("migrate", CVM_PAGES[1], FREE_FRAME)
    rig.must("write_pte", CPU_A, 5, 1, FREE_FRAME << FRAME_SHIFT | 7)
    assert rig.monitor_step(stack_system.leave(rig.machine, rig.threads[0])) is CvmCode.OK
    assert rig.violated == set()


def test_revocation_that_misses_a_page_leaves_a_capability_behind():
    rig = rig_without("resident_first")
    assert _revoked_while_away(rig).is_completed
    assert {"C1", "C8"} <= rig.violated


@pytest.mark.parametrize("path", ["dma", "block", "store"])
def test_what_tenants_share_is_written_by_nobody_else(rig, path):
    step = _into_shared_objects(rig, path)
    if path == "block":
        assert step.inner.code is VmmCode.IOMMU
        assert rig.violated == set()
        return
    assert step.code is Code.KEPT if path == "store" else step.inner.fault.kind is FaultKind.IOMMU
    assert rig.violated == set()


@pytest.mark.parametrize("path", ["dma", "block", "store"])
def test_what_tenants_share_could_be_written_from_below(path):
    rig = rig_without("base_memory_kept")
    assert _into_shared_objects(rig, path).is_completed
    assert rig.violated == {"O12"}


def _into_shared_objects(rig: Rig, path: str) -> Step:
    if path == "dma":
        return rig.tpt("dma_write", NIC, ORC_PAGES[0], 4, SECRET)
    if path == "block":
        return rig.vmm("dma_write", NIC, ORC_PAGES[0] << 3, SECRET)
    return rig.tpt("write_pte", CPU_A, ORC_PAGES[0], 4, SECRET)


# -- moving, and the end ---------------------------------------------------------------------------------------------------


def _stored_after_sending(rig: Rig) -> Step:
    rig.vmm("begin_move")
    rig.vmm("send", CVM_PAGES[1])
    rig.instruction(rig.threads[1], "li", 5, CVM_BASE + PAGE)
    assert rig.instruction(rig.threads[1], "sd.ddc", 5, 5) is None
    return rig.vmm("stop")


def test_what_cvms_write_while_memory_is_moved_is_sent_again(rig):
    _stored_after_sending(rig)
    while rig.vmm("send_next").is_completed:
        pass
    assert rig.vmm("hand_over").is_completed
    assert rig.machine.vmm.remote[CVM_PAGES[1] << 3] == CVM_BASE + PAGE
    assert rig.violated == set()


def test_a_vmm_that_sees_only_its_own_guests_writes_loses_those_of_cvms():
    rig = rig_without("track_all_writes")
    _stored_after_sending(rig)
    assert "P13" in rig.violated


def _goes_on(rig: Rig) -> Step:
    rig.vmm("begin_move")
    assert rig.vmm("stop").is_completed
    return rig.tpt("load", CPU_B, 0, 0)


def test_what_the_vmm_stops_is_all(rig):
    assert _goes_on(rig).code is Code.STOPPED
    step, _trap = stack_system.instruction(rig.machine, rig.threads[0], "li", (5, 1))
    assert rig.hold(step).code is Code.STOPPED
    assert rig.violated == set()


def test_a_vm_that_goes_on_when_the_vmm_has_stopped():
    rig = rig_without("stop_reaches_all")
    assert _goes_on(rig).is_completed
    assert rig.violated == {"S9"}


# -- guards of the layers, felt elsewhere ----------------------------------------------------------------------------------


def _reclaimed_under_a_capability(rig: Rig) -> Step:
    """A cVM's frame becomes B's while A's processor still translates to it."""
    frame = CVM_PAGES[1]
    rig.instruction(rig.threads[1], "li", 5, CVM_BASE + PAGE)
    rig.must("reclaim", frame)
    rig.tpt("acknowledge", CPU_B, frame)
    rig.tpt("scrub", frame)
    step = rig.tpt("assign", frame, B, 9)
    rig.hold(stack_system.instruction(rig.machine, rig.threads[1], "sd.ddc", (5, 5))[0])
    return step


def test_a_frame_under_a_live_capability_has_no_next_owner(rig):
    assert _reclaimed_under_a_capability(rig).inner.code is TptCode.PENDING
    assert rig.violated == set()


def test_a_capability_outlives_its_frame_where_the_host_doesnt_wait():
    rig = Rig(tag_policy=tags_without("wait_for_acknowledgements"), policy=without("pages_bound"))
    assert _reclaimed_under_a_capability(rig).is_completed
    assert {"T1", "S2", "S5"} <= rig.violated


def test_a_host_that_clears_a_vms_frame_touches_what_isnt_granted():
    rig = Rig(tag_policy=tags_without("free_frames_only"))
    assert rig.tpt("scrub", 24).is_completed
    assert "S2" in rig.violated


def test_only_the_host_has_the_vmms_processor(rig):
    assert rig.vmm("map", CPU_A, 0, FREE_FRAME, 0, 1).code is Code.NOT_HOST
    assert rig.vmm("store", CPU_B, 0, 0, SECRET).code is Code.NOT_HOST


def test_a_panic_stops_the_layers_above(rig):
    assert rig.vmm("map", CPU_HOST, 0, REGION[0], 0, 1).is_completed
    assert rig.vmm("store", CPU_HOST, 0, 0, SECRET).inner.code is VmmCode.PANIC
    assert rig.tpt("load", CPU_B, 0, 0).code is Code.STOPPED
    assert rig.violated == set()


def test_a_tenants_store_is_to_its_own_slot(rig):
    rig.instruction(rig.tenant, "li", 6, SECRET)
    assert rig.instruction(rig.tenant, "sd.cap", 6, 2) is None
    assert rig.machine.memory.word(ORC_PAGES[0], 0) == SECRET
    assert rig.violated == set()


def test_every_guard_is_of_a_coupling_that_names_what_it_carries():
    assert [*COUPLINGS] == [*STACK_GUARDS]
    known = {*STACK_INVARIANTS, *VMM_INVARIANTS, *TPT_INVARIANTS, *CVM_INVARIANTS, *ORC_INVARIANTS}
    assert {name for row in COUPLINGS.values() for name in row.carries} <= known
    assert {*VIEWS} == {each.value for each in LayerName} == {*LAYERS}
