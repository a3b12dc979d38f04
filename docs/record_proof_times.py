"""Keep the solver's seconds for "What is proved": python docs/record_proof_times.py RESULTS.json

RESULTS.json is what `capvisor prove --all --no-cache --json RESULTS.json` has written.
"""

import json
import sys
from pathlib import Path

TIMES = Path(__file__).parent / "proof_times.json"


def record(results: Path) -> None:
    """Write `proof_times.json` from a run's results."""
    found = json.loads(results.read_text())
    times = {each["id"]: round(each["seconds"], 2) for each in found["obligations"]}
    solver = found["obligations"][0]["solver"]
    document = {"solver": solver, "elapsed_seconds": round(found["seconds"]), "solver_seconds": times}
    TIMES.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
