"""A state machine of your own: another format, another implementation, an invariant more."""

from typing import Any, ClassVar

from hypothesis import settings
from hypothesis.stateful import invariant

from capvisor.dsl.stateful import GuestMachine
from capvisor.dsl.states import hart_granules
from capvisor.dsl.strategies import hart_in_state
from capvisor.model import capability
from capvisor.model.machine import Hart, Trap
from capvisor.model.observation import NUMBERS, SPECIAL
from capvisor.spec.formats import CC64, CapabilityFormat


class MyMachine:
    """Stands for an implementation of yours: it takes over a state, steps, and says what differs."""

    def start(self, hart: Hart) -> None:
        """Take over the state of the reference's hart."""
        fmt = hart.format
        self.hart = hart_in_state(
            fmt,
            registers={number: hart.capability(number) for number in range(32)},
            special={name: getattr(hart, name) for name in SPECIAL},
            numbers={name: getattr(hart, name) for name in NUMBERS},
            memory={index: capability.from_memory(fmt, *granule) for index, granule in hart_granules(hart).items()},
        )

    def step(self, name: str, operands: tuple[Any, ...]) -> None:
        """Execute one operation."""
        self.trap = self.hart.step(name, operands)

    def differences(self, hart: Hart, trap: Trap | None) -> list[str]:
        """Compare registers and outcomes."""
        found = [f"c{n}" for n in range(32) if self.hart.capability(n) != hart.capability(n)]
        return found + (["outcome"] if (self.trap is None) != (trap is None) else [])


class MyGuest(GuestMachine):
    """RV32, with an invariant beside those of the specification."""

    format: ClassVar[CapabilityFormat] = CC64
    implementation = MyMachine

    @invariant()
    def pc_is_even(self) -> None:
        """Instructions have two or four bytes."""
        assert self.hart.pc % 2 == 0


class TestMyGuest(MyGuest.TestCase):
    """What pytest and unittest run."""

    settings = settings(max_examples=20, stateful_step_count=20, deadline=None)
