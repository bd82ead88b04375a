"""The only builder of paths and file names: what each stage's files are called and where they lie."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, Self

from laion_assets.errors import SettingsError

# Part names become file names and Dagster partition keys, so both sets of rules apply.
_PART_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.=-]{0,199}")

MANIFEST_SUFFIX: Final = ".manifest.json"
"""What follows a partition key in the name of its manifest."""

# img2dataset takes every .json of a folder for a shard's statistics, and ends with a ValueError where the
# name does not begin with the shard's number and '_'.
IMAGES_MANIFEST_SUFFIX: Final = ".manifest"
"""As :data:`MANIFEST_SUFFIX`, of images; versions until 0.1.0 wrote the other one there, too."""

OBJECTS_FOLDER: Final = "objects"
"""Folder of a stage's files in object storage, beside the manifests that name them."""

DATASET_NAME: Final = "laion400m"
DATASET_VERSION: Final = "1.0.0"

FileFormat = Literal["tfrecord", "array_record"]
"""Of a TFDS data set's shards, in TFDS's words."""


shard_key: Final = "{:05d}".format
"""The partition key of a shard by its number, five digits or more (``"00042"``)."""


@dataclass(frozen=True, order=True)
class ShardId:
    """Number of a shard; its text form is the partition key."""

    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise SettingsError(f"shard number {self.number} is negative")

    def __str__(self) -> str:
        return shard_key(self.number)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a partition key.

        Raises:
            SettingsError: if the text is not the key this class itself would print.
        """
        if not re.fullmatch(r"[0-9]{5,9}", text) or (len(text) > 5 and text[0] == "0"):
            raise SettingsError(f"{text!r} is not a shard: expected five digits such as 00042")
        return cls(int(text))


class EmbeddingShardId(ShardId):
    """Number N of ``img_emb_N.npy``, ``text_emb_N.npy`` and ``metadata_N.parquet``."""


def part_id(file_name: str) -> str:
    """Name of a part: its file's name up to the first dot.

    Raises:
        SettingsError: if the name could not serve as a file name and partition key.
    """
    name = file_name.split(".", 1)[0]
    if not _PART_NAME.fullmatch(name):
        raise SettingsError(
            f"raw file {file_name!r}: its name up to the first dot must be letters, digits, '_', '=' or '-'"
        )
    return name


def partition_name(stage: str, partition: str) -> str:
    """What messages call a partition: its stage and its key, where it has one."""
    return stage if partition == stage else f"{stage} {partition}"


@dataclass(frozen=True, kw_only=True)
class Output:
    """The files of one stage for one partition.

    Attributes:
        stage: name of the stage and asset.
        partition: partition key; the stage's own name where it has no partitions.
        folder: where the files lie.
        names: file names, all in ``folder``; the manifest is not among them.
        logs: those of the names that tell of the run and not of the data: equal inputs need not give equal
            bytes. They are published and checksummed like the others, and count in no data version.
        manifest_suffix: what follows the partition key in the manifest's name.
        store: URL of the object storage that holds the partition, of which the folder has a copy; "" where
            the folder itself does.
        place: name of the folder in there.
    """

    stage: str
    partition: str
    folder: Path
    names: tuple[str, ...]
    logs: tuple[str, ...] = ()
    manifest_suffix: str = MANIFEST_SUFFIX
    store: str = ""
    place: str = ""

    def __str__(self) -> str:
        return partition_name(self.stage, self.partition)

    @cached_property
    def manifest(self) -> Path:
        """Written last: a partition without it is not done."""
        return self.folder / f"{self.partition}{self.manifest_suffix}"

    @cached_property
    def older_manifest(self) -> Path:
        """Where versions until 0.1.0 wrote it; the same file for every stage but images."""
        return self.folder / f"{self.partition}{MANIFEST_SUFFIX}"

    @cached_property
    def manifests(self) -> tuple[Path, ...]:
        """Where the manifest may lie: where it is written, and where an older version wrote it."""
        is_moved = self.manifest_suffix != MANIFEST_SUFFIX
        return (self.manifest, self.older_manifest) if is_moved else (self.manifest,)

    @cached_property
    def lease(self) -> Path:
        """Locked by the one process that may write these files."""
        return self.folder / ".leases" / f"{self.partition}.lock"

    @cached_property
    def copy_lock(self) -> Path:
        """Locked by whoever changes the copy of what object storage holds."""
        return self.folder / ".leases" / f"{self.partition}.copy.lock"

    @cached_property
    def manifest_key(self) -> str:
        """Where the manifest is in object storage: the one object that says what the partition is."""
        return f"{self.place}/{self.manifest.name}"

    def object_key(self, name: str, digest: str) -> str:
        """Where a file is in object storage: its contents are part of the name, so it is never another.

        Args:
            name: of the file.
            digest: BLAKE3 of its contents, hexadecimal.
        """
        return f"{self.place}/{OBJECTS_FOLDER}/{digest[:32]}/{name}"

    @cached_property
    def draft(self) -> Path:
        """Folder where files are written before they are whole, by whoever holds the lease."""
        return self.folder / ".drafts" / self.partition

    @cached_property
    def journal(self) -> Path:
        """What a run that was killed had finished, for the next one to go on from."""
        return self.folder / ".journals" / f"{self.partition}.journal"

    def path(self, name: str) -> Path:
        """Final path of one of the files."""
        if name not in self.names:
            raise ValueError(f"{self} has no file {name!r}, only {', '.join(self.names)}")
        return self.folder / name

    @property
    def only(self) -> Path:
        """Final path of the file, where there is just one."""
        (name,) = self.names
        return self.folder / name


@dataclass(frozen=True)
class Layout:
    """Paths below one data root.

    Attributes:
        root: the folder.
        file_format: of the TFDS data sets and of the shards they are made of: what has another format has
            folders of its own, so that both can be there at once.
        dense: whether the data sets number the shards that are there without gaps; these have folders of
            their own, too.
        store: URL of object storage (``s3://bucket/prefix``) that holds what is published, of which the root
            then has copies; "" where the root itself does.
    """

    root: Path
    file_format: FileFormat = "tfrecord"
    dense: bool = False
    store: str = ""

    def _output(self, stage: str, partition: str, *names: str, folder: Path | None = None) -> Output:
        folder = folder or self.root / stage
        output = Output(stage=stage, partition=partition, folder=folder, names=names)
        return replace(output, store=self.store, place=folder.name) if self.store else output

    def _of_format(self, name: str) -> Path:
        return self.root / (name if self.file_format == "tfrecord" else f"{name}_{self.file_format}")

    def _of_datasets(self, name: str) -> Path:
        folder = self._of_format(name)
        return folder.with_name(f"{folder.name}_dense") if self.dense else folder

    # -- the image branch -------------------------------------------------------------------------

    def raw_metadata(self, part: str) -> Output:
        """One raw part in the eight canonical columns, and what it was read from."""
        return self._output("raw_metadata", part, f"{part}.parquet", f"{part}.source.json")

    def raw_table(self, part: str) -> Path:
        """Rows of one raw part, a row group for each shard."""
        return self.raw_metadata(part).path(f"{part}.parquet")

    def raw_source(self, part: str) -> Path:
        """Address, size and sha256 of the file that one raw part was read from."""
        return self.raw_metadata(part).path(f"{part}.source.json")

    def shard_plan(self) -> Output:
        """Which rows of which part make which shard."""
        return self._output("shard_plan", "shard_plan", "shard_plan.json")

    def duplicates(self) -> Output:
        """How many rows of each part, and of all parts, are repeated or cannot be meant."""
        return self._output("duplicates", "duplicates", "duplicates.parquet")

    def samples(self, shard: ShardId) -> Output:
        """The rows of one shard, keyed."""
        return self._output("samples", str(shard), f"{shard}.parquet")

    def images(self, shard: ShardId) -> Output:
        """img2dataset's three files of one shard, and what asking for its pictures took.

        That table's name does not end in .parquet, because img2dataset and many a script read
        every such file of the folder as a list of pictures.
        """
        requests = f"{shard}.requests"
        placed = self.placed_images(shard)
        return replace(placed, names=(*placed.names, requests), logs=(f"{shard}_stats.json", requests))

    def placed_images(self, shard: ShardId) -> Output:
        """The three files of one shard as img2dataset itself writes them."""
        names = (f"{shard}.tar", f"{shard}.parquet", f"{shard}_stats.json")
        output = self._output("images", str(shard), *names, folder=self.images_folder)
        return replace(output, manifest_suffix=IMAGES_MANIFEST_SUFFIX)

    @property
    def images_folder(self) -> Path:
        """Where shards made by img2dataset itself are placed."""
        return self.root / "images"

    def images_tar(self, shard: ShardId) -> Path:
        """Pictures, captions and JSON of the successes of one shard."""
        return self.images(shard).path(f"{shard}.tar")

    def images_table(self, shard: ShardId) -> Path:
        """Every row of one shard with its outcome."""
        return self.images(shard).path(f"{shard}.parquet")

    def images_stats(self, shard: ShardId) -> Path:
        """Counts and times of one shard in img2dataset's JSON."""
        return self.images(shard).path(f"{shard}_stats.json")

    def images_requests(self, shard: ShardId) -> Path:
        """How often each row of one shard was asked for and how long that took, in Parquet."""
        return self.images(shard).path(f"{shard}.requests")

    def normalized_images(self, shard: ShardId) -> Output:
        """The examples-to-be of one image shard, and the rows set aside with their reasons."""
        return self._output("normalized_images", str(shard), f"{shard}.parquet", f"{shard}.set_aside.parquet")

    def normalized_table(self, shard: ShardId) -> Path:
        """The examples-to-be of one image shard."""
        return self.normalized_images(shard).path(f"{shard}.parquet")

    def tfds_images(self, shard: ShardId) -> Output:
        """One shard of ``laion400m/images``."""
        return self.tfds_shard("images", shard)

    # -- the embeddings branch --------------------------------------------------------------------

    def embeddings(self, shard: EmbeddingShardId) -> Output:
        """Where the three source files of one embedding shard lie, and that they were checked."""
        return self._output("embeddings", str(shard), f"{shard}.json")

    def embedding_join(self, shard: EmbeddingShardId) -> Output:
        """Vectors and metadata of one embedding shard in one Parquet file."""
        return self._output("embedding_join", str(shard), f"{shard}.parquet")

    def embedding_index(self, shard: EmbeddingShardId) -> Output:
        """Where the vectors of one embedding shard lie, found by URL or by shard and key."""
        return self._output("embedding_index", str(shard), f"{shard}.index")

    def normalized_embeddings(self, shard: EmbeddingShardId) -> Output:
        """The examples-to-be of one embedding shard, and the rows set aside with their reasons."""
        return self._output(
            "normalized_embeddings", str(shard), f"{shard}.parquet", f"{shard}.set_aside.parquet"
        )

    def normalized_embeddings_table(self, shard: EmbeddingShardId) -> Path:
        """The examples-to-be of one embedding shard."""
        return self.normalized_embeddings(shard).path(f"{shard}.parquet")

    def tfds_embeddings(self, shard: EmbeddingShardId) -> Output:
        """One shard of ``laion400m/embeddings``."""
        return self.tfds_shard("embeddings", shard)

    def image_embeddings(self, shard: ShardId) -> Output:
        """The vectors of one image shard, joined on (shard, key) or URL."""
        return self._output("image_embeddings", str(shard), f"{shard}.parquet")

    def tfds_image_embeddings(self, shard: ShardId) -> Output:
        """One shard of ``laion400m/image_embeddings``."""
        return self.tfds_shard("image_embeddings", shard)

    # -- what readers see -------------------------------------------------------------------------

    @property
    def tfds_data_dir(self) -> Path:
        """What users pass to TFDS as ``data_dir``."""
        return self._of_datasets("tfds")

    def tfds_config(self, config: str) -> Path:
        """Folder of one config (``images``, ``embeddings``, ``image_embeddings``), above its version."""
        return self.tfds_data_dir / DATASET_NAME / config

    def tfds_version(self, config: str) -> Path:
        """Folder that TFDS reads: a link to a build."""
        return self.tfds_config(config) / DATASET_VERSION

    def tfds_builds(self, config: str) -> Path:
        """Builds: folders of metadata and shards."""
        return self.tfds_config(config) / ".builds"

    @property
    def tfds_default_config(self) -> Path:
        """Names the config that TFDS opens where none is asked for."""
        return self.tfds_data_dir / DATASET_NAME / ".config" / "metadata.json"

    def dataset(self, config: str) -> Output:
        """Record of the last publication of one config: which shards it holds."""
        stage = f"{DATASET_NAME}_{config}"
        return self._output(stage, stage, f"{config}.json", folder=self._of_datasets("published"))

    def tfds_shard(self, config: str, shard: ShardId) -> Output:
        """One shard of a config."""
        stage = f"tfds_{config}"
        folder = self._of_format(stage)
        return self._output(stage, str(shard), f"{shard}.{self.file_format}", folder=folder)

    def known_shards(self, config: str) -> Path:
        """What the last publication of a config read in its shards' manifests; not needed, but quick."""
        return self._of_datasets("published") / ".known" / f"{config}.parquet"

    def catalog(self) -> Output:
        """DuckDB views over every stage: of paths, so each machine has its own."""
        return Output(
            stage="catalog", partition="catalog", folder=self.root / "catalog", names=("catalog.duckdb",)
        )

    def dataset_report(self) -> Output:
        """Figures, plots and contact sheets of the data set."""
        logs = ("runs.html", "runs.png")
        output = self._output(
            "dataset_report", "dataset_report", "report.html", "report.json", "report.png", *logs
        )
        return replace(output, logs=logs)

    def contact_sheet(self, shard: ShardId) -> Path:
        """Where ``laion-assets show`` draws a shard unless told otherwise."""
        return self.root / "contact_sheets" / f"{shard}.png"

    # -- the same rows for other readers ----------------------------------------------------------

    def parquet_shard(self, config: str, shard: ShardId) -> Output:
        """One shard of a config in Parquet, and its sha256 in the words of sha256sum; never in a store."""
        stage, table = f"parquet_{config}", f"{shard}.parquet"
        names = (table, f"{table}.sha256")
        return Output(stage=stage, partition=str(shard), folder=self.root / stage, names=names)

    @property
    def export_folder(self) -> Path:
        """What readers of Hugging Face's ``datasets`` and of Croissant open: a link to a build."""
        return self.root / "export" / DATASET_NAME

    @property
    def export_builds(self) -> Path:
        """Builds: folders of a dataset card, ``croissant.json`` and shards."""
        return self.root / "export" / ".builds"

    def export(self) -> Output:
        """Record of the last export: its files."""
        return Output(
            stage="export", partition="export", folder=self.root / "published", names=("export.json",)
        )
