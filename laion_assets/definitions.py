"""The code location: workspace.yaml points here."""

import dagster as dg

from laion_assets.defs.assembly import build_definitions
from laion_assets.settings import Settings
from laion_assets.text import with_printable_errors


@dg.definitions
@with_printable_errors
def defs() -> dg.Definitions:
    """The code location over the settings that the working folder or the environment names."""
    return build_definitions(Settings.load())
