"""The pictures of one shard in img2dataset's layout: downloaded, or placed as img2dataset wrote them."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from laion_assets.download import Download, Progress, download
from laion_assets.errors import PlanError
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.formats import parquet
from laion_assets.formats.journal import open_journal
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require, vouch
from laion_assets.formats.sealed import fingerprint
from laion_assets.formats.webdataset import open_tar
from laion_assets.image import ImagePolicy, StoredFormat
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import OUTCOME_PREFIX, Outcome, Status
from laion_assets.placed_images import PLACED, WRITER, check_placed, is_placed
from laion_assets.schema import IMAGES, IMAGES_IMG2DATASET, SAMPLES

if TYPE_CHECKING:
    from laion_assets.fetch.transport import Transport

CODE_VERSION: Final = "1"

# The settings that decide which pictures a shard has and what they look like. Limits of time, memory and
# concurrency are not among them, so that changing one does not ask the web for everything again.
_FETCH_SETTINGS: Final = ("max_body_bytes", "max_redirects", "ports", "allow_loopback", "honour_opt_out")
_IMAGE_SETTINGS: Final = (
    "size",
    "mode",
    "only_if_bigger",
    "format",
    "quality",
    "min_size",
    "max_aspect_ratio",
    "max_pixels",
    "max_jpeg_scans",
)

_TEXTS: Final = ("caption", "url", "NSFW", "LICENSE")
# img2dataset's status_dict has an entry for each message, without end.
_MOST_MESSAGES: Final = 100
_OTHER_MESSAGES: Final = "other messages"
_BATCH_ROWS: Final = 1_000


def images(
    shard: ShardId,
    layout: Layout,
    fetch_policy: FetchPolicy,
    image_policy: ImagePolicy,
    *,
    transport: Transport | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Publish the pictures of one shard: adopt files that img2dataset wrote, if placed, else download.

    Raises:
        MissingInput: if the samples are not there yet, or only some of a placed shard's files are.
        CorruptParquet, CorruptTar, MisalignedShard: if placed files are damaged or do not belong together.
    """
    if is_placed(shard, layout):
        return adopt_images(shard, layout)
    return download_images(shard, layout, fetch_policy, image_policy, transport=transport, progress=progress)


def adopt_images(shard: ShardId, layout: Layout) -> Manifest:
    """Vouch for a shard that img2dataset wrote, once :func:`check_placed` has proven it whole.

    Its files are left as they are, now and when settings or code change; to have the shard downloaded,
    remove them and their manifest.
    """
    return vouch(layout.images(shard), PLACED, lambda: check_placed(shard, layout))


def download_images(
    shard: ShardId,
    layout: Layout,
    fetch_policy: FetchPolicy,
    image_policy: ImagePolicy,
    *,
    transport: Transport | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Download, resize and publish the pictures of one shard; every row of its samples gets an outcome.

    What is finished is kept in a journal, so a run that is killed costs the pictures in flight (and, in a
    power cut, the last 64): the next one with the same settings goes on, and the bytes are the same.

    Args:
        shard: the shard.
        layout: where the samples are and the images go.
        fetch_policy: what may be asked of the web.
        image_policy: what is accepted as a picture, and how it is stored.
        transport: what performs a GET; the real one by default.
        progress: called with how many of how many URLs are done, from another thread.

    Raises:
        MissingInput: if the samples are not there yet.
        CorruptInput: if they are not those that were published.
        PlanError: if files that img2dataset wrote are in the way.
        TooManyOpenFiles: if the limit on open files is too low for the policy's ``concurrency``.
    """
    if is_placed(shard, layout):
        raise PlanError(
            f"images {shard}: {layout.images_folder} holds files that img2dataset wrote, which are never "
            "overwritten: adopt them, or remove them and their manifest"
        )
    samples = require(layout.samples(shard))
    chosen = [
        fetch_policy.model_dump(mode="json", include=set(_FETCH_SETTINGS)),
        image_policy.model_dump(mode="json", include=set(_IMAGE_SETTINGS)),
    ]
    recipe = Recipe(
        code_version=CODE_VERSION, settings=fingerprint(chosen), inputs={"samples": samples.data_version}
    )

    def write(draft: Draft) -> Tally:
        rows = _read_samples(layout.samples(shard).only)
        asked = [index for index, reason in enumerate(rows["set_aside"].to_pylist()) if reason is None]
        urls = rows["url"].to_pylist()
        with open_journal(draft.journal, work=fingerprint(asdict(recipe))) as journal:
            found = download(
                [urls[index] for index in asked],
                journal,
                fetch_policy,
                image_policy,
                transport=transport,
                progress=progress,
            )
        outcomes = [_set_aside(reason) for reason in rows["set_aside"].to_pylist()]
        for index, outcome in zip(asked, found, strict=True):
            outcomes[index] = outcome
        table = _table(rows, outcomes)
        parquet.write_table(draft.path(layout.images_table(shard).name), table, IMAGES)
        _write_tar(
            draft.path(layout.images_tar(shard).name), table, outcomes, journal.path, image_policy.format
        )
        tally = _tally(outcomes)
        _write_stats(draft.path(layout.images_stats(shard).name), tally, outcomes)
        return tally

    return publish(layout.images(shard), recipe, write, reads=[layout.samples(shard)])


def _read_samples(path: Path) -> pa.Table:
    """The samples in key order, texts being valid UTF-8."""
    rows = parquet.read_table(path, SAMPLES).sort_by("key")
    for name in _TEXTS:
        values = rows[name].cast(pa.binary()).to_pylist()
        texts = [None if value is None else value.decode("utf-8", "replace") for value in values]
        position = rows.column_names.index(name)
        rows = rows.set_column(position, rows.schema.field(position), pa.array(texts, pa.string()))
    return rows


def _set_aside(reason: str | None) -> Download:
    message = f"set aside: {reason}"
    return Download(status=Status.FAILED_TO_DOWNLOAD, outcome=Outcome.SET_ASIDE, message=message)


def _table(rows: pa.Table, outcomes: Sequence[Download]) -> pa.Table:
    pictures = [outcome.picture for outcome in outcomes]
    columns = {name: rows[name] for name in (*_TEXTS, "similarity", "key")}
    columns |= {
        "status": [str(outcome.status) for outcome in outcomes],
        "error_message": [outcome.message for outcome in outcomes],
        "sha256": [outcome.sha256 for outcome in outcomes],
        "outcome": [str(outcome.outcome) for outcome in outcomes],
        "http_status": [outcome.http_status for outcome in outcomes],
    }
    for name in ("width", "height", "original_width", "original_height", "exif"):
        columns[name] = [getattr(picture, name) if picture else None for picture in pictures]
    return pa.table(columns, schema=IMAGES)


def _write_tar(
    path: Path, table: pa.Table, outcomes: Sequence[Download], pictures: Path, format_: StoredFormat
) -> None:
    """Write picture, caption and row of each success, in key order."""
    batches = table.select(IMAGES_IMG2DATASET.names).to_batches(max_chunksize=_BATCH_ROWS)
    rows = (row for batch in batches for row in batch.to_pylist())
    with pictures.open("rb") as source, open_tar(path) as tar:
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome.picture is None:
                continue
            picture = os.pread(source.fileno(), outcome.picture.size, outcome.picture.offset)
            tar.add(f"{row['key']}.{format_}", picture)
            tar.add(f"{row['key']}.txt", (row["caption"] or "").encode())
            tar.add(f"{row['key']}.json", _row_json(row))


def _row_json(row: dict[str, Any]) -> bytes:
    """The row as img2dataset writes it beside its picture; JSON has no NaN, so a similarity may be null."""
    similarity = row["similarity"]
    if similarity is not None and not math.isfinite(similarity):
        row = row | {"similarity": None}
    return json.dumps(row, indent=4, allow_nan=False).encode()


def _tally(outcomes: Sequence[Download]) -> Tally:
    statuses = Counter(outcome.status for outcome in outcomes)
    counts = {str(status): statuses[status] for status in Status}
    counts |= Counter(f"{OUTCOME_PREFIX}{outcome.outcome}" for outcome in outcomes)
    counts["bytes_downloaded"] = sum(outcome.body_bytes for outcome in outcomes)
    return Tally(rows=len(outcomes), counts=counts)


def _write_stats(path: Path, tally: Tally, outcomes: Sequence[Download]) -> None:
    """Counts in img2dataset's words, without its times, which would make every run's file another."""
    messages = Counter(outcome.message or str(outcome.status) for outcome in outcomes)
    ranked = sorted(messages.items(), key=lambda entry: (-entry[1], entry[0]))
    status_dict = dict(ranked[:_MOST_MESSAGES])
    if len(ranked) > _MOST_MESSAGES:
        status_dict[_OTHER_MESSAGES] = sum(count for _, count in ranked[_MOST_MESSAGES:])
    stats = {
        "count": tally.rows,
        "successes": tally.counts[Status.SUCCESS],
        "failed_to_download": tally.counts[Status.FAILED_TO_DOWNLOAD],
        "failed_to_resize": tally.counts[Status.FAILED_TO_RESIZE],
        "bytes_downloaded": tally.counts["bytes_downloaded"],
        "status_dict": status_dict,
        "writer": WRITER,
    }
    path.write_text(json.dumps(stats, indent=4) + "\n", encoding="utf-8")
