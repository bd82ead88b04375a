import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections import Counter

import pytest

from benchmarks.scenarios import DEAD_HOSTS
from benchmarks.server import Missing, check_programs, serving, trusted_bundle
from benchmarks.urls import FAILURES, make_urls

PICTURE = b"\xff\xd8\xff" + bytes(range(256)) * 40


@pytest.fixture(scope="module")
def web(tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    (folder / "corpora" / "small").mkdir(parents=True)
    (folder / "corpora" / "small" / "0000.jpg").write_bytes(PICTURE)
    try:
        check_programs()
    except Missing as missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(str(missing))
    with serving(folder / "server", folder / "corpora") as ports:
        context = ssl.create_default_context(cafile=str(trusted_bundle(folder / "server")))
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
        yield ports, urllib.request.build_opener(*handlers)


def answer(opener, url, timeout_s=10):
    """What comes of a URL, in a word of the list's own."""
    try:
        with opener.open(url, timeout=timeout_s) as response:
            body = response.read()
            if response.headers["X-Robots-Tag"]:
                return "opt_out"
            return "success" if body == PICTURE else "undecodable"
    except urllib.error.HTTPError as error:
        return str(error.code)
    except http.client.RemoteDisconnected:
        return "closed"
    except TimeoutError:
        return "silent"
    except urllib.error.URLError as error:
        return reason(error.reason)


def reason(error):
    match error:
        case ssl.SSLCertVerificationError():
            return "tls_untrusted"
        case ssl.SSLError():
            return "tls_not_spoken"
        case ConnectionRefusedError():
            return "refused"
        case TimeoutError():
            return "silent"
        case OSError():
            return "dns"
    raise AssertionError(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_every_url_leads_to_what_its_kind_says(web, scheme):
    ports, opener = web
    urls = make_urls(2_000, scheme=scheme, corpus="small", names=["0000.jpg"], ports=ports, seed=1)
    one_of_each = {entry.kind: entry for entry in urls.entries}
    assert set(one_of_each) == {"success", *FAILURES} - (
        {"tls_untrusted", "tls_not_spoken"} if scheme == "http" else set()
    )
    found = {kind: answer(opener, entry.url) for kind, entry in one_of_each.items()}
    assert found == {kind: kind for kind in one_of_each}


def test_dead_hosts_accept_and_say_nothing(web):
    ports, opener = web
    urls = make_urls(
        100, scheme="http", corpus="small", names=["0000.jpg"], ports=ports, seed=1, dead_hosts=DEAD_HOSTS
    )
    silent = [entry for entry in urls.entries if entry.kind == "silent"]
    assert answer(opener, silent[0].url, timeout_s=0.5) == "silent"
    assert Counter(entry.host in DEAD_HOSTS for entry in silent) == {True: len(silent)}
