"""What TensorFlow Datasets reads beside the shards, made without TensorFlow: features, shard names, metadata.

The data set is ``laion400m`` 1.0.0 as tensorflow-datasets 4.9.10 defines it (vision_language/laion400m),
so that its own class reads these files by name; its features make up the third config, too, which TFDS reads
from the files alone. Knows nothing of stages.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np

from laion_assets.formats.durable import make_folder, write_durably
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import DATASET_NAME, DATASET_VERSION, FileFormat
from laion_assets.schema import EMBEDDING_WIDTH, MISSING_SIMILARITY, NsfwTag

Config = Literal["images", "embeddings", "image_embeddings"]
"""Those of the official class, and one that it has not: the features of both."""

CONFIGS: Final[tuple[Config, ...]] = get_args(Config)

SPLIT: Final = "train"
DEFAULT_CONFIG: Final[Config] = "images"
_DEFAULT_CONFIG_FILE: Final = f'{{"default_config_name": "{DEFAULT_CONFIG}"}}'.encode()
METADATA_FILES: Final = ("features.json", "nsfw.labels.txt", "dataset_info.json")

NSFW_TAGS: Final = tuple(str(tag) for tag in NsfwTag)
"""Names of the feature ``nsfw``, whose value is a place among them."""


class About(NamedTuple):
    """What the official class says of the data set: a text, a BibTeX entry and an address."""

    description: str
    citation: str
    homepage: str


def about() -> About:
    """The official class's own words."""
    from tensorflow_datasets.vision_language.laion400m import laion400m as official

    # They have no public names.
    words = (official._DESCRIPTION, official._CITATION, official._HOMEPAGE)  # noqa: SLF001
    return About(*(text.strip() for text in words))


# -- features and metadata ------------------------------------------------------------------------


def features(config: Config, width: int = EMBEDDING_WIDTH) -> Any:  # noqa: ANN401 (TFDS is untyped)
    """The data set's ``tfds.features.FeaturesDict``, doc strings included, as the official class has it.

    Args:
        config: which of the configs.
        width: elements of a vector; of no meaning to ``images``.
    """
    import tensorflow_datasets as tfds

    described = {
        "caption": tfds.features.Text(doc="HTML alt-text attribute"),
        "nsfw": tfds.features.ClassLabel(
            names=NSFW_TAGS,
            doc=(
                "NSFW tag (detected with CLIP). Incohesive and missing tags"
                f" are replaced with {NsfwTag.UNTAGGED}"
            ),
        ),
        "similarity": tfds.features.Scalar(
            np.float64,
            doc=tfds.features.Documentation(
                desc=(
                    "cosine similarity score between the text and image embedding. "
                    f"Missing values default to {MISSING_SIMILARITY}"
                ),
                value_range="[0.0, 1.0]",
            ),
        ),
        "license": tfds.features.Text(doc="type of Creative Commons license (if applicable)"),
        "url": tfds.features.Text(doc="image URL"),
        "original_width": tfds.features.Scalar(np.int32, doc="original width of the image"),
        "original_height": tfds.features.Scalar(np.int32, doc="original height of the image"),
    }
    if config != "embeddings":
        described["image"] = tfds.features.Image(doc="image")
    if config != "images":
        for name, doc in (
            ("image_embedding", "CLIP image embedding"),
            ("text_embedding", "CLIP text embedding"),
        ):
            described[name] = tfds.features.Tensor(shape=(width,), dtype=np.float16, doc=doc)
    return tfds.features.FeaturesDict(described)


def shard_file_name(shard: int, shard_count: int, file_format: FileFormat) -> str:
    """Name by which TFDS looks for one of ``shard_count`` shards (``tfds.core.ShardedFileTemplate``)."""
    digits = max(5, len(str(shard_count)))
    return f"{DATASET_NAME}-{SPLIT}.{file_format}-{shard:0{digits}d}-of-{shard_count:0{digits}d}"


def file_numbers(examples: Mapping[int, int], *, dense: bool) -> dict[int, int]:
    """Number of each shard's file among those of a data set: the shard's own, or one without gaps.

    Args:
        examples: number of each shard that is there, ascending -> its examples.
        dense: whether files are numbered as they come, shards without examples having none.
    """
    if not dense:
        return {shard: shard for shard in examples}
    return {shard: number for number, shard in enumerate(filter(examples.get, examples))}


def write_metadata(
    folder: Path,
    config: Config,
    *,
    shard_lengths: Sequence[int],
    payload_bytes: int,
    width: int = EMBEDDING_WIDTH,
    file_format: FileFormat = "tfrecord",
) -> None:
    """Write ``METADATA_FILES``, in this order, and sync them.

    TFDS takes a folder without ``dataset_info.json`` for one that is being prepared, so it comes last.

    Args:
        folder: where the shards are, or will be once the folder has its final name.
        config: which of the configs.
        shard_lengths: examples of each shard; TFDS passes over a shard of 0, whose file may be missing.
        payload_bytes: bytes of all records' payloads, without framing.
        width: elements of a vector; of no meaning to ``images``.
        file_format: of the shards.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.vision_language.laion400m import laion400m as official

    identity = tfds.core.DatasetIdentity(
        name=DATASET_NAME,
        version=tfds.core.Version(DATASET_VERSION),
        data_dir=os.fspath(folder),
        module_name=official.__name__,
        config_name=config,
        release_notes=official.Laion400m.RELEASE_NOTES,
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description=official._DESCRIPTION,  # noqa: SLF001 (the text has no public name)
        features=features(config, width),
        homepage=official._HOMEPAGE,  # noqa: SLF001
        citation=official._CITATION,  # noqa: SLF001
    )
    info.set_file_format(file_format)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=DATASET_NAME, split=SPLIT, filetype_suffix=file_format
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=list(shard_lengths),
        num_bytes=payload_bytes,
        filename_template=template,
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(folder)
    for name in METADATA_FILES:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def settings_of(config: Config, width: int) -> str:
    """Fingerprint, for a recipe, of the settings that shape the examples of a config."""
    return "" if config == "images" else fingerprint({"width": width})


def names_default_config(path: Path) -> bool:
    """Whether :func:`write_default_config` wrote the file, and nobody changed it."""
    return path.exists() and path.read_bytes() == _DEFAULT_CONFIG_FILE


def write_default_config(path: Path, *, draft: Path) -> None:
    """Write which config ``tfds.builder("laion400m", data_dir=...)`` opens, unless it is written already.

    Args:
        path: ``.config/metadata.json`` beside the configs' folders (TFDS, ``load_default_config_name``).
        draft: where to write it first.
    """
    if not names_default_config(path):
        make_folder(path.parent)
        write_durably(path, _DEFAULT_CONFIG_FILE, draft=draft)
