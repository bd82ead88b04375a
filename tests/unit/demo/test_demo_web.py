import asyncio
import io
import socket
import threading
import time
from collections.abc import Iterator

import aiohttp
import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from laion_assets.demo.pictures import Encoding, Picture
from laion_assets.demo.scenes import Scene, read_scene
from laion_assets.demo.web import OUTCOMES, SLOW_S, DemoWeb, Fault

SCENE = Scene(3, "triangle", "red", "white")


@pytest.fixture(scope="module")
def web() -> Iterator[DemoWeb]:
    with DemoWeb() as running:
        yield running


def a_picture(seed: int = 1, encoding: Encoding = Encoding.JPEG) -> Picture:
    return Picture(scene=SCENE, seed=seed, width=320, height=240, encoding=encoding)


def get(url: str, **options: object) -> tuple[int, dict[str, str], bytes]:
    async def ask() -> tuple[int, dict[str, str], bytes]:
        timeout = aiohttp.ClientTimeout(total=1.0)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, **options) as response,
        ):
            return response.status, dict(response.headers), await response.read()

    return asyncio.run(ask())


def seen(body: bytes) -> Scene:
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(body)))
    if "A" in picture.getbands():
        ground = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(ground, picture)
    return read_scene(np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("encoding", list(Encoding))
def test_every_encoding_is_served_as_what_it_is(web: DemoWeb, encoding: Encoding) -> None:
    picture = a_picture(encoding=encoding)
    status, headers, body = get(web.url_for(Fault.OK, picture))
    assert status == 200
    assert headers["Content-Type"] == picture.encoding.content_type
    assert body == picture.encode()
    decoded = Image.open(io.BytesIO(body))
    assert Image.MIME[decoded.format] == headers["Content-Type"]
    assert ImageOps.exif_transpose(decoded).size == (320, 240)
    assert seen(body) == SCENE


def test_rotated_jpeg_lies_on_its_side_until_its_orientation_is_applied() -> None:
    stored = Image.open(io.BytesIO(a_picture(encoding=Encoding.ROTATED_JPEG).encode()))
    assert stored.size == (240, 320)
    upright = Image.open(io.BytesIO(a_picture().encode()))
    turned = np.asarray(ImageOps.exif_transpose(stored), int)
    assert np.abs(turned - np.asarray(upright, int)).mean() < 2


def test_who_drops_the_alpha_channel_is_found_out() -> None:
    body = a_picture(encoding=Encoding.ALPHA_PNG).encode()
    assert read_scene(np.asarray(Image.open(io.BytesIO(body)))[:, :, :3]).background == "black"


def test_second_frame_of_a_gif_shows_another_scene() -> None:
    animation = Image.open(io.BytesIO(a_picture(encoding=Encoding.GIF).encode()))
    animation.seek(1)
    assert read_scene(np.asarray(animation.convert("RGB"))) != SCENE


@pytest.mark.parametrize(("fault", "status"), [("gone", 404), ("forbidden", 403), ("unavailable", 503)])
def test_refusals(web: DemoWeb, fault: str, status: int) -> None:
    for _ in range(2):
        assert get(web.url_for(Fault(fault), a_picture()))[0] == status


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/ok",
        "/ok/",
        "/nosuchfault/1/320x240/one-red-circle-on-a-blue-square.jpg",
        "/ok/1/320x240/one-red-circles-on-a-blue-square.jpg",
        "/ok/1/320x240/one-red-circle-on-a-red-square.jpg",
        "/ok/1/320x240/one-red-circle-on-a-blue-square-or-so.jpg",
        "/ok/1/320x240/one-red-circle-on-a-blue-square.exe",
        "/ok/1/9999x9999/one-red-circle-on-a-blue-square.jpg",
        "/ok/1/1x1/one-red-circle-on-a-blue-square.jpg",
        "/ok/-1/320x240/one-red-circle-on-a-blue-square.jpg",
        "/ok/%31%0a/320x240/one-red-circle-on-a-blue-square.jpg",
        "/../../etc/passwd",
    ],
)
def test_any_other_path_is_not_found(web: DemoWeb, path: str) -> None:
    assert get(web.base_url + path)[0] == 404


def test_slow_answers_late(web: DemoWeb) -> None:
    started = time.monotonic()
    assert get(web.url_for(Fault.SLOW, a_picture()))[0] == 200
    assert time.monotonic() - started >= SLOW_S


def test_stalled_begins_and_never_ends(web: DemoWeb) -> None:
    with pytest.raises(TimeoutError):
        get(web.url_for(Fault.STALLED, a_picture()))


def test_truncated_ends_before_the_length_it_promised(web: DemoWeb) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        get(web.url_for(Fault.TRUNCATED, a_picture()))


def test_oversized_announces_its_size(web: DemoWeb) -> None:
    async def ask() -> int | None:
        url = web.url_for(Fault.OVERSIZED, a_picture())
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            await response.content.readany()
            return response.content_length  # and leaves, as a client with a cap does

    length = asyncio.run(ask())
    assert length is not None
    assert length > 20 << 20
    assert len(get(web.url_for(Fault.OVERSIZED, a_picture(seed=2)))[2]) == length


def test_redirect_leads_to_the_picture(web: DemoWeb) -> None:
    url = web.url_for(Fault.REDIRECT, a_picture())
    status, headers, _ = get(url, allow_redirects=False)
    assert (status, headers["Location"]) == (302, f"/ok/{a_picture().path}")
    assert seen(get(url)[2]) == SCENE


def test_loop_leads_nowhere(web: DemoWeb) -> None:
    with pytest.raises(aiohttp.TooManyRedirects):
        get(web.url_for(Fault.LOOP, a_picture()), max_redirects=3)


def test_flaky_refuses_once_for_each_path(web: DemoWeb) -> None:
    one, other = (web.url_for(Fault.FLAKY, a_picture(seed=seed)) for seed in (101, 102))
    assert [get(url)[0] for url in (one, other, one, other, one)] == [503, 503, 200, 200, 200]


def test_wrong_type_is_a_picture_all_the_same(web: DemoWeb) -> None:
    _, headers, body = get(web.url_for(Fault.WRONG_TYPE, a_picture()))
    assert headers["Content-Type"].startswith("text/plain")
    assert Image.open(io.BytesIO(body)).format == "PNG"
    assert seen(body) == SCENE


def test_html_is_a_page(web: DemoWeb) -> None:
    status, headers, body = get(web.url_for(Fault.HTML, a_picture()))
    assert status == 200
    assert headers["Content-Type"].startswith("text/html")
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(body))


def test_broken_is_sent_whole_and_cannot_be_decoded(web: DemoWeb) -> None:
    status, headers, body = get(web.url_for(Fault.BROKEN, a_picture()))
    assert status == 200
    assert int(headers["Content-Length"]) == len(body)
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(body)).load()


def test_opted_out_says_so(web: DemoWeb) -> None:
    _, headers, body = get(web.url_for(Fault.OPTED_OUT, a_picture()))
    assert "noai" in headers["X-Robots-Tag"]
    assert seen(body) == SCENE


def test_too_many_pixels_are_claimed_by_few_bytes(web: DemoWeb) -> None:
    body = get(web.url_for(Fault.TOO_MANY_PIXELS, a_picture()))[2]
    assert len(body) < 100
    assert Image.open(io.BytesIO(body)).size == (10_000, 8_000)


def test_every_fault_has_an_outcome() -> None:
    assert set(OUTCOMES) == set(Fault)


def test_requests_are_counted_by_path() -> None:
    with DemoWeb() as web:
        url = web.url_for(Fault.OK, a_picture())
        get(url)
        get(f"{url}?again")
        get(web.url_for(Fault.GONE, a_picture()))
        assert web.requests == {f"/ok/{a_picture().path}": 2, f"/gone/{a_picture().path}": 1}


def test_stops_at_once_while_a_request_stalls_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    with DemoWeb() as web:
        address = web.base_url.removeprefix("http://").split(":")
        client = socket.create_connection((address[0], int(address[1])), timeout=5)
        client.sendall(f"GET /stalled/{a_picture().path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert client.recv(64).startswith(b"HTTP/1.1 200")
        started = time.monotonic()
    assert time.monotonic() - started < 3
    client.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((address[0], int(address[1])), timeout=1)


def test_a_port_that_was_asked_for_is_had_or_refused() -> None:
    with DemoWeb() as first:
        port = first.port
        assert first.base_url == f"http://127.0.0.1:{port}"
        with pytest.raises(OSError, match="in use"), DemoWeb(port=port):
            pytest.fail("two servers share a port")
        assert get(first.url_for(Fault.OK, a_picture()))[0] == 200
    with DemoWeb(port=port) as second:
        assert second.base_url == first.base_url
        assert get(second.url_for(Fault.OK, a_picture()))[0] == 200


def test_an_error_inside_the_block_comes_out_and_the_server_stops() -> None:
    before = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), DemoWeb():
        raise ZeroDivisionError
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_listens_on_this_machine_only(host: str) -> None:
    with pytest.raises(ValueError, match="loopback"):
        DemoWeb(host)
