"""Claim, handler in a transaction, outcome: the service that runs jobs.

`service` claims and drains, `workers` calls handlers (`attempt`: one call of one handler, `threads`: plain functions,
`guard` and `watchdog`: what handlers must not do to the event loop), `settler` decides and commits own transactions,
`committer` writes all other outcomes, many in one commit.
"""

from gateway.executor.service import Drained, Executor

__all__ = ["Drained", "Executor"]
