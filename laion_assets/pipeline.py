"""The graph, stated once: which stage reads which, along which axis, and what its files are.

Dagster's assets, the command line's progress and status, and the tests all read :data:`STAGES`. No
stage's work is done here and Dagster is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

import pyarrow as pa

from laion_assets import schema
from laion_assets.download_progress import Follow
from laion_assets.errors import PlanError
from laion_assets.formats.publish import Manifest
from laion_assets.layout import EmbeddingShardId, Layout, Output, ShardId
from laion_assets.partitions import Axis, Partitions, read_plan
from laion_assets.published import output_of
from laion_assets.settings import Settings
from laion_assets.stages import (
    catalog,
    dataset_report,
    duplicates,
    embedding_index,
    embedding_join,
    embeddings,
    image_embeddings,
    images,
    laion400m,
    normalized_embeddings,
    normalized_images,
    raw_metadata,
    samples,
    shard_plan,
    tfds_embeddings,
    tfds_image_embeddings,
    tfds_images,
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: name of the stage, of its asset and of its folder.
        axis: what its partitions are.
        inputs: names of the stages whose files it reads.
        run: makes one partition; called with the settings and the partition key.
        code_version: version of the code that decides the files' bytes.
        group: where the asset is drawn.
        kinds: what the files are, in Dagster's words.
        description: what the files are and how to open them.
        columns: Arrow schema of the table among the files, if there is one.
        follow: as ``run``, of a stage whose partitions take so long that one wants to know how far it is.
        retry: as ``follow``, but of a partition that is there only what failed and may not fail again.
        pictures: draws what Dagster shows of a partition that is there: title -> PNG.
    """

    name: str
    axis: Axis
    inputs: tuple[str, ...]
    run: Callable[[Settings, str], Manifest]
    code_version: str
    group: str
    kinds: frozenset[str]
    description: str
    columns: pa.Schema | None = None
    follow: Callable[[Settings, str, Follow], Manifest] | None = None
    retry: Callable[[Settings, str, Follow], Manifest] | None = None
    pictures: Callable[[Settings, str], Mapping[str, bytes]] | None = None

    def output(self, layout: Layout, partition: str) -> Output:
        """The files of one partition."""
        return output_of(layout, self.name, partition)


# -- how each stage is called ---------------------------------------------------------------------


def _raw_metadata(settings: Settings, part: str) -> Manifest:
    files = settings.raw_files()
    if part not in files:
        raise PlanError(f"part {part} is planned, but [raw] source no longer names its file: put it back")
    return raw_metadata.check_part(
        part,
        settings.layout,
        location=files[part],
        source_schema=settings.raw.source_schema,
        rows_per_shard=settings.rows_per_shard,
        columns=settings.raw,
    )


def _shard_plan(settings: Settings, _: str) -> Manifest:
    return shard_plan.plan_shards(
        settings.layout, tuple(settings.raw_files()), rows_per_shard=settings.rows_per_shard
    )


def _duplicates(settings: Settings, _: str) -> Manifest:
    return duplicates.search_duplicates(settings.layout, settings.quality)


def _samples(settings: Settings, key: str) -> Manifest:
    return samples.write_samples(ShardId.parse(key), settings.layout, columns=settings.raw)


def _images(
    settings: Settings,
    key: str,
    follow: Follow | None = None,
    *,
    retry: bool = False,
) -> Manifest:
    return images.images(
        ShardId.parse(key),
        settings.layout,
        settings.fetch,
        settings.image,
        columns=settings.raw,
        follow=follow,
        retry=retry,
    )


def _normalized_images(settings: Settings, key: str) -> Manifest:
    return normalized_images.normalize_images(
        ShardId.parse(key), settings.layout, decode=settings.tfds.decode_pictures
    )


def _tfds_images(settings: Settings, key: str) -> Manifest:
    return tfds_images.write_tfds_images(ShardId.parse(key), settings.layout)


def _embeddings(settings: Settings, key: str) -> Manifest:
    return embeddings.check_embeddings(
        EmbeddingShardId.parse(key),
        settings.layout,
        settings.embeddings.source,
        settings.embeddings.width,
        settings.quality,
    )


def _embedding_join(settings: Settings, key: str) -> Manifest:
    return embedding_join.join_embeddings(EmbeddingShardId.parse(key), settings.layout, settings.quality)


def _embedding_index(settings: Settings, key: str) -> Manifest:
    return embedding_index.index_embeddings(EmbeddingShardId.parse(key), settings.layout)


def _normalized_embeddings(settings: Settings, key: str) -> Manifest:
    return normalized_embeddings.normalize_embeddings(EmbeddingShardId.parse(key), settings.layout)


def _tfds_embeddings(settings: Settings, key: str) -> Manifest:
    return tfds_embeddings.write_tfds_embeddings(
        EmbeddingShardId.parse(key), settings.layout, settings.embeddings.width
    )


def _image_embeddings(settings: Settings, key: str) -> Manifest:
    return image_embeddings.join_image_embeddings(
        ShardId.parse(key),
        settings.layout,
        sorted(embeddings.find_embedding_shards(settings.embeddings.source)),
        settings.embeddings.width,
    )


def _tfds_image_embeddings(settings: Settings, key: str) -> Manifest:
    return tfds_image_embeddings.write_tfds_image_embeddings(
        ShardId.parse(key), settings.layout, settings.embeddings.width
    )


def _laion400m_images(settings: Settings, _: str) -> Manifest:
    count = read_plan(settings).shard_count
    return laion400m.publish_dataset("images", settings.layout, shard_count=count)


def _laion400m_embeddings(settings: Settings, _: str) -> Manifest:
    found = embeddings.find_embedding_shards(settings.embeddings.source)
    return laion400m.publish_dataset(
        "embeddings",
        settings.layout,
        shard_count=max((shard.number for shard in found), default=-1) + 1,
        width=settings.embeddings.width,
    )


def _laion400m_image_embeddings(settings: Settings, _: str) -> Manifest:
    return laion400m.publish_dataset(
        "image_embeddings",
        settings.layout,
        shard_count=read_plan(settings).shard_count,
        width=settings.embeddings.width,
    )


def _catalog(settings: Settings, _: str) -> Manifest:
    return catalog.write_catalog(settings.layout)


def _dataset_report(settings: Settings, _: str) -> Manifest:
    return dataset_report.write_dataset_report(
        settings.layout, memory_bytes=settings.quality.duckdb_memory_bytes
    )


# -- what is shown of a partition -----------------------------------------------------------------


def _pictures_of_shard(settings: Settings, key: str) -> Mapping[str, bytes]:
    # DuckDB and Pillow are for who draws, and not for who looks at the graph.
    from laion_assets.quality.overview import draw_overview
    from laion_assets.quality.statistics import shard_statistics
    from laion_assets.quality.thumbnails import draw_thumbnails

    found = {}
    if settings.records.overview:
        found["overview"] = draw_overview(shard_statistics(settings.layout, ShardId.parse(key)))
    if settings.records.thumbnails:
        found["pictures"] = draw_thumbnails(settings.layout, ShardId.parse(key), settings.records.thumbnails)
    return found


def _plots_of_report(settings: Settings, _: str) -> Mapping[str, bytes]:
    return dataset_report.read_plots(settings.layout)


# -- the graph ------------------------------------------------------------------------------------

STAGES: Final = (
    Stage(
        name="raw_metadata",
        axis=Axis.PART,
        inputs=(),
        run=_raw_metadata,
        code_version=raw_metadata.CODE_VERSION,
        group="metadata",
        kinds=frozenset({"parquet"}),
        description=(
            "One raw file of URLs and alt texts, checked, in LAION-400M's eight columns: "
            "`raw_metadata/PART.parquet`, a row group for each shard. `PART.source.json` says where it "
            "came from and its sha256. To begin, set `[raw] source` in laion.toml to the folder, the "
            "pattern or the URLs of the raw Parquet files, or place shards made by img2dataset in the "
            "data root's `images/` folder."
        ),
        columns=schema.RAW,
    ),
    Stage(
        name="shard_plan",
        axis=Axis.NONE,
        inputs=("raw_metadata",),
        run=_shard_plan,
        code_version=shard_plan.CODE_VERSION,
        group="metadata",
        kinds=frozenset({"json"}),
        description=(
            "Which rows of which part make which shard: `shard_plan/shard_plan.json`. Only ever appended "
            "to, so a shard keeps its number and rows. After it grew, the code location has to reload."
        ),
    ),
    Stage(
        name="duplicates",
        axis=Axis.NONE,
        inputs=("raw_metadata",),
        run=_duplicates,
        code_version=duplicates.CODE_VERSION,
        group="metadata",
        kinds=frozenset({"parquet", "duckdb"}),
        description=(
            "How many rows of each part, and of all parts together, repeat a URL or a pair of URL and alt "
            "text, lack a URL, or have a similarity out of range: `duplicates/duplicates.parquet`, and the "
            "view `duplicates` of the catalog."
        ),
        columns=schema.DUPLICATES,
    ),
    Stage(
        name="samples",
        axis=Axis.SHARD,
        inputs=("raw_metadata", "shard_plan"),
        run=_samples,
        code_version=samples.CODE_VERSION,
        group="images",
        kinds=frozenset({"parquet"}),
        description=(
            "The rows of one shard, each with its key: `samples/SHARD.parquet`. Rows that cannot be asked "
            "for (no URL, an impossible similarity) are marked in `set_aside`, not dropped."
        ),
        columns=schema.SAMPLES,
    ),
    Stage(
        name="images",
        axis=Axis.SHARD,
        inputs=("samples",),
        run=_images,
        follow=_images,
        retry=partial(_images, retry=True),
        code_version=images.CODE_VERSION,
        group="images",
        kinds=frozenset({"parquet", "tar"}),
        description=(
            "Downloaded and resized pictures of one shard in img2dataset's layout: `images/SHARD.tar` "
            "(a WebDataset), `SHARD.parquet` (every row with its outcome, failures too) and "
            "`SHARD_stats.json`; beside them `SHARD.requests`, a Parquet table of how often each row was "
            "asked for and how long that took. Shards that img2dataset itself wrote are accepted."
        ),
        columns=schema.IMAGES,
    ),
    Stage(
        name="normalized_images",
        axis=Axis.SHARD,
        inputs=("images",),
        run=_normalized_images,
        code_version=normalized_images.CODE_VERSION,
        group="images",
        kinds=frozenset({"parquet"}),
        description=(
            "The examples-to-be of one shard: `normalized_images/SHARD.parquet`, joined to the tar by key, "
            "NSFW as one of four tags, a missing similarity as -1.0. `SHARD.set_aside.parquet` holds the "
            "rows that have a picture and still make no example, with the reason."
        ),
        columns=schema.NORMALIZED_IMAGES,
        pictures=_pictures_of_shard,
    ),
    Stage(
        name="tfds_images",
        axis=Axis.SHARD,
        inputs=("normalized_images", "images"),
        run=_tfds_images,
        code_version=tfds_images.CODE_VERSION,
        group="images",
        kinds=frozenset({"tfrecord"}),
        description=(
            "One shard of laion400m/images, in key order: `tfds_images/SHARD.tfrecord`, "
            "`tf.train.Example`s. The dataset that laion400m_images publishes has the same file, as a link."
        ),
        columns=schema.IMAGES_FEATURES,
    ),
    Stage(
        name="laion400m_images",
        axis=Axis.NONE,
        inputs=("tfds_images", "shard_plan"),
        run=_laion400m_images,
        code_version=laion400m.CODE_VERSION,
        group="datasets",
        kinds=frozenset({"tensorflow"}),
        description=(
            "The TFDS dataset laion400m/images over every shard that is there: "
            "`tfds.load('laion400m/images', split='train', data_dir='DATA_ROOT/tfds')`."
        ),
        columns=schema.IMAGES_FEATURES,
    ),
    Stage(
        name="embeddings",
        axis=Axis.EMBEDDING_SHARD,
        inputs=(),
        run=_embeddings,
        code_version=embeddings.CODE_VERSION,
        group="embeddings",
        kinds=frozenset({"numpy"}),
        description=(
            "The three source files of one embedding shard (img_emb_N.npy, text_emb_N.npy, "
            "metadata_N.parquet), checked and left where they are: `embeddings/SHARD.json` names them with "
            "their sha256. Set `[embeddings] source` in laion.toml to their folder."
        ),
    ),
    Stage(
        name="embedding_join",
        axis=Axis.EMBEDDING_SHARD,
        inputs=("embeddings",),
        run=_embedding_join,
        code_version=embedding_join.CODE_VERSION,
        group="embeddings",
        kinds=frozenset({"parquet"}),
        description=(
            "Vectors and metadata of one embedding shard in one table, `embedding_join/SHARD.parquet`; that "
            "they belong together is proven by recomputing each row's similarity. A vector is "
            "`numpy.frombuffer(value, '<f2')`."
        ),
        columns=schema.embedding_join(),
    ),
    Stage(
        name="embedding_index",
        axis=Axis.EMBEDDING_SHARD,
        inputs=("embedding_join",),
        run=_embedding_index,
        code_version=embedding_index.CODE_VERSION,
        group="embeddings",
        kinds=frozenset({"index"}),
        description=(
            "Where each row's vectors lie in embedding_join, found by the row's URL, or where it has none by "
            "its shard: `embedding_index/SHARD.index`, 80 bytes a row, in which image shards look them up."
        ),
    ),
    Stage(
        name="normalized_embeddings",
        axis=Axis.EMBEDDING_SHARD,
        inputs=("embedding_join",),
        run=_normalized_embeddings,
        code_version=normalized_embeddings.CODE_VERSION,
        group="embeddings",
        kinds=frozenset({"parquet"}),
        description=(
            "The examples-to-be of one embedding shard: `normalized_embeddings/SHARD.parquet`; `row` points "
            "at the vectors in embedding_join. `SHARD.set_aside.parquet` holds the rows that make none."
        ),
        columns=schema.NORMALIZED_EMBEDDINGS,
    ),
    Stage(
        name="tfds_embeddings",
        axis=Axis.EMBEDDING_SHARD,
        inputs=("normalized_embeddings", "embedding_join"),
        run=_tfds_embeddings,
        code_version=tfds_embeddings.CODE_VERSION,
        group="embeddings",
        kinds=frozenset({"tfrecord"}),
        description=(
            "One shard of laion400m/embeddings: `tfds_embeddings/SHARD.tfrecord`, `tf.train.Example`s. The "
            "dataset that laion400m_embeddings publishes has the same file, as a link."
        ),
        columns=schema.EMBEDDINGS_FEATURES,
    ),
    Stage(
        name="laion400m_embeddings",
        axis=Axis.NONE,
        inputs=("tfds_embeddings",),
        run=_laion400m_embeddings,
        code_version=laion400m.CODE_VERSION,
        group="datasets",
        kinds=frozenset({"tensorflow"}),
        description=(
            "The TFDS dataset laion400m/embeddings over every shard that is there: "
            "`tfds.load('laion400m/embeddings', split='train', data_dir='DATA_ROOT/tfds')`."
        ),
        columns=schema.EMBEDDINGS_FEATURES,
    ),
    Stage(
        name="image_embeddings",
        axis=Axis.SHARD,
        inputs=("normalized_images", "embedding_index", "embedding_join"),
        run=_image_embeddings,
        code_version=image_embeddings.CODE_VERSION,
        group="embeddings",
        kinds=frozenset({"parquet"}),
        description=(
            "The vectors of one image shard, `image_embeddings/SHARD.parquet`: joined on (shard, key) where "
            "the URL agrees too, else on the URL. Samples without vectors are counted."
        ),
        columns=schema.image_embeddings(),
    ),
    Stage(
        name="tfds_image_embeddings",
        axis=Axis.SHARD,
        inputs=("normalized_images", "images", "image_embeddings"),
        run=_tfds_image_embeddings,
        code_version=tfds_image_embeddings.CODE_VERSION,
        group="embeddings",
        kinds=frozenset({"tfrecord"}),
        description=(
            "One shard of laion400m/image_embeddings, the pictures that have vectors, in key order: "
            "`tfds_image_embeddings/SHARD.tfrecord`. It holds those pictures once more, so a build makes it "
            "only with `image_embeddings = true` under `[tfds]`."
        ),
        columns=schema.IMAGE_EMBEDDINGS_FEATURES,
    ),
    Stage(
        name="laion400m_image_embeddings",
        axis=Axis.NONE,
        inputs=("tfds_image_embeddings", "shard_plan"),
        run=_laion400m_image_embeddings,
        code_version=laion400m.CODE_VERSION,
        group="datasets",
        kinds=frozenset({"tensorflow"}),
        description=(
            "The TFDS dataset laion400m/image_embeddings over every shard that is there: "
            "`tfds.load('laion400m/image_embeddings', split='train', data_dir='DATA_ROOT/tfds')`. The "
            "official class has no such config, so TFDS reads it from the files alone."
        ),
        columns=schema.IMAGE_EMBEDDINGS_FEATURES,
    ),
    Stage(
        name="catalog",
        axis=Axis.NONE,
        # It reads every stage; these are where the branches end, the last of them only if it is asked for.
        inputs=(
            "duplicates",
            "laion400m_images",
            "laion400m_embeddings",
            "image_embeddings",
            "laion400m_image_embeddings",
        ),
        run=_catalog,
        code_version=catalog.CODE_VERSION,
        group="datasets",
        kinds=frozenset({"duckdb"}),
        description=(
            "A DuckDB database of views over every stage: `duckdb DATA_ROOT/catalog/catalog.duckdb`. Its "
            "table `example_queries` says what to ask it."
        ),
    ),
    Stage(
        name="dataset_report",
        axis=Axis.NONE,
        inputs=("catalog",),
        run=_dataset_report,
        code_version=dataset_report.CODE_VERSION,
        group="datasets",
        kinds=frozenset({"html"}),
        description=(
            "Figures, plots and a contact sheet of the data set: `dataset_report/report.html`, to open in a "
            "browser; the figures in `report.json`, the plots in `report.png`. `runs.html` and `runs.png`: "
            "when its pictures were downloaded, and what every stage took."
        ),
        pictures=_plots_of_report,
    ),
)

STAGE_BY_NAME: Final[Mapping[str, Stage]] = MappingProxyType({stage.name: stage for stage in STAGES})

# Stages that one run takes its partitions through, in the order in which the chains are built. The vectors
# of image shards come after both branches, since they may be in any embedding shard.
PARTS: Final = ("raw_metadata",)
IMAGES: Final = ("samples", "images", "normalized_images", "tfds_images")
EMBEDDINGS: Final = (
    "embeddings",
    "embedding_join",
    "embedding_index",
    "normalized_embeddings",
    "tfds_embeddings",
)
JOINED: Final = ("image_embeddings", "tfds_image_embeddings")
PUBLICATION: Final = (
    "duplicates",
    "laion400m_images",
    "laion400m_embeddings",
    "laion400m_image_embeddings",
    "catalog",
    "dataset_report",
)

# Stages that have nothing to do while these partitions are not there.
_POINTLESS_WITHOUT: Final[Mapping[str, tuple[Axis, ...]]] = MappingProxyType(
    {
        "duplicates": (Axis.PART,),
        "laion400m_images": (Axis.SHARD,),
        "laion400m_embeddings": (Axis.EMBEDDING_SHARD,),
        "image_embeddings": (Axis.EMBEDDING_SHARD,),
        "tfds_image_embeddings": (Axis.EMBEDDING_SHARD,),
        "laion400m_image_embeddings": (Axis.SHARD, Axis.EMBEDDING_SHARD),
    }
)

# Stages that a build leaves out unless `[tfds] image_embeddings` asks for them.
_OF_IMAGE_EMBEDDINGS: Final = frozenset({"tfds_image_embeddings", "laion400m_image_embeddings"})


def is_asked_for(stage: str, settings: Settings) -> bool:
    """Whether a build makes a stage; whoever wants one that it does not can still materialize it."""
    return settings.tfds.image_embeddings or stage not in _OF_IMAGE_EMBEDDINGS


def upstream_of(stage: Stage) -> frozenset[str]:
    """Stages of the same axis that a partition of this one is made from, directly or through others."""
    found = {name for name in stage.inputs if STAGE_BY_NAME[name].axis is stage.axis}
    return frozenset(found.union(*(upstream_of(STAGE_BY_NAME[name]) for name in found)))


def keys_of(stage: Stage, found: Partitions) -> tuple[str, ...]:
    """Partition keys of a stage, its own name where it has no partitions; none where it lacks a source."""
    if not all(map(found.keys, _POINTLESS_WITHOUT.get(stage.name, ()))):
        return ()
    return (stage.name,) if stage.axis is Axis.NONE else found.keys(stage.axis)
