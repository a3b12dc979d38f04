"""Any extension of a storage mediator: hooks that answer anything, and touch whatever the extension's policy lets them.

Nothing of a mediator reads the guest's memory after it has called a hook, and an invariant looks at one block of it, any.
So of what an extension reads and writes in the hooks of one step, one block, any, stands for all. Where the step touches no
memory otherwise, the extension might as well have done it right before: that is a step by itself.
"""

from typing import Any

from capvisor.model.extensions import Hooks, View
from capvisor.proofs.vmm_state import ADDRESS_BITS, EXTENSION_BITS, AnySystem
from capvisor.spec.vmm import WORD_BITS


class AnyExtension:
    """An extension of which nothing is known but that it touches memory by its view."""

    def __init__(self, system: AnySystem, *, touches: bool) -> None:
        """`touches`: whether its hooks touch memory."""
        self._system, self._has_acted = system, not touches
        self._number = system.given.word("hooking_extension", EXTENSION_BITS)

    @property
    def hooks(self) -> Hooks:
        """Its hooks."""
        return Hooks("any", self._refuses, self._prepares, self._changed, self._changed, self._number)

    def _refuses(self, view: View, _device: Any, _lba: Any, _is_write: Any, _is_erase: Any) -> Any:
        self._act(view)
        return self._system.fresh_flag("extension_refuses")

    def _prepares(self, view: View, _device: Any, _lba: Any, _applies: Any) -> None:
        self._act(view)

    def _changed(self, view: View, _device: Any, _lba: Any, _word: Any) -> Any:
        self._act(view)
        return self._system.fresh("extension_answers", WORD_BITS)

    def _act(self, view: View) -> None:
        if self._has_acted:
            return
        self._has_acted, given = True, self._system.given
        address = given.word("extension_touches", ADDRESS_BITS)
        view.read(address)
        view.write(address, given.word("extension_writes", WORD_BITS))
