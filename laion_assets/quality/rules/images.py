"""Rules of the images and of their normalized tables."""

# ruff: noqa: S608 (queries are put together from this project's own words)

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
import xxhash
from PIL import Image

from laion_assets.formats import parquet
from laion_assets.formats.publish import require
from laion_assets.formats.tar_headers import Member
from laion_assets.formats.webdataset import index_tar
from laion_assets.image import STORED_EXTENSIONS, THREE_CHANNEL_MODES
from laion_assets.image_policy import MAX_PIXELS
from laion_assets.image_table import read_image_table
from laion_assets.normalization import SIMILARITY_TOLERANCE
from laion_assets.outcomes import Outcome, Status
from laion_assets.quality.row_stream import RowStream, stored_rows
from laion_assets.quality.rules.rule import (
    Offences,
    Query,
    Rule,
    Subject,
    Verdict,
    read_json_object,
    spread,
)
from laion_assets.schema import MISSING_SIMILARITY, NORMALIZED_IMAGES, ROWS_SET_ASIDE, SAMPLES, NsfwTag

# -- images ---------------------------------------------------------------------------------------


def _image_rows(subject: Subject, columns: Sequence[str]) -> RowStream:
    table = read_image_table(subject.shard, subject.layout, columns=columns).select(columns)
    return RowStream(schema=table.schema, batches=iter(table.to_batches()))


def _keys_and_statuses(subject: Subject) -> list[tuple[str, str]]:
    """Global key and status of every row of the images."""
    table = read_image_table(subject.shard, subject.layout, columns=("key", "status"))
    return list(zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True))


def _rows_accounted_for(subject: Subject) -> Verdict:
    samples = parquet.read_table(
        subject.layout.samples(subject.shard).only, SAMPLES, columns=["key"], and_more=True
    )
    rows = _keys_and_statuses(subject)
    asked, found = set(samples["key"].to_pylist()), {key for key, _ in rows}
    offences = Offences()
    for key in sorted(asked - found):
        offences.add(key, "a sample without a row of images")
    for key in sorted(found - asked):
        offences.add(key, "a row of images without a sample")
    for key, status in rows:
        if status not in tuple(Status):
            offences.add(key, f"status {status}")
    statuses = Counter(status for _, status in rows)
    return offences.verdict(rows=len(rows), figures={str(status): statuses[status] for status in Status})


def _tar_holds_successes(subject: Subject) -> Verdict:
    table = read_image_table(subject.shard, subject.layout, columns=("key", "status"))
    index = index_tar(subject.layout.images_tar(subject.shard))
    pictures = {stem: _pictures(members) for stem, members in index.items()}
    successes = {
        key
        for key, status in zip(table["stem"].to_pylist(), table["status"].to_pylist(), strict=True)
        if status == Status.SUCCESS
    }
    offences = Offences()
    for stem in sorted(successes):
        if len(pictures.get(stem, ())) != 1:
            offences.add(stem, f"a success with {len(pictures.get(stem, ()))} pictures in the tar")
    for stem in sorted(pictures.keys() - successes):
        offences.add(stem, "in the tar, but no success")
    stored = sum(member.size for members in pictures.values() for member in members)
    return offences.verdict(
        rows=len(successes), figures={"pictures": sum(map(len, pictures.values())), "picture_bytes": stored}
    )


def _pictures(members: Mapping[str, Member]) -> list[Member]:
    return [members[extension] for extension in STORED_EXTENSIONS if extension in members]


def _success_share(subject: Subject) -> Verdict:
    """Of the rows that were asked for: those set aside say nothing about the web."""
    table = read_image_table(subject.shard, subject.layout, columns=("key", "status", "outcome"))
    asked = [
        status
        for status, outcome in zip(table["status"].to_pylist(), table["outcome"].to_pylist(), strict=True)
        if outcome != Outcome.SET_ASIDE
    ]
    failed = Counter(status for status in asked if status != Status.SUCCESS)
    offences = Offences()
    for status, count in failed.most_common():
        offences.add(status, f"{count} of {len(asked)} rows asked for", count=count)
    low = subject.thresholds.success_share_low
    share = 1 - failed.total() / len(asked) if asked else 1.0
    return Verdict(
        passed=share >= low,
        offending=failed.total(),
        rows=len(asked),
        examples=offences.examples if share < low else (),
        figures={"success_share": share, "lowest_allowed": low},
    )


def _stats_agree(subject: Subject) -> Verdict:
    path = subject.layout.images_stats(subject.shard)
    statuses = Counter(status for _, status in _keys_and_statuses(subject))
    expected = {
        "count": statuses.total(),
        "successes": statuses[Status.SUCCESS],
        "failed_to_download": statuses[Status.FAILED_TO_DOWNLOAD],
        "failed_to_resize": statuses[Status.FAILED_TO_RESIZE],
    }
    found = read_json_object(path)
    offences = Offences()
    for name, count in expected.items():
        if found.get(name) != count:
            offences.add(name, f"the table has {count}, {path.name} says {found.get(name)!r}")
    return offences.verdict(rows=len(expected))


# -- normalized_images ----------------------------------------------------------------------------


def _normalized_rows(subject: Subject, columns: Sequence[str]) -> RowStream:
    return stored_rows(subject.layout.normalized_table(subject.shard), NORMALIZED_IMAGES, columns)


def _successes_accounted_for(subject: Subject) -> Verdict:
    output = subject.layout.normalized_images(subject.shard)
    table, aside = (output.path(name) for name in output.names)
    examples = parquet.read_table(table, NORMALIZED_IMAGES, columns=["key"])["key"].to_pylist()
    set_aside = parquet.read_table(aside, ROWS_SET_ASIDE, columns=["key"])["key"].to_pylist()
    rows = _keys_and_statuses(subject)
    succeeded = {key for key, status in rows if status == Status.SUCCESS}
    offences = Offences()
    for key, times in Counter([*examples, *set_aside]).items():
        if times > 1:
            offences.add(key, f"there {times} times among examples and rows set aside")
        if key not in succeeded:
            offences.add(key, "no success of images")
    for key in sorted(succeeded - {*examples, *set_aside}):
        offences.add(key, "a success that is neither an example nor set aside")
    counts = require(output).counts
    found = {
        "rows": len(rows),
        "examples": len(examples),
        "set_aside": len(set_aside),
        "failed": len(rows) - len(succeeded),
    }
    for name, count in found.items():
        if counts.get(name) != count:
            offences.add(name, f"the manifest counts {counts.get(name)}, the files {count}")
    return offences.verdict(rows=len(rows), figures=found)


def _sampled_pictures(subject: Subject) -> Verdict:
    columns = ["key", "width", "height", "image_xxh3", "tar_offset", "tar_bytes"]
    path = subject.layout.normalized_table(subject.shard)
    table = parquet.read_table(path, NORMALIZED_IMAGES, columns=columns)
    chosen = spread(table.num_rows, subject.thresholds.sampled_images)
    offences = Offences()
    with subject.layout.images_tar(subject.shard).open("rb") as tar:
        for row in table.take(pa.array(chosen, pa.int64())).to_pylist():
            if wrong := _what_is_wrong(row, tar.fileno()):
                offences.add(row["key"], wrong)
    return offences.verdict(rows=len(chosen), figures={"examples": table.num_rows})


def _what_is_wrong(row: Mapping[str, Any], tar: int) -> str | None:
    """Why a stored picture is not the one its row describes; None if it is."""
    offset, size = row["tar_offset"], row["tar_bytes"]
    if offset < 0 or size < 0 or offset + size > os.fstat(tar).st_size:
        return f"bytes {offset} to {offset + size} are not in the tar"
    body = os.pread(tar, size, offset)
    if (found := xxhash.xxh3_128_hexdigest(body)) != row["image_xxh3"]:
        return f"XXH3 is {found}, not {row['image_xxh3']}"
    try:
        return what_is_wrong_with_picture(body, row["width"], row["height"])
    except Exception as error:  # noqa: BLE001 (Pillow raises many kinds for bytes that are no picture)
        return f"cannot be decoded: {type(error).__name__}: {error}"


def what_is_wrong_with_picture(body: bytes, width: int, height: int) -> str | None:
    """Why a picture, decoded in full, is none of this size and of three channels; None if it is.

    Raises:
        Exception: of one of Pillow's many kinds, if it cannot be decoded.
    """
    with Image.open(io.BytesIO(body), formats=("JPEG", "PNG")) as picture:
        if picture.size != (width, height):
            return f"{picture.width} x {picture.height} pixels, not {width} x {height}"
        # Asked before anything is decoded: shards made elsewhere may hold any size.
        if picture.width * picture.height > MAX_PIXELS:
            return f"{picture.width} x {picture.height} pixels are too many to decode"
        if picture.mode not in THREE_CHANNEL_MODES:
            return f"mode {picture.mode} is not decoded to three channels"
        picture.load()
    return None


_TAGS: Final = ", ".join(f"'{tag}'" for tag in NsfwTag)
NSFW_SQL: Final = f"SELECT key, 'nsfw ' || nsfw AS detail FROM rows WHERE nsfw NOT IN ({_TAGS})"
SIMILARITY_SQL: Final = f"""
    SELECT key, 'similarity ' || similarity AS detail FROM rows
    WHERE isnan(similarity) OR NOT (similarity = {MISSING_SIMILARITY}
                                    OR similarity BETWEEN 0 AND 1 + {SIMILARITY_TOLERANCE})
"""
URL_SQL: Final = "SELECT key, 'url is empty' AS detail FROM rows WHERE regexp_full_match(url, '\\s*')"

_STATUSES: Final = ", ".join(f"'{status}'" for status in Status)
_OUTCOMES: Final = ", ".join(f"'{outcome}'" for outcome in Outcome)

IMAGE_RULES: Final = (
    Rule(
        name="rows_are_accounted_for",
        stage="images",
        blocking=True,
        description="Every sample has one row, a success or a failure, and there are no other rows.",
        check=_rows_accounted_for,
        needs=("samples",),
    ),
    Rule(
        name="keys_are_unique",
        stage="images",
        blocking=True,
        description="No key is there twice.",
        check=Query(
            read=_image_rows,
            columns=("key",),
            sql="""
                SELECT key, count(*) || ' rows' AS detail FROM rows GROUP BY key HAVING count(*) > 1
            """,
        ),
    ),
    Rule(
        name="outcomes_are_known",
        stage="images",
        blocking=True,
        description="Status and outcome are words of the vocabulary, and agree on what is a success.",
        check=Query(
            read=_image_rows,
            columns=("key", "status", "outcome"),
            # A table that img2dataset wrote has no outcomes.
            sql=f"""
                SELECT key, status || ', ' || coalesce(outcome, 'null') AS detail FROM rows
                WHERE status NOT IN ({_STATUSES}) OR outcome NOT IN ({_OUTCOMES})
                   OR (status = '{Status.SUCCESS}') <> (outcome = '{Outcome.SUCCESS}')
            """,
        ),
    ),
    Rule(
        name="tar_holds_the_successes",
        stage="images",
        blocking=True,
        description="The tar has one picture for each success, joined by key, and nothing for other rows.",
        check=_tar_holds_successes,
    ),
    Rule(
        name="success_share_is_usual",
        stage="images",
        blocking=False,
        description="As many downloads succeeded as in other shards of these years.",
        check=_success_share,
    ),
    Rule(
        name="stats_agree",
        stage="images",
        blocking=False,
        description="The counts in the shard's stats.json are those of its table.",
        check=_stats_agree,
    ),
    Rule(
        name="nsfw_is_one_of_four_tags",
        stage="normalized_images",
        blocking=True,
        description="Every tag is a label of the TFDS feature.",
        check=Query(read=_normalized_rows, columns=("key", "nsfw"), sql=NSFW_SQL),
    ),
    Rule(
        name="similarity_is_a_cosine_or_missing",
        stage="normalized_images",
        blocking=True,
        description="Every similarity is between 0 and 1, or exactly -1.0.",
        check=Query(read=_normalized_rows, columns=("key", "similarity"), sql=SIMILARITY_SQL),
    ),
    Rule(
        name="url_is_there",
        stage="normalized_images",
        blocking=True,
        description="Every example has a URL.",
        check=Query(read=_normalized_rows, columns=("key", "url"), sql=URL_SQL),
    ),
    Rule(
        name="sizes_are_positive",
        stage="normalized_images",
        blocking=True,
        description="Every picture, as served and as stored, has a width and a height.",
        check=Query(
            read=_normalized_rows,
            columns=("key", "width", "height", "original_width", "original_height", "tar_bytes"),
            sql="""
                SELECT key, format('{} x {} of {} x {}, {} bytes', width, height, original_width,
                                   original_height, tar_bytes) AS detail
                FROM rows WHERE least(width, height, original_width, original_height, tar_bytes) < 1
            """,
        ),
    ),
    Rule(
        name="successes_are_accounted_for",
        stage="normalized_images",
        blocking=True,
        description="Every success is an example or set aside; with the failures they make all rows.",
        check=_successes_accounted_for,
        needs=("images",),
    ),
    Rule(
        name="sampled_pictures_are_as_described",
        stage="normalized_images",
        blocking=True,
        description="Pictures spread over the shard have their checksum and size, and three channels.",
        check=_sampled_pictures,
        needs=("images",),
    ),
)
