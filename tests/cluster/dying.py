"""Shards of which one kills its workers and one is refused, handed to Ray; run as a job by the tests.

``python dying.py OUTPUT`` writes what came of each.
"""

import json
import os
import signal
import sys
from pathlib import Path

from laion_assets.errors import MissingInput
from laion_assets.settings import RunSettings
from laion_assets.shard_work import map_shards


def work(key):
    if key == "00001":
        os.kill(os.getpid(), signal.SIGKILL)
    if key == "00002":
        raise MissingInput("samples 00002 is not there yet")
    return "made"


if __name__ == "__main__":
    keys = ["00000", "00001", "00002", "00003"]
    found = dict(map_shards(work, keys, RunSettings(workers="ray", retries=1)))
    told = {
        key: [type(one).__name__, str(one)] if isinstance(one, Exception) else one
        for key, one in found.items()
    }
    output = Path(sys.argv[1])
    output.with_suffix(".draft").write_text(json.dumps(told))
    output.with_suffix(".draft").rename(output)
