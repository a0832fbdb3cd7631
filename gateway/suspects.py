"""Which outgoing message makes its broker cut the connection: told apart from an outage by what else gets through.

A cut makes every message on its way a suspect. The first time they are all sent again as before, so that an outage
costs nobody anything; from its second cut in a row on, a message goes alone. What is answered is no suspect any more.
The executor judges jobs that kill their process alike.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

COMPANY = 2
"""Cuts in a row after which a message goes alone."""
ALONE = 3
"""Cuts in a row, alone on its way, that are a message's own failure if any other got through since its first."""
UNPROVEN = 10
"""The same if no other message has shown that the broker takes any."""
REST, LONGEST_REST = 0.2, 30.0
"""Seconds until the next try after the first cut alone, doubled with each, and at most: cuts disturb what comes in."""
MOST = 5000
"""Messages that are remembered; beyond, the oldest is forgotten."""


@dataclass(slots=True)
class _Record:
    delivered: int
    cuts: int = 0
    alone: int = 0
    due: float = 0.0


class Suspects:
    """What the messages of one connector have been through, over all its lives in this process."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, _Record] = OrderedDict()
        self._delivered = 0

    def is_suspect(self, job_id: str) -> bool:
        """Whether a message has to go alone."""
        record = self._records.get(job_id)
        return record is not None and record.cuts >= COMPANY

    def next(self, job_ids: Iterable[str], now: float) -> str | None:
        """Return which of these suspects is to be tried now: of those that have rested, the least suspicious one."""
        rested = [job_id for job_id in job_ids if self._record(job_id).due <= now]
        return min(rested, key=lambda job_id: self._record(job_id).cuts, default=None)

    def answered(self, job_id: str, *, delivered: bool) -> None:
        """Note that the broker has answered a message, whatever it said."""
        self._records.pop(job_id, None)
        self._delivered += delivered

    def cut(self, job_id: str, *, alone: bool, now: float) -> bool:
        """Note that the connection was cut while a message was on its way. True: that is its own failure."""
        record = self._record(job_id)
        record.cuts += 1
        if alone:
            record.alone += 1
            record.due = now + min(REST * 2.0 ** min(record.alone - 1, 32), LONGEST_REST)
        return alone and record.alone >= (ALONE if self._delivered > record.delivered else UNPROVEN)

    def _record(self, job_id: str) -> _Record:
        record = self._records.get(job_id)
        if record is None:
            record = self._records[job_id] = _Record(self._delivered)
            if len(self._records) > MOST:
                self._records.popitem(last=False)
        return record
