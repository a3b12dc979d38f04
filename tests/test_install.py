"""The wheel: what a user installs has every part of the package."""

import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.tutorial import ROOT


def folders_with_code() -> set[str]:
    """Folders that are packages, and their rooms, tests aside."""
    found = {path.parent.relative_to(ROOT) for pattern in ("*/", "*/*/") for path in ROOT.glob(f"{pattern}__init__.py")}
    return {str(folder) for folder in found if folder.parts[0] not in ("tests", "build", ".venv")}


def test_every_folder_with_code_is_listed_as_a_package() -> None:
    tables = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(tables["package-dir"].values()) == folders_with_code()
    assert set(tables["package-dir"]) == set(tables["packages"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    source = tmp_path_factory.mktemp("source")
    # Built from a copy, so that no build folder is left in the repository.
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(target),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = target.glob("*.whl")
    return built


def test_an_installed_wheel_imports_and_runs_everything(wheel: Path, tmp_path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True, capture_output=True)
    # The dependencies are those of this environment; a plain path line doesn't bring its editable install of capvisor along.
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    script = (
        "import capvisor, importlib, pkgutil\n"
        "names = [m.name for m in pkgutil.walk_packages(capvisor.__path__, 'capvisor.')]\n"
        "[importlib.import_module(name) for name in names if name != 'capvisor.__main__']\n"
        "print(capvisor.__file__); print(*names)"
    )
    out = subprocess.run([python, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    location, names = out.splitlines()
    assert location.startswith(str(site))
    found = set(names.split())
    modules = {
        f"capvisor.{folder.replace('/', '.')}.{path.stem}"
        for folder in folders_with_code() - {"package"}
        for path in (ROOT / folder).glob("*.py")
    }
    assert {name for name in modules if not name.endswith("__init__")} <= found
    program = ROOT / "programs" / "tutorial" / "01_a_capability.cap"
    subprocess.run([tmp_path / "env" / "bin" / "capvisor", "run", program], cwd=tmp_path, check=True, capture_output=True)


def test_the_wheel_is_typed_and_licensed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert (
        "capvisor/py.typed" in names
        and "capvisor/cli/schemas/results.schema.json" in names
        and "capvisor/dsl/grammar.lark" in names
    )
    assert any(name.endswith("LICENSE") for name in names)
    assert not any(name.startswith("tests") for name in names)


def test_the_lock_names_no_registry() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert "http" not in lock and "--index" not in lock and "--find-links" not in lock
    assert "--hash=sha256:" in lock
