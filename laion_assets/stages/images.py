"""The pictures of one shard in img2dataset's layout: downloaded, or placed as img2dataset wrote them."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from laion_assets import schema
from laion_assets.columns import (
    NO_COLUMNS,
    ColumnPolicy,
    find_columns,
    json_column,
    json_value,
    read_boxes,
    read_digest,
    valid_text,
)
from laion_assets.download import Download, Wanted, download
from laion_assets.download_logs import write_requests, write_stats
from laion_assets.download_progress import Follow
from laion_assets.earlier_downloads import enter_earlier
from laion_assets.errors import MissingInput, PlanError
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.formats import arrow, parquet
from laion_assets.formats.journal import open_journal
from laion_assets.formats.publish import (
    Draft,
    Manifest,
    Recipe,
    Tally,
    done,
    publish,
    require,
    verify,
    vouch,
)
from laion_assets.formats.sealed import fingerprint
from laion_assets.formats.webdataset import open_tar
from laion_assets.image_policy import ImagePolicy, StoredFormat
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import OUTCOME_PREFIX, Outcome, Status, count_passing
from laion_assets.placed_images import PLACED, check_placed, is_placed
from laion_assets.schema import IMAGES, IMAGES_IMG2DATASET, SAMPLES, Digest

if TYPE_CHECKING:
    from laion_assets.fetch.transport import Transport

CODE_VERSION: Final = "2"

# The settings that decide which pictures a shard has and what they look like. Limits of time, memory and
# concurrency are not among them, so that changing one does not ask the web for everything again.
_FETCH_SETTINGS: Final = (
    "max_body_bytes",
    "max_redirects",
    "ports",
    "allow_loopback",
    "honour_opt_out",
    "honour_robots_txt",
    "compute_hash",
)
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
# A line for each column, as with indent=4, for which Python's encoder has no C and takes five times as long.
_encode: Final = json.JSONEncoder(allow_nan=False, separators=(",\n    ", ": ")).encode
_BATCH_ROWS: Final = 1_000


def images(
    shard: ShardId,
    layout: Layout,
    fetch_policy: FetchPolicy,
    image_policy: ImagePolicy,
    *,
    columns: ColumnPolicy = NO_COLUMNS,
    transport: Transport | None = None,
    follow: Follow | None = None,
    retry: bool = False,
) -> Manifest:
    """Publish the pictures of one shard: adopt files that img2dataset wrote, if placed, else download.

    Args:
        shard: the shard.
        layout: where the samples are and the images go.
        fetch_policy: what may be asked of the web.
        image_policy: what is accepted as a picture, and how it is stored.
        columns: as for :func:`download_images`.
        transport: what performs a GET; the real one by default.
        follow: told after each URL how far the download is, from another thread.
        retry: of a shard that was downloaded, ask again for the rows whose failure was passing, and publish
            it anew if there are any. What became of the others stays, pictures byte for byte, and they are
            not asked for.

    Raises:
        MissingInput: if the samples are not there yet, or only some of a placed shard's files are.
        CorruptParquet, CorruptTar, MisalignedShard: if placed files are damaged or do not belong together.
        CorruptInput: if samples, or files that are retried, are not those that were published.
        PlanError: if what is retried was made with other settings, inputs or code, so that it must be redone.
    """
    if is_placed(shard, layout):
        return adopt_images(shard, layout)
    found = done(layout.images(shard)) if retry else None
    return download_images(
        shard,
        layout,
        fetch_policy,
        image_policy,
        columns=columns,
        transport=transport,
        follow=follow,
        again=found is not None and count_passing(found.counts) > 0,
    )


def adopt_images(shard: ShardId, layout: Layout) -> Manifest:
    """Vouch for a shard that img2dataset wrote, once :func:`check_placed` has proven it whole.

    Its files are left as they are, now and when settings or code change; to have the shard downloaded,
    remove them and their manifest.
    """
    manifest = vouch(layout.placed_images(shard), PLACED, lambda: check_placed(shard, layout))
    # Of a download over which the shard was placed.
    layout.images_requests(shard).unlink(missing_ok=True)
    return manifest


def download_images(
    shard: ShardId,
    layout: Layout,
    fetch_policy: FetchPolicy,
    image_policy: ImagePolicy,
    *,
    columns: ColumnPolicy = NO_COLUMNS,
    transport: Transport | None = None,
    follow: Follow | None = None,
    again: bool = False,
) -> Manifest:
    """Download, resize and publish the pictures of one shard; every row of its samples gets an outcome.

    What is finished is kept in a journal, so a run that is killed costs the pictures in flight (and, in a
    power cut, the last 64): the next one with the same settings goes on, and the bytes are the same, but for
    the two logs: how long it took, and how often each URL was asked for.

    Args:
        shard: the shard.
        layout: where the samples are and the images go.
        fetch_policy: what may be asked of the web.
        image_policy: what is accepted as a picture, and how it is stored.
        columns: which further columns of the samples are taken along, and which say what a body must be and
            what is blurred.
        transport: what performs a GET; the real one by default.
        follow: told after each URL how far the download is, from another thread.
        again: as ``retry`` of :func:`images`, of a shard that has rows to ask for again.

    Raises:
        MissingInput: if the samples, or a column of them, are not there yet.
        CorruptInput: if they are not those that were published.
        PlanError: if files that img2dataset wrote are in the way.
        TooManyOpenFiles: if the limit on open files is too low for the policy's ``concurrency``.
    """
    if is_placed(shard, layout):
        raise PlanError(
            f"images {shard}: {layout.images_folder} holds files that img2dataset wrote, which are never "
            "overwritten: adopt them, or remove them and their manifest"
        )
    recipe = _recipe(shard, layout, fetch_policy, image_policy, columns)

    def write(draft: Draft) -> Tally:
        began, clock = time.time(), time.monotonic()
        rows = _read_samples(layout.samples(shard).only, columns)
        outcomes, wanted = _sort_out(rows, columns)
        with open_journal(draft.journal, work=fingerprint(asdict(recipe))) as journal:
            if again:
                _check_recipe(verify(layout.images(shard)), recipe)
                keys = rows["key"].to_pylist()
                enter_earlier(
                    journal,
                    shard,
                    layout,
                    {keys[row]: index for index, row in enumerate(wanted)},
                    digest=fetch_policy.compute_hash,
                    format_=image_policy.format,
                )
            found = download(
                list(wanted.values()),
                journal,
                fetch_policy,
                image_policy,
                digest_kind=columns.digest_kind,
                transport=transport,
                follow=follow,
            )
        for index, outcome in zip(wanted, found, strict=True):
            outcomes[index] = outcome
        table = _table(rows, outcomes, fetch_policy.compute_hash, columns.extra_columns)
        parquet.write_table(draft.path(layout.images_table(shard).name), table, table.schema)
        _write_tar(
            draft.path(layout.images_tar(shard).name), table, outcomes, journal.path, image_policy.format
        )
        tally = _tally(outcomes)
        write_requests(draft.path(layout.images_requests(shard).name), table["key"], outcomes)
        write_stats(
            draft.path(layout.images_stats(shard).name), tally, outcomes, began, time.monotonic() - clock
        )
        return tally

    return publish(layout.images(shard), recipe, write, reads=[layout.samples(shard)], again=again)


def _recipe(
    shard: ShardId,
    layout: Layout,
    fetch_policy: FetchPolicy,
    image_policy: ImagePolicy,
    columns: ColumnPolicy,
) -> Recipe:
    samples = require(layout.samples(shard))
    chosen = [
        fetch_policy.model_dump(mode="json", include=set(_FETCH_SETTINGS)),
        image_policy.model_dump(mode="json", include=set(_IMAGE_SETTINGS)),
    ]
    if columns.carried:
        chosen.append(columns.model_dump(mode="json", include=set(ColumnPolicy.model_fields)))
    return Recipe(
        code_version=CODE_VERSION, settings=fingerprint(chosen), inputs={"samples": samples.data_version}
    )


def _check_recipe(found: Manifest, recipe: Recipe) -> None:
    if found.recipe != recipe:
        raise PlanError(
            f"images {found.partition} was made with other settings, inputs or code: materialize it again, "
            "which asks for every row, instead of retrying what failed"
        )


def _read_samples(path: Path, columns: ColumnPolicy) -> pa.Table:
    """The samples in key order, texts being valid UTF-8; columns taken along are named as the policy does.

    Raises:
        MissingInput: if one of these is not there.
    """
    rows = parquet.read_table(path, SAMPLES, and_more=True)
    names = find_columns(columns.carried, rows.column_names[len(SAMPLES) :])
    for name, found in names.items():
        if found is None:
            raise MissingInput(f"{path} was made without the column {name!r}: materialize samples again")
    rows = rows.select([*SAMPLES.names, *names.values()]).rename_columns([*SAMPLES.names, *names])
    for name in (*_TEXTS, *names):
        position = rows.column_names.index(name)
        rows = rows.set_column(position, rows.schema.field(position), valid_text(rows[name]))
    return _in_key_order(rows)


def _in_key_order(rows: pa.Table) -> pa.Table:
    # Not sort_by, which not every type of a column taken along has.
    return rows.take(pc.sort_indices(rows["key"]))


def _sort_out(rows: pa.Table, columns: ColumnPolicy) -> tuple[list[Download], dict[int, Wanted]]:
    """For each row why it is not asked for, and what is asked for of the others, by row."""
    digests, boxes = _values(rows, columns.digest_column), _values(rows, columns.boxes_column)
    outcomes: list[Download] = []
    wanted: dict[int, Wanted] = {}
    values = zip(rows["url"].to_pylist(), rows["set_aside"].to_pylist(), digests, boxes, strict=True)
    for index, (url, reason, digest, found) in enumerate(values):
        outcomes.append(_not_asked_for(Outcome.SET_ASIDE, f"set aside: {reason}"))
        if reason is None:
            try:
                wanted[index] = Wanted(url=url, digest=read_digest(digest), boxes=read_boxes(found))
            except ValueError as error:
                outcomes[index] = _not_asked_for(Outcome.BAD_BOXES, f"boxes to blur: {error}")
    return outcomes, wanted


def _values(rows: pa.Table, name: str | None) -> list[Any]:
    """Values of a column that the policy may name, in another case than it carries it, or not name."""
    if name is None:
        return [None] * rows.num_rows
    return list(rows[find_columns([name], rows.column_names)[name]].to_pylist())


def _not_asked_for(outcome: Outcome, message: str) -> Download:
    return Download(status=Status.FAILED_TO_DOWNLOAD, outcome=outcome, message=message)


def _table(
    rows: pa.Table, outcomes: Sequence[Download], digest: Digest, extra_columns: Sequence[str]
) -> pa.Table:
    pictures = [outcome.picture for outcome in outcomes]
    values: dict[str, list[Any]] = {
        "status": [str(outcome.status) for outcome in outcomes],
        "error_message": [outcome.message for outcome in outcomes],
        "sha256": [outcome.sha256 for outcome in outcomes],
        "outcome": [str(outcome.outcome) for outcome in outcomes],
    }
    if digest != "sha256":
        values[digest] = [outcome.digest for outcome in outcomes]
    for name in ("http_status", "final_url", "content_type", "body_bytes"):
        values[name] = [getattr(outcome, name) for outcome in outcomes]
    for name in ("width", "height", "original_width", "original_height", "exif"):
        values[name] = [getattr(picture, name) if picture else None for picture in pictures]
    made = schema.images(digest, map(rows.schema.field, extra_columns))
    columns = {name: rows[name] for name in (*_TEXTS, "similarity", "key", *extra_columns)}
    columns |= {name: arrow.column(found, made.field(name).type) for name, found in values.items()}
    return pa.table(columns, schema=made)


def _write_tar(
    path: Path, table: pa.Table, outcomes: Sequence[Download], pictures: Path, format_: StoredFormat
) -> None:
    """Write picture, caption and row of each success, in key order."""
    names = [*IMAGES_IMG2DATASET.names, *table.column_names[len(IMAGES) :]]
    told = pa.table({name: json_column(table[name]) for name in names})
    rows = (row for batch in told.to_batches(max_chunksize=_BATCH_ROWS) for row in batch.to_pylist())
    with pictures.open("rb") as source, open_tar(path) as tar:
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome.picture is None:
                continue
            picture = os.pread(source.fileno(), outcome.picture.size, outcome.picture.offset)
            tar.add(f"{row['key']}.{format_}", picture)
            tar.add(f"{row['key']}.txt", (row["caption"] or "").encode())
            tar.add(f"{row['key']}.json", _row_json(row))


def _row_json(row: dict[str, Any]) -> bytes:
    """The row as img2dataset writes it beside its picture."""
    try:
        text = _encode(row)
    except (TypeError, ValueError):  # what JSON does not know, and NaN
        text = _encode(json_value(row))
    return f"{{\n    {text[1:-1]}\n}}".encode()


def _tally(outcomes: Sequence[Download]) -> Tally:
    statuses = Counter(outcome.status for outcome in outcomes)
    counts = {str(status): statuses[status] for status in Status}
    counts |= Counter(f"{OUTCOME_PREFIX}{outcome.outcome}" for outcome in outcomes)
    counts["bytes_downloaded"] = sum(outcome.body_bytes or 0 for outcome in outcomes)
    return Tally(rows=len(outcomes), counts=counts)
