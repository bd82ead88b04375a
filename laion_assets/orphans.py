"""Objects in a store that nothing names any more: of workers that lost, and of older versions."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, replace

from laion_assets.errors import MissingInput
from laion_assets.formats import object_store, tfds
from laion_assets.layout import OBJECTS_FOLDER, Layout
from laion_assets.published import STAGE_NAMES, manifests_of, output_of, sample_output
from laion_assets.published_dataset import read_dataset


@dataclass(frozen=True, kw_only=True)
class Orphan:
    """An object's key and size."""

    key: str
    bytes: int


def find_orphans(layout: Layout, *, older_than_days: float) -> list[Orphan]:
    """Objects that no manifest names, and no data set as it was last published, by key.

    Args:
        layout: whose stages are looked at, in its format of TFDS's shards.
        older_than_days: younger ones are left out, since their manifest may be on its way.

    Raises:
        CorruptManifest: if a manifest cannot be read, so that nobody knows what it names.
        StoreUnavailable: if the store does not answer.
    """
    stages = [stage for stage in STAGE_NAMES if sample_output(layout, stage).store]
    before = time.time() - older_than_days * 86_400
    # Objects first: what is published meanwhile is then named by the time one looks.
    found = {
        key: listed
        for place in {sample_output(layout, stage).place for stage in stages}
        for key, listed in object_store.list_all(layout.store, f"{place}/{OBJECTS_FOLDER}").items()
        if listed.modified < before
    }
    for stage in stages:
        for partition, manifest in manifests_of(layout, stage).items():
            output = output_of(layout, stage, partition)
            for name, record in manifest.files.items():
                found.pop(output.object_key(name, record.name), None)
    for dense in (False, True):
        for config in tfds.CONFIGS:
            with suppress(MissingInput):
                for shard in read_dataset(config, replace(layout, dense=dense)).shards:
                    found.pop(shard.key, None)
    return [Orphan(key=key, bytes=listed.bytes) for key, listed in sorted(found.items())]


def delete_orphans(layout: Layout, orphans: list[Orphan]) -> None:
    """Remove them.

    Raises:
        StoreUnavailable: if the store does not answer, or refuses.
    """
    object_store.delete(layout.store, [orphan.key for orphan in orphans])
