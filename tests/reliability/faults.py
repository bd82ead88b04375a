"""The crash rig: stops a run at every call by which it changes the disk, and looks at what is left.

A run is traced once, for the calls below the data root that make, write, sync, rename, link or remove. Then
each of them is met, in a run of its own that begins with the same files, by a kill, by a disk that is full
from there on, and by one that fails once: strace puts that in the call's place. After it, what claims to be
complete must be so, and a second run must come to the very bytes that it comes to when nothing befalls it.

What it cannot see: a power cut, since a call that returned is never undone here, so no missing sync shows; a
write torn half-way, since a call happens whole or not at all; and what goes wrong in reading and closing.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import groupby
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import life
from copying import copy_tree

from laion_assets.errors import CorruptRecords, LaionAssetsError, StorageError
from laion_assets.formats import tfds, tfrecord
from laion_assets.formats.checksums import sha256_of
from laion_assets.formats.publish import Manifest, done, verify
from laion_assets.layout import DATASET_VERSION, Output

_CALLS: Final = (
    *("open", "openat", "mkdir", "mkdirat", "write", "pwrite64", "writev", "copy_file_range", "sendfile"),
    *("ftruncate", "fsync", "fdatasync", "rename", "renameat", "renameat2"),
    *("unlink", "unlinkat", "rmdir", "link", "linkat", "symlink", "symlinkat"),
)

KINDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "SIGKILL": "signal=SIGKILL:when={}",
        "ENOSPC": "error=ENOSPC:when={}+",
        "EIO": "error=EIO:when={}",
    }
)
"""Kind of fault -> strace's words for it."""

# What stages and pyarrow import once they need it: imported beforehand, every fork has it.
_NEEDED_LATER: Final = (
    *("laion_assets.fetch.fetcher", "laion_assets.quality.contact_sheet", "laion_assets.quality.plots"),
    *("matplotlib.backends.backend_agg", "matplotlib.figure", "pandas", "pyarrow.dataset"),
    "tensorflow_datasets.vision_language.laion400m.laion400m",
)

_WORKERS: Final = 2
# A database's threads share its calls in one way now and in another then, and strace counts for each thread.
_ATTEMPTS: Final = 8
_FORK: Final = multiprocessing.get_context("fork")
_PR_SET_PTRACER: Final = 0x59616D61  # linux/prctl.h
_LINE: Final = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\((?P<arguments>.*)")
_PATH: Final = re.compile(r'<(/[^>]*)>|"(/[^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A run to disturb, and what must come of it. Its functions take the folder of a life.

    Attributes:
        name: what a report calls it.
        stage: its stage; the scenarios of one follow each other, and the next stage goes on from the last.
        run: makes the partition; returns the URLs that it asked for.
        output: the partition.
        older: makes what lies there before; nothing does by default.
        answers: what the finished partition says, where equal ones differ in their bytes.
    """

    name: str
    stage: str
    run: Callable[[Path], Sequence[str]]
    output: Callable[[Path], Output]
    older: Callable[[Path], object] | None = None
    answers: Callable[[Path], object] | None = None


class Call(NamedTuple):
    """The ``ordinal``-th call of a name, in its thread, that has to do with a path in the life's folder."""

    name: str
    path: str
    ordinal: int


class Fault(NamedTuple):
    """What befalls which call of a scenario."""

    scenario: str
    kind: str
    call: Call

    def __str__(self) -> str:
        return f"{self.scenario}: {self.kind} at {self.call.name} {self.call.ordinal} of {self.call.path}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """How the run ended that a fault befell (done, refused, killed, crashed), and what is wrong."""

    fault: Fault
    ended: str
    complaints: Sequence[str]

    def __str__(self) -> str:
        return "\n  ".join([f"{self.fault} ({self.ended})", *self.complaints])


def run(strace: str, folder: Path, scenarios: Sequence[Scenario], *, most: int | None = None) -> list[Result]:
    """Have the scenarios meet every fault, or ``most`` of them, spread evenly."""
    pool = ProcessPoolExecutor(
        _WORKERS,
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(strace, folder.resolve(), scenarios),
    )
    with pool:
        faults = pool.submit(_faults).result()
        return list(pool.map(_inject, faults if most is None else spread(faults, most)))


def spread(faults: Sequence[Fault], most: int) -> list[Fault]:
    """Each kind of fault at each sort of call and in each scenario, and an even choice of the others."""
    # Of the calls of one name to one file, which are often a file's many writes, the one in the middle.
    files = _middles(faults, lambda fault: (fault.scenario, fault.kind, fault.call.name, fault.call.path))
    of_calls = _middles(files, lambda fault: (fault.kind, fault.call.name))
    chosen = dict.fromkeys([*of_calls, *_middles(files, lambda fault: (fault.scenario, fault.kind))])
    rest = [fault for fault in files if fault not in chosen]
    room = min(most - len(chosen), len(rest))
    return sorted([*chosen, *(rest[index * len(rest) // room] for index in range(room))])


def table(results: Sequence[Result]) -> str:
    """How many faults of each kind befell each scenario, and how the runs ended."""
    names = dict.fromkeys(result.fault.scenario for result in results)
    counts = Counter((result.fault.scenario, result.fault.kind) for result in results)
    rows = [(name, [counts[name, kind] for kind in KINDS]) for name in names]
    rows.append(("all", [sum(row[column] for _, row in rows) for column in range(len(KINDS))]))
    lines = [f"{'':28}" + "".join(f"{title:>9}" for title in (*KINDS, "all"))]
    lines += [f"{name:28}" + "".join(f"{count:9,}" for count in (*row, sum(row))) for name, row in rows]
    ends = Counter(result.ended for result in results)
    return "\n".join(lines) + f"\n{len(results):,} faults; runs that were: {dict(sorted(ends.items()))}"


def _middles(faults: Sequence[Fault], trait: Callable[[Fault], object]) -> list[Fault]:
    alike: defaultdict[object, list[Fault]] = defaultdict(list)
    for fault in faults:
        alike[trait(fault)].append(fault)
    return [found[len(found) // 2] for found in alike.values()]


# -- a process of the pool: one fault after the other, in a folder of its own -----------------------------

_rig: _Rig


def _start(strace: str, folder: Path, scenarios: Sequence[Scenario]) -> None:
    global _rig
    for module in _NEEDED_LATER:
        import_module(module)
    _rig = _Rig(strace, folder / f"worker-{os.getpid()}", scenarios)


def _faults() -> list[Fault]:
    return _rig.faults()


def _inject(fault: Fault) -> Result:
    return _rig.inject(fault)


@dataclass(frozen=True, kw_only=True)
class _Undisturbed:
    """What a scenario does when nothing befalls it, and what it leaves.

    Attributes:
        calls: what it changes the disk by.
        older: manifest of what was there before.
        manifest: manifest of what is there afterwards.
        files: digests of everything that is.
        answers: see :class:`Scenario`.
        downloads: URLs that a journal held before or that were asked for.
    """

    calls: Sequence[Call]
    older: Manifest | None
    manifest: Manifest | None
    files: Mapping[str, str]
    answers: object
    downloads: int


class _Rig:
    """Scenarios, each with the files that it begins with and those that it must come to."""

    def __init__(self, strace: str, folder: Path, scenarios: Sequence[Scenario]) -> None:
        self._strace = strace
        self._life, self._kept, self._trace = folder / "life", folder / "kept", folder / "trace"
        self._scenarios = {scenario.name: scenario for scenario in scenarios}
        self._undisturbed: dict[str, _Undisturbed] = {}
        self._do(life.lay_sources)
        (self._life / "data").mkdir()
        for stage, alike in groupby(scenarios, key=lambda scenario: scenario.stage):
            self._keep(f"before {stage}")
            for scenario in alike:
                self._restore(f"before {stage}")
                self._undisturbed[scenario.name] = self._watch(scenario)

    def faults(self) -> list[Fault]:
        """Every fault there is."""
        return [
            Fault(name, kind, call)
            for name, undisturbed in self._undisturbed.items()
            for kind in KINDS
            for call in undisturbed.calls
        ]

    def inject(self, fault: Fault) -> Result:
        """Have a run meet a fault and look at what it leaves, then run again and look at that."""
        scenario, undisturbed = self._scenarios[fault.scenario], self._undisturbed[fault.scenario]
        name, path, ordinal = fault.call
        for _ in range(_ATTEMPTS):
            self._restore(scenario.name)
            ended, told = self._run_traced(
                scenario,
                f"--trace={name}",
                f"--trace-path={self._life / path}",
                f"--inject={name}:{KINDS[fault.kind].format(ordinal)}",
            )
            came_about = ended == "killed" or "(INJECTED)" in self._trace.read_text()
            if came_about:
                break
        complaints = [str(told)] if ended == "crashed" else []
        if not came_about or (ended == "killed") != (fault.kind == "SIGKILL"):
            complaints.append(f"the fault did not come about in {_ATTEMPTS} runs, or another did")
        complaints += self._not_as_it_claims(scenario, ended)
        is_there = self._manifest(scenario) == undisturbed.manifest
        kept = undisturbed.downloads if is_there else _entries(scenario.output(self._life).journal)

        again, told = _in_child(scenario.run, self._life)
        if again != "done":
            return Result(fault=fault, ended=ended, complaints=[*complaints, f"then {again}: {told}"])
        if len(told) != undisturbed.downloads - kept:
            complaints.append(f"{kept} of {undisturbed.downloads} URLs were kept, yet asked for: {told}")
        complaints += [f"run again: {wrong}" for wrong in self._not_as_it_claims(scenario, again)]
        complaints += self._not_as_undisturbed(scenario)
        return Result(fault=fault, ended=ended, complaints=complaints)

    def _watch(self, scenario: Scenario) -> _Undisturbed:
        if scenario.older is not None:
            self._do(scenario.older)
        self._keep(scenario.name)
        older, kept = self._manifest(scenario), _entries(scenario.output(self._life).journal)
        ended, told = self._run_traced(scenario, f"--trace={','.join(_CALLS)}")
        if ended != "done":
            raise RuntimeError(f"{scenario.name}, with nothing in its way, {ended}: {told}")
        return _Undisturbed(
            calls=_changes(self._trace, self._life),
            older=older,
            manifest=self._manifest(scenario),
            files=_files(self._life),
            answers=self._answers(scenario),
            downloads=kept + len(told),
        )

    def _not_as_it_claims(self, scenario: Scenario, ended: str) -> Iterator[str]:
        undisturbed, found = self._undisturbed[scenario.name], self._manifest(scenario)
        if found is not None:
            try:
                verify(scenario.output(self._life))
            except LaionAssetsError as error:
                yield f"a partition counts as done and is not: {error}"
        if found != undisturbed.manifest and (ended == "done" or found not in (None, undisturbed.older)):
            yield f"neither the partition before nor the one to be: {found}"
        for config in ("images", "embeddings", "image_embeddings"):
            yield from _missing_in_data_set(life.layout_of(self._life).tfds_version(config))

    def _not_as_undisturbed(self, scenario: Scenario) -> Iterator[str]:
        undisturbed, found = self._undisturbed[scenario.name], _files(self._life)
        for name in sorted(found.keys() | undisturbed.files.keys()):
            if found.get(name) != undisturbed.files.get(name):
                yield f"{name}: {found.get(name)} instead of {undisturbed.files.get(name)}"
        if scenario.output(self._life).draft.exists():
            yield "a draft is left"
        # One that was finished but not yet pointed at may stay until the next publication.
        if any(len(list(builds.iterdir())) > 2 for builds in self._life.rglob(".builds")):
            yield "more builds of a data set are left than the one in use and one before"
        if self._answers(scenario) != undisturbed.answers:
            yield "what is there gives other answers"

    def _manifest(self, scenario: Scenario) -> Manifest | None:
        """The manifest of what is done, without what may differ between equal partitions."""
        found = done(scenario.output(self._life))
        if found is None:
            return None
        return replace(found, seconds=0, files=life.data_files(found) if scenario.answers is None else {})

    def _answers(self, scenario: Scenario) -> object:
        return None if scenario.answers is None else _in_child(scenario.answers, self._life)

    def _do(self, work: Callable[[Path], object]) -> None:
        ended, told = _in_child(work, self._life)
        if ended != "done":
            raise RuntimeError(f"{work}, with nothing in its way, {ended}: {told}")

    def _run_traced(self, scenario: Scenario, *options: str) -> tuple[str, Any]:
        def trace(pid: int) -> AbstractContextManager[None]:
            # Threads are followed, other programs are not.
            whom = (f"--attach={pid}", "--follow-forks", "--detach-on=execve")
            how = ("--decode-fds=path", "--string-limit=0", "--signal=none", f"--output={self._trace}")
            return _traced([self._strace, *whom, *how, *options])

        return _in_child(scenario.run, self._life, trace)

    def _keep(self, name: str) -> None:
        copy_tree(self._life / "data", self._kept / name)

    def _restore(self, name: str) -> None:
        shutil.rmtree(self._life / "data")
        copy_tree(self._kept / name, self._life / "data")


# -- processes to end -------------------------------------------------------------------------------------


def _in_child(
    work: Callable[[Path], Any],
    folder: Path,
    trace: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> tuple[str, Any]:
    """Do something in a fork, so that this process never has threads; how it ended, and what it returned."""
    ours, theirs = _FORK.Pipe()
    process = _FORK.Process(target=_child, args=(theirs, work, folder))
    process.start()
    theirs.close()
    with ours:
        ours.recv()  # it may be traced now
        with trace(process.pid):
            ours.send(None)
            told = None
            with suppress(EOFError):
                told = ours.recv()
            process.join()
    return told or ("killed" if process.exitcode == -signal.SIGKILL else "crashed", process.exitcode)


def _child(pipe: Connection, work: Callable[[Path], Any], folder: Path) -> None:
    # Where Yama lets a process be traced by its parents only, let strace.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    pipe.send(None)
    pipe.recv()
    try:
        pipe.send(("done", work(folder)))
    except StorageError as error:
        pipe.send(("refused", f"{type(error).__name__}: {error}"))
    except Exception:  # noqa: BLE001 (whatever it is, it should have been a StorageError)
        pipe.send(("crashed", traceback.format_exc()))


@contextmanager
def _traced(command: Sequence[str]) -> Iterator[None]:
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        if not said.endswith(" attached\n"):
            raise RuntimeError(f"strace does not trace: {said}")
        yield
        tracer.communicate()


def _changes(trace: Path, folder: Path) -> list[Call]:
    """The calls that change what is below the data root, in order, counted as strace's ``when`` does."""
    seen: Counter[tuple[str, str, str]] = Counter()
    changes: dict[Call, None] = {}
    for line in trace.read_text().splitlines():
        call = _LINE.match(line)
        if call is None:
            continue  # the rest of a call that is there already, or the end of the process
        arguments = call["arguments"].rsplit(") ", 1)[0]
        paths = dict.fromkeys(fd or named for fd, named in _PATH.findall(arguments))
        ours = [path for path in paths if Path(path).is_relative_to(folder / "data")]
        seen.update((call["thread"], call["name"], path) for path in ours)
        if ours and ("open" not in call["name"] or re.search("O_CREAT|O_TRUNC", arguments)):
            path = str(Path(ours[0]).relative_to(folder))
            changes[Call(call["name"], path, seen[call["thread"], call["name"], ours[0]])] = None
    return list(changes)


# -- what is there ----------------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, str]:
    """Digests of everything; of the data sets' folders, which have any name, those that a link leads to."""
    found = {name: digest for name, digest in life.digests(folder).items() if "/.builds/" not in name}
    for link in folder.rglob(DATASET_VERSION):
        found |= {f"{link.relative_to(folder)}/{path.name}": sha256_of(path) for path in link.iterdir()}
    return found


def _entries(journal: Path) -> int:
    """Whole records of a journal, if there is one, after the first, which says what the work is."""
    records = 0
    with suppress(FileNotFoundError, CorruptRecords):
        for _ in tfrecord.read_records(journal):
            records += 1
    return max(0, records - 1)


def _missing_in_data_set(link: Path) -> Iterator[str]:
    """What a reader of a data set would miss; nothing where there is no data set."""
    if not link.is_symlink():
        return
    for name in tfds.METADATA_FILES:
        if not (link / name).exists():
            yield f"{link / name} is missing"
            return
    (split,) = json.loads((link / "dataset_info.json").read_bytes())["splits"]
    lengths = [int(length) for length in split["shardLengths"]]
    for shard, length in enumerate(lengths):
        path = link / tfds.shard_file_name(shard, len(lengths), "tfrecord")
        try:
            found: object = sum(1 for _ in tfrecord.read_records(path)) if length else 0
        except (FileNotFoundError, CorruptRecords) as error:
            found = error
        if found != length:
            yield f"{path}: {found} instead of {length} examples"
