"""No kill and no disk that is full or fails, at any call of a shard's life, costs a sample or doubles one."""

import hashlib
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

import duckdb
import faults
import life
import pytest
from tfds_inputs import Row, picture, write_image_inputs

from laion_assets.fetch.transport import FakeTransport
from laion_assets.formats.durable import naming_storage_errors, sync_file
from laion_assets.formats.publish import FileRecord, Manifest, Recipe, Tally, done, publish
from laion_assets.formats.sealed import seal
from laion_assets.image_policy import ImagePolicy
from laion_assets.layout import Output, ShardId
from laion_assets.stages.images import download_images
from laion_assets.stages.laion400m import publish_dataset
from laion_assets.stages.tfds_images import write_tfds_images

# Read at import, before the fixture that clears the environment.
LONG = os.environ.get("LAION_LONG") == "1"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200 if LONG else 600)]


@pytest.fixture(scope="module")
def strace(program):
    found = program("strace", package="strace")
    tried = subprocess.run([found, "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        message = f"strace may not trace on this machine: {tried.stderr}"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    return found


# -- the life of a shard ----------------------------------------------------------------------------------


def run_stage(stage, folder):
    if stage != "images":
        life.STAGES[stage](folder)
        return ()
    transport = FakeTransport(life.answer, life.FETCH)
    life.STAGES[stage](folder, transport)
    return transport.asked


def older_files(stage, folder):
    output = life.output(stage, folder)

    def write(draft):
        for name in output.names:
            draft.path(name).write_bytes(b"older")
        return Tally(rows=1)

    publish(output, Recipe(code_version="older"), write)


def smaller_pictures(folder):
    transport, policy = FakeTransport(life.answer, life.FETCH), ImagePolicy(size=32, workers=1)
    download_images(life.SHARD, life.layout_of(folder), life.FETCH, policy, transport=transport)


def half_a_download(folder):
    """Leave what a run leaves that is killed while it appends to its journal."""

    def answer(url):
        if url.endswith("/12.jpg"):
            raise InterruptedError
        return life.answer(url)

    with suppress(InterruptedError):
        life.STAGES["images"](folder, FakeTransport(answer, life.FETCH))
    with life.output("images", folder).journal.open("ab") as journal:
        journal.write(bytes(20))


def larger_dataset(config, folder):
    publish_dataset(config, life.layout_of(folder), shard_count=2, width=life.WIDTH)


def dataset_to_grow(folder):
    """Leave a data set that lacks the shard of this life, and has another."""
    layout = life.layout_of(folder)
    withdrawn = life.output("tfds_images", folder).manifest
    aside = withdrawn.rename(folder / "aside")
    write_image_inputs(layout, ShardId(1), [Row(key="000010000", picture=picture())])
    write_tfds_images(ShardId(1), layout)
    larger_dataset("images", folder)
    aside.rename(withdrawn)


def grow_dataset(folder):
    larger_dataset("images", folder)
    return ()


def answers_of_catalog(folder):
    """The rows of each view, without the catalog's own among the shards: its bytes differ each time."""
    with duckdb.connect(str(life.output("catalog", folder).only), read_only=True) as catalog:
        views = [name for name, *_ in catalog.execute("SHOW TABLES").fetchall()]
        rows = {name: catalog.execute(f'SELECT * FROM "{name}" ORDER BY ALL').fetchall() for name in views}
    rows["shards"] = [row for row in rows["shards"] if row[0] != "catalog"]
    return repr(rows)


# Stage -> what lies there before its run, besides nothing.
OLDER = {
    "samples": {"again": partial(older_files, "samples")},
    "images": {"again": smaller_pictures, "resumed": half_a_download},
    "normalized_images": {"again": partial(older_files, "normalized_images")},
    "tfds_images": {"again": partial(older_files, "tfds_images")},
    "laion400m_images": {"again": partial(larger_dataset, "images")},
    "laion400m_embeddings": {"again": partial(larger_dataset, "embeddings")},
    "tfds_image_embeddings": {"again": partial(older_files, "tfds_image_embeddings")},
    "laion400m_image_embeddings": {"again": partial(larger_dataset, "image_embeddings")},
}


def life_scenarios():
    for stage in life.STAGES:
        fresh = faults.Scenario(
            name=stage,
            stage=stage,
            run=partial(run_stage, stage),
            output=partial(life.output, stage),
            answers=answers_of_catalog if stage == "catalog" else None,
        )
        for how, older in OLDER.get(stage, {}).items():
            yield replace(fresh, name=f"{stage} {how}", older=older)
        if stage == "laion400m_images":
            yield replace(fresh, name=f"{stage} grown", older=dataset_to_grow, run=grow_dataset)
        yield fresh


def test_no_fault_makes_a_partition_seem_done_or_changes_its_bytes(strace, tmp_path):
    scenarios = list(life_scenarios())
    results = faults.run(strace, tmp_path, scenarios, most=None if LONG else 150)
    print(f"\n{faults.table(results)}")
    wrong = [result for result in results if result.complaints]
    one_of_each = {(found.fault.scenario, found.complaints[-1].split()[-1]): str(found) for found in wrong}
    assert not wrong, f"{len(wrong)} of {len(results)} faults, such as\n" + "\n".join(one_of_each.values())
    assert len(results) >= (1000 if LONG else 150)
    met = {(result.fault.scenario, result.fault.kind) for result in results}
    assert met == {(scenario.name, kind) for scenario in scenarios for kind in faults.KINDS}


# -- writers that are broken on purpose -------------------------------------------------------------------

NEW = {"first": b"new 1 " * 1000, "second": b"new 2 " * 1000}
OLD = {name: body.replace(b"new", b"old") for name, body in NEW.items()}


def partition(folder):
    return Output(stage="broken", partition="00000", folder=folder / "data" / "broken", names=tuple(NEW))


def manifest_of(bodies):
    return Manifest(
        stage="broken",
        partition="00000",
        recipe=Recipe(code_version="1"),
        files={
            name: FileRecord(bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
            for name, body in bodies.items()
        },
        rows=2,
        counts={},
        seconds=0,
        versions={},
    )


def sealed_manifest(bodies):
    return seal({"format": 2, **asdict(manifest_of(bodies))})


def write_in_place(output, bodies):
    for name, body in bodies.items():
        output.path(name).write_bytes(body)
    output.manifest.write_bytes(sealed_manifest(bodies))


def write_manifest_first(output, bodies):
    put(output.manifest, sealed_manifest(bodies))
    for name, body in bodies.items():
        put(output.path(name), body)


def write_without_syncing_the_folder(output, bodies):
    output.manifest.unlink(missing_ok=True)
    for name, body in bodies.items():
        put(output.path(name), body)
    put(output.manifest, sealed_manifest(bodies))


def put(path, body):
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(body)
    sync_file(draft)
    draft.replace(path)


def lay_down_old(folder):
    partition(folder).folder.mkdir()
    write_in_place(partition(folder), OLD)


def run_broken(write, folder):
    output = partition(folder)
    with naming_storage_errors(output, output.folder):
        if done(output) != manifest_of(NEW):
            write(output, NEW)
    return ()


def test_the_rig_sees_what_is_broken_unless_only_a_power_cut_would_show_it(strace, tmp_path):
    writers = (write_in_place, write_manifest_first, write_without_syncing_the_folder)
    scenarios = [
        faults.Scenario(
            name=write.__name__,
            stage="broken",
            run=partial(run_broken, write),
            output=partition,
            older=lay_down_old,
        )
        for write in writers
    ]
    results = faults.run(strace, tmp_path, scenarios)
    seen = {
        scenario.name: [
            result for result in results if result.complaints and result.fault.scenario == scenario.name
        ]
        for scenario in scenarios
    }
    print(f"\n{faults.table(results)}")
    for name, caught in seen.items():
        print(f"{name}: {len(caught)} faults show that it is broken")
    for name in ("write_in_place", "write_manifest_first"):
        assert any("counts as done and is not" in str(result) for result in seen[name])
    assert not seen["write_without_syncing_the_folder"]
    print("The last loses names in a power cut only, which no kill shows and this rig cannot see.")
