"""What a published shard's files say of its downloads, entered into the journal of another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from laion_assets import schema
from laion_assets.download import Download, enter
from laion_assets.errors import CorruptTar
from laion_assets.formats import parquet
from laion_assets.formats.journal import Journal
from laion_assets.formats.webdataset import index_tar
from laion_assets.image import Stored
from laion_assets.image_policy import StoredFormat
from laion_assets.layout import Layout, ShardId
from laion_assets.outcomes import PASSING, Outcome, Status
from laion_assets.schema import REQUESTS, Digest

_ANSWERED: Final = ("http_status", "final_url", "content_type", "body_bytes", "sha256")
_SIZES: Final = ("width", "height", "original_width", "original_height", "exif")
_BATCH_ROWS: Final = 1_000


def enter_earlier(
    journal: Journal,
    shard: ShardId,
    layout: Layout,
    indices: Mapping[str, int],
    *,
    digest: Digest,
    format_: StoredFormat,
) -> None:
    """Enter what a shard's table and tar have, failures that were passing aside, which are to be asked again.

    Args:
        journal: what it already has is left alone.
        shard: the shard, downloaded by us and published.
        layout: where its files are.
        indices: key -> index among the URLs that the journal is of.
        digest: what the table records of bodies beside their sha256.
        format_: format of its pictures.

    Raises:
        CorruptParquet, CorruptTar: if its files are damaged or the tar lacks a picture.
    """
    known = {entry.fields["index"] for entry in journal.entries}
    table = parquet.read_table(layout.images_table(shard), schema.images(digest), and_more=True)
    requests = _requests(shard, layout)
    path = layout.images_tar(shard)
    members = index_tar(path)
    rows = (row for batch in table.to_batches(max_chunksize=_BATCH_ROWS) for row in batch.to_pylist())
    with path.open("rb") as tar:
        for row in rows:
            index = indices.get(row["key"])
            if index is None or index in known or row["outcome"] in PASSING:
                continue
            stored = None
            if row["status"] == Status.SUCCESS:
                member = members.get(row["key"], {}).get(format_)
                if member is None:
                    raise CorruptTar(
                        path,
                        expected=f"{row['key']}.{format_}, a success by the table beside it",
                        found="no such member",
                        remedy="Delete the shard's manifest to have it downloaded again.",
                    )
                body = os.pread(tar.fileno(), member.size, member.offset)
                stored = Stored(encoded=body, **{name: row[name] for name in _SIZES})
            done = _download(row, digest, *requests.get(row["key"], (0, 0)))
            journal.entries.append(enter(journal, index, done, stored))
    journal.sync()


def _download(row: Mapping[str, Any], digest: Digest, attempts: int, milliseconds: int) -> Download:
    return Download(
        status=Status(row["status"]),
        outcome=Outcome(row["outcome"]),
        message=row["error_message"],
        attempts=attempts,
        milliseconds=milliseconds,
        digest=row[digest],
        **{name: row[name] for name in _ANSWERED},
    )


def _requests(shard: ShardId, layout: Layout) -> dict[str, tuple[int, int]]:
    """Key -> attempts and milliseconds; nothing where an older version wrote the shard, which kept no log."""
    path = layout.images_requests(shard)
    if not path.exists():
        return {}
    columns = parquet.read_table(path, REQUESTS).to_pydict()
    return dict(
        zip(columns["key"], zip(columns["attempts"], columns["milliseconds"], strict=True), strict=True)
    )
