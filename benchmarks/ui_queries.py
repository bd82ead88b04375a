"""What Dagster's UI asks, taken from the webapp that is installed, so that it is what people's browsers ask.

Which page asks what was read off a browser that showed them (dagster-webserver 1.13.27).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from graphql import DefinitionNode, FragmentSpreadNode, Visitor, parse, print_ast, visit

from laion_assets.pipeline import IMAGES, STAGES

_DOCUMENT: Final = re.compile(r"gql`(.*?)`", re.DOTALL)
_INTERPOLATION: Final = re.compile(r"\$\{\w+\}")
# The UI asks about so many assets at a time (AssetBaseDataProvider, AssetStaleStatusDataProvider).
_ASSETS_AT_A_TIME: Final = 10

LAUNCH: Final = "LaunchPartitionBackfill"


def pages(location: str, partition: str) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Page -> the queries that showing it takes, each with its variables.

    Args:
        location: name of the code location.
        partition: the shard that the partition's page shows.
    """
    every = [_key(stage.name) for stage in sorted(STAGES, key=lambda stage: stage.name)]
    asset = _key("images")
    chain = [_key(name) for name in IMAGES]
    node = {"repositoryLocationName": location, "repositoryName": "__repository__"}
    return {
        "asset graph": [
            ("AssetRecordsQuery", {"limit": 1_000}),
            ("LocationWorkspaceQuery", {"name": location}),
            ("LocationWorkspaceAssetsQuery", {"name": location}),
            *(
                (query, {"assetKeys": every[first : first + _ASSETS_AT_A_TIME]})
                for query in _LIVE
                for first in range(0, len(every), _ASSETS_AT_A_TIME)
            ),
        ],
        "partition page": [
            ("AssetViewDefinitionQuery", {"assetKey": asset}),
            ("PartitionHealthQuery", {"assetKey": asset}),
            *((query, {"assetKeys": [asset]}) for query in _LIVE),
            ("AssetPartitionDetailQuery", {"assetKey": asset, "partitionKey": partition}),
            ("AssetPartitionStaleQuery", {"assetKey": asset, "partitionKey": partition}),
        ],
        "backfill dialogue": [
            ("LaunchAssetLoaderQuery", {"assetKeys": chain}),
            ("LaunchAssetCheckUpstreamQuery", {"assetKeys": [_key("raw_metadata"), _key("shard_plan")]}),
            *(("PartitionHealthQuery", {"assetKey": key}) for key in chain),
            ("LaunchAssetWarningsQuery", {"upstreamAssetKeys": [_key("raw_metadata"), _key("shard_plan")]}),
            ("LaunchpadRootQuery", node | {"pipelineName": "__ASSET_JOB", "assetSelection": chain}),
            ("RunningBackfillsNoticeQuery", {}),
            ("AssetsPermissionsQuery", {"assetKeys": chain}),
        ],
    }


_LIVE: Final = ("AssetStaleStatusDataQuery", "AssetGraphLiveQuery", "AssetsFreshnessInfoQuery")


def launch(stages: Sequence[str], partitions: Sequence[str]) -> dict[str, Any]:
    """Variables of :data:`LAUNCH`, as the dialogue sends them."""
    return {
        "backfillParams": {
            "assetSelection": [_key(name) for name in stages],
            "partitionNames": list(partitions),
            "fromFailure": False,
            "tags": [],
        }
    }


def text_of(operation: str) -> str:
    """A query or mutation of the webapp, with the fragments that it uses."""
    found = _definitions()
    names, waiting = {operation: None}, [operation]
    while waiting:
        used = _Spreads()
        visit(found[waiting.pop()], used)
        waiting += [name for name in used.names if name not in names]
        names |= dict.fromkeys(used.names)
    return "\n".join(print_ast(found[name]) for name in names)


class _Spreads(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def enter_fragment_spread(self, node: FragmentSpreadNode, *_: object) -> None:
        self.names.append(node.name.value)


@cache
def _definitions() -> dict[str, DefinitionNode]:
    """Name -> query, mutation or fragment."""
    return {
        definition.name.value: definition
        for document in _documents()
        for definition in parse(document).definitions
    }


def _documents() -> Iterator[str]:
    package = find_spec("dagster_webserver")
    assert package is not None
    assert package.origin is not None
    # Of the apps that the build holds, this is the one with the assets' pages.
    for path in (Path(package.origin).parent / "webapp" / "build" / "_next" / "static" / "chunks").rglob(
        "*.map"
    ):
        built = json.loads(path.read_bytes())
        for name, source in zip(built["sources"], built.get("sourcesContent") or (), strict=False):
            if source and "/ui-core/src/" in name and "__" not in name:
                yield from (_INTERPOLATION.sub("", text) for text in _DOCUMENT.findall(source))


def _key(name: str) -> dict[str, list[str]]:
    return {"path": [name]}
