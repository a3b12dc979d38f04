"""`capvisor serve`."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import click

from capvisor.campaign.rvfi_machines import MACHINES
from capvisor.campaign.rvfi_server import LOOPBACK, Server
from capvisor.cli import reader
from capvisor.cli.output import console
from capvisor.cli.status import InputError, Status


@click.command()
@click.option(
    "--rvfi-dii",
    "port",
    required=True,
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help="The port to listen on for RVFI-DII; 0 chooses one.",
)
@click.option(
    "--impl",
    "implementation",
    default="reference",
    show_default=True,
    type=click.Choice(list(MACHINES)),
    help="What executes the instructions.",
)
@click.option("--host", default=LOOPBACK, show_default=True, help="The address to listen on.")
def serve(port: int, implementation: str, host: str) -> int:
    """Be a TestRIG implementation: execute the instructions that a client injects, and report on each.

    The machine is RV64 with the capabilities of CHERI ISAv9, in TestRIG's reset state. One client is served at a time, until
    Ctrl-C or SIGTERM. Who comes, leaves or is sent away is told on standard error.
    """
    log = console(stderr=True)
    try:
        server = Server(MACHINES[implementation](), port, host, log.print)
    except OSError as error:
        raise InputError(f"can't listen on {host}:{port}: {error.strerror or error}") from None
    with server:
        try:
            with _interruptible():
                reader.is_not_needed()
                click.echo(f"listening on {server.address}")
                server.serve()
        except KeyboardInterrupt:
            log.print("interrupted: no longer listening")
    return Status.OK


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM interrupt like Ctrl-C, and SIGINT also where a script's shell has had it ignored in the background."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
