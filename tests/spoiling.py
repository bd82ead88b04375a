"""Ways to spoil published files so that not their manifest tells, but only who reads them."""

from laion_assets.formats.publish import Tally, read_manifest, vouch
from laion_assets.layout import Output


def vouch_anew(output: Output) -> None:
    """Give a partition whose files were changed a manifest that is right for them."""
    manifest = read_manifest(output)
    assert manifest is not None
    output.manifest.unlink()
    vouch(output, manifest.recipe, lambda: Tally(rows=manifest.rows, counts=manifest.counts))
