"""What a user may set: one file (``laion.toml``) and the environment, for Dagster and command line."""

from __future__ import annotations

import glob
import json
import os
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UnparsableSettings

from laion_assets.columns import ColumnPolicy
from laion_assets.errors import SettingsError
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import FileFormat, Layout, part_id
from laion_assets.policy import Policy
from laion_assets.quality.thresholds import Thresholds
from laion_assets.schema import EMBEDDING_WIDTH, SOURCE_SCHEMAS

SETTINGS_FILE: Final = "laion.toml"
SETTINGS_FILE_VARIABLE: Final = "LAION_SETTINGS"
_RAW_SUFFIXES: Final = (".parquet", ".tsv")


class RawSettings(ColumnPolicy):
    """Where the raw files are, how they name their columns, and which of these are taken along."""

    source: Annotated[tuple[str, ...], NoDecode] = ()
    """Folders, glob patterns, files, or http(s):// and s3:// URLs of single files."""
    source_schema: str = "laion400m"
    """How the files name their columns: a name in ``schema.SOURCE_SCHEMAS``."""

    @field_validator("source", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return json.loads(value) if value.startswith("[") else (value,)

    @field_validator("source_schema")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in SOURCE_SCHEMAS:
            raise ValueError(f"is {value!r}; known are {', '.join(SOURCE_SCHEMAS)}")
        return value


class EmbeddingSettings(Policy):
    """Where the vectors are."""

    source: str | None = None
    """Folder with img_emb/, text_emb/ and metadata/, or images/, texts/ and metadata/."""
    width: int = Field(default=EMBEDDING_WIDTH, ge=1, le=65_536)
    """Elements of a vector: 512 for ViT-B/32, 768 for ViT-L/14."""


class TfdsSettings(Policy):
    """How the TFDS data sets are stored."""

    format: FileFormat = "tfrecord"
    """``tfrecord``, for ``tfds.load``, in ``tfds/``; or ``array_record``, for ``tfds.data_source`` and Grain,
    in ``tfds_array_record/`` (Linux only). What was made in the other format stays where it is."""
    dense: bool = False
    """Number the shards that are there without gaps, in data sets of their own in ``tfds_dense/``, for tools
    that want no empty shards. Every number after that of a shard that is new becomes another."""
    decode_pictures: bool = False
    """Decode every picture in full before it becomes an example, and set aside what cannot be. Otherwise only
    headers are read, in a quarter of the time. Pictures that others encoded are always decoded."""
    image_embeddings: bool = False
    """Whether a build makes ``laion400m/image_embeddings``, too: pictures with their vectors. It stores the
    pictures that have vectors once more, as many bytes as ``images`` takes for them, and 4 kB of vectors."""


class RecordSettings(Policy):
    """Pictures in Dagster's records. They stay there for good: delete a partition, and they are not gone."""

    overview: bool = True
    """Record with each shard's normalized images a small plot of its outcomes, similarities and sizes."""
    thumbnails: int = Field(default=0, ge=0, le=12)
    """Record with them so many of its pictures, small, of those tagged UNLIKELY; LAION's tag misses two of
    three pictures that it should not."""


class AutomationSettings(Policy):
    """What is noticed, and what follows from it without anybody's asking."""

    interval_s: int = Field(default=60, ge=5)
    """Seconds between two looks at the sources; what is new must lie still from one to the next."""
    request_runs: bool = False
    """Whether new parts, embedding shards and shards laid down are also read, planned and built."""
    keep_current: bool = False
    """Whether what follows from changed inputs is made again, unless the UI says otherwise."""
    warn_after_days: int = Field(default=7, ge=0, le=3_650)
    """Days after which the UI warns that a data set, the catalog or the report is old; 0 for never."""


class RunSettings(Policy):
    """Where the work of a run's stages on its partitions is done."""

    workers: Literal["here", "processes", "ray"] = "here"
    """``here``: one partition after the other in the run's own process. ``processes``: several at once in
    processes of this machine. ``ray``: as tasks of the Ray cluster that the run is in."""
    cores: int = Field(default=0, ge=0)
    """Cores that the partitions of a run may take at once; 0 for all that the machine or the cluster has."""
    cores_per_download: int = Field(default=4, ge=1)
    """Cores that the download of one shard takes: one speaks to the web, the others decode, unless
    ``image.workers`` says how many do. Every other stage takes one."""
    retries: int = Field(default=5, ge=0)
    """How often a partition is begun anew whose worker died."""


class Settings(BaseSettings):
    """Everything a user may set; ``LAION_FETCH__ATTEMPTS=3`` sets ``attempts`` of ``[fetch]``."""

    model_config = SettingsConfigDict(
        env_prefix="LAION_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    data_root: Path = Path("data")
    """Folder of every stage's files; with ``store``, of copies of those that this machine works with."""
    store: str = ""
    """Object storage that holds what is published, for many machines: ``s3://bucket/prefix``, ``gs://`` or
    ``az://``, with credentials from the usual environment. Empty: the data root itself does."""
    scratch_bytes: int = Field(default=0, ge=0)
    """With ``store``, how much of it the data root may hold: copies that were not used for longest are
    removed before a partition is made. 0: all that was ever used here."""
    dagster_home: Path = Path("dagster_home")
    """Folder of Dagster's records, unless the environment's DAGSTER_HOME names another."""
    rows_per_shard: int = Field(default=10_000, ge=1, le=1_000_000)
    """Rows of a shard; fixed once the plan exists."""
    batch_shards: int = Field(default=25, ge=1, le=1_000)
    """Shards that one Dagster run takes."""
    one_run: bool = False
    """Whether one run takes all shards that a backfill asks for. ``dagster asset materialize`` and ``dg
    launch`` take a range of partitions only then: they start one run."""
    check_space: bool = True
    """Refuse to start what, as estimated, will not fit on the data root's disk."""
    raw: RawSettings = RawSettings()
    fetch: FetchPolicy = FetchPolicy()
    image: ImagePolicy = ImagePolicy()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    tfds: TfdsSettings = TfdsSettings()
    automation: AutomationSettings = AutomationSettings()
    quality: Thresholds = Thresholds()
    records: RecordSettings = RecordSettings()
    run: RunSettings = RunSettings()

    @field_validator("store")
    @classmethod
    def _is_known_store(cls, value: str) -> str:
        if value and not re.fullmatch(r"(s3|gs|az)://[^/?#@]+(/[^/?#@]+)*/?", value):
            raise ValueError(f"is {value!r}: expected s3://bucket/prefix, gs://... or az://...")
        return value.rstrip("/")

    @classmethod
    def load(cls, file: Path | None = None) -> Settings:
        """Read the settings file, if there is one, and the environment, which wins.

        Args:
            file: the settings file; by default the one that the environment variable LAION_SETTINGS
                names, else ``laion.toml`` in the working folder. Paths in it are relative to its folder.

        Raises:
            SettingsError: naming the setting, what is wrong with it, and what is allowed.
        """
        named = file or (Path(value) if (value := os.environ.get(SETTINGS_FILE_VARIABLE)) else None)
        if named is not None and not named.is_file():
            raise SettingsError(f"settings file {named} does not exist")
        path = named or Path(SETTINGS_FILE)
        base = path.absolute().parent
        try:
            settings = _reading(cls, path)()
        except ValidationError as error:
            raise SettingsError(_one_line(error, path)) from None
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{path} is not TOML: {error}") from None
        except UnparsableSettings as error:
            raise SettingsError(f"{error}: lists are written as JSON, such as [80, 443]") from None
        # Of the class itself, and not of the one made for this file, which could not be pickled.
        plain = cls.model_construct(settings.model_fields_set, **dict(settings))
        return plain.relative_to(base)

    def relative_to(self, base: Path) -> Settings:
        """The same settings with relative paths taken from ``base``."""

        def absolute(source: str) -> str:
            return source if "://" in source else str(base / Path(source).expanduser())

        embeddings = self.embeddings
        if embeddings.source is not None:
            embeddings = embeddings.model_copy(update={"source": absolute(embeddings.source)})
        return self.model_copy(
            update={
                "data_root": base / self.data_root.expanduser(),
                "dagster_home": base / self.dagster_home.expanduser(),
                "raw": self.raw.model_copy(update={"source": tuple(map(absolute, self.raw.source))}),
                "embeddings": embeddings,
            }
        )

    @property
    def layout(self) -> Layout:
        """Paths below the data root."""
        return Layout(self.data_root, self.tfds.format, self.tfds.dense, self.store)

    def raw_files(self) -> dict[str, str]:
        """Part -> the file or URL it is read from, in order of the sources and then of the names.

        Raises:
            SettingsError: if a source names nothing, an unknown scheme, or two files of one name.
        """
        files: dict[str, str] = {}
        for source in self.raw.source:
            for location in _expand(source):
                part = part_id(location.rsplit("/", 1)[-1])
                if files.setdefault(part, location) != location:
                    raise SettingsError(
                        f"raw.source: {files[part]} and {location} would both be part {part!r}; rename one"
                    )
        return files


def _expand(source: str) -> Sequence[str]:
    if "://" in source:
        parts = urlsplit(source)
        if parts.scheme not in ("http", "https", "s3") or not parts.path.endswith(_RAW_SUFFIXES):
            raise SettingsError(
                f"raw.source {source!r}: expected http(s):// or s3://, and a file ending in .parquet or .tsv"
            )
        return [source]
    path = Path(source)
    if path.is_dir():
        return sorted(str(file) for file in path.iterdir() if file.name.endswith(_RAW_SUFFIXES))
    found = sorted(glob.glob(source))  # noqa: PTH207 (the pattern may be absolute)
    if not found:
        raise SettingsError(f"raw.source {source!r}: no such folder or file, and no file matches")
    return found


def _reading(cls: type[Settings], path: Path) -> type[Settings]:
    class FromFile(cls):  # type: ignore[valid-type,misc]
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            **_: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=path)

    return FromFile


def _one_line(error: ValidationError, path: Path) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    return f"setting {name!r} ({path} or environment): {first['msg']}"
