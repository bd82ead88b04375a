import asyncio
import gzip
import shutil
import socket
import ssl
import subprocess
import zlib
from contextlib import asynccontextmanager

import pytest

from laion_assets.fetch.curl import HttpTransport
from laion_assets.fetch.fetcher import Fetched, Fetcher, FetchFailed
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.fetch.transport import ExchangeFailed
from laion_assets.outcomes import Outcome

LOCAL = FetchPolicy(
    retry_silent_hosts=True,
    allow_loopback=True,
    backoff_s=0,
    attempts=2,
    connect_timeout_s=5,
    total_timeout_s=10,
)


def answer(body=b"body", status="200 OK", **headers):
    headers = {
        "Content-Length": str(len(body)),
        **{name.replace("_", "-"): text for name, text in headers.items()},
    }
    lines = "".join(f"{name}: {text}\r\n" for name, text in headers.items() if text is not None)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


@asynccontextmanager
async def serving(behave, **options):
    """A server on 127.0.0.1 that does with each request what ``behave`` says.

    ``behave`` is a path -> bytes to send before closing, or a coroutine function of (path, writer).
    """
    requests = []

    async def handle(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            requests.append(head.decode("latin-1"))
            behaviour = behave(head.split(b" ")[1].decode())
            if isinstance(behaviour, bytes):
                writer.write(behaviour)
                await writer.drain()
            else:
                await behaviour(writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()[1], requests
    finally:
        server.close()


def fetch(behave, path="/a.jpg", policy=LOCAL, url=None, **options):
    async def run():
        async with serving(behave, **options) as (port, requests), HttpTransport(policy) as transport:
            address = (url or "http://127.0.0.1:{port}{path}").format(port=port, path=path)
            return await Fetcher(policy, transport).fetch(address), requests

    return asyncio.run(run())


def outcome(behave, **options):
    found, _ = fetch(behave, **options)
    assert isinstance(found, FetchFailed), found
    assert found.message.isascii()
    assert found.message.isprintable()
    assert len(found.message) < 100
    return found.outcome


def test_a_picture_is_fetched_and_the_request_is_plain():
    found, requests = fetch(lambda path: answer(b"picture", Content_Type="image/jpeg"), "/a%20b?c=%7E")
    assert isinstance(found, Fetched)
    assert (found.body, found.http_status, found.content_type) == (b"picture", 200, "image/jpeg")
    (request,) = requests
    assert request.startswith("GET /a%20b?c=%7E HTTP/1.1\r\n")
    headers = {
        line.split(":")[0].lower(): line.split(": ", 1)[1] for line in request.split("\r\n")[1:] if line
    }
    assert headers["user-agent"] == LOCAL.user_agent
    assert headers["accept-encoding"] == "identity"
    assert "webp" not in headers["accept"]
    assert not {"cookie", "referer", "authorization"} & headers.keys()


def test_cookies_are_not_sent_back_and_the_environment_s_proxy_is_not_used(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    seen = []

    def behave(path):
        seen.append(path)
        if path == "/a.jpg":
            return answer(b"", "302 Found", Location="/b.jpg", Set_Cookie="id=1; Path=/")
        return answer(b"picture")

    found, requests = fetch(behave)
    assert isinstance(found, Fetched)
    assert seen == ["/a.jpg", "/b.jpg"]
    assert "cookie" not in requests[1].lower()


@pytest.mark.parametrize("status", ["404 Not Found", "404 <b>gone\x01\x02</b>" + "x" * 4000])
def test_messages_are_not_the_server_s(status):
    found, _ = fetch(lambda path: answer(b"page", status))
    assert isinstance(found, FetchFailed)
    # Whatever aiohttp makes of such a line.
    assert found.message in ("HTTP Error 404: Not Found", "malformed answer")


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://0x7f000001:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
    ],
)
def test_this_machine_is_not_reached_unless_it_is_allowed(url):
    found, requests = fetch(lambda path: answer(), url=url, policy=FetchPolicy(backoff_s=0))
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.REFUSED_ADDRESS
    assert requests == []


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1"])
def test_other_spellings_of_this_machine_s_address_are_not_reached(host):
    found, requests = fetch(
        lambda path: answer(), url=f"http://{host}:{{port}}/", policy=FetchPolicy(backoff_s=0)
    )
    assert isinstance(found, FetchFailed)
    assert found.outcome in (Outcome.REFUSED_ADDRESS, Outcome.BAD_URL, Outcome.DNS)
    assert requests == []


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://[fd00:ec2::254]/",
        "http://0.0.0.0/",
        "http://168.63.129.16/",
        "http://8.8.8.8:22/",
    ],
)
def test_a_redirect_into_a_private_network_or_to_a_closed_port_is_refused(location):
    found, requests = fetch(lambda path: answer(b"", "302 Found", Location=location))
    assert isinstance(found, FetchFailed)
    assert (found.outcome, found.http_status) == (Outcome.REFUSED_ADDRESS, 302)
    assert len(requests) == 1


def test_a_redirect_to_a_file_is_refused():
    assert outcome(lambda path: answer(b"", "302 Found", Location="file:///etc/passwd")) is Outcome.BAD_URL


def test_a_redirect_loop_ends():
    found, requests = fetch(lambda path: answer(b"", "301 Moved Permanently", Location="/a.jpg"))
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.TOO_MANY_REDIRECTS
    assert len(requests) == LOCAL.max_redirects + 1


def test_a_body_promised_too_long_is_not_read():
    policy = LOCAL.model_copy(update={"max_body_bytes": 1000})
    assert outcome(lambda path: answer(b"", Content_Length="1001"), policy=policy) is Outcome.TOO_LARGE


def test_an_endless_body_is_cut_off():
    sent = []

    def behave(path):
        async def endlessly(writer):
            writer.write(answer(b"", Content_Length=None))
            while True:
                writer.write(b"x" * 10_000)
                sent.append(10_000)
                await writer.drain()

        return endlessly

    policy = LOCAL.model_copy(update={"max_body_bytes": 100_000})
    assert outcome(behave, policy=policy) is Outcome.TOO_LARGE
    assert sum(sent) < 20_000_000


def test_a_body_that_drips_in_is_a_timeout():
    def behave(path):
        async def drip(writer):
            writer.write(answer(b"", Content_Length="1000"))
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)

        return drip

    policy = LOCAL.model_copy(update={"total_timeout_s": 0.5, "attempts": 1})
    assert outcome(behave, policy=policy) is Outcome.TIMEOUT


def test_a_server_that_says_nothing_is_a_timeout():
    async def silence(writer):
        await asyncio.sleep(30)

    policy = LOCAL.model_copy(update={"total_timeout_s": 0.3, "attempts": 2})
    found, requests = fetch(lambda path: silence, policy=policy)
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.TIMEOUT
    assert len(requests) == 2


@pytest.mark.parametrize(
    "sent",
    [
        answer(b"half", Content_Length="8"),
        answer(b"4\r\nhalf\r\n", Content_Length=None, Transfer_Encoding="chunked"),
        answer(gzip.compress(b"picture" * 100)[:-12], Content_Encoding="gzip"),
    ],
    ids=["length", "chunks", "gzip"],  # gzip's bytes hold the time, and a test's name must not
)
def test_a_body_cut_short_is_truncated_and_asked_for_again(sent):
    found, requests = fetch(lambda path: sent)
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.TRUNCATED
    assert len(requests) == 2


def test_a_second_attempt_may_succeed():
    sent = [answer(b"half", Content_Length="8"), answer(b"whole")]
    found, _ = fetch(lambda path: sent.pop(0))
    assert isinstance(found, Fetched)
    assert found.body == b"whole"


@pytest.mark.parametrize(
    ("coding", "body"),
    [("gzip", gzip.compress(b"picture")), ("deflate", zlib.compress(b"picture")), ("identity", b"picture")],
    ids=["gzip", "deflate", "identity"],
)
def test_a_compression_not_asked_for_is_undone(coding, body):
    found, _ = fetch(lambda path: answer(body, Content_Encoding=coding))
    assert isinstance(found, Fetched)
    assert found.body == b"picture"


def test_a_gzip_bomb_is_cut_off():
    bomb = gzip.compress(bytes(200_000_000), 6)
    assert len(bomb) < 1_000_000
    assert outcome(lambda path: answer(bomb, Content_Encoding="gzip")) is Outcome.TOO_LARGE


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "nonsense"])
def test_other_codings_are_refused(coding):
    assert outcome(lambda path: answer(b"x", Content_Encoding=coding)) is Outcome.PROTOCOL


def test_what_is_no_gzip_is_refused():
    assert outcome(lambda path: answer(b"picture", Content_Encoding="gzip")) is Outcome.PROTOCOL


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_recorded(sent):
    assert outcome(lambda path: sent) in (Outcome.PROTOCOL, Outcome.TRUNCATED)


def test_headers_without_end_are_cut_off():
    def behave(path):
        async def endlessly(writer):
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while True:
                writer.write(b"a: " + b"x" * 1000 + b"\r\n")
                await writer.drain()

        return endlessly

    policy = LOCAL.model_copy(update={"total_timeout_s": 2.0, "attempts": 1})
    assert outcome(behave, policy=policy) in (Outcome.PROTOCOL, Outcome.TIMEOUT)


def test_a_connection_closed_or_reset_is_tried_again():
    found, requests = fetch(lambda path: b"")
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.CONNECT
    assert len(requests) in (2, 4)  # aiohttp itself asks once more

    def behave(path):
        async def reset(writer):
            writer.transport.abort()

        return reset

    found, requests = fetch(behave)
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.CONNECT
    assert len(requests) in (2, 4)


def test_a_closed_port_is_a_failure_to_connect():
    async def run():
        async with serving(lambda path: b"") as (port, _):
            pass
        async with HttpTransport(LOCAL) as transport:
            return await Fetcher(LOCAL, transport).fetch(f"http://127.0.0.1:{port}/")

    found = asyncio.run(run())
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.CONNECT
    assert "ECONNREFUSED" in found.message


def fetch_by_name(look_up, *urls, policy=LOCAL, behave=lambda path: answer()):
    async def run():
        async with serving(behave) as (port, requests), HttpTransport(policy, look_up=look_up) as transport:
            fetcher = Fetcher(policy, transport)
            return [await fetcher.fetch(url.format(port=port)) for url in urls], requests

    return asyncio.run(run())


def failing(asked, number):
    def look_up(host):
        asked.append(host)
        raise socket.gaierror(number, "whatever")

    return look_up


def test_a_name_that_does_not_exist_is_looked_up_once():
    asked = []
    found, _ = fetch_by_name(failing(asked, socket.EAI_NONAME), "http://gone.test/a", "http://gone.test/b")
    assert found == [FetchFailed(outcome=Outcome.DNS, message="DNS: Name or service not known")] * 2
    assert asked == ["gone.test"]


def test_a_resolver_that_fails_is_asked_again():
    asked = []
    found, _ = fetch_by_name(failing(asked, socket.EAI_AGAIN), "http://slow.test/a")
    assert found == [
        FetchFailed(outcome=Outcome.DNS, message="DNS: temporary failure", attempts=LOCAL.attempts)
    ]
    assert len(asked) == LOCAL.attempts


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "169.254.169.254", "fd00:ec2::254", "::ffff:10.0.0.1", "0.0.0.0"]
)
def test_a_name_that_leads_into_a_private_network_is_refused(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found, _ = fetch_by_name(lambda host: [(family, address)], "http://inside.test/")
    assert [one.outcome for one in found] == [Outcome.REFUSED_ADDRESS]


def test_a_name_with_a_private_and_an_allowed_address_is_reached_at_the_allowed_one():
    addresses = [(socket.AF_INET, "10.0.0.1"), (socket.AF_INET, "127.0.0.1")]
    (found,), requests = fetch_by_name(lambda host: addresses, "http://both.test:{port}/")
    assert isinstance(found, Fetched)
    assert len(requests) == 1


def test_a_name_without_addresses_is_a_dns_failure():
    (found,), _ = fetch_by_name(lambda host: [], "http://none.test/")
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.DNS


def test_an_opt_out_ends_before_the_body():
    found, _ = fetch(lambda path: answer(b"", Content_Length="100000", X_Robots_Tag="noai"))
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.OPTED_OUT


def test_plain_http_where_tls_was_expected_is_a_tls_failure():
    async def run():
        async def speak_first(reader, writer):
            writer.write(answer(status="400 Bad Request"))
            writer.close()

        async with (
            await asyncio.start_server(speak_first, "127.0.0.1", 0) as server,
            HttpTransport(LOCAL) as transport,
        ):
            port = server.sockets[0].getsockname()[1]
            return await Fetcher(LOCAL, transport).fetch(f"https://127.0.0.1:{port}/")

    found = asyncio.run(run())
    assert isinstance(found, FetchFailed)
    assert found.outcome is Outcome.TLS


def test_a_certificate_nobody_vouches_for_is_a_tls_failure(tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not there to make a certificate")
    command = (
        f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1 "
        f"-addext subjectAltName=IP:127.0.0.1 -keyout {tmp_path}/key.pem -out {tmp_path}/cert.pem"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    found, requests = fetch(lambda path: answer(), url="https://127.0.0.1:{port}/", ssl=context)
    assert isinstance(found, FetchFailed)
    assert (found.outcome, found.message) == (Outcome.TLS, "certificate verify failed")
    assert requests == []


def test_a_long_body_is_admitted_before_it_is_read_on():
    policy = LOCAL.model_copy(update={"large_body_bytes": 200_000})
    admitted = []

    async def admit():
        admitted.append(True)

    async def run(size):
        async with serving(lambda path: answer(b"x" * size)) as (port, _), HttpTransport(policy) as transport:
            await Fetcher(policy, transport).fetch(f"http://127.0.0.1:{port}/", admit_large=admit)

    asyncio.run(run(200_000))
    assert admitted == []
    asyncio.run(run(900_000))
    assert admitted == [True]


def test_many_hosts_at_once():
    async def run():
        async with (
            serving(lambda path: answer(path.encode())) as (port, _),
            HttpTransport(LOCAL) as transport,
        ):
            fetcher = Fetcher(LOCAL, transport)
            urls = [f"http://127.0.{number}.1:{port}/{number}" for number in range(100)]
            # Only 127.0.0.1 listens.
            return await asyncio.gather(*(fetcher.fetch(url) for url in urls))

    found = asyncio.run(run())
    assert isinstance(found[0], Fetched)
    assert {type(one) for one in found[1:]} == {FetchFailed}
    assert {one.outcome for one in found[1:]} == {Outcome.CONNECT}


def test_a_failure_says_whether_it_may_pass():
    assert ExchangeFailed(Outcome.TIMEOUT, "timed out", passing=True).passing
    assert not ExchangeFailed(Outcome.TLS, "TLS handshake failed").passing
