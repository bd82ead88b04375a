"""The process in which pictures are decoded: what it is asked and answers, over its pipes.

Each download starts one for each core, so it imports no more than it needs; the parent's side is
:mod:`laion_assets.decoding`.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from PIL import Image

from laion_assets.blur import Box
from laion_assets.image import Stored, Undecodable, check_and_resize

if TYPE_CHECKING:
    from laion_assets.image_policy import ImagePolicy

REQUEST: Final = struct.Struct("<II")
"""Length of the body, boxes to blur; then the boxes, and the body."""
BOX: Final = struct.Struct("<4d")
ANSWER: Final = struct.Struct("<6I")
"""Lengths of a text and of the picture, and its four sizes; then both. The text is EXIF if there is a
picture, else the outcome's class and the message."""
READY: Final = b"READY"


def main() -> None:
    """Answer requests until the pipe is closed."""
    # Checked by the parent; pydantic takes longer to load than all else here.
    policy = cast("ImagePolicy", SimpleNamespace(**json.loads(sys.argv[1])))
    # Ctrl-C is for the parent, which then closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Whatever a library prints must not land among the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    Image.MAX_IMAGE_PIXELS = None  # the policy's own limit counts, above Pillow's too
    _limit_memory(policy.worker_memory_bytes)
    answers.write(READY)
    answers.flush()
    requests = sys.stdin.buffer
    while len(head := requests.read(REQUEST.size)) == REQUEST.size:
        length, count = REQUEST.unpack(head)
        boxes = list(BOX.iter_unpack(requests.read(count * BOX.size)))
        body = requests.read(length)
        if len(body) < length:
            return
        _answer(answers, _decode_within(body, policy, boxes))


def _decode_within(body: bytes, policy: ImagePolicy, boxes: Sequence[Box]) -> Stored | Undecodable:
    # SIGPROF ends the process when the timer, which counts its CPU time, runs out.
    signal.setitimer(signal.ITIMER_PROF, policy.decode_timeout_s)
    try:
        return check_and_resize(body, policy, boxes)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _answer(answers: BinaryIO, found: Stored | Undecodable) -> None:
    if isinstance(found, Stored):
        text, encoded = found.exif.encode(), found.encoded
        sizes = (found.width, found.height, found.original_width, found.original_height)
    else:
        text, encoded, sizes = f"{found.outcome} {found.message}".encode(), b"", (0, 0, 0, 0)
    # Whole, so that it is one call of the system's.
    answers.write(b"".join((ANSWER.pack(len(text), len(encoded), *sizes), text, encoded)))
    answers.flush()


def _limit_memory(room: int) -> None:
    """Bound the address space to what is in use now and ``room`` bytes; where it can be known (Linux)."""
    import resource  # not on every platform

    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + room
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (OSError, ValueError):
        return  # macOS knows no such limit; the CPU limit and the pixel cap stay


if __name__ == "__main__":
    main()
