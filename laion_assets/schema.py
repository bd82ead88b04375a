"""Columns and Arrow schemas of every stage, and the words they share. Spelled here, nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal, get_args

import pyarrow as pa

from laion_assets.outcomes import OUTCOME_PREFIX, Outcome

# TFDS writes -1.0 where a row has no similarity (tensorflow_datasets, vision_language/laion400m).
MISSING_SIMILARITY: Final = -1.0

# CLIP ViT-B/32, the model of the LAION-400M release.
EMBEDDING_WIDTH: Final = 512


class NsfwTag(StrEnum):
    """Labels of the ``nsfw`` feature, in TFDS's order; any other tag becomes UNTAGGED."""

    UNLIKELY = "UNLIKELY"
    UNSURE = "UNSURE"
    NSFW = "NSFW"
    UNTAGGED = "UNTAGGED"


TAG_PREFIX: Final = "nsfw:"
"""What precedes a tag where a manifest counts the rows of each."""

TAG_CLASSES: Final = tuple(f"{TAG_PREFIX}{tag}" for tag in NsfwTag)
"""What manifests count the examples of each tag by."""

SIMILARITY_PREFIX: Final = "similarity:"
"""What precedes a bin of similarities where a manifest counts the rows of each."""

SIMILARITY_BINS: Final = 50
"""Bins of similarities, of equal width between 0 and 1."""

SIMILARITY_CLASSES: Final = (
    f"{SIMILARITY_PREFIX}missing",
    *(f"{SIMILARITY_PREFIX}{index / SIMILARITY_BINS:.2f}" for index in range(SIMILARITY_BINS)),
)
"""What manifests count similarities by: the missing ones, then each bin, named by its lower edge."""


Digest = Literal["sha256", "md5", "sha512"]
"""Digests of bodies, as img2dataset and hashlib name them."""

DIGESTS: Final[tuple[Digest, ...]] = get_args(Digest)


class SetAside(StrEnum):
    """Why a row that is there does not become an example."""

    MISSING_URL = "missing_url"
    SIMILARITY_ABOVE_ONE = "similarity_above_one"
    SIMILARITY_BELOW_ZERO = "similarity_below_zero"
    MISSING_IMAGE = "missing_image"
    NOT_TFDS_FORMAT = "not_tfds_format"  # a picture that TensorFlow Datasets does not decode
    UNREADABLE_IMAGE = "unreadable_image"
    NOT_THREE_CHANNELS = "not_three_channels"
    WRONG_SIZE = "wrong_size"
    BAD_VECTOR = "bad_vector"


SET_ASIDE_PREFIX: Final = "set_aside:"
"""What precedes a reason where a manifest counts the rows of each."""


REPEATING_COLUMNS: Final = frozenset(
    {
        *(
            "NSFW",
            "LICENSE",
            "nsfw",
            "license",
            "set_aside",
            "reason",
            "kind",
            "matched_by",
            "embedding_shard",
        ),
        *("status", "outcome", "error_message", "http_status", "content_type", "exif"),
    }
)
"""Columns of which a few values make up most rows, which Parquet stores as such (in a dictionary)."""


def _column(name: str, type_: pa.DataType, description: str, *, nullable: bool = True) -> pa.Field:
    return pa.field(name, type_, nullable=nullable, metadata={"description": description})


# The eight columns of LAION-400M's metadata files, all nullable (the files' own Parquet schema).
RAW: Final = pa.schema(
    [
        _column("SAMPLE_ID", pa.int64(), "identifier given by LAION; may be null"),
        _column("URL", pa.string(), "address of the picture"),
        _column("TEXT", pa.string(), "alt text of the picture: the caption"),
        _column("HEIGHT", pa.int32(), "height in pixels that the page declared"),
        _column("WIDTH", pa.int32(), "width in pixels that the page declared"),
        _column("LICENSE", pa.string(), "'?', empty, or the start of a Creative Commons URL"),
        _column("NSFW", pa.string(), "LAION's own guess, of low precision and recall"),
        _column("similarity", pa.float64(), "CLIP ViT-B/32 cosine of picture and text; dirty values exist"),
    ]
)

DUPLICATES: Final = pa.schema(
    [
        _column("part", pa.string(), "name of the part; null for all parts together"),
        _column("rows", pa.int64(), "rows it has", nullable=False),
        _column("url_null", pa.int64(), "rows without a URL", nullable=False),
        _column("text_null", pa.int64(), "rows without an alt text", nullable=False),
        _column("similarity_missing", pa.int64(), "rows whose similarity is null, NaN or -1", nullable=False),
        _column(
            "similarity_outside",
            pa.int64(),
            "rows whose similarity is below what the release kept, or above 1",
            nullable=False,
        ),
        _column(
            "similarity_impossible", pa.int64(), "of these, no cosine: above 1 or below 0", nullable=False
        ),
        _column("url_repeated", pa.int64(), "rows whose URL is that of a row before them", nullable=False),
        _column("pair_repeated", pa.int64(), "rows whose URL and alt text are", nullable=False),
    ]
)

SAMPLES: Final = pa.schema(
    [
        _column(
            "key", pa.string(), "shard number and row, zero-padded, as img2dataset writes it", nullable=False
        ),
        _column("sample_id", pa.int64(), "SAMPLE_ID of the raw row"),
        _column("url", pa.string(), "address of the picture"),
        _column("caption", pa.string(), "alt text of the picture"),
        _column("declared_height", pa.int32(), "height in pixels that the page declared"),
        _column("declared_width", pa.int32(), "width in pixels that the page declared"),
        _column("LICENSE", pa.string(), "licence as LAION recorded it"),
        _column("NSFW", pa.string(), "tag as LAION recorded it"),
        _column("similarity", pa.float64(), "similarity as LAION recorded it"),
        _column("set_aside", pa.string(), "why the row is not asked for; null where it is"),
    ]
)


def images(digest: Digest = "sha256", extra: Iterable[pa.Field] = ()) -> pa.Schema:
    """Schema of a shard's images: the columns of :data:`IMAGES`, another digest, and the source's own.

    Args:
        digest: what is recorded of bodies beside their sha256.
        extra: columns taken along from the source.
    """
    others = [] if digest == "sha256" else [_column(digest, pa.string(), f"{digest} of the body served")]
    return pa.schema([*IMAGES, *others, *extra])


# img2dataset 1.47's columns for `--save_additional_columns NSFW,similarity,LICENSE`, in its order...
IMAGES_IMG2DATASET: Final = pa.schema(
    [
        _column("caption", pa.string(), "alt text of the picture"),
        _column("url", pa.string(), "address of the picture"),
        _column("NSFW", pa.string(), "tag as LAION recorded it"),
        _column("similarity", pa.float64(), "similarity as LAION recorded it"),
        _column("LICENSE", pa.string(), "licence as LAION recorded it"),
        _column("key", pa.string(), "shard number and row; names the tar members", nullable=False),
        _column("status", pa.string(), "success, failed_to_download or failed_to_resize", nullable=False),
        _column("error_message", pa.string(), "what went wrong; null for a success"),
        _column("width", pa.int32(), "width in pixels of the stored picture"),
        _column("height", pa.int32(), "height in pixels of the stored picture"),
        _column("original_width", pa.int32(), "width in pixels of the picture served"),
        _column("original_height", pa.int32(), "height in pixels of the picture served"),
        _column("exif", pa.string(), "EXIF of the picture served, as JSON"),
        _column("sha256", pa.string(), "sha256 of the body served"),
    ]
)
# ...then ours, which readers of img2dataset's output pass over.
IMAGES: Final = pa.schema(
    [
        *IMAGES_IMG2DATASET,
        _column("outcome", pa.string(), "class of the outcome", nullable=False),
        _column("http_status", pa.int16(), "HTTP status of the last answer; null where none came"),
        _column(
            "final_url", pa.string(), "URL of the last answer, as it was asked for; null where none came"
        ),
        _column("content_type", pa.string(), "what the last answer calls its body; '' where it does not say"),
        _column("body_bytes", pa.int64(), "length of the body served; null where none came whole"),
    ]
)

# What differs from run to run, in a file of its own.
REQUESTS: Final = pa.schema(
    [
        _column("key", pa.string(), "key of the row in the shard's table", nullable=False),
        _column("attempts", pa.int16(), "how often it was asked for; redirects do not count", nullable=False),
        _column(
            "milliseconds",
            pa.int32(),
            "from its turn to its last byte or failure: waiting for its host's other downloads and the "
            "pauses between attempts included",
            nullable=False,
        ),
    ]
)

NORMALIZED_IMAGES: Final = pa.schema(
    [
        _column("key", pa.string(), "shard number and row, global", nullable=False),
        _column("url", pa.string(), "address of the picture", nullable=False),
        _column("caption", pa.string(), "alt text; '' where it was null", nullable=False),
        _column("nsfw", pa.string(), "one of the four tags", nullable=False),
        _column("similarity", pa.float64(), "similarity, or -1.0 where it is missing", nullable=False),
        _column("license", pa.string(), "licence; '' where it was null", nullable=False),
        _column("original_height", pa.int32(), "height in pixels of the picture served", nullable=False),
        _column("original_width", pa.int32(), "width in pixels of the picture served", nullable=False),
        _column("height", pa.int32(), "height in pixels of the stored picture", nullable=False),
        _column("width", pa.int32(), "width in pixels of the stored picture", nullable=False),
        _column("image_xxh3", pa.string(), "XXH3-128 of the stored picture's bytes", nullable=False),
        _column(
            "tar_offset", pa.int64(), "where the picture's bytes begin in the shard's tar", nullable=False
        ),
        _column("tar_bytes", pa.int64(), "how many bytes they are", nullable=False),
    ]
)

ROWS_SET_ASIDE: Final = pa.schema(
    [
        _column("key", pa.string(), "key of the row set aside", nullable=False),
        _column("reason", pa.string(), "why it is no example", nullable=False),
        _column("detail", pa.string(), "the value or message behind the reason", nullable=False),
    ]
)

NORMALIZED_EMBEDDINGS: Final = pa.schema(
    [
        _column("row", pa.int64(), "row of the joined file that holds the vectors", nullable=False),
        _column("key", pa.string(), "key of that row, to prove the pairing", nullable=False),
        _column("url", pa.string(), "address of the picture", nullable=False),
        _column("caption", pa.string(), "alt text; '' where it was null", nullable=False),
        _column("nsfw", pa.string(), "one of the four tags", nullable=False),
        _column("similarity", pa.float64(), "similarity, or -1.0 where it is missing", nullable=False),
        _column("license", pa.string(), "licence; '' where it was null", nullable=False),
        _column("original_height", pa.int32(), "height in pixels; 0 where it was null", nullable=False),
        _column("original_width", pa.int32(), "width in pixels; 0 where it was null", nullable=False),
    ]
)


COUNTED: Final = (
    *(f"{OUTCOME_PREFIX}{outcome}" for outcome in Outcome),
    *(f"{SET_ASIDE_PREFIX}{reason}" for reason in SetAside),
    *TAG_CLASSES,
)
"""What manifests count rows or examples by, of all that a data set adds up."""

# What a publication remembers of each shard's manifests, so as not to read them again.
KNOWN_SHARDS: Final = pa.schema(
    [
        _column("shard", pa.int64(), "number of the shard", nullable=False),
        _column("manifest_inode", pa.uint64(), "inode of its manifest", nullable=False),
        _column("manifest_bytes", pa.int64(), "size of its manifest", nullable=False),
        _column(
            "manifest_changed_ns", pa.int64(), "when its manifest was changed, since 1970", nullable=False
        ),
        _column("inode", pa.uint64(), "inode of its file", nullable=False),
        _column("examples", pa.int64(), "examples it holds", nullable=False),
        _column("bytes", pa.int64(), "size of its file", nullable=False),
        _column("payload_bytes", pa.int64(), "bytes of its records' payloads", nullable=False),
        _column("data_version", pa.string(), "of its file", nullable=False),
        _column("settings", pa.string(), "fingerprint of those it was made with", nullable=False),
        _column(
            "recipes", pa.string(), "fingerprint of code and settings from its images on", nullable=False
        ),
        _column("sources", pa.string(), "source files of its own, as JSON; '' of images", nullable=False),
        *(_column(name, pa.int64(), "rows; -1 where not counted", nullable=False) for name in COUNTED),
    ]
)


def vector_type(width: int = EMBEDDING_WIDTH) -> pa.DataType:
    """One float16 vector of ``width`` elements, as its little-endian bytes.

    A fixed-size binary value costs Parquet no level per element, so a shard of a million vectors is read
    at the speed of memory; ``numpy.frombuffer(value, "<f2")`` is the vector.
    """
    return pa.binary(2 * width)


VECTOR_COLUMNS: Final = ("image_embedding", "text_embedding")
"""Columns of :func:`vector_type` in every table that has vectors."""


def embedding_join(width: int = EMBEDDING_WIDTH) -> pa.Schema:
    """Schema of a joined embedding shard whose vectors have ``width`` elements."""
    return pa.schema(
        [
            _column("shard_id", pa.int64(), "image shard that the metadata names; null where it names none"),
            _column("key", pa.string(), "key within that shard, as the metadata writes it", nullable=False),
            _column("url", pa.string(), "address of the picture"),
            _column("caption", pa.string(), "alt text of the picture"),
            _column("NSFW", pa.string(), "tag as LAION recorded it"),
            _column("similarity", pa.float64(), "similarity as LAION recorded it"),
            _column("LICENSE", pa.string(), "licence as LAION recorded it"),
            _column("original_height", pa.int32(), "height in pixels of the picture served"),
            _column("original_width", pa.int32(), "width in pixels of the picture served"),
            _column("cosine", pa.float32(), "cosine of the two vectors, recomputed", nullable=False),
            _column(
                "image_embedding", vector_type(width), "CLIP vector of the picture, float16", nullable=False
            ),
            _column(
                "text_embedding", vector_type(width), "CLIP vector of the caption, float16", nullable=False
            ),
        ]
    )


def image_embeddings(width: int = EMBEDDING_WIDTH) -> pa.Schema:
    """Schema of the vectors of one image shard."""
    return pa.schema(
        [
            _column("key", pa.string(), "key of the sample in the image shard", nullable=False),
            _column("matched_by", pa.string(), "'shard_and_key' or 'url'", nullable=False),
            _column("embedding_shard", pa.string(), "embedding shard the vectors came from", nullable=False),
            _column(
                "image_embedding", vector_type(width), "CLIP vector of the picture, float16", nullable=False
            ),
            _column(
                "text_embedding", vector_type(width), "CLIP vector of the caption, float16", nullable=False
            ),
        ]
    )


# Features of the TFDS data sets, as columns.
_NOT_FEATURES: Final = frozenset({"key", "height", "width", "image_xxh3", "tar_offset", "tar_bytes"})
_IMAGE: Final = _column("image", pa.binary(), "the stored picture, JPEG or PNG", nullable=False)
_VECTOR: Final = pa.list_(pa.float16(), EMBEDDING_WIDTH)
_DESCRIBED: Final = [field for field in NORMALIZED_IMAGES if field.name not in _NOT_FEATURES]
_VECTORS: Final = [image_embeddings().field(name).with_type(_VECTOR) for name in VECTOR_COLUMNS]
IMAGES_FEATURES: Final = pa.schema([_IMAGE, *_DESCRIBED])
EMBEDDINGS_FEATURES: Final = pa.schema([*_DESCRIBED, *_VECTORS])
IMAGE_EMBEDDINGS_FEATURES: Final = pa.schema([_IMAGE, *_DESCRIBED, *_VECTORS])


@dataclass(frozen=True, kw_only=True)
class SourceSchema:
    """How a sister data set names the canonical columns.

    Attributes:
        columns: canonical column (of :data:`RAW`) -> the source's column. A canonical column that is
            not named is null in every row. Only URL and TEXT must be there; matching ignores case,
            because releases of the same data set differ in it.
        delimiter: set for text files without a header, whose columns are then in the order of ``columns``.
    """

    columns: Mapping[str, str]
    delimiter: str | None = None


_LAION: Final = {name: name for name in RAW.names}

# Column names as in each data set's own files or data card.
SOURCE_SCHEMAS: Final[Mapping[str, SourceSchema]] = MappingProxyType(
    {
        "laion400m": SourceSchema(columns=_LAION),
        # The same names; sizes are doubles, which are cast.
        "laion2b": SourceSchema(columns=_LAION),
        "relaion": SourceSchema(columns=_LAION | {"SAMPLE_ID": "hash", "URL": "url", "TEXT": "caption"}),
        "coyo700m": SourceSchema(
            columns={
                "SAMPLE_ID": "id",
                "URL": "url",
                "TEXT": "text",
                "HEIGHT": "height",
                "WIDTH": "width",
                "similarity": "clip_similarity_vitb32",
            }
        ),
        # uid is a 128-bit hexadecimal number, which no int64 holds, so SAMPLE_ID stays null.
        "datacomp": SourceSchema(
            columns={
                "URL": "url",
                "TEXT": "text",
                "HEIGHT": "original_height",
                "WIDTH": "original_width",
                "similarity": "clip_b32_similarity_score",
            }
        ),
        "cc12m": SourceSchema(columns={"URL": "url", "TEXT": "caption"}, delimiter="\t"),
    }
)


def describe(schema: pa.Schema) -> dict[str, str]:
    """Column name -> its description, as declared above."""
    return {field.name: (field.metadata or {}).get(b"description", b"").decode() for field in schema}
