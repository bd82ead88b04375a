"""Downloads shards with this project, as a program of its own that can be measured."""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from laion_assets.fetch.policy import FetchPolicy
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import Layout, ShardId
from laion_assets.stages.images import download_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="data root whose samples are there")
    parser.add_argument("report", type=Path, help="where the times go")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--fetch", default="{}", help="settings of FetchPolicy, as JSON")
    parser.add_argument("--image", default="{}", help="settings of ImagePolicy, as JSON")
    arguments = parser.parse_args()
    fetch = FetchPolicy.model_validate({"allow_loopback": True, **json.loads(arguments.fetch)})
    image = ImagePolicy.model_validate(json.loads(arguments.image))
    seen: list[float] = []
    shards = []
    for number in range(arguments.shards):
        start = time.time()
        download_images(
            ShardId(number),
            Layout(arguments.root),
            fetch,
            image,
            follow=lambda _: seen.append(time.time()),
        )
        gc.collect()
        shards.append(
            {
                "seconds": time.time() - start,
                "memory_bytes": _memory_bytes(),
                "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 (no Path, which opens it twice)
            }
        )
    report: dict[str, Any] = {"shards": shards, "first": min(seen), "last": max(seen)}
    report["parent_cpu_s"] = time.process_time()  # the rest is its decoding processes'
    # When each tenth of the URLs was done, to see what the last of them cost.
    seen.sort()
    report["tenths"] = [seen[len(seen) * tenth // 10 - 1] for tenth in range(1, 11)] if len(seen) > 9 else []
    arguments.report.write_text(json.dumps(report))


def _memory_bytes() -> int:
    """Of this process and of those it started that still run."""
    processes = ["self"]
    for thread in Path("/proc/self/task").iterdir():
        processes += (thread / "children").read_text().split()
    pages = 0
    for process in processes:
        with suppress(OSError):  # it has just ended
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
