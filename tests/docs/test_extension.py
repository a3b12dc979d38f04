"""The how-to of docs/extensions.md: its pieces are executed as they stand, and say what the page says."""

import os
import subprocess
import sys

from capvisor.model.extensions import Hooks, View
from capvisor.spec.vmm import Code, Register
from tests.tutorial import ROOT
from tests.unit.vmm import DENIED, DISK, ENCRYPTED, FIRST, KEY, PLAIN, SECRET, WRITE_SECTORS, Rig, cipher_text

PIECES = ROOT / "docs" / "examples" / "extension"


def test_the_example_prints_what_the_page_shows() -> None:
    environment = {**os.environ, "PYTHONPATH": str(PIECES)}
    done = subprocess.run(
        [sys.executable, PIECES / "use.py"], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout == (PIECES / "printed.txt").read_text(), done.stderr


def test_the_example_is_a_few_lines() -> None:
    code = [line for line in (PIECES / "boot_sectors.py").read_text().splitlines()[2:] if line]
    assert len(code) <= 17


def greedy(view: View, _device: int, _lba: int, word: int) -> int:
    """A hook that tries to get at the key, and to write where it may not."""
    stolen = view.read(FIRST << 3)
    view.write(FIRST << 3, word)
    view.write(50 << 3, word)
    view.write(40 << 3, stolen)
    return word


def test_an_extension_can_not_get_at_the_key_whatever_its_hooks_do() -> None:
    rig = Rig(hooks=(Hooks("greedy", outgoing=greedy, incoming=greedy, extension=1),))
    rig.write_port(ENCRYPTED, SECRET)
    rig.write_dma(PLAIN, SECRET)
    assert (rig.system.memory[40 << 3], rig.system.memory[50 << 3], rig.system.key) == (0, 0, KEY)
    assert rig.system.media[DISK, ENCRYPTED] == cipher_text(ENCRYPTED, SECRET)
    assert rig.violated == set()


def test_words_are_encrypted_after_hooks_have_changed_them() -> None:
    rig = Rig(hooks=(Hooks("one more", outgoing=lambda *each: each[-1] + 1, incoming=lambda *each: each[-1] - 1),))
    rig.write_port(ENCRYPTED, 5)
    assert rig.system.media[DISK, ENCRYPTED] == cipher_text(ENCRYPTED, 6)
    assert rig.read_dma(ENCRYPTED) == [5]
    assert rig.violated == set()


def test_one_refusal_is_enough() -> None:
    rig = Rig(hooks=(Hooks("lenient"), Hooks("read only", refuses=lambda *each: each[3])))
    assert rig.command(WRITE_SECTORS, DENIED) is rig.command(WRITE_SECTORS, PLAIN) is Code.FAILED
    assert rig.read_port(PLAIN) == [0]
    assert rig.output(Register.DATA, 1) is Code.BLOCKED
