"""A backfill that is killed again and again, alone or beside another, comes to what one left in peace does.

Builds run in process groups of their own, over a web in this process that takes its time and remembers
what it was asked for. LAION_LONG=1 kills 200 times instead of 10.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import dagster as dg
import one_host
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from laion_assets.defs.build import BUILD_TAG
from laion_assets.defs.instance import open_instance
from laion_assets.demo.dataset import captions_true, make_demo
from laion_assets.demo.run import _examples
from laion_assets.demo.web import OUTCOMES, DemoWeb, Fault
from laion_assets.errors import CorruptRecords
from laion_assets.formats import tfds
from laion_assets.formats.publish import verify
from laion_assets.formats.tfrecord import read_records
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import Outcome
from laion_assets.partitions import Axis, find_partitions
from laion_assets.pipeline import STAGES, keys_of
from laion_assets.published import STAGE_NAMES, output_of, partitions_of
from laion_assets.settings import Settings

# Read at import, before the fixture that clears the environment.
IS_LONG = os.environ.get("LAION_LONG") == "1"
SEED = int(os.environ.get("LAION_SEED") or time.time())

ROUNDS = 200 if IS_LONG else 10
ROWS_PER_SHARD = 100
# More than that many rounds get through.
ROWS = 16_000 if IS_LONG else 2_000
# A build takes one or two shards through every stage in about so many times the time that it needs to
# begin, however slow the machine is now; adjusted on the way.
FIRST_SPAN = 2.2
DELAY_S = 0.05
NO_PHASE = "before any stage"

SETTINGS = f"""\
data_root = "{{folder}}/data"
dagster_home = "{{folder}}/dagster_home"
rows_per_shard = {ROWS_PER_SHARD}
batch_shards = 10
[raw]
source = "raw"
[embeddings]
source = "embeddings"
[fetch]
allow_loopback = true
concurrency = {{connections}}
per_domain_concurrency = {{connections}}
{one_host.SETTINGS}total_timeout_s = {{timeout_s}}
backoff_s = 0.05
[image]
workers = 1
[tfds]
image_embeddings = true
"""


class Web(DemoWeb):
    """The demo's web, made slow, which counts what it is asked for and the pictures that it sent whole."""

    def __init__(self) -> None:
        super().__init__()
        self.delay_s = 0.0
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self._bodies: dict[str, tuple[bytes, Any]] = {}

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked[request.path] += 1
        await asyncio.sleep(self.delay_s)
        response = await self._remembered(request)
        if isinstance(response, web.Response):
            # Nobody, where the build that asked was killed meanwhile: what is written then goes nowhere.
            is_there = request.transport is not None and not request.transport.is_closing()
            await response.prepare(request)
            await response.write_eof()
            fault = Fault(request.path.split("/")[1])
            is_picture = response.status == 200 and OUTCOMES[fault] is Outcome.SUCCESS
            self.sent[request.path] += is_there and is_picture
        return response

    async def _remembered(self, request: web.Request) -> web.StreamResponse:
        """Painting a picture takes 12 ms, so each is painted once."""
        if request.path in self._bodies:
            body, headers = self._bodies[request.path]
            return web.Response(body=body, headers=headers)
        response = await super()._answer(request)
        if isinstance(response, web.Response) and response.status == 200:
            self._bodies[request.path] = (response.body, response.headers.copy())
        return response


@dataclass
class Backfill:
    """What is killed, and what is known of it from outside.

    Attributes:
        folder: of sources and settings.
        web: where its pictures are.
        settings: of the builds that are killed.
        repeated: URLs of more than one row, which are rightly asked for more than once.
        kept: path on the web -> how often it was asked for until a journal had it.
        phases: what was being done when a kill fell -> how often.
        span: kills fall at random within a build's work, which lasts so many times as its beginning.
        builds: all that were started.
    """

    folder: Path
    web: Web
    settings: Settings
    repeated: frozenset[str]
    kept: dict[str, int] = field(default_factory=dict)
    phases: Counter[str] = field(default_factory=Counter)
    span: float = FIRST_SPAN
    builds: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _verified: dict[Path, list[int]] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return self.settings.layout

    def start(self, shards: str | None) -> subprocess.Popen[bytes]:
        """A build in a process group of its own."""
        command = [sys.executable, "-m", "laion_assets", "build", "--settings", self.folder / "laion.toml"]
        command += ["--shards", shards] if shards else []
        with (self.folder / "printed.txt").open("ab") as printed:
            build = subprocess.Popen(command, stdout=printed, stderr=printed, start_new_session=True)
        self.builds.append(build)
        return build

    def locks(self) -> set[Path]:
        """Of the builds that live or were killed."""
        return set((self.settings.dagster_home / "workers").glob("build-*.lock"))

    def next_shards(self, rng: random.Random) -> str:
        """A range of one or two shards that begins with the first that is not finished."""
        shards = [ShardId(number) for number in range(ROWS // ROWS_PER_SHARD)]
        unfinished = [shard for shard in shards if not self.layout.tfds_images(shard).manifest.exists()]
        first = unfinished[0] if unfinished else rng.choice(shards)
        return f"{first}..{min(shards[-1], ShardId(first.number + rng.randrange(2)))}"

    def check(self) -> None:
        """Right after a kill: every manifest is true, and nothing kept was asked for again."""
        for stage in STAGE_NAMES:
            for key in partitions_of(self.layout, stage):
                output = output_of(self.layout, stage, key)
                files = [output.manifest, *(output.folder / name for name in output.names)]
                state = [path.stat().st_ctime_ns for path in files if path.exists()]
                if self._verified.get(output.manifest) != state:
                    verify(output)
                    self._verified[output.manifest] = state
        for path in self._journalled():
            self.kept.setdefault(path, self.web.asked[path])
        assert {path: self.web.asked[path] for path in self.kept} == self.kept

    def phase(self, since: float) -> str:
        """The stages whose drafts are being written, else the one whose manifest is newest."""
        drafts = {path for path in self.layout.root.glob("*/.drafts/[!.]*") if path.stat().st_ctime > since}
        if drafts:
            return "in " + " and ".join(sorted({path.parents[1].name for path in drafts}))
        manifests = [(path.stat().st_ctime, path) for path in self.layout.root.glob("*/*.manifest*")]
        newest = max((found for found in manifests if found[0] > since), default=None)
        return f"after {newest[1].parent.name}" if newest else NO_PHASE

    def _journalled(self) -> set[str]:
        """Paths on the web whose fate a journal holds, and that are of one row only."""
        found = set()
        for path in self.layout.images_folder.glob(".journals/*.journal"):
            table = pq.read_table(self.layout.samples(ShardId.parse(path.stem)).only).sort_by("key")
            asked = [row["url"] for row in table.to_pylist() if row["set_aside"] is None]
            with suppress(CorruptRecords):  # the last record, torn by the kill
                for number, record in enumerate(read_records(path)):
                    if number:  # the first says what the work is
                        found.add(asked[json.loads(record.split(b"\n", 1)[0])["index"]])
        return {urlsplit(url).path for url in found - self.repeated if url.startswith(self.web.base_url)}

    def sent_again(self) -> int:
        """How often a picture was sent whole that had been sent whole before."""
        repeated = {_picture(urlsplit(url).path) for url in self.repeated if url}
        return sum(
            count - 1 for path, count in self.web.sent.items() if count and _picture(path) not in repeated
        )


def _picture(path: str) -> str:
    """The picture of a path on the demo's web, whatever the fault."""
    return path.removeprefix("/").partition("/")[2]


def _write_settings(path: Path, folder: str, *, connections: int, timeout_s: float) -> Settings:
    path.write_text(SETTINGS.format(folder=folder, connections=connections, timeout_s=timeout_s))
    return Settings.load(path)


def _build_in_peace(settings: Settings) -> None:
    with ThreadPoolExecutor(4) as threads:
        for stage in STAGES:
            keys = keys_of(stage, find_partitions(settings))
            list(threads.map(partial(stage.run, settings), keys))


def _versions(layout: Layout) -> dict[tuple[str, str], str]:
    """Digest of the bytes of every partition; DuckDB writes other bytes each time, and the folder's name."""
    return {
        (stage, key): verify(output_of(layout, stage, key)).data_version
        for stage in STAGE_NAMES
        if stage != "catalog"
        for key in partitions_of(layout, stage)
    }


def _datasets(layout: Layout) -> dict[str, str]:
    """Digest of every file that TFDS reads."""
    folders = [layout.tfds_version(config) for config in get_args(tfds.Config)]
    return {
        str(path.relative_to(layout.root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in folder.iterdir()
    }


def _kill(
    builds: list[subprocess.Popen[bytes]], backfill: Backfill, rng: random.Random, known: set[Path]
) -> bool:
    """Kill each build at a random moment of its work; whether all were still at work."""
    started = time.monotonic()
    while len(backfill.locks() - known) < len(builds):
        assert all(build.poll() is None for build in builds), "a build did not begin"
        time.sleep(0.01)
    begun = time.monotonic()
    moments = sorted(rng.uniform(0, backfill.span * (begun - started)) for _ in builds)
    killed = 0
    for build, moment in zip(builds, moments, strict=True):
        try:
            code = build.wait(max(0.0, begun + moment - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(build.pid, signal.SIGKILL)
            build.wait()
            killed += 1
        else:
            # One that met the other's partitions says so, and fails.
            assert code in ({0} if len(builds) == 1 else {0, 1})
    return killed == len(builds)


@pytest.fixture
def backfill(tmp_path):
    with Web() as running:
        make_demo(tmp_path, running.base_url, rows_per_part=(ROWS,), rows_per_shard=ROWS_PER_SHARD)
        urls = Counter(pq.read_table(tmp_path / "raw", columns=["URL"])["URL"].to_pylist())
        begun = Backfill(
            folder=tmp_path,
            web=running,
            settings=_write_settings(tmp_path / "laion.toml", "killed", connections=2, timeout_s=1.5),
            repeated=frozenset(url or "" for url, count in urls.items() if count > 1),
        )
        yield begun
        for build in begun.builds:
            if build.poll() is None:  # the test failed meanwhile
                os.killpg(build.pid, signal.SIGKILL)
                build.wait()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_kills_cost_little_and_break_nothing(backfill):
    print(f"\nseed {SEED}")
    rng = random.Random(SEED)
    started = time.monotonic()
    peaceful = _write_settings(backfill.folder / "peaceful.toml", "peaceful", connections=4, timeout_s=4)
    _build_in_peace(peaceful)
    backfill.web.asked.clear()
    backfill.web.sent.clear()
    backfill.web.delay_s = DELAY_S
    print(f"{time.monotonic() - started:.0f} s: built in peace")

    contended = set(rng.sample(range(ROUNDS), ROUNDS // 5))
    rounds = ended = 0
    while rounds < ROUNDS:
        since, known = time.time(), backfill.locks()
        shards = backfill.next_shards(rng)
        builds = [backfill.start(shards)]
        if rounds in contended:
            builds.append(backfill.start(rng.choice([shards, None])))
        if _kill(builds, backfill, rng, known):
            phase = backfill.phase(since)
            backfill.phases[phase] += 1
            # So that kills reach from one end of a build to the other.
            backfill.span *= 1.1 if phase == NO_PHASE else 1.0
            rounds += 1
        else:
            backfill.span *= 0.8
            ended += 1
        backfill.check()
    print(f"{time.monotonic() - started:.0f} s: {rounds} rounds killed, {len(contended)} of them contended")
    print(f"{ended} more ended before their kill; kills fell {dict(backfill.phases.most_common())}")

    _write_settings(backfill.folder / "laion.toml", "killed", connections=16, timeout_s=1.5)
    assert backfill.start(None).wait() == 0
    again, pictures = backfill.sent_again(), len(+backfill.web.sent)
    print(
        f"{again} of {pictures} pictures sent again ({again / pictures:.2%}), {again / rounds:.2f} a "
        f"round; {len(backfill.kept)} kept in journals"
    )
    backfill.check()
    _assert_all_is_right(backfill, peaceful)
    assert again < 0.01 * pictures
    print(f"{time.monotonic() - started:.0f} s in all")


def _assert_all_is_right(backfill: Backfill, peaceful: Settings) -> None:
    settings, layout = backfill.settings, backfill.layout
    found = find_partitions(settings)
    assert _versions(layout) == _versions(peaceful.layout)
    assert _datasets(layout) == _datasets(peaceful.layout)
    true, false = captions_true(_examples(layout, found.shards))
    assert false == []
    assert true > 0.5 * ROWS
    command = [sys.executable, "-m", "laion_assets", "check", "--settings", backfill.folder / "laion.toml"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert not [*layout.root.glob("*/.drafts/[!.]*"), *layout.root.glob("*/.journals/*")]
    printed = (backfill.folder / "printed.txt").read_text()
    assert "Traceback" not in printed
    assert "crash in" not in printed
    with open_instance(settings.dagster_home) as instance:
        assert [run for run in instance.get_runs() if not run.is_finished] == []
        assert all(BUILD_TAG in run.tags for run in instance.get_runs())
        for stage in STAGES:
            if stage.axis is not Axis.NONE:
                recorded = instance.get_materialized_partitions(dg.AssetKey(stage.name))
                assert recorded == set(keys_of(stage, found)), stage.name
