"""Rules of what readers see: the TFDS data sets, the catalog and the report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import duckdb

from laion_assets.errors import CorruptInput, CorruptRecords
from laion_assets.formats import tfds
from laion_assets.formats.publish import Manifest
from laion_assets.formats.records import read_records
from laion_assets.layout import ShardId
from laion_assets.published import manifests_of, version_of_everything
from laion_assets.published_dataset import (
    PublishedDataset,
    PublishedShard,
    copy_shard,
    read_dataset,
    stored_sizes,
)
from laion_assets.quality.rules.rule import Offences, Rule, Subject, Verdict, read_json_object, spread

CATALOG_STAGES: Final = (
    "raw_metadata",
    "samples",
    "images",
    "normalized_images",
    "embedding_join",
    "normalized_embeddings",
    "image_embeddings",
)
"""The stages whose tables the catalog shows, each in a view of the stage's name."""


class _Dataset:
    """The record of a data set's last publication, and the metadata that TFDS reads."""

    def __init__(self, subject: Subject, config: tfds.Config) -> None:
        self.config = config
        self.layout = subject.layout
        self.folder = subject.layout.tfds_version(config)
        info_file = self.folder / tfds.METADATA_FILES[-1]
        record = read_json_object(subject.layout.dataset(config).only)
        try:
            # In object storage, what lies beside the shards is part of the record.
            stored = record["files"][info_file.name] if self.layout.store else None
            info = read_json_object(info_file) if stored is None else json.loads(stored)
            self.shard_count = int(record["shard_count"])
            self.payload_bytes = int(record["payload_bytes"])
            self.shards: Mapping[str, Mapping[str, Any]] = record["shards"]
            (split,) = info["splits"]
            self.lengths = [int(length) for length in split["shardLengths"]]
            # protobuf's JSON leaves out a number that is 0: no shard has an example.
            self.num_bytes = int(split.get("numBytes", 0))
            examples = {ShardId.parse(key).number: shard["examples"] for key, shard in self.shards.items()}
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptInput(
                info_file,
                expected="the metadata of a data set with one split",
                found=repr(error)[:200],
                remedy=f"Materialize laion400m_{config} again.",
            ) from error
        is_dense = self.layout.dense
        self.numbers = tfds.file_numbers(dict(sorted(examples.items())), dense=is_dense)
        self.file_count = len(self.numbers) if is_dense else self.shard_count
        self.published = {number: examples[shard] for shard, number in self.numbers.items()}

    def file(self, key: str) -> Any:  # noqa: ANN401 (a Path; of no type to the untyped record)
        """Where a shard's records are."""
        number = self.numbers[ShardId.parse(key).number]
        return self.folder / tfds.shard_file_name(number, self.file_count, self.layout.file_format)

    @cached_property
    def manifests(self) -> Mapping[str, Manifest]:
        """The shards' manifests now, which may be of a later making."""
        return manifests_of(self.layout, f"tfds_{self.config}")

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        return stored_sizes(self.config, self.layout)

    @cached_property
    def _published(self) -> tuple[PublishedDataset, Mapping[str, PublishedShard]]:
        dataset = read_dataset(self.config, self.layout)
        return dataset, {str(shard.shard): shard for shard in dataset.shards}

    def size(self, key: str) -> int | None:
        """Size of a shard's file, if it is there."""
        if self.layout.store:
            _, shards = self._published
            return self._sizes.get(shards[key].key)
        file = self.file(key)
        return int(file.stat().st_size) if file.is_file() else None

    @contextmanager
    def opened(self, key: str) -> Iterator[Path]:
        """The path of a shard's file, copied here for as long as it is read, if need be."""
        if not self.layout.store:
            yield self.file(key)
            return
        dataset, shards = self._published
        with TemporaryDirectory() as folder:
            path = Path(folder) / shards[key].file_name
            copy_shard(dataset, shards[key], path)
            yield path


def _shards_agree(subject: Subject, config: tfds.Config) -> Verdict:
    dataset = _Dataset(subject, config)
    offences = Offences()
    if len(dataset.lengths) != dataset.file_count:
        offences.add("shards", f"TFDS is told of {len(dataset.lengths)}, not {dataset.file_count}")
    for number, length in enumerate(dataset.lengths):
        recorded = dataset.published.get(number, 0)
        if length != recorded:
            offences.add(ShardId(number), f"TFDS is told of {length} examples, {recorded} were published")
    for key, shard in dataset.shards.items():
        if wrong := _file_differs(dataset, key, shard):
            offences.add(key, wrong)
    if dataset.num_bytes != dataset.payload_bytes:
        offences.add("bytes", f"TFDS is told of {dataset.num_bytes}, {dataset.payload_bytes} were published")
    figures = {
        "examples": sum(dataset.lengths),
        "shards_present": len(dataset.shards),
        "shards_missing": dataset.shard_count - len(dataset.shards),
    }
    return offences.verdict(rows=dataset.shard_count, figures=figures)


def _file_differs(dataset: _Dataset, key: str, shard: Mapping[str, Any]) -> str | None:
    if shard["examples"]:
        file, found = dataset.file(key), dataset.size(key)
        if found is None:
            return f"{file.name} is not there"
        if found != shard["bytes"]:
            return f"{file.name} has {found} bytes, not {shard['bytes']}"
    manifest = dataset.manifests.get(key)
    if manifest is None or manifest.data_version != shard["data_version"]:
        return None  # made again since, which is no fault of the data set
    if manifest.counts.get("examples") != shard["examples"]:
        return f"{shard['examples']} examples, its manifest counts {manifest.counts.get('examples')}"
    return None


def _records_counted(subject: Subject, config: tfds.Config) -> Verdict:
    dataset = _Dataset(subject, config)
    present = [key for key, shard in dataset.shards.items() if shard["examples"]]
    chosen = [present[index] for index in spread(len(present), subject.thresholds.sampled_shards)]
    offences = Offences()
    records = 0
    for key in chosen:
        expected = dataset.shards[key]["examples"]
        try:
            with dataset.opened(key) as path:
                found = sum(1 for _ in read_records(path, subject.layout.file_format))
        except CorruptRecords as error:
            offences.add(key, str(error))
            continue
        except FileNotFoundError:
            offences.add(key, "its file is not there")
            continue
        records += found
        if found != expected:
            offences.add(key, f"{found} records, not {expected}")
    return offences.verdict(rows=len(chosen), figures={"records": records, "shards_present": len(present)})


def _dataset_is_current(subject: Subject, config: tfds.Config) -> Verdict:
    dataset = _Dataset(subject, config)
    manifests, offences = dataset.manifests, Offences()
    for key, manifest in manifests.items():
        if dataset.shards.get(key, {}).get("data_version") != manifest.data_version:
            offences.add(key, "made since the data set was published")
    for key in sorted(dataset.shards.keys() - manifests.keys()):
        offences.add(key, "withdrawn since the data set was published")
    return offences.verdict(rows=len(manifests.keys() | dataset.shards.keys()))


# -- catalog --------------------------------------------------------------------------------------


def _views_hold_the_rows(subject: Subject) -> Verdict:
    offences = Offences()
    rows = 0
    with duckdb.connect(str(subject.layout.catalog().only), read_only=True) as catalog:
        for stage in CATALOG_STAGES:
            expected = sum(manifest.rows for manifest in manifests_of(subject.layout, stage).values())
            rows += expected
            try:
                (found,) = catalog.execute(f'SELECT count(*) FROM "{stage}"').fetchone() or (0,)  # noqa: S608
            except duckdb.Error as error:
                offences.add(stage, str(error))
                continue
            if found != expected:
                offences.add(stage, f"{found} rows, {expected} are published")
    return offences.verdict(rows=rows)


# -- dataset_report -------------------------------------------------------------------------------

# What a page may hold that is only to be looked at.
_REFERENCES: Final = frozenset(
    {"src", "srcset", "href", "data", "action", "formaction", "poster", "background"}
)
_ACTIVE_TAGS: Final = frozenset(
    {"script", "iframe", "frame", "object", "embed", "applet", "form", "base", "link", "meta"}
)
_HARMLESS_REFERENCE: Final = re.compile(r"#|data:image/(png|jpeg);base64,")
_MAY_HAVE_CHARSET: Final = {"charset", "name", "content"}


class _PageReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.offences = Offences()
        self.elements = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements += 1
        names = {name for name, _ in attrs}
        if tag in _ACTIVE_TAGS and not (tag == "meta" and names <= _MAY_HAVE_CHARSET):
            self.offences.add(tag, f"an element at line {self.getpos()[0]}")
        for name, value in attrs:
            if name.startswith("on") or (
                name in _REFERENCES and not _HARMLESS_REFERENCE.match((value or "").strip())
            ):
                self.offences.add(f"{tag} {name}", (value or "")[:100])


def _page_is_inert(subject: Subject) -> Verdict:
    output = subject.layout.dataset_report()
    reader = _PageReader()
    for name in output.names:
        if name.endswith(".html"):
            reader.feed(output.path(name).read_text(encoding="utf-8"))
    reader.close()
    return reader.offences.verdict(rows=reader.elements)


def _report_is_current(subject: Subject) -> Verdict:
    _, figures, *_ = subject.layout.dataset_report().names
    found = read_json_object(subject.layout.dataset_report().path(figures)).get("published")
    offences = Offences()
    if found != version_of_everything(subject.layout):
        offences.add("report", "something was published since: materialize dataset_report again")
    return offences.verdict(rows=1)


def _dataset_rules(config: tfds.Config) -> tuple[Rule, ...]:
    stage = f"laion400m_{config}"
    return (
        Rule(
            name="shards_are_those_published",
            stage=stage,
            blocking=True,
            description="TFDS is told the lengths and sizes that were published, and the files are there.",
            check=lambda subject: _shards_agree(subject, config),
        ),
        Rule(
            name="records_are_as_many",
            stage=stage,
            blocking=True,
            description="Shards spread over the data set hold as many sound records as TFDS is told.",
            check=lambda subject: _records_counted(subject, config),
        ),
        Rule(
            name="shards_are_current",
            stage=stage,
            blocking=False,
            description="The data set holds every shard that is there, as it is now.",
            check=lambda subject: _dataset_is_current(subject, config),
        ),
    )


DATASET_RULES: Final = (
    *_dataset_rules("images"),
    *_dataset_rules("embeddings"),
    *_dataset_rules("image_embeddings"),
    Rule(
        name="views_hold_the_rows",
        stage="catalog",
        blocking=False,
        description="Every view opens, and holds the rows that its stage has published.",
        check=_views_hold_the_rows,
    ),
    Rule(
        name="page_is_inert",
        stage="dataset_report",
        blocking=True,
        description="The pages run nothing and ask for nothing from elsewhere.",
        check=_page_is_inert,
    ),
    Rule(
        name="report_is_current",
        stage="dataset_report",
        blocking=False,
        description="The report is of what is published now.",
        check=_report_is_current,
    ),
)
