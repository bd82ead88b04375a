import asyncio
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from laion_assets.demo.dataset import DemoDataset, captions_true, make_demo
from laion_assets.demo.pictures import Picture
from laion_assets.demo.scenes import Scene, paint
from laion_assets.demo.web import OUTCOMES, DemoWeb, Fault
from laion_assets.fetch.guard import refusal
from laion_assets.fetch.urls import BadUrl, parse_url
from laion_assets.layout import ShardId
from laion_assets.normalization import set_aside_reasons
from laion_assets.outcomes import Outcome
from laion_assets.plan import ShardPlan
from laion_assets.schema import RAW
from laion_assets.settings import Settings

BASE_URL = "http://127.0.0.1:40400"
REAL_DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "laion400m_real_rows"
EMBEDDINGS = (0, 1, 2)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    return make_demo(tmp_path_factory.mktemp("demo"), BASE_URL)


@pytest.fixture(scope="module")
def parts(demo: DemoDataset) -> list[pa.Table]:
    return [pq.read_table(path) for path in sorted((demo.folder / "raw").iterdir())]


@pytest.fixture(scope="module")
def rows(parts: list[pa.Table]) -> list[dict]:
    return pa.concat_tables(parts).to_pylist()


def metadata(demo: DemoDataset, number: int) -> pa.Table:
    return pq.read_table(demo.folder / f"embeddings/metadata/metadata_{number}.parquet")


def vectors(demo: DemoDataset, kind: str, number: int) -> np.ndarray:
    return np.load(demo.folder / f"embeddings/{kind}/{kind}_{number}.npy", allow_pickle=False)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_parts_have_the_columns_and_types_of_the_real_files(parts: list[pa.Table]) -> None:
    assert [part.num_rows for part in parts] == [330, 270]
    for part in parts:
        assert [(field.name, field.type) for field in part.schema] == [
            (field.name, field.type) for field in RAW
        ]


def test_parquet_schema_is_that_of_a_real_file(demo: DemoDataset) -> None:
    real = REAL_DATA / "laion400m_raw_19rows.parquet"
    if not real.exists():
        pytest.skip(f"{real} is not there")
    for path in (demo.folder / "raw").iterdir():
        with pq.ParquetFile(path) as made, pq.ParquetFile(real) as expected:
            assert made.schema.equals(expected.schema)
            assert made.metadata.row_group(0).column(0).compression == "SNAPPY"


def test_settings_are_read_and_find_both_parts(demo: DemoDataset) -> None:
    settings = Settings.load(demo.folder / "laion.toml")
    assert list(settings.raw_files()) == [
        f"part-0000{number}-5b54c5d5-bbcf-484d-a2ce-0d6f73df1a36-c000" for number in (0, 1)
    ]
    assert settings.data_root == demo.folder / "data"
    assert settings.dagster_home == demo.folder / "dagster_home"
    assert settings.rows_per_shard == 100
    assert settings.fetch.allow_loopback
    assert settings.embeddings.source == str(demo.folder / "embeddings")


def test_captions_begin_with_the_truth(demo: DemoDataset, rows: list[dict]) -> None:
    for row in rows:
        if row["TEXT"] is not None and row["URL"] is not None:
            assert row["TEXT"].startswith(demo.truth[row["URL"]].scene.caption)
            assert Scene.parse(row["TEXT"]) == demo.truth[row["URL"]].scene


def test_the_dirt_of_the_real_files_is_there(rows: list[dict]) -> None:
    texts = [row["TEXT"] for row in rows if row["TEXT"] is not None]
    for dirt in ("|", "\n", "\x00", "\x1b", "🎉", "<img src=x onerror=", "![x](javascript:", "\u202e"):
        assert any(dirt in text for text in texts), dirt
    assert max(map(len, texts)) == 61_192
    similarities = [row["similarity"] for row in rows]
    numbers = [value for value in similarities if value is not None and not math.isnan(value)]
    assert max(numbers) == 6016.0
    assert min(numbers) < 0
    assert 0.0 in numbers
    assert sum(value is not None and math.isnan(value) for value in similarities) == 3
    assert 0.05 < similarities.count(None) / len(rows) < 0.12
    tags = ["UNLIKELY", "UNSURE", "NSFW", "", None, "OTHER"]
    assert {row["NSFW"] for row in rows} == set(tags)
    licences = {row["LICENSE"] for row in rows}
    assert {"?", "", None} < licences
    assert max(len(licence or "") for licence in licences) == 80
    for column in ("SAMPLE_ID", "HEIGHT", "WIDTH"):
        assert any(row[column] is None for row in rows)
    assert max(row["WIDTH"] or 0 for row in rows) == 39_580
    assert sum(row["URL"] is None and row["TEXT"] is None for row in rows) == 3
    assert any(row["URL"] is not None and row["TEXT"] is None for row in rows)
    pairs = Counter((row["URL"], row["TEXT"]) for row in rows if row["URL"] is not None)
    assert sorted(pairs.values())[-2:] == [1, 2]


def test_outcomes_account_for_every_row(demo: DemoDataset, rows: list[dict]) -> None:
    found: Counter[Outcome] = Counter()
    for row in rows:
        found[Outcome.SET_ASIDE if row["URL"] is None else demo.truth[row["URL"]].outcome] += 1
    assert found == demo.outcomes
    assert demo.rows == len(rows) == sum(demo.outcomes.values())
    assert 0.25 < 1 - found[Outcome.SUCCESS] / len(rows) < 0.31
    failures = {outcome: count for outcome, count in found.items() if outcome is not Outcome.SUCCESS}
    assert max(failures, key=failures.__getitem__) is Outcome.HTTP_4XX


def test_urls_of_the_web_lead_to_the_picture_in_truth(demo: DemoDataset) -> None:
    seen = set()
    for url, truth in demo.truth.items():
        if not url.startswith(BASE_URL):
            assert truth.outcome in (
                Outcome.BAD_URL,
                Outcome.REFUSED_ADDRESS,
                Outcome.CONNECT,
                Outcome.SET_ASIDE,
            )
            continue
        fault, _, path = urlsplit(url).path.removeprefix("/").partition("/")
        picture = Picture.parse(path)
        assert picture is not None
        assert (picture.scene, picture.width, picture.height) == (truth.scene, truth.width, truth.height)
        assert truth.outcome in (OUTCOMES[Fault(fault)], Outcome.SET_ASIDE)
        seen.add(Fault(fault))
    assert seen == set(Fault)


def test_the_product_judges_rows_and_addresses_as_the_truth_does(
    demo: DemoDataset, parts: list[pa.Table]
) -> None:
    for part in parts:
        reasons = set_aside_reasons(part["URL"], part["similarity"]).to_pylist()
        for url, reason in zip(part["URL"].to_pylist(), reasons, strict=True):
            expected = Outcome.SET_ASIDE if url is None else demo.truth[url].outcome
            assert (reason is not None) == (expected is Outcome.SET_ASIDE)
    for url, truth in demo.truth.items():
        if truth.outcome is Outcome.BAD_URL:
            with pytest.raises(BadUrl):
                parse_url(url)
            continue
        host = parse_url(url).host
        refused = refusal(host, allow_loopback=True) is not None
        assert refused == (truth.outcome is Outcome.REFUSED_ADDRESS)
        assert refused or host == "127.0.0.1"


def test_made_again_nothing_is_touched(tmp_path: Path) -> None:
    first = make_demo(tmp_path, BASE_URL, rows_per_part=(60, 20), rows_per_shard=25)
    before = contents(tmp_path)
    assert make_demo(tmp_path, BASE_URL, rows_per_part=(60, 20), rows_per_shard=25) == first
    assert contents(tmp_path) == before
    assert DemoDataset.load(tmp_path) == first


def test_made_otherwise_only_what_differs_is_written(tmp_path: Path) -> None:
    make_demo(tmp_path, BASE_URL, rows_per_part=(60, 20))
    before = contents(tmp_path)
    make_demo(tmp_path, BASE_URL, rows_per_part=(60,))
    after = contents(tmp_path)
    assert sum(name.startswith("raw/") for name in after) == 1
    assert after["laion.toml"] == before["laion.toml"]
    make_demo(tmp_path, "http://127.0.0.1:40401", rows_per_part=(60,))
    moved = contents(tmp_path)
    assert moved.keys() == after.keys()
    assert {name for name in moved if moved[name] == after[name]} >= {"laion.toml"}
    assert all(moved[name] != after[name] for name in moved if name.startswith("raw/"))


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    made = make_demo(tmp_path / "here", BASE_URL, rows_per_part=(120,))
    script = (
        "import pathlib, sys; from laion_assets.demo.dataset import make_demo; "
        f"make_demo(pathlib.Path(sys.argv[1]), {BASE_URL!r}, rows_per_part=(120,))"
    )
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "there")],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    here, there = (
        {name: data for name, (data, _) in contents(folder).items()}
        for folder in (made.folder, tmp_path / "there")
    )
    assert here == there


def test_seeds_differ(tmp_path: Path) -> None:
    one, other = (
        make_demo(tmp_path / str(seed), BASE_URL, rows_per_part=(30,), seed=seed).truth for seed in (1, 2)
    )
    assert one.keys() != other.keys()


# -- the embeddings release ---------------------------------------------------------------------------


def test_metadata_has_the_columns_and_types_of_the_release(demo: DemoDataset) -> None:
    file = REAL_DATA / "embeddings_metadata_0_head.json"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    real = json.loads(file.read_text())["schema"]
    names = {"null": "null/none"}
    for number in EMBEDDINGS:
        schema = metadata(demo, number).schema
        assert {field.name: names.get(str(field.type), str(field.type)) for field in schema} == real


def test_vectors_are_of_length_one_and_have_the_recorded_cosine(demo: DemoDataset) -> None:
    for number in EMBEDDINGS:
        table = metadata(demo, number)
        images, texts = (vectors(demo, kind, number) for kind in ("img_emb", "text_emb"))
        for array in (images, texts):
            assert array.dtype == np.float16
            assert array.shape == (table.num_rows, 512)
            assert np.abs(np.linalg.norm(array.astype(float), axis=1) - 1).max() < 3e-4
        cosines = (images.astype(float) * texts.astype(float)).sum(axis=1)
        for cosine, similarity in zip(cosines, table["similarity"].to_pylist(), strict=True):
            if similarity is not None and 0 <= similarity <= 1:
                assert abs(cosine - similarity) < 1e-3
            else:
                assert 0.29 < cosine < 0.51


def test_release_holds_the_rows_whose_picture_can_be_had(demo: DemoDataset, rows: list[dict]) -> None:
    described = [row for number in EMBEDDINGS for row in metadata(demo, number).to_pylist()]
    faults = {Fault.OK, Fault.SLOW, Fault.REDIRECT, Fault.FLAKY, Fault.WRONG_TYPE}
    fetchable = Counter(
        row["URL"] for row in rows if (row["URL"] or "").startswith(tuple(f"{BASE_URL}/{f}/" for f in faults))
    )
    assert Counter(row["url"] for row in described) == fetchable
    for row in described:
        truth = demo.truth[row["url"]]
        assert (row["original_width"], row["original_height"]) == (truth.width, truth.height)


def test_shard_and_key_name_the_row_of_the_plan(demo: DemoDataset, parts: list[pa.Table]) -> None:
    plan = ShardPlan(rows_per_shard=100)
    for number, part in enumerate(parts):
        plan = plan.with_part(str(number), sha256=str(number), rows=part.num_rows)
    assert len(plan.shards) == 7
    order, unplaced = [], 0
    for number in EMBEDDINGS:
        for row in metadata(demo, number).to_pylist():
            assert row["image_path"].isdigit()
            if row["shard_id"] is None:
                assert row["key"] is None
                unplaced += 1
                continue
            shard = ShardId(row["shard_id"])
            rows_of = plan.rows_of(shard)
            assert rows_of is not None
            assert row["key"] < rows_of.rows
            raw = parts[int(rows_of.part)].slice(rows_of.first + row["key"], 1).to_pylist()[0]
            assert (raw["URL"], raw["TEXT"]) == (row["url"], row["caption"])
            assert row["image_path"] == f"{row['key']:07d}"
            order.append((row["shard_id"], row["key"]))
    assert order != sorted(order)
    assert 20 < unplaced < 60


def test_vectors_of_equal_scenes_are_nearest(demo: DemoDataset) -> None:
    scenes = [demo.truth[url].scene for n in EMBEDDINGS for url in metadata(demo, n)["url"].to_pylist()]
    for kind, margin in (("img_emb", 0.2), ("text_emb", 0.15)):
        array = np.concatenate([vectors(demo, kind, number) for number in EMBEDDINGS]).astype(float)
        products = array @ array.T
        equal, unlike = [], []
        for first in range(len(scenes)):
            for second in range(first):
                one, other = scenes[first], scenes[second]
                shared = sum(
                    getattr(one, name) == getattr(other, name)
                    for name in ("count", "shape", "colour", "background")
                )
                if shared in (0, 4):
                    (equal if shared else unlike).append(products[first, second])
        assert equal
        assert min(equal) > max(unlike) + margin


# -- captions against pictures ------------------------------------------------------------------------


def test_captions_true_counts_and_names() -> None:
    scene, other = Scene(2, "circle", "red", "blue"), Scene(3, "circle", "red", "blue")
    pixels = np.asarray(paint(scene, seed=1, width=120, height=90))
    blank = np.full((90, 120, 3), 255, np.uint8)
    examples = [
        (scene.caption + " | dirt", pixels),
        (other.caption, pixels),
        ("no such phrase", pixels),
        (scene.caption, blank),
        ("", pixels),
    ]
    assert captions_true(examples) == (1, [other.caption, "no such phrase", scene.caption])
    assert captions_true([]) == (0, [])


def test_what_is_served_is_what_the_captions_say(tmp_path: Path) -> None:
    with DemoWeb() as web:
        demo = make_demo(tmp_path, web.base_url, rows_per_part=(200, 100))
        urls = [url for url, truth in demo.truth.items() if truth.outcome is Outcome.SUCCESS]
        bodies = asyncio.run(_fetch_all(urls))
    assert len(urls) > 200

    def normalized(url: str) -> np.ndarray:
        picture = Image.open(io.BytesIO(bodies[url]))
        upright = ImageOps.exif_transpose(picture).convert("RGBA")
        assert upright.size == (demo.truth[url].width, demo.truth[url].height)
        flat = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
        scale = 256 / min(flat.size)
        resized = flat.resize([round(side * scale) for side in flat.size], Image.Resampling.BICUBIC)
        file = io.BytesIO()
        resized.save(file, "JPEG", quality=95)
        return np.asarray(Image.open(file))

    pixels = {url: normalized(url) for url in urls}
    captions = {url: demo.truth[url].scene.caption for url in urls}
    assert captions_true((captions[url], pixels[url]) for url in urls) == (len(urls), [])
    # Paired by the wrong row, as by position where failures left gaps, next to nothing is true.
    shifted = zip(urls[1:], urls, strict=False)
    assert captions_true((captions[url], pixels[other]) for url, other in shifted)[0] < 5


async def _fetch_all(urls: list[str]) -> dict[str, bytes]:
    limit = asyncio.Semaphore(32)

    async def fetch(session: aiohttp.ClientSession, url: str) -> bytes:
        async with limit:
            for _ in range(2):  # a flaky URL answers the second time
                async with session.get(url) as response:
                    if response.status == 200:
                        return await response.read()
        raise AssertionError(url)

    async with aiohttp.ClientSession() as session:
        return dict(zip(urls, await asyncio.gather(*(fetch(session, url) for url in urls)), strict=True))
