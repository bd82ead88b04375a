"""What is measured: rounds of both programs over one list, and what concerns ours alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.corpus import Corpus
from benchmarks.measuring import busy_shares
from benchmarks.pictures import Likeness, bare_cpu_s, compare, summarize
from benchmarks.programs import QUALITY, SIZE, Outcome, run_img2dataset, run_ours, stored_pictures
from benchmarks.urls import HOSTS, SUCCESS, Ports, UrlList, make_urls

OURS: Final = "laion_assets"
THEIRS: Final = "img2dataset"

# Scenario -> scheme and corpus.
SCENARIOS: Final = {"https": ("https", "small"), "http": ("http", "small"), "large": ("http", "large")}

DEAD_HOSTS: Final = frozenset(range(2, HOSTS, 5))
"""A fifth of the hosts, some of which have many URLs and most of which have few."""

_COMPARED: Final = 200
_SETTLED: Final = 0.2
"""Share of the shards that memory may grow over: caches, pools and heaps fill."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every measurement needs.

    Attributes:
        corpora: by kind, all in one folder.
        ports: where the server listens.
        bundle: authorities that both programs trust.
        work: folder for what they write.
        programs: which of the two are measured.
        img2dataset: its program.
        retries: of img2dataset; ours has its own in ``fetch``.
        fetch: settings of FetchPolicy for ours.
        image: settings of ImagePolicy for ours.
        seed: of every list.
        limit_s: after which a program is ended.
        say: tells a person how far it is.
    """

    corpora: Mapping[str, Corpus]
    ports: Ports
    bundle: Path
    work: Path
    programs: tuple[str, ...]
    img2dataset: Path
    retries: int
    fetch: Mapping[str, Any]
    image: Mapping[str, Any]
    seed: int
    limit_s: float
    say: Callable[[str], None]

    def run(self, program: str, urls: UrlList, *, shards: int = 1) -> Outcome:
        """Let a program download a list."""
        if program == THEIRS:
            return run_img2dataset(
                urls,
                self.work / program,
                self.bundle,
                program=self.img2dataset,
                retries=self.retries,
                limit_s=self.limit_s,
            )
        return run_ours(
            urls,
            self.work / program,
            self.bundle,
            shards=shards,
            fetch=self.fetch,
            image=self.image,
            limit_s=self.limit_s,
        )

    def urls(
        self, scenario: str, count: int, *, dead_hosts: frozenset[int] = frozenset(), seed: int | None = None
    ) -> UrlList:
        """A list of URLs that the server answers."""
        scheme, kind = SCENARIOS[scenario]
        corpus = self.corpora[kind]
        return make_urls(
            count,
            scheme=scheme,
            corpus=corpus.folder.name,
            names=corpus.names,
            ports=self.ports,
            seed=self.seed if seed is None else seed,
            dead_hosts=dead_hosts,
        )


def start_up(bench: Bench, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """What both programs use for a list of one URL; a first run of each is left out."""
    urls = UrlList(entries=bench.urls("http", 50).entries[:1])
    found: dict[str, list[dict[str, Any]]] = {program: [] for program in bench.programs}
    for number in range(rounds + 1):
        for program in _in_turn(bench.programs, number):
            usage = bench.run(program, urls).usage
            bench.say(f"start-up, {program}: {usage.wall_s:.1f} s, {usage.cpu_s:.1f} CPU-s")
            if number:
                found[program].append({"wall_s": usage.wall_s, "cpu_s": usage.cpu_s})
    return found


def compete(bench: Bench, scenario: str, count: int, rounds: int) -> dict[str, Any]:
    """Let the programs take turns over one list, and hold their pictures against the originals."""
    urls = bench.urls(scenario, count)
    originals = _originals(bench, scenario, urls)
    found: dict[str, Any] = {
        "urls": count,
        "kinds": dict(sorted(urls.kinds.items())),
        "busiest_host_share": _busiest_share(urls),
        "rounds": [],
        "likeness": {},
        "messages": {},
    }
    for number in range(rounds):
        taken: dict[str, Any] = {}
        for program in _in_turn(bench.programs, number):
            outcome = bench.run(program, urls)
            taken[program] = _figures(outcome)
            bench.say(f"{scenario} {number + 1}/{rounds}, {program}: {_sentence(taken[program])}")
            if number == 0:
                found["messages"][program] = dict(sorted(outcome.messages.items()))
                found["likeness"][program] = summarize(_likenesses(outcome, urls, originals))
        # As many pictures as a program stores, each as often as the list has it.
        bodies = [originals[entry.name] for entry in urls.entries if entry.kind == SUCCESS and entry.name]
        for name, threads in (("bare", 1), ("bare_twice", 2)):
            cpu_s = bare_cpu_s(bodies, size=SIZE, quality=QUALITY, threads=threads)
            taken[name] = {"pictures": len(bodies), "cpu_s": cpu_s}
            cost = f"{cpu_s / len(bodies) * 1e3:.2f} CPU-ms a picture"
            bench.say(f"{scenario} {number + 1}/{rounds}, bare on {threads}: {cost}")
        found["rounds"].append(taken)
    return found


def many_shards(bench: Bench, shards: int, urls_per_shard: int) -> dict[str, Any]:
    """Memory and open files of ours after each of many shards in one process, and how they grow."""
    outcome = bench.run(OURS, bench.urls("http", shards * urls_per_shard), shards=shards)
    after = outcome.report["shards"]
    memory = [shard["memory_bytes"] / 1e6 for shard in after]
    files = [shard["files"] for shard in after]
    settled = round(shards * _SETTLED)
    return {
        "shards": shards,
        "urls_per_shard": urls_per_shard,
        "memory_mb": memory,
        "files": files,
        "seconds": [shard["seconds"] for shard in after],
        "memory_slope_mb_per_shard": slope(memory[settled:]),
        "fd_slope": slope(files[settled:]),
    }


def dead_hosts(bench: Bench, scenario: str, count: int) -> dict[str, Any]:
    """How long ours takes with a fifth of the hosts dead, and with all of them well."""
    found: dict[str, Any] = {"urls": count, "dead_hosts": len(DEAD_HOSTS), "hosts": HOSTS}
    for name, dead in (("well", frozenset()), ("dead", DEAD_HOSTS)):
        urls = bench.urls(scenario, count, dead_hosts=dead)
        outcome = bench.run(OURS, urls)
        found[name] = _figures(outcome) | {"messages": dict(sorted(outcome.messages.items()))}
        found["urls_of_dead_hosts"] = urls.kinds["silent"]
        bench.say(f"{scenario}, hosts {name}: {_sentence(found[name])}")
    found["ratio"] = found["dead"]["wall_s"] / found["well"]["wall_s"]
    return found


def slope(values: Sequence[float]) -> float:
    """Growth from one value to the next, by least squares; 0 for fewer than two."""
    if len(values) < 2:
        return 0.0
    return round(float(np.polynomial.polynomial.polyfit(range(len(values)), values, 1)[1]), 6)


def _in_turn(programs: Sequence[str], number: int) -> Iterator[str]:
    """The programs, another one first each round."""
    return iter(programs if number % 2 == 0 else programs[::-1])


def _figures(outcome: Outcome) -> dict[str, Any]:
    usage = outcome.usage
    figures = {
        "wall_s": usage.wall_s,
        "cpu_s": usage.cpu_s,
        "peak_memory_mb": usage.peak_memory_bytes / 1e6,
        "rows": outcome.rows,
        "successes": outcome.successes,
    }
    if outcome.report:
        first, last = outcome.report["first"], outcome.report["last"]
        busy, own = busy_shares(usage.samples, first, last)
        figures |= {
            "parent_cpu_s": outcome.report["parent_cpu_s"],
            "first_to_last_s": last - first,
            "cores_busy": busy,
            "cores_busy_by_ours": own,
        }
        # Without the last tenth, in which there may be nothing left to do but wait for slow hosts.
        if tenths := outcome.report["tenths"]:
            figures["cores_busy_to_nine_tenths"] = busy_shares(usage.samples, first, tenths[8])[0]
            figures["tenths_s"] = [tenth - first for tenth in tenths]
    return figures


def _sentence(figures: Mapping[str, Any]) -> str:
    return (
        f"{figures['wall_s']:.1f} s, {figures['cpu_s']:.1f} CPU-s, {figures['peak_memory_mb']:.0f} MB, "
        f"{figures['successes']} of {figures['rows']} URLs"
    )


def _busiest_share(urls: UrlList) -> float:
    hosts = [entry.host for entry in urls.entries]
    return max(map(hosts.count, set(hosts))) / len(hosts)


def _originals(bench: Bench, scenario: str, urls: UrlList) -> dict[str, bytes]:
    folder = bench.corpora[SCENARIOS[scenario][1]].folder
    names = {entry.name for entry in urls.entries if entry.kind == SUCCESS and entry.name}
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def _likenesses(outcome: Outcome, urls: UrlList, originals: Mapping[str, bytes]) -> list[Likeness]:
    """Of the first so many original files, each once."""
    names = {entry.url: entry.name for entry in urls.entries}
    wanted = set(sorted(originals)[:: max(1, len(originals) // _COMPARED)])
    found = []
    for url, stored in stored_pictures(outcome):
        name = names[url]
        if name in wanted:
            wanted.discard(name)
            found.append(compare(stored, originals[name]))
    return found
