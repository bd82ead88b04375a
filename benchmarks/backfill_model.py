"""A backfill over many machines, simulated: runs of shards, stragglers, failed shards, lost machines.

Knows nothing of what a shard costs. Equal arguments give equal results.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

_LOST: Final = "lost"
_BACK: Final = "back"
_SUBMITTED: Final = "submitted"
_ENDED: Final = "ended"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines that are alike, and how Dagster gives them runs.

    Attributes:
        machines: how many.
        slots: runs at once on each.
        batch_shards: shards of a run, which does one after the other.
        run_start_s: seconds from a free slot to a run's first shard.
        submitted_per_s: shards a second that a backfill submits.
        spread: standard deviation of the logarithm of a shard's time; the mean stays what it is.
        failing: share of shards that fail once, and are done again in a run of their own kind at the end.
        mean_life_s: mean seconds, of a machine at work, between losses.
        noticed_s: seconds until the runs of a lost machine are known to be lost.
        replaced_s: seconds until another machine stands in its place.
    """

    machines: int
    slots: int
    batch_shards: int = 25
    run_start_s: float = 0.0
    submitted_per_s: float = math.inf
    spread: float = 0.0
    failing: float = 0.0
    mean_life_s: float = math.inf
    noticed_s: float = 0.0
    replaced_s: float = 0.0


@dataclass(kw_only=True)
class Outcome:
    """What came of it.

    Attributes:
        seconds: until the last shard was finished.
        work_s: seconds of slots that finished shards took, starts of runs not included.
        lost_s: seconds of slots in shards that failed or died with their machine.
        last_wave_s: seconds at the end in which at least one slot had nothing to do.
        runs: that were started.
        machines_lost: how many times.
        times_finished: shard -> how many times it was.
    """

    seconds: float = 0.0
    work_s: float = 0.0
    lost_s: float = 0.0
    last_wave_s: float = 0.0
    runs: int = 0
    machines_lost: int = 0
    times_finished: list[int] = field(default_factory=list)


def closed_form_s(shards: int, shard_s: float, cluster: Cluster) -> float:
    """Seconds if nothing fails, all shards take the same time, and all runs are submitted at once.

    Exact if ``batch_shards`` divides ``shards``; else the last run is taken for a full one.
    """
    waves = math.ceil(math.ceil(shards / cluster.batch_shards) / (cluster.machines * cluster.slots))
    return waves * (cluster.run_start_s + cluster.batch_shards * shard_s)


def draw_times(shards: int, shard_s: float, spread: float, rng: random.Random) -> list[float]:
    """Seconds of each shard: log-normal around a mean of ``shard_s``."""
    return [shard_s * rng.lognormvariate(-(spread**2) / 2, spread) for _ in range(shards)]


def simulate(shards: int, shard_s: float, cluster: Cluster, seed: int = 1) -> Outcome:
    """Take every shard through once.

    A shard that was in progress when its machine was lost begins anew, though its journal would save most
    of it; those that its run had finished stay finished.

    Args:
        shards: how many there are.
        shard_s: mean seconds of one in a slot.
        cluster: the machines.
        seed: of all that is drawn.
    """
    rng = random.Random(seed)
    times = draw_times(shards, shard_s, cluster.spread, rng)
    failing = {shard for shard in range(shards) if rng.random() < cluster.failing}
    return _Backfill(cluster, times, failing, rng).run()


@dataclass
class _Run:
    """A run on a slot: the shards it has yet to finish, and since when it is at the first of them."""

    shards: deque[int]
    since: float = 0.0


class _Backfill:
    def __init__(
        self, cluster: Cluster, times: Sequence[float], failing: set[int], rng: random.Random
    ) -> None:
        self._cluster, self._times, self._failing, self._rng = cluster, times, failing, rng
        self._events: list[tuple[float, int, str, object]] = []
        self._order = count()
        self._waiting: deque[deque[int]] = deque()
        self._free = deque(machine for _ in range(cluster.slots) for machine in range(cluster.machines))
        self._running: list[dict[int, _Run]] = [{} for _ in range(cluster.machines)]
        self._to_repeat: list[int] = []
        self._left = len(times)
        self._out = Outcome(times_finished=[0] * len(times))
        self._last_full = 0.0

    def run(self) -> Outcome:
        cluster = self._cluster
        for first in range(0, len(self._times), cluster.batch_shards):
            batch = range(first, min(first + cluster.batch_shards, len(self._times)))
            self._at(batch.stop / cluster.submitted_per_s, _SUBMITTED, deque(batch))
        for machine in range(cluster.machines):
            self._expect_loss(machine, 0.0)
        handle = {
            _SUBMITTED: self._submitted,
            _ENDED: self._ended,
            _LOST: self._lost,
            _BACK: self._back,
        }
        while self._left:
            now, _, what, about = heapq.heappop(self._events)
            handle[what](now, about)
            self._dispatch(now)
            if not self._free:
                self._last_full = now
            self._out.seconds = now
        self._out.last_wave_s = self._out.seconds - self._last_full
        return self._out

    def _at(self, when: float, what: str, about: object) -> None:
        heapq.heappush(self._events, (when, next(self._order), what, about))

    def _dispatch(self, now: float) -> None:
        while self._free and self._waiting:
            machine, run = self._free.popleft(), _Run(self._waiting.popleft())
            self._out.runs += 1
            name = next(self._order)
            self._running[machine][name] = run
            self._begin(machine, name, now + self._cluster.run_start_s)

    def _begin(self, machine: int, name: int, now: float) -> None:
        run = self._running[machine][name]
        run.since = now
        self._at(now + self._times[run.shards[0]], _ENDED, (machine, name))

    def _submitted(self, now: float, batch: deque[int]) -> None:
        del now
        self._waiting.append(batch)

    def _ended(self, now: float, about: tuple[int, int]) -> None:
        machine, name = about
        run = self._running[machine].get(name)
        if run is None:
            return  # it died with its machine
        shard = run.shards.popleft()
        if shard in self._failing:
            self._failing.remove(shard)
            self._to_repeat.append(shard)
            self._out.lost_s += self._times[shard]
        else:
            self._left -= 1
            self._out.times_finished[shard] += 1
            self._out.work_s += self._times[shard]
        if run.shards:
            self._begin(machine, name, now)
            return
        del self._running[machine][name]
        self._free.append(machine)
        if len(self._to_repeat) == self._left:
            # Nothing else is left: what failed is launched once more, as "failed and missing" does.
            size = self._cluster.batch_shards
            for first in range(0, len(self._to_repeat), size):
                self._waiting.append(deque(self._to_repeat[first : first + size]))
            self._to_repeat = []

    def _expect_loss(self, machine: int, now: float) -> None:
        if self._cluster.mean_life_s != math.inf:
            self._at(now + self._rng.expovariate(1 / self._cluster.mean_life_s), _LOST, machine)

    def _lost(self, now: float, machine: int) -> None:
        self._out.machines_lost += 1
        for run in self._running[machine].values():
            self._out.lost_s += max(0.0, now - run.since)
            self._at(now + self._cluster.noticed_s, _SUBMITTED, run.shards)
        self._running[machine] = {}
        self._free = deque(free for free in self._free if free != machine)
        self._at(now + self._cluster.replaced_s, _BACK, machine)

    def _back(self, now: float, machine: int) -> None:
        self._free.extend([machine] * self._cluster.slots)
        self._expect_loss(machine, now)
