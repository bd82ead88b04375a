"""Runs a program, and says what all of its processes used; Linux only, since it reads /proc."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PERIOD_S: Final = 0.2
TICKS: Final = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A program under measurement ended with an error."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look at the machine.

    Attributes:
        time_s: since the epoch.
        cpu_s: CPU seconds that the program's processes had used.
        busy_s: CPU seconds that all of the machine's processes had used, over all cores.
        total_s: CPU seconds that there had been, over all cores.
        memory_bytes: of the program's processes: proportional set sizes, so that a shared page counts once.
    """

    time_s: float
    cpu_s: float
    busy_s: float
    total_s: float
    memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a program used, its start and end included.

    Attributes:
        wall_s: from its start to its end.
        cpu_s: user and system time of all its processes.
        peak_memory_bytes: the most seen at one time.
        samples: in order of time, five a second.
    """

    wall_s: float
    cpu_s: float
    peak_memory_bytes: int
    samples: tuple[Sample, ...]


def measure(command: Sequence[str], *, environment: Mapping[str, str], log: Path, limit_s: float) -> Usage:
    """Run a program to its end.

    Args:
        command: program and arguments.
        environment: all of its environment.
        log: where its output goes.
        limit_s: after which it is ended.

    Raises:
        Failed: if it ends with an error, or is ended.
    """
    samples = []
    with log.open("wb") as output:
        start = time.monotonic()
        # A session of its own, by which its processes are known even when their parent has ended.
        process = subprocess.Popen(
            command, env=dict(environment), stdout=output, stderr=output, start_new_session=True
        )
        ended = os.pidfd_open(process.pid)
        try:
            while not select.select([ended], [], [], _PERIOD_S)[0]:
                samples.append(_look(process.pid))
                if time.monotonic() - start > limit_s:
                    os.killpg(process.pid, signal.SIGKILL)
            wall_s = time.monotonic() - start
        finally:
            os.close(ended)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            _end_session(process.pid)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2_000:]
        raise Failed(f"{' '.join(command)[:300]} ended with {process.returncode}; its output ends:\n{tail}")
    return Usage(
        wall_s=wall_s,
        cpu_s=used.ru_utime + used.ru_stime,
        peak_memory_bytes=max((sample.memory_bytes for sample in samples), default=0),
        samples=tuple(samples),
    )


def busy_shares(
    samples: Sequence[Sample], start_s: float, end_s: float
) -> tuple[float, float] | tuple[None, None]:
    """Share of all cores' time that everything, and that the program, used between two times.

    None where fewer than two samples lie between them.
    """
    within = [sample for sample in samples if start_s <= sample.time_s <= end_s]
    if len(within) < 2:
        return None, None
    first, last = within[0], within[-1]
    total = last.total_s - first.total_s
    return (last.busy_s - first.busy_s) / total, (last.cpu_s - first.cpu_s) / total


def _look(root: int) -> Sample:
    ticks, memory = 0, 0
    for process, used in family(root).items():
        try:
            rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
            memory += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        except (OSError, StopIteration):
            pass  # it has just ended
        ticks += used
    cpu = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = cpu[3] + cpu[4]
    return Sample(
        time_s=time.time(),
        cpu_s=ticks / TICKS,
        busy_s=(sum(cpu) - idle) / TICKS,
        total_s=sum(cpu) / TICKS,
        memory_bytes=memory * 1024,
    )


def family(root: int) -> dict[int, int]:
    """Ticks that each process of a program has used: those of its session, and whoever they started."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it has just ended
        process = int(folder.name)
        # utime, stime, and those of children that ended (proc(5), fields 14 to 17).
        ticks[process] = sum(map(int, fields[11:15]))
        children.setdefault(int(fields[1]), []).append(process)
        if int(fields[3]) == root:
            found.append(process)
    family = set()
    while found:
        process = found.pop()
        if process not in family:
            family.add(process)
            found += children.get(process, [])
    return {process: ticks[process] for process in family}


def _end_session(session: int) -> None:
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return  # nothing was left
