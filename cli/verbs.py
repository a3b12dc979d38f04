"""The command line: verbs, and one clear message with a documented exit status for whatever goes wrong."""

import io
import os
import sys
import traceback
from importlib import import_module
from typing import Any

import click

from capvisor import __version__
from capvisor.cli import reader
from capvisor.cli.output import console
from capvisor.cli.status import MEANINGS, InputError, Status
from capvisor.conformance.errors import VectorFileError
from capvisor.dsl.errors import NoValuesError, ProgramError

_EPILOG = "Exit status: " + "; ".join(f"{status.value} {meaning}" for status, meaning in MEANINGS.items()) + "."


_MODULES = {
    "asm": "words",
    "bench": "bench",
    "conform": "conform",
    "corpus": "corpus",
    "density": "density",
    "disasm": "words",
    "explain": "explain",
    "fmt": "fmt",
    "fuzz": "fuzz",
    "guards": "guards",
    "list": "listing",
    "prove": "prove",
    "report": "report",
    "run": "run",
    "serve": "serve",
    "translate": "translate",
    "vectors": "vectors",
}
"""The module of each verb: it is imported when the verb is needed, as all of them together take seconds."""


class _Verbs(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(_MODULES)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _MODULES:
            return None
        found = vars(import_module(f"capvisor.cli.{_MODULES[cmd_name]}")).values()
        return next(each for each in found if isinstance(each, click.Command) and each.name == cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """As by Ctrl-C, but without a word, where nobody reads the output any more."""
        try:
            with reader.watched():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            if not reader.is_gone():
                raise
            return Status.INCONCLUSIVE


@click.group(cls=_Verbs, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="capvisor")
def capvisor() -> None:
    """Executable models of CHERI capabilities and thin monitors: run, fuzz and check.

    Programs are files of guest operations, *.cap.
    """


def status_of(arguments: list[str] | None = None) -> int:
    """Run the command; its exit status. Messages about what went wrong go to standard error."""
    _prepare_streams()
    try:
        result: Any = capvisor.main(arguments, standalone_mode=False)
        sys.stdout.flush()
        return int(result or Status.OK)
    except (BrokenPipeError, SystemExit):  # the latter is what click makes of the former, and of nothing else
        reader.lost()
        return Status.INCONCLUSIVE
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return Status.USAGE
    except click.ClickException as error:
        _complain(error.format_message())
        return Status.USAGE
    except NoValuesError as error:
        _complain(str(error))
        return Status.INCONCLUSIVE
    except (InputError, ProgramError, VectorFileError) as error:
        _complain(str(error))
        return Status.USAGE
    except (KeyboardInterrupt, click.exceptions.Abort):
        _complain("interrupted; nothing was finished")
        return Status.INCONCLUSIVE
    except MemoryError:
        _complain("this machine hasn't enough memory for that: try fewer lanes or a smaller memory")
        return Status.USAGE
    except OSError as error:
        _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
        return Status.USAGE
    except Exception as error:
        _complain(f"internal error: {type(error).__name__}: {error}\nThis is a defect of capvisor; please report it.")
        if os.environ.get("CAPVISOR_TRACEBACK"):
            traceback.print_exc()
        else:
            _complain("Set CAPVISOR_TRACEBACK=1 to see where it happened.")
        return Status.INTERNAL


def _prepare_streams() -> None:
    """Output may be closed, or of an encoding that lacks a character: neither is a reason to fail."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - it stays open to the end
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _complain(message: str) -> None:
    console(stderr=True).print(f"capvisor: {message}")
