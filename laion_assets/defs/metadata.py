"""What Dagster shows of a stage and of what it made: columns, their origins, figures and pictures.

Figures are numbers, so that the UI plots them by partition. Text of the data set is in none of them, and the
one thing that is markup, a picture, is made here and nowhere else.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Final

import dagster as dg

from laion_assets.formats.publish import Manifest
from laion_assets.lineage import COLUMN_ORIGINS, Origin
from laion_assets.pipeline import Stage
from laion_assets.quality.measures import key_figures
from laion_assets.schema import SIMILARITY_PREFIX, describe
from laion_assets.settings import Settings

Metadata = dict[str, dg.MetadataValue]

MOST_PICTURE_BYTES: Final = 300_000
"""Most bytes of PNG that an event holds; what is larger is only in its file."""

_PNG_BEGINS: Final = b"\x89PNG\r\n\x1a\n"
_TITLE: Final = re.compile(r"[a-z ]+")

# What manifests count of rows that the UI plots by partition, beside the rows themselves.
_PLOTTED: Final = ("success", "failed", "set_aside", "examples", "unmatched", "bytes_downloaded")
# A name is our own word, or a tag of at most 40 characters (normalization); there are at most some 70.
_MOST_COUNTS: Final = 100


# -- of a stage, once -----------------------------------------------------------------------------


def columns_of(stage: Stage) -> Mapping[str, dg.TableSchema | dg.TableColumnLineage]:
    """Columns of a stage's table, and what they are made of; nothing where it has none.

    They are the definition's, so that no event is larger for them. The webapp of Dagster 1.13.27 shows the
    first and hides the second (``isCanonicalColumnLineageEntry``), which only Dagster+ draws and GraphQL
    answers; so a column's description names its origins, too.
    """
    if stage.columns is None:
        return {}
    origins, descriptions = COLUMN_ORIGINS[stage.name], describe(stage.columns)
    columns = [
        dg.TableColumn(
            name=field.name,
            type=str(field.type),
            description=descriptions[field.name] + _told(origins[field.name]),
            constraints=dg.TableColumnConstraints(nullable=field.nullable),
        )
        for field in stage.columns
    ]
    lineage = dg.TableColumnLineage(
        {
            column: [
                dg.TableColumnDep(asset_key=dg.AssetKey(name), column_name=made_of) for name, made_of in found
            ]
            for column, found in origins.items()
            if found
        }
    )
    return {
        "dagster/column_schema": dg.TableSchema(columns=columns),
        **({"dagster/column_lineage": lineage} if lineage.deps_by_column else {}),
    }


def _told(origins: tuple[Origin, ...]) -> str:
    return " ← " + ", ".join(f"{stage}.{column}" for stage, column in origins) if origins else ""


# -- of a partition, with every event -------------------------------------------------------------


def metadata_of(stage: Stage, settings: Settings, manifest: Manifest) -> Metadata:
    """Figures and pictures of what was published.

    Raises:
        LaionAssetsError: if what a picture is drawn from is not what its manifest vouches for.
    """
    drawn = stage.pictures(settings, manifest.partition) if stage.pictures is not None else {}
    return {title: picture(title, png) for title, png in drawn.items()} | dict(_figures(manifest))


def _figures(manifest: Manifest) -> Iterator[tuple[str, dg.MetadataValue]]:
    yield "dagster/row_count", dg.MetadataValue.int(manifest.rows)
    yield "bytes", dg.MetadataValue.int(manifest.bytes)
    yield "seconds", dg.MetadataValue.float(round(manifest.seconds, 3))
    if manifest.seconds > 0:
        yield "rows per second", dg.MetadataValue.float(round(manifest.rows / manifest.seconds, 2))
    if manifest.rows:
        yield "bytes per row", dg.MetadataValue.float(round(manifest.bytes / manifest.rows, 2))
    counts = manifest.counts
    for name in _PLOTTED:
        if name in counts:
            yield name.replace("_", " "), dg.MetadataValue.int(counts[name])
    for name, figure in key_figures(counts).items():
        yield name.replace("_", " "), dg.MetadataValue.float(figure)
    # Bins of similarities are in the manifest, and drawn in the overview.
    told = [(name, count) for name, count in counts.items() if not name.startswith(SIMILARITY_PREFIX)]
    yield "counts", dg.MetadataValue.json(dict(told[:_MOST_COUNTS]))
    yield (
        "files",
        dg.MetadataValue.json(
            {
                name: {"bytes": record.bytes, "checksum": record.name}
                for name, record in manifest.files.items()
            }
        ),
    )


def picture(title: str, png: bytes) -> dg.MetadataValue:
    """A picture that this project drew, as Dagster shows it: the only markup in its records.

    Args:
        title: what it is, in small letters and spaces.
        png: at most :data:`MOST_PICTURE_BYTES`.

    Raises:
        ValueError: if it is no PNG, too large, or the title could be markup.
    """
    if not (png.startswith(_PNG_BEGINS) and _TITLE.fullmatch(title)):
        raise ValueError(f"not a PNG with a plain title: {title!r}")
    if len(png) > MOST_PICTURE_BYTES:
        raise ValueError(f"{title}: {len(png):,} bytes are more than an event may hold")
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode('ascii')})")
