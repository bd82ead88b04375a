"""A hundred shards through the whole graph in one process: memory and descriptors do not grow with them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import one_host
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_inputs import WIDTH, cosines_of, metadata, pairs, place

from laion_assets.defs.build import Request, build
from laion_assets.defs.instance import open_instance, prepare_home
from laion_assets.defs.recording import Watcher
from laion_assets.demo.pictures import Encoding, Picture
from laion_assets.demo.scenes import Scene
from laion_assets.demo.web import DemoWeb, Fault
from laion_assets.pipeline import EMBEDDINGS, IMAGES, JOINED
from laion_assets.schema import RAW
from laion_assets.settings import Settings

SHARDS = 100
ROWS_PER_SHARD = 10
EMBEDDING_SHARDS = 10
# The first batch: what is imported and cached once.
WARM_UP = 25
MIB = 1 << 20

SETTINGS = f"""\
rows_per_shard = {ROWS_PER_SHARD}
batch_shards = {WARM_UP}
[raw]
source = "raw"
[embeddings]
source = "embeddings"
width = {WIDTH}
[fetch]
allow_loopback = true
per_domain_concurrency = 16
{one_host.SETTINGS}[image]
workers = 1
[tfds]
image_embeddings = true
"""


class Sample(NamedTuple):
    """What the process holds: resident bytes, bytes of Arrow's, open descriptors."""

    resident: int
    arrow: int
    descriptors: int


class Meter(Watcher):
    """Takes a sample at the end of each shard's last stage, of either chain."""

    def __init__(self) -> None:
        self.samples: dict[str, list[Sample]] = defaultdict(list)

    def partition_ended(self, stage, key, outcome):
        if stage.name in (IMAGES[-1], JOINED[-1], EMBEDDINGS[-1]):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.samples[stage.name].append(
                Sample(
                    resident=pages * os.sysconf("SC_PAGE_SIZE"),
                    arrow=pa.default_memory_pool().bytes_allocated(),
                    descriptors=len(list(Path("/proc/self/fd").iterdir())),
                )
            )


def soak(file: Path) -> tuple[bool, dict[str, list[Sample]]]:
    """Build everything, in a process that does nothing else."""
    settings = Settings.load(file)
    meter = Meter()
    with open_instance(prepare_home(settings.dagster_home)) as instance:
        done = build(settings, instance, Request(), meter)
    return done.went_well, dict(meter.samples)


def lay_sources(folder: Path, base_url: str) -> None:
    """One part of pictures that can all be had, and vectors of each."""
    rows = SHARDS * ROWS_PER_SHARD
    scenes = list(Scene.every())
    pictures = [
        Picture(
            scene=scenes[row % len(scenes)], seed=row, width=90, height=80 + row % 40, encoding=Encoding.JPEG
        )
        for row in range(rows)
    ]
    urls = [f"{base_url}/{Fault.OK}/{picture.path}" for picture in pictures]
    cosines = cosines_of(rows)
    columns = {"URL": urls, "TEXT": [picture.scene.caption for picture in pictures], "similarity": cosines}
    nothing = {field.name: pa.nulls(rows, field.type) for field in RAW if field.name not in columns}
    (folder / "raw").mkdir()
    table = pa.table({**nothing, **columns}).select(RAW.names).cast(RAW)
    pq.write_table(table, folder / "raw" / "part-0.parquet")
    images, texts = pairs(cosines)
    for number, chosen in enumerate(np.array_split(np.arange(rows), EMBEDDING_SHARDS)):
        described = metadata(cosines[chosen], url=pa.array([urls[row] for row in chosen]))
        place(folder / "embeddings", number, images[chosen], texts[chosen], described)


def slope(values: list[int]) -> float:
    """Growth a shard, by least squares, after the warm-up."""
    return float(np.polyfit(np.arange(WARM_UP, len(values)), values[WARM_UP:], 1)[0])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="memory and descriptors are read from /proc")
def test_a_hundred_shards_cost_no_memory_and_no_descriptors(tmp_path):
    with (
        DemoWeb() as web,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process,
    ):
        lay_sources(tmp_path, web.base_url)
        (tmp_path / "laion.toml").write_text(SETTINGS)
        started = time.monotonic()
        went_well, samples = process.submit(soak, tmp_path / "laion.toml").result()
    print(f"\n{SHARDS} shards of {ROWS_PER_SHARD} rows in {time.monotonic() - started:.0f} s")
    assert went_well
    assert len(samples[EMBEDDINGS[-1]]) == EMBEDDING_SHARDS
    for stage in (IMAGES[-1], JOINED[-1]):
        of_stage = samples[stage]
        assert len(of_stage) == SHARDS
        resident = [sample.resident for sample in of_stage]
        descriptors = [sample.descriptors for sample in of_stage]
        warm = WARM_UP - 1
        print(
            f"{stage}: {slope(resident) / MIB:+.3f} MB a shard (resident {resident[warm] / MIB:.0f} to "
            f"{resident[-1] / MIB:.0f} MB, Arrow's {of_stage[warm].arrow} to {of_stage[-1].arrow} bytes), "
            f"descriptors {descriptors[0]}, {descriptors[warm]} and {descriptors[-1]}"
        )
        assert slope(resident) <= MIB
        assert descriptors[-1] <= descriptors[warm]
