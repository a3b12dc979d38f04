"""Where the tutorial's programs are."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = sorted((ROOT / "programs" / "tutorial").glob("*.cap"))
