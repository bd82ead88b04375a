"""One flipped byte, in any file of a life: someone refuses it by name, or nothing comes of it.

Every file below the data root is taken, whichever stage wrote it, and the sources: of a file that nobody
thought of here, the test says so. What damage of other kinds does to the formats' readers, test_mutations.py
tries; what stock TFDS makes of a flipped byte, tests/verify/test_tfds_flipped_bytes.py does. Ten times as
many bytes are flipped with LAION_LONG=1.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from random import Random

import life
import pytest
from copying import copy_tree

from laion_assets.errors import CorruptInput, LaionAssetsError
from laion_assets.formats.publish import verify
from laion_assets.formats.tfds import CONFIGS
from laion_assets.layout import Output
from laion_assets.pipeline import STAGES
from laion_assets.published_dataset import verify_dataset

LONG = os.environ.get("LAION_LONG") == "1"
SEED = 20_261_127
# The stage that decodes starts a process for it, which takes as long as ten others.
COSTLY = {"images"}
# Their files follow from all others' and, of the catalog, are not the same twice.
DESCRIBE = {"catalog", "dataset_report"}

_times = count(10**18)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A life, and a copy of it beside."""
    folder = tmp_path_factory.mktemp("flipped") / "life"
    life.live(folder)
    copy_tree(folder, folder.with_name("whole"))
    return folder


@pytest.fixture
def folder(once: Path) -> Iterator[Path]:
    """The life, whole before and after."""
    yield once
    restore(once)


def restore(folder: Path) -> None:
    shutil.rmtree(folder)
    copy_tree(folder.with_name("whole"), folder)


def mend(path: Path, folder: Path) -> None:
    write(path, (folder.with_name("whole") / path.relative_to(folder)).read_bytes())


def flip(path: Path, at: int, rng: Random) -> None:
    """Flip a byte in place, as a disk would: links to the file see it, too."""
    body = bytearray(path.read_bytes())
    body[at] ^= rng.randrange(1, 256)
    write(path, body)


def write(path: Path, body: bytes) -> None:
    path.write_bytes(body)
    # Two writes within a tick of the clock would have one time, and who knows the file would not look again.
    os.utime(path, ns=(next(_times),) * 2)


def flips(paths: Iterable[Path], most: int, rng: Random) -> Iterator[Path]:
    """Flip bytes spread over each file, one at a time: the first, the last, and others."""
    for path in paths:
        size = path.stat().st_size
        for at in sorted(
            {0, size - 1, *rng.sample(range(size), min(size, most))} if most > 1 else {size // 3}
        ):
            flip(path, at, rng)
            yield path


def files_of(output: Output) -> list[Path]:
    return [*map(output.path, output.names), output.manifest]


def bodies(output: Output) -> dict[str, bytes]:
    return {name: output.path(name).read_bytes() for name in output.names if name not in output.logs}


def seen(config: str, folder: Path) -> dict[str, bytes]:
    """What TFDS reads of a config."""
    return {path.name: path.read_bytes() for path in life.layout_of(folder).tfds_version(config).iterdir()}


def refusal(read: Callable[[], object]) -> str | None:
    """What somebody says who refuses; anything but our own errors is let through."""
    try:
        read()
    except LaionAssetsError as error:
        return str(error)
    return None


def withdraw(output: Output) -> None:
    for path in files_of(output):
        path.unlink()


# -- verify -----------------------------------------------------------------------------------------------


def check_verify(folder: Path, most: int) -> int:
    rng, tried = Random(SEED), 0
    for stage in STAGES:
        output = life.output(stage.name, folder)
        told = verify(output)
        for path in flips(files_of(output), most, rng):
            said = refusal(lambda output=output: verify(output))
            if said is None:
                # White space of a manifest says nothing.
                assert path == output.manifest
                assert verify(output) == told
            else:
                assert str(path) in said
            mend(path, folder)
            tried += 1
    return tried


def test_verify_names_every_published_file_that_has_a_flipped_byte(folder: Path) -> None:
    assert check_verify(folder, 4) > 150


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_verify_names_every_file_wherever_the_byte_is(folder: Path) -> None:
    assert check_verify(folder, 1_000 if LONG else 100) > (20_000 if LONG else 2_000)


# -- the next stages --------------------------------------------------------------------------------------


def check_readers(folder: Path, most: int, *, but: set[str]) -> dict[str, int]:
    """What came of it: how many refused, and of how many runs nothing was another."""
    rng, came = Random(SEED), {"refused": 0, "same": 0}
    for reader in STAGES:
        if reader.name in but:
            continue
        output = life.output(reader.name, folder)
        expected = bodies(output)
        sources = [path for name in reader.inputs for path in files_of(life.output(name, folder))]
        for path in flips(sources, most, rng):
            withdraw(output)
            said = refusal(lambda reader=reader: life.STAGES[reader.name](folder))
            if said is None:
                assert bodies(output) == expected, f"{reader.name} made other bytes of {path}"
            else:
                assert str(path) in said
                assert not output.manifest.exists()
            came["same" if said is None else "refused"] += 1
            restore(folder)
    return came


def test_the_next_stage_refuses_a_flipped_byte_or_makes_the_same_of_it(folder: Path) -> None:
    came = check_readers(folder, 1, but=DESCRIBE | COSTLY)
    assert came["refused"] > 40


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_next_stage_refuses_a_flipped_byte_wherever_it_is(folder: Path) -> None:
    came = check_readers(folder, 20 if LONG else 2, but=DESCRIBE)
    print(f"\n{came}")
    assert came["refused"] > (800 if LONG else 150)


# -- sources ----------------------------------------------------------------------------------------------


def check_sources(folder: Path, most: int) -> None:
    """Of sources that were checked once: afterwards they are what they were, or nothing is made of them."""
    rng = Random(SEED)
    vectors = sorted(path for path in (folder / "vectors").rglob("*") if path.is_file())
    assert len(vectors) == 3
    for path in flips(vectors, most, rng):
        withdraw(life.output("embedding_join", folder))
        said = refusal(lambda: life.STAGES["embedding_join"](folder))
        assert said is not None, f"{path} was joined"
        assert str(path) in said
        restore(folder)
    for _ in flips([folder / f"{life.PART}.parquet"], most, rng):
        # A raw file that changed is another file, and taken as one; the plan does not take it for this one.
        said = refusal(lambda: [life.STAGES[stage](folder) for stage in ("raw_metadata", "shard_plan")])
        assert said is not None
        assert life.PART in said
        restore(folder)


def test_a_source_that_changed_since_it_was_checked_is_refused(folder: Path) -> None:
    check_sources(folder, 3)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_source_is_refused_wherever_the_byte_is(folder: Path) -> None:
    check_sources(folder, 100 if LONG else 10)


# -- what TFDS reads --------------------------------------------------------------------------------------


def beside_the_outputs(folder: Path) -> list[Path]:
    """Files below the data root that are of no stage's output: what TFDS reads, and what is remembered."""
    published = {path for stage in STAGES for path in files_of(life.output(stage.name, folder))}
    every = {path for path in (folder / "data").rglob("*") if path.is_file() and ".leases" not in path.parts}
    # By the name that readers know, which is a link's.
    return sorted(path for path in every - published if "-of-" not in path.name)


def check_datasets(folder: Path, most: int) -> None:
    layout, rng = life.layout_of(folder), Random(SEED)
    files = beside_the_outputs(folder)
    assert len(files) == len(CONFIGS) * (5 + 1) + 1, (
        files
    )  # metadata and licence, what is remembered; default
    expected = {config: seen(config, folder) for config in CONFIGS}
    for path in flips(files, most, rng):
        if ".known" in path.parts:
            withdraw(layout.dataset(path.stem))  # or nobody would look
        else:
            said = [refusal(lambda config=config: verify_dataset(config, layout)) for config in CONFIGS]
            assert path.resolve() in [Path(word.split(": ")[0]).resolve() for word in said if word]
        for config in CONFIGS:
            life.STAGES[f"laion400m_{config}"](folder)
            assert seen(config, folder) == expected[config]
            verify_dataset(config, layout)
        restore(folder)


def test_what_lies_beside_the_shards_is_told_and_made_again(folder: Path) -> None:
    check_datasets(folder, 1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_what_lies_beside_the_shards_is_told_wherever_the_byte_is(folder: Path) -> None:
    check_datasets(folder, 40 if LONG else 4)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_shard_that_is_no_link_is_compared_by_itself(folder: Path, config: str) -> None:
    """As it is where the data set lies on another file system, or its shard was made again since."""
    layout = life.layout_of(folder)
    (link,) = (path for path in layout.tfds_version(config).iterdir() if "-of-" in path.name)
    body = link.read_bytes()
    link.unlink()
    link.write_bytes(body)
    verify_dataset(config, layout)
    flip(link, len(body) // 2, Random(SEED))
    with pytest.raises(CorruptInput, match=link.name):
        verify_dataset(config, layout)
    link.unlink()
    with pytest.raises(CorruptInput, match="found no file"):
        verify_dataset(config, layout)
