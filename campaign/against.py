"""A campaign against another implementation: programs go to ours, and then to a peer, which the reference judges."""

import re
import time

import numpy as np

from capvisor.campaign.case import Case
from capvisor.campaign.engine import Campaign
from capvisor.campaign.peer import Peer, PeerError
from capvisor.campaign.unit import Failure, RandomSource, Work, draw, fill, program_of_lane, try_out
from capvisor.spec.formats import FORMATS

PROGRAMS_A_SHAPE = 4
MOST_ERRORS = 5
"""After so many errors of the peer itself, a campaign ends."""


class PeerCampaign:
    """A campaign whose programs go to a peer. `run` ends as a campaign's does."""

    def __init__(self, campaign: Campaign, peer: Peer) -> None:
        self._campaign, self._peer = campaign, peer
        self.checked = 0
        """Programs that the peer has executed."""
        self.errors: list[str] = []
        """What the peer's own errors were."""

    def run(self) -> None:
        """Draw programs and try them until the campaign is over."""
        started, shard, settings = time.monotonic(), 0, self._campaign.report.settings
        try:
            while not self._campaign.is_over(started) and len(self.errors) < MOST_ERRORS:
                if settings.programs is not None and self._campaign.report.programs >= settings.programs:
                    break
                self._unit(shard)
                shard += 1
        except KeyboardInterrupt:
            self._campaign.report.interrupted = True

    def _unit(self, shard: int) -> None:
        settings = self._campaign.report.settings
        fmt, rng = FORMATS[settings.format], np.random.default_rng([settings.seed, shard])
        work = Work(settings.seed, shard, PROGRAMS_A_SHAPE, settings.format, settings.profile)
        shape = draw(RandomSource(rng), fmt, work)
        operations = fill(shape, rng, PROGRAMS_A_SHAPE, fmt)
        outcome = try_out(shape, operations, PROGRAMS_A_SHAPE, fmt, shard)
        for lane in range(PROGRAMS_A_SHAPE):
            failure = self.fails(program_of_lane(fmt, operations, lane))
            self.checked += 1
            if failure is not None and all(each.signature != failure.signature for each in outcome.failures):
                outcome.failures.append(failure)
        self._campaign.merge(outcome, self.fails)

    def fails(self, case: Case) -> Failure | None:
        """How the peer fails on a program, if it does: the program up to that step."""
        try:
            difference = self._peer.check(case)
        except PeerError as error:
            message = re.sub(r"\s*\(in case \d+.*", "", str(error))
            if message not in self.errors:
                self.errors.append(message)
            return Failure("peer fails", message, "lock step", case, 0, 0, (str(error),))
        if difference is None:
            return None
        what = re.sub(r"0x[0-9a-f]+|\d+", "", difference.what).strip() or difference.what
        notes = (f"{difference.what}: reference {difference.expected}; peer {difference.actual}",)
        upto = case.with_operations(case.operations[: difference.step + 1])
        return Failure("peer differs", what, "lock step", upto, 0, 0, notes)
