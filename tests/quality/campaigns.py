"""How quickly campaigns find the seeded bugs, and how small they make them: `python -m tests.quality.campaigns`."""

import argparse
import statistics
import time
from dataclasses import dataclass

from capvisor.campaign.engine import Campaign, Settings
from capvisor.campaign.hypothesis_engine import HypothesisEngine
from capvisor.campaign.schedulers import Here
from tests.campaign.support import mutated
from tests.quality.bugs import BOUNDS_BUGS, OPERATION_BUGS, STEP_BUGS

BUGS = [(module, before, after) for module, before, after, *_rest in (*STEP_BUGS, *OPERATION_BUGS, *BOUNDS_BUGS)]
LONGEST_S = 60.0


@dataclass(frozen=True)
class Result:
    """What came of a campaign against one bug: how long it took, and how many operations are left, None if not found."""

    seconds: float
    programs: int
    operations: int | None
    signature: str
    shrunk: bool


def hunt(
    bug: tuple[str, str, str], engine: str, seed: int = 0, programs: int | None = None, longest_s: float = LONGEST_S
) -> Result:
    """Look for a bug on one core, until it is found, or some seconds or so many programs are over."""
    seconds = longest_s if programs is None else None
    with mutated(*bug):
        campaign = Campaign(Settings(seed=seed, programs=programs, seconds=seconds, most_findings=1), Here())
        start = time.monotonic()
        if engine == "hypothesis":
            HypothesisEngine(campaign).run()
        else:
            campaign.run()
        elapsed, report = time.monotonic() - start, campaign.report
    for finding in report.findings:
        size = len(finding.failure.case.operations)
        return Result(elapsed, report.programs, size, finding.signature, finding.shrunk)
    return Result(elapsed, report.programs, None, "", False)


def main() -> None:
    """Hunt every bug, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["bulk", "hypothesis"], default="bulk")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = []
    for bug in BUGS:
        result = hunt(bug, options.engine, options.seed)
        results.append(result)
        outcome = "NOT FOUND" if result.operations is None else f"{result.operations} operations: {result.signature}"
        print(f"{result.seconds:6.1f} s  {result.programs:8}  {outcome:<48}  {bug[0]}: {bug[1].splitlines()[0]}", flush=True)
    sizes = [result.operations for result in results if result.operations is not None]
    print(f"found {len(sizes)} of {len(BUGS)}; operations: median {statistics.median(sizes)}, most {max(sizes)}")
    print(f"seconds: median {statistics.median(r.seconds for r in results):.1f}, most {max(r.seconds for r in results):.1f}")


if __name__ == "__main__":
    main()
