"""Reads a folder of our shards with img2dataset's own code, and writes what it saw as JSON.

Runs in an environment of img2dataset's, which knows nothing of this project: FOLDER LIST SEEN ROWS COLUMN...
"""

import json
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
from img2dataset import download
from img2dataset.logger import LoggerProcess
from img2dataset.reader import Reader


def as_a_list(path, rows, columns):
    """What its reader makes of a table, or of a folder of tables, as a list of what to download."""
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(path, "parquet", "url", "caption", "sha256", "sha256", columns, rows, set(), folder)
        shards = [pa.ipc.open_file(pa.memory_map(file)).read_all() for _, file in reader]
        return {"columns": reader.column_list, "shards": [shard.to_pylist() for shard in shards]}


def summed(folder):
    """What its logger adds up over the statistics that it finds."""
    logger = LoggerProcess(folder, enable_wandb=False, wandb_project="", config_parameters={})
    logger.q.put("stop")
    logger.run()
    total = logger.total_speed_logger
    return {
        "count": total.count,
        "success": total.success,
        "failed_to_download": total.failed_to_download,
        "failed_to_resize": total.failed_to_resize,
        "seconds": total.end_time - total.start_time,
    }


def main():
    folder, urls, answer, rows, *columns = sys.argv[1:]
    seen = {
        "table": as_a_list(f"{folder}/00000.parquet", int(rows), columns),
        "folder": as_a_list(folder, int(rows), columns),
        "logger": summed(folder),
    }
    # Its default: "incremental", which leaves out the shards that are there.
    download(
        url_list=urls,
        output_folder=folder,
        input_format="parquet",
        output_format="webdataset",
        caption_col="caption",
        number_sample_per_shard=int(rows),
        processes_count=1,
        thread_count=4,
        timeout=5,
    )
    Path(answer).write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
