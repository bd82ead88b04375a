"""croissant.json: an export described to machines, as Croissant 1.1 has it.

The format is JSON-LD (docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html). The context below is the
specification's, and the one that ``mlcroissant`` expects word for word (1.1.1, _src/core/rdf.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from laion_assets.formats.hugging_face import Column, Part, columns
from laion_assets.formats.tfds import About
from laion_assets.layout import DATASET_VERSION

CROISSANT_FILE: Final = "croissant.json"

_CONTEXT: Final[Mapping[str, Any]] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

# Of Parquet, in mlcroissant's words; it does not know the registered application/vnd.apache.parquet.
_PARQUET: Final = "application/x-parquet"

# LAION's announcement (laion.ai/blog/laion-400-open-dataset). With a date of its own, equal exports differed.
_PUBLISHED: Final = "2021-08-20"

_DATA_TYPES: Final[Mapping[pa.DataType, str]] = {
    pa.string(): "sc:Text",
    pa.int32(): "cr:Int32",
    pa.int64(): "cr:Int64",
    pa.float64(): "cr:Float64",
    pa.float16(): "cr:Float16",
}


def document(parts: Sequence[Part], about: About) -> dict[str, Any]:
    """What croissant.json says: a file object for each file, a file set and a record set for each config.

    Args:
        parts: the configs.
        about: what is said of the data set.
    """
    return {
        "@context": dict(_CONTEXT),
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": "LAION-400M",
        "description": about.description,
        "url": about.homepage,
        "version": DATASET_VERSION,
        "datePublished": _PUBLISHED,
        "license": [
            "https://creativecommons.org/licenses/by/4.0/",
            "CC BY 4.0 covers LAION's metadata alone; each picture keeps its own copyright. See LICENSE.",
        ],
        "creator": {"@type": "sc:Organization", "name": "LAION", "url": "https://laion.ai/"},
        "citeAs": about.citation,
        "distribution": [entry for part in parts for entry in (_file_set(part), *_file_objects(part))],
        "recordSet": [_record_set(part) for part in parts],
    }


def _file_set(part: Part) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": _file_set_id(part),
        "name": _file_set_id(part),
        "description": f"The Parquet files of the config {part.config}.",
        "encodingFormat": _PARQUET,
        "includes": part.pattern,
    }


def _file_set_id(part: Part) -> str:
    return f"{part.config}-files"


def _file_objects(part: Part) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "contentUrl": name,
            "contentSize": f"{size} B",
            "encodingFormat": _PARQUET,
            "sha256": sha256,
        }
        for name, (size, sha256) in part.files.items()
    ]


def _record_set(part: Part) -> dict[str, Any]:
    record_set = {
        "@type": "cr:RecordSet",
        "@id": part.config,
        "name": part.config,
        "description": f"The {part.rows} rows of the config {part.config}.",
        "field": [_field(part, column) for column in columns(part.config, part.width)],
    }
    # Keys of the release's metadata are unique in their shard only.
    return record_set if part.config == "embeddings" else {**record_set, "key": {"@id": f"{part.config}/key"}}


def _field(part: Part, column: Column) -> dict[str, Any]:
    source: dict[str, Any] = {
        "fileSet": {"@id": _file_set_id(part)},
        "extract": {"column": column.name},
    }
    field = {
        "@type": "cr:Field",
        "@id": f"{part.config}/{column.name}",
        "name": column.name,
        "description": column.description,
        "source": source,
    }
    if pa.types.is_struct(column.type):
        source["transform"] = {"jsonPath": "bytes"}
        return {**field, "dataType": "sc:ImageObject"}
    if pa.types.is_fixed_size_list(column.type):
        shape = {"isArray": True, "arrayShape": str(column.type.list_size)}
        return {**field, "dataType": _DATA_TYPES[column.type.value_type], **shape}
    return {**field, "dataType": "sc:URL" if column.name == "url" else _DATA_TYPES[column.type]}
