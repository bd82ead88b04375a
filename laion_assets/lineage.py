"""Which columns each column of a stage is made of, stated once. Knows nothing of files or Dagster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from laion_assets.schema import EMBEDDINGS_FEATURES, IMAGE_EMBEDDINGS_FEATURES, IMAGES_FEATURES

Origin: TypeAlias = tuple[str, str]
"""A stage and a column of it."""

NEW: Final[tuple[Origin, ...]] = ()
"""Of a column that is made of no other: read from a source, counted, or of a file without columns."""


def _from(stage: str, **columns: str) -> dict[str, tuple[Origin, ...]]:
    """Column -> the columns of one stage that it is made of, separated by spaces."""
    return {column: tuple((stage, name) for name in names.split()) for column, names in columns.items()}


def _same(stage: str, columns: Iterable[str]) -> dict[str, tuple[Origin, ...]]:
    """Columns that are called alike in the stage that they come from."""
    return {column: ((stage, column),) for column in columns}


def _new(*columns: str) -> dict[str, tuple[Origin, ...]]:
    return dict.fromkeys(columns, NEW)


_DESCRIBED: Final = ("url", "caption", "nsfw", "similarity", "license", "original_height", "original_width")
_VECTORS: Final = ("image_embedding", "text_embedding")
_AS_RECORDED: Final = ("caption", "url", "NSFW", "similarity", "LICENSE")
_PICTURE: Final = {"image": "tar_offset tar_bytes image_xxh3"}
_NORMALIZED: Final = {
    "url": "url",
    "caption": "caption",
    "nsfw": "NSFW",
    "similarity": "similarity",
    "license": "LICENSE",
}
# What came of asking for a row's URL, and what was found there.
_ASKED: Final = ("status", "error_message", "outcome")
_FOUND: Final = (
    *("width", "height", "original_width", "original_height", "exif", "sha256"),
    *("http_status", "final_url", "content_type", "body_bytes"),
)

COLUMN_ORIGINS: Final[Mapping[str, Mapping[str, tuple[Origin, ...]]]] = MappingProxyType(
    {
        "raw_metadata": _new("SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"),
        "duplicates": _new("part", "rows")
        | _from(
            "raw_metadata",
            url_null="URL",
            text_null="TEXT",
            similarity_missing="similarity",
            similarity_outside="similarity",
            similarity_impossible="similarity",
            url_repeated="URL",
            pair_repeated="URL TEXT",
        ),
        "samples": _new("key")
        | _from(
            "raw_metadata",
            sample_id="SAMPLE_ID",
            url="URL",
            caption="TEXT",
            declared_height="HEIGHT",
            declared_width="WIDTH",
            LICENSE="LICENSE",
            NSFW="NSFW",
            similarity="similarity",
            set_aside="URL similarity",
        ),
        "images": _same("samples", ("key", *_AS_RECORDED))
        | _from("samples", **dict.fromkeys(_ASKED, "url set_aside"))
        | _from("samples", **dict.fromkeys(_FOUND, "url")),
        "normalized_images": _same("images", ("key", "height", "width"))
        | _from("images", **_NORMALIZED)
        | _from("images", original_height="original_height height", original_width="original_width width")
        # They are of the tar.
        | _new("image_xxh3", "tar_offset", "tar_bytes"),
        "tfds_images": _from("normalized_images", **_PICTURE) | _same("normalized_images", _DESCRIBED),
        "laion400m_images": _same("tfds_images", IMAGES_FEATURES.names),
        # The release's files, which are no asset's tables.
        "embedding_join": _new(
            *("shard_id", "key", "url", "caption", "NSFW", "similarity", "LICENSE"),
            *("original_height", "original_width", "cosine", *_VECTORS),
        ),
        "normalized_embeddings": _new("row")
        | _same("embedding_join", ("key", "original_height", "original_width"))
        | _from("embedding_join", **_NORMALIZED),
        "tfds_embeddings": _same("normalized_embeddings", _DESCRIBED) | _same("embedding_join", _VECTORS),
        "laion400m_embeddings": _same("tfds_embeddings", EMBEDDINGS_FEATURES.names),
        "image_embeddings": _same("normalized_images", ("key",))
        | {
            "matched_by": (
                *(("normalized_images", name) for name in ("key", "url")),
                *(("embedding_join", name) for name in ("shard_id", "key", "url")),
            )
        }
        | _new("embedding_shard")
        | _same("embedding_join", _VECTORS),
        "tfds_image_embeddings": _from("normalized_images", **_PICTURE)
        | _same("normalized_images", _DESCRIBED)
        | _same("image_embeddings", _VECTORS),
        "laion400m_image_embeddings": _same("tfds_image_embeddings", IMAGE_EMBEDDINGS_FEATURES.names),
    }
)
"""Stage -> column -> the columns of its inputs that it is made of; :data:`NEW` where there are none."""
