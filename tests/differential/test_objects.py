"""The fast path's shared objects against the reference: after each step, the whole state of every lane."""

from typing import Any

import numpy as np
import pytest

from capvisor.campaign.orc_states import differences
from capvisor.fastpath import object_operations as _operations
from capvisor.fastpath.objects import OPERATION_KERNELS, BatchObjects
from capvisor.model import object_system
from capvisor.spec.formats import CC64, CC128
from capvisor.spec.object_policy import INTENDED, OBJECT_GUARDS, without
from capvisor.spec.orc import OPERATIONS
from tests.shares import some
from tests.unit import test_objects
from tests.unit.objects import BASE, SLOTS, SPARE, Rig

assert _operations
POLICIES = {"intended": INTENDED, **{f"without {guard}": without(guard) for guard in OBJECT_GUARDS}}


class Twin:
    """One lane that does what a reference does, compared after every step."""

    def __init__(self, fmt: Any, policy: Any) -> None:
        self.batch = BatchObjects(fmt, BASE, SLOTS << 10, 1, policy, threads=2)
        self.found: list[str] = []
        self.compared = 0

    def follow(self, step: Any, trap: Any = None) -> None:
        lanes = np.array([0])
        harts = None if step.thread is None else lanes + step.thread.number
        if step.kind == "instruction":
            cause = self.batch.step(harts, step.name, tuple(step.operands))
            self.found += [f"{step.name}: refused by one"] * (bool(cause[0]) != (trap is not None))
        else:
            words = [np.array([each], np.uint64) for each in step.operands]
            code = self.batch.perform(lanes, harts, step.name, words)
            if code[0] != step.code:
                self.found.append(f"{step.name} {step.operands}: {step.code.name}, fast path {int(code[0])}")
        self.found += [f"after {step.name} {step.operands}: {each}" for each in differences(step.monitor, self.batch, 0)]
        self.compared += 1


def walked(monkeypatch: pytest.MonkeyPatch, fmt: Any, policy: Any, seed: int, steps: int) -> Twin:
    """A random walk of both."""
    import tests.unit.objects as rig

    twin = Twin(fmt, policy)

    def instruction(*arguments: Any) -> Any:
        step, trap = object_system.instruction(*arguments)
        twin.follow(step, trap)
        return step, trap

    def perform(*arguments: Any) -> Any:
        step = object_system.perform(*arguments)
        twin.follow(step)
        return step

    for module in (rig, test_objects):
        monkeypatch.setattr(module, "instruction", instruction)
        monkeypatch.setattr(module, "perform", perform)
        monkeypatch.setattr(module, "violated", lambda _step: set())
    monkeypatch.setattr(test_objects, "Rig", lambda fmt: Rig(policy, fmt))
    walk = test_objects.Walk(seed, fmt)
    test_objects.mapped(walk.rig)
    walk.rig.place(walk.rig.bob, SPARE)
    for _number in range(steps):
        walk.step()
    return twin


def test_every_operation_has_a_kernel() -> None:
    assert OPERATION_KERNELS.keys() == OPERATIONS.keys()


@pytest.mark.parametrize("fmt", [CC128, CC64], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("policy", some(list(POLICIES.values()), 3), ids=some(list(POLICIES), 3))
def test_whole_states_are_equal_after_every_step(policy: Any, fmt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    twin = walked(monkeypatch, fmt, policy, 7, 120)
    assert twin.found == []
    assert twin.compared > 120
