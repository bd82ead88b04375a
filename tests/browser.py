"""Debian's Chromium, and what pages in it did: whom they asked for what, and what they opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

_ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")


@dataclass
class Deeds:
    """What pages of a browser did, filled while they are open.

    Attributes:
        asked: origin of each request and web socket, ``file://`` for files.
        mutations: GraphQL mutations, and whatever was asked of GraphQL by GET.
        dialogs: text of each dialog.
    """

    asked: set[str] = field(default_factory=set)
    mutations: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def watch(self, context: Any) -> None:
        """Record what every page of a context does from now on."""
        context.on("request", self._request)
        context.on("page", lambda page: page.on("websocket", lambda socket: self._origin(socket.url)))
        context.on("dialog", self._dialog)

    def _request(self, request: Any) -> None:
        self._origin(request.url)
        if urlsplit(request.url).path != "/graphql":
            return
        if request.method != "POST":
            self.mutations.append(request.url)
        elif (query := json.loads(request.post_data)["query"]).lstrip().startswith("mutation"):
            self.mutations.append(query)

    def _origin(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob"):
            self.asked.add(f"{parts.scheme.replace('ws', 'http')}://{parts.netloc}")

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()


@contextmanager
def browsing(chromium: str, **options: Any) -> Iterator[Any]:
    """A context of a browser of its own.

    Args:
        chromium: the program.
        options: of Playwright's ``new_context``.
    """
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(_ARGUMENTS))
        try:
            yield browser.new_context(**options)
        finally:
            browser.close()
