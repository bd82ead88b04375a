"""What makes Dagster's webserver slow where assets have tens of thousands of partitions, made quick.

With 41,455 shards and the checks of a shard, the asset graph is a million partition keys. graphql-core 3.2
goes through them one by one to find out that each is a string, and Python's json writes what orjson writes in
a tenth of the time. Both are replaced in the process of a webserver, which Dagster names to its storages; the
answers are the same.
"""

import gc
from collections.abc import Awaitable, Iterable
from typing import Any, Final

import orjson
from graphql import FieldNode, GraphQLList, GraphQLNonNull, GraphQLResolveInfo, GraphQLString
from graphql.execution import ExecutionContext
from graphql.pyutils import Path
from starlette.responses import JSONResponse

# Python's own, but for the last. Telling whether a partition is stale makes an object for each, after which
# everything is looked at for what can be freed; that takes 0.7 s with the states of a million partitions.
_COLLECTIONS: Final = (700, 10, 100)

_complete_list_value = ExecutionContext.complete_list_value
_render = JSONResponse.render


def quicken() -> None:
    """Replace them in this process."""
    ExecutionContext.complete_list_value = complete_list_value  # type: ignore[assignment, method-assign]
    JSONResponse.render = render  # type: ignore[method-assign]
    gc.set_threshold(*_COLLECTIONS)


def render(self: JSONResponse, content: Any) -> bytes:  # noqa: ANN401 (whatever JSON is made of)
    """As Starlette's; what orjson does not take, such as integers of 65 bits, Python's json may."""
    try:
        return orjson.dumps(content)
    except TypeError:
        return _render(self, content)


def complete_list_value(
    self: ExecutionContext,
    return_type: GraphQLList[Any],
    field_nodes: list[FieldNode],
    info: GraphQLResolveInfo,
    path: Path,
    result: Iterable[object],
) -> Awaitable[list[object]] | list[object]:
    """As graphql-core's; a list that holds strings and nothing else is the answer already."""
    item = return_type.of_type
    if isinstance(item, GraphQLNonNull):
        item = item.of_type
    if item is GraphQLString and isinstance(result, list) and set(map(type, result)) == {str}:
        return result
    return _complete_list_value(self, return_type, field_nodes, info, path, result)
