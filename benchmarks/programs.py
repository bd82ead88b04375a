"""The programs under measurement, ours and img2dataset: their input, their command, and what came out."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.measuring import Failed, Usage, measure
from benchmarks.urls import UrlList
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import RAW
from laion_assets.stages.raw_metadata import check_part
from laion_assets.stages.samples import write_samples
from laion_assets.stages.shard_plan import plan_shards

SIZE: Final = 256
QUALITY: Final = 95
PROCESSES: Final = 2
TIMEOUT_S: Final = 10
_PART: Final = "part-00000"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a program made of a list of URLs.

    Attributes:
        usage: what it used.
        rows: URLs it accounts for.
        successes: pictures it stored.
        messages: what it says of the others -> how often.
        tars: where the pictures are.
        report: what it told of its times; of ours only.
    """

    usage: Usage
    rows: int
    successes: int
    messages: dict[str, int]
    tars: tuple[Path, ...]
    report: dict[str, Any]


def environment(bundle: Path) -> dict[str, str]:
    """What both programs run in: their authorities for TLS, no proxy, and patience with a name server.

    A name that does not exist must cost what the programs make of it, and not the five or ten seconds for
    which glibc waits where a small machine's name server drops some of many questions.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    kept["RES_OPTIONS"] = "timeout:1 attempts:1"
    return {**kept, "SSL_CERT_FILE": str(bundle), "NO_ALBUMENTATIONS_UPDATE": "1"}


def run_ours(
    urls: UrlList,
    folder: Path,
    bundle: Path,
    *,
    shards: int = 1,
    fetch: Mapping[str, Any],
    image: Mapping[str, Any],
    limit_s: float,
) -> Outcome:
    """Download with this project, through the stage that Dagster and the command line run.

    Raises:
        Failed: if it ends with an error, or a URL is not accounted for.
    """
    root = _fresh(folder)
    layout = Layout(root)
    _write_raw(urls, root / f"{_PART}.parquet")
    rows_per_shard = -(-len(urls.entries) // shards)
    check_part(
        _PART,
        layout,
        location=str(root / f"{_PART}.parquet"),
        source_schema="laion400m",
        rows_per_shard=rows_per_shard,
    )
    plan_shards(layout, [_PART], rows_per_shard=rows_per_shard)
    for number in range(shards):
        write_samples(ShardId(number), layout)
    report = root / "report.json"
    command = [sys.executable, "-m", "benchmarks.ours", str(root), str(report), "--shards", str(shards)]
    command += ["--fetch", json.dumps(dict(fetch)), "--image", json.dumps(dict(image))]
    # The child takes the package from where this process has it.
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    variables = environment(bundle) | {"PYTHONPATH": path}
    usage = measure(command, environment=variables, log=root / "log.txt", limit_s=limit_s)
    tables = [layout.images_table(ShardId(number)) for number in range(shards)]
    tars = tuple(layout.images_tar(ShardId(number)) for number in range(shards))
    return _outcome(urls, usage, tables, tars, json.loads(report.read_text()))


def run_img2dataset(
    urls: UrlList, folder: Path, bundle: Path, *, program: Path, retries: int, limit_s: float
) -> Outcome:
    """Download with img2dataset as its users do: a process for each of two cores, its own threads.

    A shard is half of the URLs, since it gives each process a shard.

    Raises:
        Failed: if it ends with an error, or a URL is not accounted for.
    """
    root = _fresh(folder)
    _write_raw(urls, root / "urls.parquet")
    output = root / "images"
    options = {
        "url_list": root / "urls.parquet",
        "input_format": "parquet",
        "url_col": "URL",
        "caption_col": "TEXT",
        "save_additional_columns": '["NSFW","similarity","LICENSE"]',
        "output_folder": output,
        "output_format": "webdataset",
        "processes_count": PROCESSES,
        "number_sample_per_shard": max(1, -(-len(urls.entries) // PROCESSES)),
        "image_size": SIZE,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "encode_quality": QUALITY,
        "compute_hash": "sha256",
        "retries": retries,
        "timeout": TIMEOUT_S,
    }
    command = [str(program), *(f"--{name}={value}" for name, value in options.items())]
    usage = measure(command, environment=environment(bundle), log=root / "log.txt", limit_s=limit_s)
    tables = sorted(output.glob("*.parquet"))
    return _outcome(urls, usage, tables, tuple(sorted(output.glob("*.tar"))), {})


def stored_pictures(outcome: Outcome) -> Iterator[tuple[str, bytes]]:
    """URL and stored bytes of each success; both programs write img2dataset's layout."""
    for path in outcome.tars:
        pictures: dict[str, bytes] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                stem, extension = member.name.rsplit(".", 1)
                content = tar.extractfile(member)
                assert content is not None
                if extension == "jpg":
                    pictures[stem] = content.read()
                elif extension == "json":
                    yield json.loads(content.read())["url"], pictures.pop(stem)


def _outcome(
    urls: UrlList, usage: Usage, tables: Sequence[Path], tars: tuple[Path, ...], report: dict[str, Any]
) -> Outcome:
    table = pa.concat_tables(
        [pq.read_table(path, columns=["url", "status", "error_message"]) for path in tables]
    )
    asked = {entry.url for entry in urls.entries}
    if table.num_rows != len(urls.entries) or set(table["url"].to_pylist()) != asked:
        raise Failed(f"{table.num_rows} of {len(urls.entries)} URLs are accounted for in {tables[0].parent}")
    failed = table.filter(pc.not_equal(table["status"], "success"))
    counted = pc.value_counts(failed["error_message"]).to_pylist()
    return Outcome(
        usage=usage,
        rows=table.num_rows,
        successes=table.num_rows - failed.num_rows,
        messages={str(entry["values"]): entry["counts"] for entry in counted},
        tars=tars,
        report=report,
    )


def _write_raw(urls: UrlList, path: Path) -> None:
    count = len(urls.entries)
    columns = {
        "SAMPLE_ID": range(count),
        "URL": [entry.url for entry in urls.entries],
        "TEXT": [f"Caption {number} of some forty characters, or so" for number in range(count)],
        "HEIGHT": [SIZE] * count,
        "WIDTH": [SIZE] * count,
        "LICENSE": ["?"] * count,
        "NSFW": ["UNLIKELY"] * count,
        "similarity": [0.3 + number % 100 / 1_000 for number in range(count)],
    }
    arrays = [pa.array(columns[field.name], field.type) for field in RAW]
    pq.write_table(pa.Table.from_arrays(arrays, schema=RAW), path)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
