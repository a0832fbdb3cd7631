"""Who tells whom that there is work, in this process and among the instances; and what else they hint to each other."""

from gateway.coordination.coordinator import CacheState, Coordinator, Remembered
from gateway.coordination.opening import coordinator_for
from gateway.coordination.settings import CacheConfig, CacheTls
from gateway.coordination.statuses import remembering
from gateway.coordination.wakeup import Wakeup

__all__ = [
    "CacheConfig",
    "CacheState",
    "CacheTls",
    "Coordinator",
    "Remembered",
    "Wakeup",
    "coordinator_for",
    "remembering",
]
