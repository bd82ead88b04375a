"""The table of an image shard as stages and rules read it, whoever wrote it: ours or img2dataset's own."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from laion_assets.errors import MisalignedShard
from laion_assets.formats import parquet
from laion_assets.formats.webdataset import index_tar
from laion_assets.keys import global_keys, spelled_keys
from laion_assets.layout import Layout, ShardId
from laion_assets.schema import IMAGES, IMAGES_IMG2DATASET

_REQUIRED = ("key", "status", "url")


def read_image_table(
    shard: ShardId, layout: Layout, *, columns: Sequence[str] = tuple(IMAGES_IMG2DATASET.names)
) -> pa.Table:
    """Read a shard's table, its rows in the order of the file.

    Args:
        shard: the shard.
        layout: where its files are.
        columns: which of the columns of :data:`~laion_assets.schema.IMAGES`, ``key`` among them.

    Returns:
        These columns, those that the table lacks being null, ``key`` being global; and ``stem``, the key
        as the tar's members spell it.

    Raises:
        CorruptParquet: if the table is damaged, or its values are of other types.
        CorruptTar: if the tar had to be asked for its spelling and is damaged.
        MisalignedShard: if it lacks what makes it a table of images, or its keys are not of this shard.
    """
    path = layout.images_table(shard)
    with parquet.open_reader(path) as reader:
        names = set(reader.schema_arrow.names)
        if missing := [name for name in _REQUIRED if name not in names]:
            raise MisalignedShard(
                path,
                expected=f"img2dataset's columns {', '.join(_REQUIRED)}",
                found=f"no {', '.join(missing)}",
                remedy="Place the Parquet file that img2dataset wrote beside the tar.",
            )
        found = reader.read(columns=[name for name in columns if name in names])
        keys = found["key"]
        stems = index_tar(layout.images_tar(shard)) if pa.types.is_integer(keys.type) else ()
        table = {
            name: found[name].cast(IMAGES.field(name).type)
            if name in names
            else pa.nulls(found.num_rows, IMAGES.field(name).type)
            for name in columns
        }
    table["stem"] = spelled_keys(keys, stems)
    table["key"] = global_keys(table["stem"], shard, path)
    return pa.table(table)
