"""When a schedule fires: the ticks of a cron expression or an interval, and what becomes of those nobody was there for.

Pure: no clock, no I/O, no randomness, so that all instances compute the same ticks. Every moment in and out is aware
and in UTC. Each call takes bounded time, however sparse the expression and however long the gateway was down.
"""

from gateway.recurrence.misfire import COUNTED, GRACE, MAX_LIMIT, Due, Misfire, due
from gateway.recurrence.recurrence import Recurrence
from gateway.recurrence.wall import Gap, Overlap

__all__ = ["COUNTED", "GRACE", "MAX_LIMIT", "Due", "Gap", "Misfire", "Overlap", "Recurrence", "due"]
