"""A para-pass-through VMM: one guest has the machine, and the VMM stands in the way of what could harm it or its media.

What the guest, devices, the VMM and its extensions do is in `model.vmm_operations`, as rules over this state; what a
mediator does to a storage device's registers and data in `model.mediator`. The specification is spec/vmm.md.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from capvisor.model.bits import not_, select
from capvisor.model.tables import Rows, Table
from capvisor.spec.vmm import (
    BLOCK_SHIFT,
    FIRST_APIC_FRAME,
    FIRST_SHADOW_FRAME,
    HIDDEN_FRAMES,
    KEY_FRAME,
    LEAST_REGION,
    MAX_DEVICES,
    MAX_FRAMES,
    MAX_VCPUS,
    SHADOW_BLOCKS,
    WINDOW_FRAME_SHIFT,
    WORD_BITS,
    ZERO_FRAME,
    Code,
    Phase,
    Rule,
    Space,
    Stage,
)
from capvisor.spec.vmm_policy import INTENDED, VmmPolicy

Address = int
"""Of a block of memory."""
Frame = int
Word = int
DeviceId = int
VcpuId = int
Lba = int


class Refused(Exception):  # noqa: N818 - as a trap is none, neither is this an error
    """An operation that is refused: no data are moved."""

    def __init__(self, code: Code) -> None:
        super().__init__(code)
        self.code = code


class Vmm(NamedTuple):
    """The machine and its VMM."""

    is_stopped: bool = False
    """The VMM has panicked."""
    has_microcode: bool = False
    """Whether the guest has changed the processors' microcode."""
    stage: int = 0
    """Of moving the guest to another machine: `spec.vmm.Stage`."""
    next_frame: Frame = 0
    """In the last round, the frame to be sent next."""
    is_iommu_off: bool = False
    """Whether devices reach all memory: since the machine woke up, and nobody has set up the IOMMU anew."""


class Vcpu(NamedTuple):
    """A processor: whether it runs outside the VMM's control, so that nothing that it does is intercepted."""

    is_outside: bool = False
    apic_frame: Frame = FIRST_APIC_FRAME
    """Where the registers of its local APIC are."""


class Mapping(NamedTuple):
    """A translation that a processor uses: the page's first frame, how large it is, and whether the VMM's page of zeros
    stands for it.
    """

    is_live: bool = False
    frame: Frame = 0
    level: int = 0
    is_writable: bool = False
    is_zero: bool = False


class Device(NamedTuple):
    """A device; of a storage device, its registers and the command under way."""

    is_storage: bool = False
    count: int = 0  # type: ignore[assignment]  # not the tuple's method
    lba: Lba = 0
    descriptors: Address = 0
    opcode: int = 0
    """Of the command under way; 0: none."""
    first: Lba = 0
    length: int = 0
    position: int = 0
    """Sectors moved so far."""
    is_started: bool = False
    """Whether the bus master is."""
    to_memory: bool = False
    entry: int = 0
    """Which descriptor is used."""
    offset: int = 0
    """How many of its blocks have been."""
    is_failed: bool = False


class Channel(NamedTuple):
    """What the mediator of a storage device knows."""

    state: int = 0
    """`spec.vmm.ChannelState`."""
    first: Lba = 0
    length: int = 0
    position: int = 0
    is_write: bool = False
    seen_count: int = 0
    """The last count and address that went by, which is what a policy without `read_back_registers` uses."""
    seen_lba: Lba = 0
    descriptors: Address = 0
    """What the guest has written, as the device's address of descriptors."""
    entry: int = 0
    offset: int = 0
    is_tampered: bool = False
    """A ghost, as `Meant`: whether the device has written to its shadow buffer other than by a command, since the bus master
    was started last.
    """


class Meant(NamedTuple):
    """What the guest takes a sector to hold, if that is known; a ghost, which nothing else looks at."""

    is_known: bool = False
    word: Word = 0


class Deployment(NamedTuple):
    """Of a medium: which phase (`spec.vmm.Phase`), how many sectors the image has, the least one not looked at yet by the
    background copy, and the sector fetched last.
    """

    phase: int = 0
    size: int = 0
    cursor: Lba = 0
    is_fetched: bool = False
    lba: Lba = 0
    word: Word = 0


class Extension(NamedTuple):
    """What the policy of an extension lets it touch: frames from the first one and before `behind`."""

    is_live: bool = False
    first: Frame = 0
    behind: Frame = 0
    may_write: bool = False


class Touch(NamedTuple):
    """A block of memory read or written, by whom, and what was true then."""

    actor: str
    """"cpu", "device", "mediator" (on the guest's behalf, in its buffers or descriptors), "extension"."""
    number: int
    """Which vCPU, device or extension."""
    address: Address
    is_write: bool


class Move(NamedTuple):
    """A sector of a medium read or written by its device for the guest; of deployment there is none."""

    device: DeviceId
    lba: Lba
    is_write: bool
    is_made: bool = True
    """Whether there is one: a loop over sectors has as many as a command may have."""


class Cipher(Protocol):
    """Encryption of a sector under a key, in place: for each key and sector a permutation of words."""

    def encrypt(self, key: Word, lba: Lba, word: Word) -> Word: ...

    def decrypt(self, key: Word, lba: Lba, word: Word) -> Word: ...


class AddedKey:
    """A cipher for tests: a sum."""

    def encrypt(self, key: Word, lba: Lba, word: Word) -> Word:
        return word + key + (lba << 8) & (1 << WORD_BITS) - 1

    def decrypt(self, key: Word, lba: Lba, word: Word) -> Word:
        return word - key - (lba << 8) & (1 << WORD_BITS) - 1


def is_possible(frames: int, first: Frame, behind: Frame, vcpus: int, devices: int) -> Any:
    """Whether there is a machine with so many frames, with the region [first, behind), and so many vCPUs and devices."""
    sizes = (frames <= MAX_FRAMES) & (vcpus >= 1) & (vcpus <= MAX_VCPUS) & (devices >= 0) & (devices <= MAX_DEVICES)
    region = (first >= 0) & (first + LEAST_REGION <= behind) & (behind <= frames)
    return sizes & region & not_((first <= FIRST_APIC_FRAME) & (behind > FIRST_APIC_FRAME))


class System:
    """A machine with its VMM: frames, those of the VMM's region [first, behind), vCPUs, devices.

    Devices are numbered from 1. `decoded[space, window]` is the device whose registers are there, `hooked` the one that
    the VMM mediates there, 0 for none; `windows[device, space]` is where the device's are. `registers[device, register]`
    is what was written last to one that isn't a storage device's. By device and sector, `media` is what the medium holds,
    `rules` what the policy says, `images` what is to be deployed, `deployed` whether it was. By frame, `clean` says whether
    what was sent of it is what it holds; by block, `remote` is what was sent. Ghosts: `meant` by device and sector, `plain`
    by device and block of its shadow buffer what the guest wrote there, `touched` by device and sector whether a command
    has written it, `keys[0]` what the key was at first. `trapped` is by frame: which windows in it the VMM intercepts, a bit
    each.
    """

    hook_errors: tuple[type[Exception], ...] = (Exception,)
    """What an added hook may raise, to be taken for a refusal, or for the word 0."""

    def __init__(
        self,
        frames: int,
        region: tuple[Frame, Frame],
        vcpus: int = 1,
        devices: int = 1,
        policy: VmmPolicy = INTENDED,
        cipher: Cipher | None = None,
        table: Callable[[str, Any], Table] = lambda _name, empty: Rows(empty),
        hooks: tuple[Any, ...] = (),
    ) -> None:
        """`hooks` are added to those that every mediator has: `model.extensions.Hooks`. Raises ValueError."""
        if not is_possible(frames, *region, vcpus, devices):
            raise ValueError(
                f"a machine has up to {MAX_FRAMES} frames, a region of {LEAST_REGION} or more of them without frame "
                f"{FIRST_APIC_FRAME:#x}, 1 to {MAX_VCPUS} vCPUs, 0 to {MAX_DEVICES} devices"
            )
        self.policy = policy
        self.frame_count, self.vcpu_count, self.device_count = frames, vcpus, devices
        self.region_first, self.region_behind = region
        self.cipher: Cipher = cipher or AddedKey()
        self.hooks = hooks
        self.vmm = table("vmm", Vmm())
        self.memory = table("memory", 0)
        self.keys = table("keys", 0)
        self.vcpus = table("vcpus", Vcpu())
        self.mappings = table("mappings", Mapping())
        self.devices = table("devices", Device())
        self.decoded = table("decoded", 0)
        self.hooked = table("hooked", 0)
        self.windows = table("windows", 0)
        self.trapped = table("trapped", 0)
        self.registers = table("registers", 0)
        self.channels = table("channels", Channel())
        self.media = table("media", 0)
        self.meant = table("meant", Meant())
        self.plain = table("plain", 0)
        self.touched = table("touched", False)
        self.rules = table("rules", Rule.PLAIN)
        self.deployments = table("deployments", Deployment())
        self.images = table("images", 0)
        self.deployed = table("deployed", False)
        self.extensions = table("extensions", Extension())
        self.clean = table("clean", False)
        self.remote = table("remote", 0)
        self.touches: list[Touch] = []
        self.moves: list[Move] = []
        self.answers: list[Any] = []
        """What added hooks say when they are asked whether a command is refused."""
        self.faults: list[str] = []
        """What went wrong in added hooks, for people."""

    # -- setting up

    def set_key(self, key: Word) -> None:
        """Put the key where it stays."""
        self.memory[self.key_address] = self.keys[0] = key

    def add_storage(self, device: DeviceId) -> None:
        """Make a device one with a medium, which the VMM mediates. Its windows are `place_window`'s."""
        self.devices[device] = Device(is_storage=True, descriptors=self.shadow_descriptor(device))

    def place_window(self, device: DeviceId, space: int, window: int) -> None:
        """Put a device's registers into a window, and the VMM's hook with them if the device is mediated."""
        self.decoded[space, window] = device
        self.windows[device, space] = window
        self.hook(space, window, select(self.is_mediated(device), device, 0))

    def hook(self, space: int, window: int, device: DeviceId) -> None:
        """Let the VMM intercept a window for a device, or for none; a frame with such a window in it isn't memory."""
        self.hooked[space, window] = device
        if space == Space.MEMORY:
            frame, bit = window >> WINDOW_FRAME_SHIFT, 1 << (window & (1 << WINDOW_FRAME_SHIFT) - 1)
            others = self.trapped[frame] & ~bit
            self.trapped[frame] = select(device == 0, others, others | bit)

    # -- the machine

    def check_runs(self, is_held: bool = True) -> None:
        """Whether the guest runs here; what is held runs not while the last round is sent, either. Raises Refused."""
        vmm = self.vmm[0]
        held = is_held & self.policy.stop_before_last_round & (vmm.stage == Stage.STOPPED)
        if vmm.is_stopped | (vmm.stage == Stage.HANDED_OVER) | held:
            raise Refused(Code.STOPPED)

    def some_device(self, holds: Callable[[DeviceId], Any]) -> Any:
        """Whether something holds of a device."""
        return any(holds(device) for device in range(1, self.device_count + 1))

    def panic(self) -> None:
        """Stop the machine. Raises Refused."""
        self.vmm[0] = self.vmm[0]._replace(is_stopped=True)
        raise Refused(Code.PANIC)

    def is_address(self, address: Address) -> Any:
        """Whether there is memory at an address."""
        return address >> BLOCK_SHIFT < self.frame_count

    def is_mediated(self, device: DeviceId) -> Any:
        """Whether a device is a storage device that the VMM mediates."""
        return self.devices[device].is_storage & (self.deployments[device].phase != Phase.GONE)

    def is_trapped(self, frame: Frame) -> Any:
        """Whether a frame has registers of a mediated device in it, so that nothing but `input` and `output` reaches it."""
        return self.policy.unmap_registers & (self.trapped[frame] != 0)

    # -- the region

    def in_region(self, frame: Frame) -> Any:
        """Whether a frame is the VMM's."""
        return (self.region_first <= frame) & (frame < self.region_behind)

    @property
    def recognised_behind(self) -> Frame:
        """Before which frame the VMM takes those of its region for its own."""
        behind = self.region_first + HIDDEN_FRAMES
        if self.policy.hide_whole_region:
            return self.region_behind
        return select(behind < self.region_behind, behind, self.region_behind)

    def is_recognised(self, frame: Frame) -> Any:
        """Whether the VMM takes a frame for its own."""
        return (self.region_first <= frame) & (frame < self.recognised_behind)

    @property
    def key_address(self) -> Address:
        """Where the key is."""
        return self.region_first + KEY_FRAME << BLOCK_SHIFT

    @property
    def key(self) -> Word:
        """What the key's block holds."""
        return self.memory[self.key_address]

    @property
    def zero_frame(self) -> Frame:
        """The page of zeros."""
        return self.region_first + ZERO_FRAME

    def shadow_descriptor(self, device: DeviceId) -> Address:
        """Where the VMM has its descriptor for a storage device."""
        return self.region_first + FIRST_SHADOW_FRAME + 2 * (device - 1) << BLOCK_SHIFT

    def shadow_buffer(self, device: DeviceId) -> Address:
        """Where the VMM has its buffer for a storage device, of `SHADOW_BLOCKS` blocks."""
        return self.shadow_descriptor(device) + SHADOW_BLOCKS

    # -- memory, as others than the VMM reach it

    def read(self, actor: str, number: int, address: Address) -> Word:
        """Read a block."""
        self.touches.append(Touch(actor, number, address, False))
        return self.memory[address]

    def write(self, actor: str, number: int, address: Address, word: Word) -> None:
        """Write a block; what was sent of its frame is so no longer, if such writes are tracked."""
        policy, frame = self.policy, address >> BLOCK_SHIFT
        self.touches.append(Touch(actor, number, address, True))
        self.memory[address] = word
        if actor == "cpu":
            tracked = policy.track_cpu_writes
        elif actor == "device":
            tracked = policy.track_dma_writes
        else:
            tracked = policy.track_mediator_writes
        if tracked:
            self.clean[frame] = False
