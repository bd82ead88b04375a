"""The image chain over shards of good pictures, handed out as the settings say; run on a node by the tests.

``python throughput.py OUTPUT``, with LAION_SETTINGS and what else the environment sets, writes what it took.
"""

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.demo.pictures import Encoding, Picture
from laion_assets.demo.scenes import Scene
from laion_assets.demo.web import Fault, url_of
from laion_assets.partitions import find_partitions
from laion_assets.pipeline import IMAGES, PARTS, STAGE_BY_NAME, keys_of
from laion_assets.schema import RAW
from laion_assets.settings import Settings
from laion_assets.shard_work import cores_of, make, map_shards, settings_of_workers

ROWS_PER_SHARD, SHARDS = 40, 25
# A web on the machine itself may be asked as fast as one can.
SETTINGS = f"""\
rows_per_shard = {ROWS_PER_SHARD}
[raw]
source = "raw"
[fetch]
allow_loopback = true
per_domain_concurrency = 64
per_domain_interval_s = 0
total_timeout_s = 60
response_timeout_s = 60
[run]
cores_per_download = 1
"""


def lay(folder, base_url):
    """Write a raw part of pictures that can all be had, and settings; the settings' file."""
    scenes = list(Scene.every())
    rows = []
    for row in range(ROWS_PER_SHARD * SHARDS):
        scene = scenes[(7 * row) % len(scenes)]
        picture = Picture(scene=scene, seed=row, width=320, height=240, encoding=Encoding.JPEG)
        rows.append({"URL": url_of(base_url, Fault.OK, picture), "TEXT": scene.caption, "similarity": 0.31})
    (folder / "raw").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=RAW), folder / "raw" / "part-0.parquet")
    (folder / "laion.toml").write_text(SETTINGS)
    return folder / "laion.toml"


def plan_shards(settings):
    """Read the raw parts and plan their shards."""
    for name in (*PARTS, "shard_plan"):
        for key in keys_of(STAGE_BY_NAME[name], find_partitions(settings)):
            make(name, settings, key)


def main(output):
    settings = Settings.load()
    plan_shards(settings)
    shards = find_partitions(settings).shards
    begun = time.monotonic()
    for name in IMAGES:
        work = partial(make, name, settings_of_workers(settings))
        each = cores_of(STAGE_BY_NAME[name], settings)
        for _, outcome in map_shards(work, shards, settings.run, cores_each=each):
            if isinstance(outcome, Exception):
                raise outcome
    seconds = time.monotonic() - begun
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(one.ru_utime + one.ru_stime for one in used)
    output.with_suffix(".draft").write_text(
        json.dumps({"shards": len(shards), "seconds": seconds, "cpu_s": cpu_s})
    )
    output.with_suffix(".draft").rename(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
