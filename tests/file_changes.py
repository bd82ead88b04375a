"""What this process does to files, told to a test as it happens, and runs that are killed amid it."""

import os
import signal
import sys
from collections.abc import Callable

_CHANGES = frozenset(
    {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "shutil.rmtree"}
)


class _Watch:
    """Calls back just before each change of the file system; Python offers no way to unhook it."""

    def __init__(self) -> None:
        self.on_change: Callable[[str], None] | None = None
        self.opened: list[str] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if event == "open" and self.opened is not None and isinstance(arguments[0], str | os.PathLike):
            self.opened.append(os.fspath(arguments[0]))
        is_write = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if self.on_change is not None and (event in _CHANGES or is_write):
            self.on_change(event)


watch = _Watch()


def killed_at(change: int, run: Callable[[], object]) -> bool:
    """Run in a child that is killed just before its n-th change; False if it ended before that."""
    child = os.fork()
    if not child:
        left = iter(range(change))
        watch.on_change = lambda _: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)
        status = 1
        try:
            run()
            status = 0
        finally:
            os._exit(status)  # whatever happens, the child must not go on with pytest
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
