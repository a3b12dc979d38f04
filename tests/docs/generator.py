"""docs/generate.py, which is a script and no module of a package, as a module."""

import importlib.util
from types import ModuleType

from tests.tutorial import ROOT


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    return generate
