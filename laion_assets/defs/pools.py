"""How many runs at once may use what they share: Dagster's pools, and how large they are on this machine."""

from typing import Final

import dagster as dg
from dagster._core.instance.config import PoolGranularity

from laion_assets.decoding import cores
from laion_assets.partitions import Axis
from laion_assets.pipeline import Stage

NETWORK: Final = "network"
"""Held by runs that download."""

CORES: Final = "cores"
"""Held by runs over partitions, which in their other stages keep one core busy."""

# A download decodes in as many processes as there are cores, but one process speaks to the web. Of the 6.7
# CPU milliseconds that a URL takes over HTTPS, 1.47 times those of decoding alone (docs/downloading.md), some
# 2.1 are its own: when it is busy all the time, so are three cores in all, and four with larger pictures.
_CORES_PER_DOWNLOAD: Final = 4
# One that downloads, and one of the other branch.
_FEWEST_RUNS: Final = 2


def pool_of(stage: Stage) -> str | None:
    """The pool that a stage's runs hold."""
    if stage.axis is Axis.NONE:
        return None
    return NETWORK if stage.name == "images" else CORES


def limits(count: int) -> dict[str, int]:
    """How many runs may hold each pool on a machine of so many cores."""
    return {NETWORK: max(1, count // _CORES_PER_DOWNLOAD), CORES: max(_FEWEST_RUNS, count)}


def set_limits(instance: dg.DagsterInstance) -> None:
    """Give each pool its limit, where nobody has given it one.

    Only where dagster.yaml counts runs: the steps of a run that wait for a pool keep a core busy with that
    in Dagster 1.13.27 (``InstanceConcurrencyContext.interval_to_next_pending_claim_check``).
    """
    if instance.get_concurrency_config().pool_config.pool_granularity is not PoolGranularity.RUN:
        return
    given = {pool.name for pool in instance.event_log_storage.get_pool_limits() if not pool.from_default}
    for name, limit in limits(cores()).items():
        if name not in given:
            instance.event_log_storage.set_concurrency_slots(name, limit)
