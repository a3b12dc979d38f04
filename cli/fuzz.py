"""`capvisor fuzz`."""

from pathlib import Path

import click
from click.core import ParameterSource

from capvisor.campaign.engine import Settings
from capvisor.campaign.recipes import PROFILES
from capvisor.campaign.schedulers import default_workers
from capvisor.campaign.subjects import SYSTEMS
from capvisor.cli import campaign, value_campaign
from capvisor.cli.campaign import DEFAULT_SECONDS, Duration, Request
from capvisor.cli.options import json_option, seed_option
from capvisor.cli.status import InputError
from capvisor.dsl.system import DEFAULT_POLICY, policy_named
from capvisor.dsl.system_kinds import SYSTEM_KINDS
from capvisor.spec.formats import FORMATS


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--lanes",
    default=100_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of files: how many choices of values to try.",
)
@seed_option
@click.option(
    "--sample",
    default=16,
    show_default=True,
    type=click.IntRange(min=0),
    help="Of files: how many lanes of each chunk (up to 16384 lanes) to replay on the reference.",
)
@click.option(
    "--engine", default="bulk", show_default=True, type=click.Choice(["bulk", "hypothesis"]), help="What draws programs."
)
@click.option(
    "--profile",
    default="mixed",
    show_default=True,
    type=click.Choice([*PROFILES, *SYSTEMS]),
    help="What programs are about; `cvm`, `tpt`, `orc`, `vmm`: systems of compartments, translation pass-through, shared "
    "objects, a para-pass-through VMM; `stack`: all of them on one memory.",
)
@click.option("--policy", metavar="NAME", help="Of systems: a preset, or without:GUARD,...  [default: intended]")
@click.option("--format", "format_name", default="cc128", show_default=True, type=click.Choice(list(FORMATS)))
@click.option("--time", "seconds", type=Duration(), help="How long, such as 60s, 5m or 1h.  [default: 60s]")
@click.option("--programs", "count", type=click.IntRange(min=1), help="How many programs, instead of how long.")
@click.option(
    "--workers", default=default_workers(), type=click.IntRange(min=1), help="Processes.  [default: the processors]"
)
@click.option("--scheduler", metavar="TCP://..", help="The dask.distributed scheduler whose workers do the work.")
@click.option("--invariants-only", is_flag=True, help="The fast path alone, with invariants as oracles.")
@click.option(
    "--against",
    metavar="COMMAND",
    help="Another implementation to hold against the reference: a command, or rvfi-dii://HOST:PORT.",
)
@click.option(
    "--findings", default="findings", show_default=True, type=click.Path(path_type=Path), help="Folder of what is found."
)
@click.option("--most-findings", default=10, show_default=True, type=click.IntRange(min=1), help="End after so many.")
@click.option("--junit", "junit_path", type=click.Path(path_type=Path), help="Write findings as JUnit XML to this file.")
@click.option("--sarif", "sarif_path", type=click.Path(path_type=Path), help="Write findings as SARIF 2.1.0 to this file.")
@click.option(
    "--state", type=click.Path(path_type=Path), help="Folder of the history.  [default: in the user's state directory]"
)
@click.option("--no-history", is_flag=True, help="Don't keep this campaign for `capvisor report`.")
@json_option
def fuzz(
    paths: tuple[Path, ...],
    lanes: int,
    seed: int,
    sample: int,
    engine: str,
    profile: str,
    policy: str | None,
    format_name: str,
    seconds: float | None,
    count: int | None,
    workers: int,
    scheduler: str | None,
    invariants_only: bool,
    against: str | None,
    findings: Path,
    most_findings: int,
    junit_path: Path | None,
    sarif_path: Path | None,
    state: Path | None,
    no_history: bool,
    json_path: Path | None,
) -> int:
    """Without files: draw programs, and execute every one on the fast path and on the reference.

    Whole states are compared after each operation, and every step is held against the machine's invariants. A failure is
    made small and kept as a program. A campaign that left something untested says so, with status 2.

    With files: run these programs with drawn values for every `any`, many at once on the fast path, a sample of them on the
    reference. A failing choice is printed as the program with its values filled in.
    """
    if paths:
        return value_campaign.run(paths, lanes, seed, sample, json_path)
    if seconds is not None and count is not None:
        raise InputError("--time and --programs both say how long: give one of them")
    if policy is not None and profile not in SYSTEMS:
        raise InputError(f"--policy is for the profile `{', '.join(SYSTEMS)}` alone")
    if profile in SYSTEMS:
        if engine != "bulk" or against is not None or invariants_only:
            raise InputError(f"the profile `{profile}` has no --engine, --against or --invariants-only")
        given = click.get_current_context().get_parameter_source("format_name") is not ParameterSource.DEFAULT
        if given and not SYSTEMS[profile].has_formats:
            raise InputError(f"the profile `{profile}` has no --format: there are no capabilities in it")
        try:
            policy_named(policy or DEFAULT_POLICY, SYSTEM_KINDS[profile])
        except LookupError as error:
            raise InputError(f"--policy: {error.args[0]}") from None
    if invariants_only and (engine == "hypothesis" or against is not None):
        raise InputError("--invariants-only is for the bulk engine alone")
    if scheduler is not None and (engine == "hypothesis" or against is not None):
        raise InputError("--scheduler is for the bulk engine alone")
    if count is None and seconds is None:
        seconds = DEFAULT_SECONDS
    compare, chosen = not invariants_only, policy or DEFAULT_POLICY
    settings = Settings(profile, format_name, seed, count, seconds, compare, most_findings, chosen)
    request = Request(
        settings,
        engine,
        workers,
        scheduler,
        against,
        findings,
        json_path,
        junit_path,
        sarif_path,
        state,
        not no_history,
    )
    return campaign.run(request)
