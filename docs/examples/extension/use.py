"""A machine with the extension: the guest writes two sectors, of which one is a boot sector."""

from boot_sectors import COUNTER, EXTENSION

from capvisor.model.vmm import Extension, System
from capvisor.model.vmm_system import perform, violated
from capvisor.spec.vmm import Register, Space

DISK, WRITE_SECTORS = 1, 0x30

system = System(64, (44, 64), hooks=(EXTENSION,))
system.set_key(0x5EC2E7)
system.add_storage(DISK)
system.place_window(DISK, Space.PORT, 0x20)
system.extensions[1] = Extension(is_live=True, first=40, behind=41, may_write=True)

for lba in (3, 9):
    for register, value in (
        (Register.COUNT, 1),
        (Register.LBA, lba),
        (Register.COMMAND, WRITE_SECTORS),
        (Register.DATA, 0x77),
    ):
        step = perform(system, "output", 0, Space.PORT, 0x20 << 3 | register, value)
        print(lba, register.name, step.code.name, *violated(step))

print(system.media[DISK, 3], system.media[DISK, 9], system.memory[COUNTER])
