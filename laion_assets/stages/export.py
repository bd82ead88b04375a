"""The shards once more for readers that know no TFDS: in Parquet, with a dataset card and croissant.json.

A Parquet file is made for each shard that the TFDS data sets have, of what that shard was made from, and
rewritten only when that changes. Like theirs, ``export/laion400m`` is a link to a folder of hard links that
is built beside it, so that a reader finds one export or the other, with checksums that are of its files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import xxhash

from laion_assets.errors import CorruptInput, MissingInput, ShardBusy
from laion_assets.formats import builds, hugging_face, tfds
from laion_assets.formats.checksums import sha256_of
from laion_assets.formats.croissant import CROISSANT_FILE, document
from laion_assets.formats.dataset_card import CARD_FILE, card
from laion_assets.formats.durable import identity, make_folder, sync_file, sync_folder
from laion_assets.formats.hugging_face import Batch, Part, shard_name
from laion_assets.formats.publish import Draft, Manifest, Recipe, Tally, publish, require, withdraw
from laion_assets.formats.sealed import fingerprint
from laion_assets.layout import EmbeddingShardId, Layout, Output, ShardId
from laion_assets.provenance import LICENSE, LICENSE_FILE
from laion_assets.published import output_of, partitions_beside
from laion_assets.schema import EMBEDDING_WIDTH
from laion_assets.shard_rows import (
    places_of_vectors,
    read_embedding_rows,
    read_image_embedding_rows,
    read_image_rows,
)
from laion_assets.vectors import rows_at_a_time

CODE_VERSION: Final = "1"

Work: TypeAlias = tuple[tfds.Config, ShardId]
"""A shard of a config, to be written in Parquet."""

CONFIGS: Final[Sequence[tfds.Config]] = ("images", "embeddings", "image_embeddings")

SUMS_FILE: Final = "SHA256SUMS"
_FILES: Final = (LICENSE_FILE, SUMS_FILE, CARD_FILE, CROISSANT_FILE)


def built_shards(layout: Layout, configs: Iterable[tfds.Config]) -> dict[tfds.Config, tuple[ShardId, ...]]:
    """The shards of each config that are there for TFDS, ascending; configs without any are left out."""
    found = {
        config: tuple(ShardId.parse(key) for key in partitions_beside(layout.tfds_shard(config, ShardId(0))))
        for config in configs
    }
    return {config: shards for config, shards in found.items() if shards}


# -- a shard --------------------------------------------------------------------------------------


def write_parquet_shard(
    config: tfds.Config, shard: ShardId, layout: Layout, width: int = EMBEDDING_WIDTH
) -> Manifest:
    """Publish the rows of a TFDS shard in Parquet, in its order, and the file's sha256.

    Counts: ``examples``.

    Args:
        config: which of the configs.
        shard: a shard of it.
        layout: where its files are.
        width: elements of a vector; of no meaning to ``images``.

    Raises:
        MissingInput: if the TFDS shard or what it was made from is not there, or was made again after it, or
            with vectors of another width.
        MisalignedEmbeddings: if vectors and rows do not belong together.
        CorruptTar: if what is in a picture's place is not the picture that the normalized table is about.
        CorruptParquet: if a table is damaged, or holds vectors of another width.
        CorruptInput: if a file that is read is not the one its manifest vouches for.
    """
    inputs = _inputs(config, shard, layout, width)
    recipe = Recipe(code_version=CODE_VERSION, settings=tfds.settings_of(config, width), inputs=inputs)
    output = layout.parquet_shard(config, shard)
    table = layout.normalized_table(shard)
    if config == "embeddings":
        table = layout.normalized_embeddings_table(EmbeddingShardId(shard.number))

    def write(draft: Draft) -> Tally:
        file, sums = map(draft.path, output.names)
        batches = _batches(config, shard, layout, width)
        rows = hugging_face.write_shard(file, config, batches, width=width, table=table)
        sums.write_text(f"{sha256_of(file)}  {file.name}\n", encoding="ascii")
        return Tally(rows=rows, counts={"examples": rows})

    return publish(output, recipe, write, reads=[output_of(layout, stage, str(shard)) for stage in inputs])


def _inputs(config: tfds.Config, shard: ShardId, layout: Layout, width: int) -> Mapping[str, str]:
    """What a TFDS shard was made from, by data version, all of which is there still."""
    built = layout.tfds_shard(config, shard)
    recipe = require(built).recipe
    if recipe.settings != tfds.settings_of(config, width):
        raise MissingInput(
            f"{built} was not written with vectors of {width} elements: materialize {built.stage} again"
        )
    for stage, data_version in recipe.inputs.items():
        source = output_of(layout, stage, str(shard))
        if require(source).data_version != data_version:
            raise MissingInput(f"{source} was made again after {built}: materialize {built.stage} first")
    return recipe.inputs


def _batches(config: tfds.Config, shard: ShardId, layout: Layout, width: int) -> Iterator[Batch]:
    if config == "images":
        for rows, pictures in read_image_rows(shard, layout):
            yield Batch(rows, pictures.read())
    elif config == "embeddings":
        found = EmbeddingShardId(shard.number)
        for rows, vectors in read_embedding_rows(found, layout, width, batch_rows=rows_at_a_time(width)):
            yield Batch(rows, vectors=vectors)
    else:
        places = places_of_vectors(shard, layout, width)
        for rows, pictures, vectors in read_image_embedding_rows(shard, layout, width, places):
            yield Batch(rows, pictures.read(), vectors)


# -- all of them ----------------------------------------------------------------------------------


def publish_export(
    layout: Layout, shards: Mapping[tfds.Config, Sequence[ShardId]], width: int = EMBEDDING_WIDTH
) -> Manifest:
    """Publish these shards, and no others, with what describes them; then remove all others in Parquet.

    A shard without rows has no file. Counts: ``shards``, ``files``, and ``rows:`` of each config.

    Args:
        layout: where the shards are and where the export goes.
        shards: the shards of each config, ascending; each is there in Parquet.
        width: elements of a vector.

    Raises:
        MissingInput: if a shard is not there in Parquet, or none has rows.
        CorruptInput: if something that is not this stage's is in the export's place.
        ShardBusy: if a shard is made again meanwhile, or another process is exporting.
    """
    builds.refuse_stranger(layout.export_folder, layout.export_builds)
    found = [
        _look_at(config, layout.parquet_shard(config, shard))
        for config, numbers in shards.items()
        for shard in numbers
    ]
    if not any(shard.rows for shard in found):
        raise MissingInput("no shard that is there holds an example: run laion-assets build first")
    export = _Export(layout=layout, shards=found, width=width)
    manifest = publish(layout.export(), export.recipe, export.write, also_intact=export.is_intact)
    for config in CONFIGS:
        _remove_others(config, layout, kept=set(shards.get(config, ())))
    return manifest


def _remove_others(config: tfds.Config, layout: Layout, *, kept: Collection[ShardId]) -> None:
    folder = layout.parquet_shard(config, ShardId(0)).folder
    # By their files, since a run that was killed here has left some without a manifest.
    keys = {path.name.split(".")[0] for path in folder.iterdir()} if folder.is_dir() else set()
    for shard in map(ShardId.parse, sorted(filter(str.isdecimal, keys))):
        if shard not in kept:
            withdraw(layout.parquet_shard(config, shard))


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """What an export has to know of a shard that is there."""

    config: tfds.Config
    output: Output
    manifest_identity: tuple[int, int, int]
    rows: int
    bytes: int
    sha256: str
    data_version: str

    @property
    def name(self) -> str:
        return shard_name(self.config, self.output.partition)


def _look_at(config: tfds.Config, output: Output) -> _Shard:
    table, sums = output.names
    try:
        # Taken before it is read: one that is replaced meanwhile is another afterwards.
        found = identity(output.manifest.stat())
        manifest = require(output)
        line = output.path(sums).read_bytes()
    except FileNotFoundError:
        raise MissingInput(f"{output} is not there: run laion-assets export again") from None
    if xxhash.xxh3_128_hexdigest(line) != manifest.files[sums].xxh3_128:
        raise CorruptInput(
            output.path(sums),
            expected=f"the sha256 of {table} that was published",
            found="another line",
            remedy=f"Delete {output.manifest} and run laion-assets export again.",
        )
    return _Shard(
        config=config,
        output=output,
        manifest_identity=found,
        rows=manifest.rows,
        bytes=manifest.files[table].bytes,
        sha256=line.split()[0].decode(),
        data_version=manifest.data_version,
    )


@dataclass(frozen=True, kw_only=True)
class _Export:
    """The shards of all configs, in order."""

    layout: Layout
    shards: Sequence[_Shard]
    width: int

    @cached_property
    def recipe(self) -> Recipe:
        # There can be tens of thousands of shards, so one fingerprint stands for all.
        versions = {f"{shard.output}": shard.data_version for shard in self.shards}
        return Recipe(
            code_version=CODE_VERSION,
            settings=fingerprint({"width": self.width}),
            inputs={"parquet": fingerprint(versions)},
        )

    @cached_property
    def files(self) -> Mapping[str, _Shard]:
        """Name within the export -> its shard; a shard of no rows has no file."""
        return {shard.name: shard for shard in self.shards if shard.rows}

    @cached_property
    def parts(self) -> Sequence[Part]:
        of_config: dict[tfds.Config, dict[str, _Shard]] = {}
        for name, shard in self.files.items():
            of_config.setdefault(shard.config, {})[name] = shard
        return [
            Part(
                config=config,
                width=self.width,
                rows=sum(shard.rows for shard in files.values()),
                files={name: (shard.bytes, shard.sha256) for name, shard in files.items()},
            )
            for config, files in of_config.items()
        ]

    def write(self, draft: Draft) -> Tally:
        """Make a build and point the link at it; write the record."""
        link, folder = self.layout.export_folder, self.layout.export_builds
        current = folder / link.readlink().name if link.is_symlink() else None
        make_folder(folder)
        # Whoever resolved the link earlier still reads the build before this one.
        builds.remove(build for build in folder.iterdir() if build != current)
        build = builds.new_build(folder, fingerprint([self.recipe.inputs, self.recipe.settings]))
        self._link_shards(build)
        self._describe(build)
        for directory in (*(build / part.config for part in self.parts), build):
            sync_folder(directory)
        draft.only.write_text(json.dumps(self._record(build), sort_keys=True) + "\n", encoding="utf-8")
        builds.point(link, build)
        rows = {f"rows:{part.config}": part.rows for part in self.parts}
        counts = {"shards": len(self.shards), "files": len(self.files), **rows}
        return Tally(rows=sum(rows.values()), counts=counts)

    def is_intact(self) -> bool:
        """Whether the link leads to a build of these files, each of the recorded size or checksum."""
        link = self.layout.export_folder
        try:
            record = json.loads(self.layout.export().only.read_bytes())
            return record == self._record(link) and all(
                (link / name).stat().st_size == shard.bytes for name, shard in self.files.items()
            )
        except (FileNotFoundError, ValueError):
            return False  # built again, which is the cure

    def _link_shards(self, build: Path) -> None:
        for part in self.parts:
            (build / part.config).mkdir()
        for name, shard in self.files.items():
            builds.link_file(f"{shard.output.path(shard.output.names[0])}", f"{build}/{name}")
        # Asked after linking: a shard made again since has another manifest by now, or none.
        for shard in self.shards:
            with suppress(FileNotFoundError):
                if identity(shard.output.manifest.stat()) == shard.manifest_identity:
                    continue
            raise ShardBusy(f"{shard.output} was made again during the export: run this again")

    def _describe(self, build: Path) -> None:
        about = tfds.about()
        texts = {
            LICENSE_FILE: LICENSE,
            SUMS_FILE: "".join(f"{shard.sha256}  {name}\n" for name, shard in self.files.items()),
            CARD_FILE: card(self.parts, about),
            CROISSANT_FILE: json.dumps(document(self.parts, about), indent=1, ensure_ascii=False) + "\n",
        }
        for name, text in texts.items():
            (build / name).write_text(text, encoding="utf-8")
            sync_file(build / name)

    def _record(self, build: Path) -> dict[str, Any]:
        return {
            "described_by": {name: sha256_of(build / name) for name in _FILES},
            "rows": {part.config: part.rows for part in self.parts},
            "files": {
                name: {"bytes": shard.bytes, "sha256": shard.sha256} for name, shard in self.files.items()
            },
        }


def export(
    layout: Layout,
    configs: Iterable[tfds.Config] = CONFIGS,
    width: int = EMBEDDING_WIDTH,
    watch: Callable[[Sequence[Work]], Iterable[Work]] = iter,
) -> Manifest:
    """Export every shard that the TFDS data sets can have: what is new or changed, then all of them at once.

    Args:
        layout: where the shards are and where the export goes.
        configs: which configs; one of which nothing is built is left out.
        width: elements of a vector.
        watch: passes on what it is given, and may tell how far it is.

    Raises:
        MissingInput: if nothing is built.
        LaionAssetsError: as :func:`write_parquet_shard` and :func:`publish_export`, at the first shard that
            cannot be exported: the export stays as it was, and the shards before it are kept.
    """
    shards = built_shards(layout, configs)
    if not shards:
        raise MissingInput("nothing is built that can be exported: run laion-assets build first")
    for config, shard in watch([(config, shard) for config, found in shards.items() for shard in found]):
        write_parquet_shard(config, shard, layout, width)
    return publish_export(layout, shards, width)
