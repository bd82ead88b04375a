"""Builds one shard with the official TFDS class, in an environment of its own; imports nothing of ours.

The class asks for all shards of a release that is not served any more: it is told of one, and where that
lies. Nothing else of it is changed.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path


def main() -> None:
    config, source, data_dir = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.vision_language.laion400m import laion400m as official

    official.LAION400M_IMAGES_CONFIG.num_shards = official.LAION400M_EMBEDDINGS_CONFIG.num_shards = 1
    if config == "embeddings":
        names = {"img_emb": "img_emb_0.npy", "text_emb": "text_emb_0.npy", "metadata": "metadata_0.parquet"}
        files = {name: epath.Path(source / folder / name) for folder, name in names.items()}

        def found(*_: object) -> dict[str, epath.Path]:
            return files

        official.Laion400m._download_data = found
    builder = tfds.builder(f"laion400m/{config}", data_dir=data_dir)
    start_cpu, start_wall = time.process_time(), time.perf_counter()
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=source, beam_runner="DirectRunner")
    )
    taken = {"cpu_s": time.process_time() - start_cpu, "wall_s": time.perf_counter() - start_wall}
    (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    used = {
        "examples": builder.info.splits["train"].num_examples,
        "bytes": builder.info.dataset_size,
        "peak_mb": int(peak) / 1024,
    }
    print(json.dumps({**taken, **used}))


if __name__ == "__main__":
    main()
