"""Folders that readers see change in one step: a link to a build, of which another is made beside it.

The files in a build are hard links where that can be, so that it costs no second copy, and a file that is
made again does not change under a reader. Knows nothing of what is in them.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Final

from laion_assets.errors import CorruptInput
from laion_assets.formats.durable import sync_folder

# Another file system, one without hard links, too many of them, or a file of another user's
# (Linux, fs.protected_hardlinks).
_NO_HARD_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})


def refuse_stranger(link: Path, folder: Path) -> None:
    """Refuse to replace what is in a link's place and is not of this project's making.

    Args:
        link: where it goes, or is.
        folder: the folder of builds, beside it.

    Raises:
        CorruptInput: if something else is there.
    """
    if not os.path.lexists(link) or (link.is_symlink() and link.readlink().parent == Path(folder.name)):
        return
    raise CorruptInput(
        link,
        expected=f"nothing, or a link into {folder.name} beside it",
        found=f"a link to {link.readlink()}" if link.is_symlink() else "a folder or a file",
        remedy="It is not of this project's making: move it away.",
    )


def new_build(folder: Path, digest: str) -> Path:
    """A build of a name that was not there; one of the same files may be, damaged or in use."""
    build = next(build for number in count() if not (build := folder / f"{digest}-{number}").exists())
    build.mkdir()
    return build


def link_file(source: str, target: str) -> None:
    """Give a file another name, or copy it where it cannot have one."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINK:
            raise
        with Path(source).open("rb") as file, Path(target).open("wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.flush()
            os.fsync(copy.fileno())


def point(link: Path, build: Path) -> None:
    """Make a link lead to a build, in one step."""
    sync_folder(build.parent)
    draft = link.with_name(f".{link.name}.draft")
    draft.unlink(missing_ok=True)
    # Relative, so that the data root can be moved.
    draft.symlink_to(build.relative_to(link.parent))
    draft.replace(link)
    sync_folder(link.parent)


def remove(builds: Iterable[Path]) -> None:
    """Remove builds."""
    for build in list(builds):
        shutil.rmtree(build, ignore_errors=True)  # what stays is removed next time
