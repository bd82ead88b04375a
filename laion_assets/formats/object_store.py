"""Objects in s3://, gs:// and az://, by obstore: read whole or in part, written whole or not at all.

Credentials come from the usual environment (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT``, an instance's role, a
service account, ...), as obstore finds it. Knows nothing of partitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from laion_assets.errors import StoreUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# A request that fails for the moment (5xx, a dropped connection) is sent again by obstore, so often.
_RETRIES: Final = 6
_RETRY_TIMEOUT: Final = timedelta(seconds=60)
# Bytes of one request, so that there are few, and yet several at a time for one file. In the 30 s that
# obstore gives a request they need 0.3 MB/s. (AWS_TIMEOUT sets it: client options given here would undo
# whatever the environment says of the client.)
_PIECE_BYTES: Final = 8 << 20
_PIECES_AT_A_TIME: Final = 4
_SMALL_AT_A_TIME: Final = 32
# Ranges so near to each other are one request.
_COALESCED_BYTES: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Version:
    """Which writing of an object this is, in the store's words."""

    e_tag: str | None
    version: str | None

    def as_condition(self) -> dict[str, str]:
        """What a writing may require of the object it replaces."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object's bytes, their version, and when they were written (seconds since 1970)."""

    data: bytes
    version: Version
    modified: float


def read(store: str, key: str) -> StoredObject | None:
    """An object's bytes, in one request; None where there is none.

    Raises:
        StoreUnavailable: if the store does not answer, or refuses.
    """
    import obstore

    with _naming_errors(store, key):
        try:
            found = obstore.get(_open(store), key)
            return StoredObject(
                data=bytes(found.bytes()),
                version=_version(found.meta),
                modified=found.meta["last_modified"].timestamp(),
            )
        except FileNotFoundError:
            return None


def read_all(store: str, keys: Sequence[str]) -> Iterator[tuple[str, StoredObject | None]]:
    """As :func:`read`, of many small objects, side by side.

    Yields:
        Each key with its object, in order.
    """
    with ThreadPoolExecutor(_SMALL_AT_A_TIME) as pool:
        yield from zip(keys, pool.map(lambda key: read(store, key), keys), strict=True)


def read_ranges(store: str, key: str, starts: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Parts of an object, near ones in one request. Past the object's end a part is shorter, or empty.

    Raises:
        FileNotFoundError: if there is no such object.
        StoreUnavailable: if the store does not answer, or refuses.
    """
    import obstore

    if not starts:
        return []
    with _naming_errors(store, key):
        found = obstore.get_ranges(
            _open(store), key, starts=starts, lengths=lengths, coalesce=_COALESCED_BYTES
        )
        return [bytes(part) for part in found]


def pieces(store: str, key: str, size: int) -> Iterator[memoryview]:
    """An object's bytes in order, in requests of 8 MiB, some of them side by side.

    Args:
        store: the store.
        key: the object.
        size: its size in bytes, which is known beforehand; of an object of another size, other bytes come.

    Raises:
        FileNotFoundError: if there is no such object.
        StoreUnavailable: if the store does not answer, or refuses.
    """
    import obstore
    from obstore.exceptions import BaseError

    opened = _open(store)

    def piece(start: int) -> memoryview:
        length = min(_PIECE_BYTES, size - start)
        return memoryview(obstore.get_range(opened, key, start=start, length=length))

    with _naming_errors(store, key):
        if size <= _PIECE_BYTES:
            yield memoryview(obstore.get(opened, key).bytes())
            return
        starts = range(0, size, _PIECE_BYTES)
        with ThreadPoolExecutor(_PIECES_AT_A_TIME) as pool:
            for first in range(0, len(starts), _PIECES_AT_A_TIME):
                try:
                    found = list(pool.map(piece, starts[first : first + _PIECES_AT_A_TIME]))
                except BaseError:
                    if obstore.head(opened, key)["size"] != size:
                        return  # what lies past the end cannot be asked for
                    raise
                yield from found


def put_file(store: str, key: str, path: Path) -> None:
    """Write a file's bytes to a key that stands for them, so that whatever is there is the same.

    Raises:
        StoreUnavailable: if the store does not answer, or refuses.
    """
    import obstore

    with _naming_errors(store, key, missing="the bucket"):
        obstore.put(_open(store), key, path, chunk_size=_PIECE_BYTES, max_concurrency=_PIECES_AT_A_TIME)


def put(store: str, key: str, data: bytes, replaced: Version | None) -> bool:
    """Write an object where there is none, or in the place of one version and of no other.

    Returns:
        Whether it is there now; False if another was written before.

    Raises:
        StoreUnavailable: if the store does not answer, or refuses.
    """
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    mode: Any = "create" if replaced is None else replaced.as_condition()
    with _naming_errors(store, key, missing="the bucket"):
        try:
            obstore.put(_open(store), key, data, mode=mode)
        except BaseError as error:
            # The store may have written it, and the answer been lost: sent again, it is then refused.
            found = read(store, key)
            if found is not None and found.data == data:
                return True
            if isinstance(error, AlreadyExistsError | PreconditionError):
                return False
            raise
        return True


def delete(store: str, keys: Sequence[str]) -> None:
    """Remove objects; those that are not there are no matter.

    Raises:
        StoreUnavailable: if the store does not answer, or refuses.
    """
    import obstore

    with _naming_errors(store, keys[0] if keys else ""):
        for key in keys:
            try:
                obstore.delete(_open(store), key)
            except FileNotFoundError:
                continue


def list_folder(store: str, folder: str) -> dict[str, Version]:
    """Name of each object right in a folder -> its version, a thousand in a request.

    Raises:
        StoreUnavailable: if the store does not answer, or refuses.
    """
    import obstore

    with _naming_errors(store, folder, missing="the bucket"):
        found: Iterable[Mapping[str, Any]] = obstore.list_with_delimiter(_open(store), folder)["objects"]
        return {entry["path"].rsplit("/", 1)[-1]: _version(entry) for entry in found}


@dataclass(frozen=True, kw_only=True)
class Listed:
    """An object's size in bytes, and when it was written (seconds since 1970)."""

    bytes: int
    modified: float


def list_all(store: str, folder: str) -> dict[str, Listed]:
    """Key of each object in a folder and those in it -> what it is, a thousand in a request.

    Raises:
        StoreUnavailable: if the store does not answer, or refuses.
    """
    import obstore

    with _naming_errors(store, folder, missing="the bucket"):
        return {
            entry["path"]: Listed(bytes=entry["size"], modified=entry["last_modified"].timestamp())
            for page in obstore.list(_open(store), folder)
            for entry in page
        }


def _version(meta: Mapping[str, Any]) -> Version:
    return Version(e_tag=meta.get("e_tag"), version=meta.get("version"))


@lru_cache(maxsize=8)
def _open(store: str) -> ObjectStore:
    from obstore.store import from_url

    return from_url(
        store,
        retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_TIMEOUT},
    )


@contextmanager
def _naming_errors(store: str, key: str, *, missing: str | None = None) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError as error:
        if missing is None:
            raise
        raise _unavailable(store, key, f"{missing} is not there") from error
    except BaseError as error:
        reason = str(error).split("\n", 1)[0][:300]
        raise _unavailable(store, key, f"{type(error).__name__}: {reason}") from error


def _unavailable(store: str, key: str, reason: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"{store}/{key}: the object store did not do what it was asked ({reason}): check its address, the "
        "credentials in the environment and the network, and run this again; what is finished is kept"
    )
