"""Keeps the copies of what object storage holds within the room that the data root may take."""

from __future__ import annotations

from laion_assets.formats import store_listing
from laion_assets.published import DATA_STAGES, sample_output
from laion_assets.settings import Settings


def trim_copies(settings: Settings) -> int:
    """Remove copies that were not used for longest, beyond ``scratch_bytes``; all of them are in the store.

    Those of partitions that are being read or written stay.

    Returns:
        How many bytes were removed.
    """
    if not settings.store or not settings.scratch_bytes:
        return 0
    outputs = [sample_output(settings.layout, stage) for stage in DATA_STAGES]
    folders = {output.folder: output for output in outputs}  # the records of the data sets share one
    copies = [copy for output in folders.values() for copy in store_listing.copies(output)]
    excess = sum(copy.bytes for copy in copies) - settings.scratch_bytes
    removed = 0
    for copy in sorted(copies, key=lambda copy: copy.used_ns):
        if removed >= excess:
            break
        if store_listing.drop(copy):
            removed += copy.bytes
    return removed
