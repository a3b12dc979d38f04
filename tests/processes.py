"""Processes that tests interrupt."""

import os
import subprocess
import time
from pathlib import Path


def until_busy(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait until a process has used some processor time, whatever else the machine does, or has ended."""
    ticks = os.sysconf("SC_CLK_TCK")
    while process.poll() is None:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        if (int(fields[11]) + int(fields[12])) / ticks >= seconds:
            return
        time.sleep(0.05)


def until_exists(process: subprocess.Popen[str], path: Path) -> None:
    """Wait until a process has made a file, or has ended."""
    while process.poll() is None and not path.exists():
        time.sleep(0.05)
