"""Options that several verbs share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from capvisor.cli.status import InputError

_Command = TypeVar("_Command", bound=Callable[..., Any])

paths_argument = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
seed_option = click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(min=0), help="The same seed gives the same values."
)
json_option = click.option(
    "--json", "json_path", metavar="FILE", type=click.Path(path_type=Path), help="Also write the result as JSON."
)


def implementation_option(default: str) -> Callable[[_Command], _Command]:
    """The `--impl` option, with this default."""
    return click.option(
        "--impl",
        "implementation",
        default=default,
        show_default=True,
        type=click.Choice(["reference", "fast", "both"]),
        help="What to execute.",
    )


def parse_settings(settings: tuple[str, ...]) -> dict[str, int]:
    """`x=5` settings as a mapping. Raises InputError."""
    values = {}
    for setting in settings:
        name, equals, number = setting.partition("=")
        try:
            value = int(number, 0)
        except ValueError:
            equals = ""
        if not equals:
            raise InputError(f"--set {setting}: expected NAME=NUMBER, such as `len=0x1000`")
        if name.strip() in values:
            raise InputError(f"--set {setting}: `{name.strip()}` is set twice")
        values[name.strip()] = value
    return values
