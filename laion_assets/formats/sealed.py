"""JSON documents that carry their own checksum, so that a damaged one is never read as another.

For small records that are read before anything else could vouch for them: manifests, the shard plan, what
a source was checked from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

_SEAL: Final = "sha256_of_the_rest"
# Documents of this format were written before there were seals (0.1.0): shards that took weeks stay done.
_UNSEALED_FORMAT: Final = 1

_in_order: Final = json.JSONEncoder(sort_keys=True).encode
_compact: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def seal(document: Mapping[str, Any]) -> bytes:
    """The document's file, readable by people; all keys are strings; equal documents, equal bytes."""
    sealed = {**document, _SEAL: _digest(document)}
    # A line for each entry. json's own indentation takes ten times as long.
    lines = (f"{json.dumps(name)}: {_in_order(value)}" for name, value in sorted(sealed.items()))
    return ("{\n " + ",\n ".join(lines) + "\n}\n").encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Read what :func:`seal` wrote.

    Raises:
        ValueError: if it is no such document, or not the one that was sealed.
    """
    document = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 (for whoever reads it, it is one damage of many)
    recorded = document.pop(_SEAL, None)
    if recorded is None and document.get("format") == _UNSEALED_FORMAT:
        return document
    if recorded is None:
        raise ValueError("no checksum of its own")
    if recorded != _digest(document):
        raise ValueError("another checksum than its own: it was changed or damaged")
    return document


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(_compact(document).encode()).hexdigest()


def fingerprint(value: object) -> str:
    """Digest (32 hexadecimal digits) of a JSON-serializable value; equal values, equal digests."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
