"""The command, run in the test's process."""

import json
from pathlib import Path

import jsonschema
import pytest

from capvisor.cli import main as command
from capvisor.cli.status import Status
from tests.tutorial import ROOT

SCHEMA = json.loads((ROOT / "cli" / "schemas" / "results.schema.json").read_text())


@pytest.fixture
def capvisor(capsys):
    """Runs the command in this process; gives its status, standard output and standard error.

    Whatever it writes as JSON must be of the published schema.
    """

    def run(*arguments: object) -> tuple[int, str, str]:
        status = command.status_of([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        if "--json" in arguments and status != Status.USAGE:
            path = Path(arguments[arguments.index("--json") + 1])
            if path.is_file():
                jsonschema.validate(json.loads(path.read_text()), SCHEMA)
        return status, captured.out, captured.err

    return run
