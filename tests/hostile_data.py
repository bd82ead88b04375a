"""A data set whose every text is an attack on whoever looks at it, and the web that its URLs are on."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from embedding_inputs import WIDTH, cosines_of, metadata, pairs, place
from fault_server.behaviour import PICTURE, Behaviour, a_picture, behaviour, head
from fault_server.server import Web
from PIL import Image

from laion_assets.outcomes import Outcome

MARK = "kilroy"
"""A word in every attack."""

SETTINGS = f"""
data_root = "data"
dagster_home = "dagster_home"
rows_per_shard = 200
[raw]
source = "raw"
extra_columns = {{extra}}
[embeddings]
source = "embeddings"
width = {WIDTH}
[fetch]
allow_loopback = true
per_domain_interval_s = 0
host_failures = 1000
retry_silent_hosts = true
backoff_s = 0.05
[tfds]
image_embeddings = true
[quality]
success_share_low = 0.0
"""

PLACED = 7
BAD_PART = "part-00001"


def attacks(canary: str, ui: str) -> list[str]:
    """Texts that, were they let, would call the canary, open a dialog, run a mutation or drive a terminal."""
    mutation = f'{ui}/graphql?query=mutation%7BdeletePipelineRun(runId:"{MARK}")%7B__typename%7D%7D'
    script = f"fetch('{canary}/{MARK}');alert('{MARK}')"
    return [
        f"![{MARK}]({mutation})",
        f'<img src=x onerror="{script}">',
        f"'\"></td></table></script><script>{script}</script>",
        f'<svg onload="{script}"></svg>',
        f'<iframe srcdoc="&lt;script&gt;parent.alert(1)&lt;/script&gt;" src="{canary}/{MARK}"></iframe>',
        f"[{MARK}](javascript:alert(1))",
        f"![{MARK}]({canary}/{MARK})",
        f'<img src="{mutation}" alt="{MARK}">',
        f"{canary}/{MARK}",
        f"\x1b]0;{MARK}\x07\x1b[2J\x1b[31m{MARK}\x9b31m",
        f"\u202e{MARK}\u2066 \u200b{MARK}\u2028",
        f"{MARK}\r\n2026-01-01 00:00:00 +0000 - dagster - INFO - {MARK}: all is well\x00\x08",
        f"[bold red]{MARK}[/bold red] [link={canary}]{MARK}[/link] :bomb: {{{MARK}}} %s $\\frac{{{MARK}$",
    ]


def behaviours(texts: Sequence[str]) -> list[Behaviour]:
    """Hosts that put such texts wherever an answer has room for one."""
    described = Image.Exif()
    # ImageDescription; without a place to be filled in, which would make the file another length.
    described[0x010E] = f'<img src=x onerror="alert(1)"> {MARK}\x1b[2J'
    hosts = [behaviour("exif", _answer(a_picture(exif=described)), Outcome.SUCCESS)]
    for number, text in enumerate(texts):
        line = text.replace("\r\n", "\r\n ").replace("\x00", "")
        hosts += [
            behaviour(
                f"type {number}", _answer(PICTURE, f"Content-Type: image/jpeg; {line}"), Outcome.SUCCESS
            ),
            behaviour(f"phrase {number}", _answer(b"gone", status=f"404 {line}"), Outcome.HTTP_4XX),
            behaviour(
                f"location {number}", _answer(b"", f"Location: {line}", status="302 Found"), Outcome.BAD_URL
            ),
            behaviour(f"robots {number}", _answer(PICTURE, f"X-Robots-Tag: {line}"), Outcome.SUCCESS),
            behaviour(f"page {number}", head() + f"<html>{text}".encode(), Outcome.NOT_AN_IMAGE),
        ]
    return hosts


def _answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    return head(f"Content-Length: {len(body)}", *headers, status=status) + body


def lay_out(folder: Path, web: Web, texts: Sequence[str]) -> Path:
    """Write a raw part, a placed shard, vectors and settings below ``folder``; the settings file."""
    extra = [texts[1], texts[9]]
    (folder / "raw").mkdir(parents=True)
    rows = _rows(web, texts)
    similarities = cosines_of(len(rows))
    name = f"part-00000.{texts[1].translate({ord('/'): '_'})[:60]}.parquet"
    raw = {
        "SAMPLE_ID": pa.array(range(len(rows)), pa.int64()),
        "URL": [url for url, _ in rows],
        "TEXT": [text for _, text in rows],
        "HEIGHT": pa.array([100] * len(rows), pa.int32()),
        "WIDTH": pa.array([100] * len(rows), pa.int32()),
        "LICENSE": [text for _, text in rows],
        "NSFW": [text for _, text in rows],
        "similarity": pa.array(similarities, pa.float64()),
    }
    pq.write_table(
        pa.table({**raw, **{column: [text for _, text in rows] for column in extra}}), folder / "raw" / name
    )
    _lay_placed(folder / "data" / "images", texts)
    vectors = metadata(
        similarities,
        url=pa.array([url for url, _ in rows]),
        caption=pa.array([text for _, text in rows]),
        NSFW=pa.array([text for _, text in rows]),
        LICENSE=pa.array([text for _, text in rows]),
        exif=pa.array([text for _, text in rows]),
        error_message=pa.array([text for _, text in rows]),
        image_path=pa.array([text for _, text in rows]),
    )
    place(folder / "embeddings", 0, *pairs(similarities), vectors)
    # JSON's strings are TOML's, but for what lies beyond the first plane.
    (folder / "laion.toml").write_text(SETTINGS.replace("{extra}", json.dumps(extra)))
    return folder / "laion.toml"


def lay_bad_part(folder: Path, texts: Sequence[str]) -> None:
    """Add a raw part whose columns are others: the error names them."""
    wrong = pa.table({f"{text} {number}": [text] for number, text in enumerate(texts)})
    pq.write_table(wrong, folder / "raw" / f"{BAD_PART}.parquet")


def _rows(web: Web, texts: Sequence[str]) -> list[tuple[str, str]]:
    """URL and text of each row: every host with a text; then URLs that are attacks themselves."""
    served = [(f"{host.url}?{number}", texts[number % len(texts)]) for number, host in enumerate(web.hosts)]
    first = web.hosts[0].url
    return [
        *served,
        *((f"{first}?{text}", text) for text in texts),
        *((text, text) for text in texts),
        *((f"{first}?{text}", text) for text in texts[:2]),  # repeated pairs
        *((f"javascript:alert('{MARK}')", text) for text in texts[:2]),
    ]


def _lay_placed(folder: Path, texts: Sequence[str]) -> None:
    """A shard as img2dataset's whose tar holds pictures that its table does not know."""
    folder.mkdir(parents=True)
    with tarfile.open(folder / f"{PLACED:05d}.tar", "w") as tar:
        for number, text in enumerate(texts):
            member = tarfile.TarInfo(
                f"{number}{text}".replace("/", "_").replace(".", "_").replace("\0", "") + ".jpg"
            )
            member.size = len(PICTURE)
            tar.addfile(member, BytesIO(PICTURE))
    columns = {"url": texts, "caption": texts, "key": [f"{PLACED:05d}{n:04d}" for n in range(len(texts))]}
    table = pa.table({**columns, "status": ["failed_to_download"] * len(texts), "error_message": texts})
    pq.write_table(table, folder / f"{PLACED:05d}.parquet")
    (folder / f"{PLACED:05d}_stats.json").write_text(json.dumps({"count": len(texts), "successes": 0}))
