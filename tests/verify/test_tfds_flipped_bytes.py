"""What stock TFDS makes of a data set with one byte flipped: what has checksums, and what has none."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tfds_datasets import SHARD_COUNT, SHARDS, Dataset, publish_embeddings, publish_images

from laion_assets.errors import CorruptInput
from laion_assets.layout import Layout
from laion_assets.published_dataset import verify_dataset
from laion_assets.stages.laion400m import publish_dataset

pytestmark = pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning")
linux = pytest.mark.skipif(sys.platform != "linux", reason="array_record exists for Linux only")

SEED = 20_261_127
# Shards of the data sets here, of seven.
LAST = 5


def _shard(dataset: Dataset, config: str) -> Path:
    (found,) = dataset.layout.tfds_version(config).glob(f"*-{LAST:05d}-of-*")
    return found


def _flips(path: Path, most: int) -> Iterator[int]:
    """Flip bytes of a file, one at a time: the first, the last and some between."""
    rng, whole = Random(SEED), path.read_bytes()
    size = len(whole)
    for at in sorted({0, size - 1, *rng.sample(range(size), most)}):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ rng.randrange(1, 256)]) + whole[at + 1 :])
        yield at
    path.write_bytes(whole)


def _outcomes(path: Path, read: Callable[[], Any], refusals: tuple[type[Exception], ...], most: int):
    """How often reading was refused, and how often it gave what it gives of the whole file."""
    expected, found = read(), Counter()
    for at in _flips(path, most):
        try:
            got = read()
        except refusals:
            found["refused"] += 1
        else:
            assert got == expected, f"other data, with byte {at} flipped"
            found["same"] += 1
    return found


def _check_tfrecord(dataset: Dataset, config: str, most: int) -> None:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(dataset.layout.tfds_version(config)))
    # Bytes as they are stored: what a decoder makes of a picture takes longer and proves less.
    raw = builder.as_dataset(
        split=f"train[-{SHARDS[LAST]}:]",
        decoders={"image": tfds.decode.SkipDecoding()} if config == "images" else None,
        read_config=tfds.ReadConfig(try_autocache=False),  # in memory, where no file is read again
    )

    def read() -> list[dict[str, bytes]]:
        return [
            {name: value.tobytes() if hasattr(value, "tobytes") else value for name, value in example.items()}
            for example in tfds.as_numpy(raw)
        ]

    assert len(read()) == SHARDS[LAST]
    found = _outcomes(_shard(dataset, config), read, (tf.errors.DataLossError,), most)
    assert set(found) == {"refused"}  # a TFRecord has no byte without a checksum


@pytest.fixture(params=["images", "embeddings"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Dataset, str]:
    """A data set to be damaged."""
    publish = {"images": publish_images, "embeddings": lambda layout: publish_embeddings(layout, 512)}
    return publish[request.param](Layout(tmp_path)), request.param


def test_tensorflow_refuses_a_flipped_byte_of_a_tfrecord(own: tuple[Dataset, str]) -> None:
    _check_tfrecord(*own, 20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_tensorflow_refuses_it_wherever_it_is(own: tuple[Dataset, str]) -> None:
    _check_tfrecord(*own, 300)


def _check_array_record(folder: Path, most: int) -> Counter[str]:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    dataset = publish_embeddings(Layout(folder, "array_record"), 512)
    path = _shard(dataset, "embeddings")

    def read() -> list[bytes]:
        source = ArrayRecordDataSource([str(path)])  # as tfds.data_source opens it
        return [source[row] for row in range(len(source))]

    return _outcomes(path, read, (RuntimeError,), most)


@linux
def test_array_record_refuses_a_flipped_byte_or_does_not_read_it(tmp_path: Path) -> None:
    found = _check_array_record(tmp_path, 200)
    assert found["refused"]
    # The footer is found from the file's end, in blocks of 64 KiB padded with zeros that nobody reads.
    assert found["same"]


@linux
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_array_record_refuses_it_wherever_it_is(tmp_path: Path) -> None:
    print(f"\n{_check_array_record(tmp_path, 10_000)}")


def _published(tmp_path: Path) -> tuple[Dataset, Path]:
    dataset = publish_images(Layout(tmp_path))
    return dataset, dataset.layout.tfds_version("images")


def test_tensorflow_refuses_a_length_that_is_another(tmp_path: Path) -> None:
    import tensorflow as tf
    import tensorflow_datasets as tfds

    _, folder = _published(tmp_path)
    path, length = folder / "dataset_info.json", f'"{SHARDS[LAST]}"'
    whole = path.read_text()
    assert whole.count(length) == 1
    path.write_text(whole.replace(length, f'"{SHARDS[LAST] - 4}"'))
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 9 elements"):
        list(tfds.builder_from_directory(str(folder)).as_dataset(split="train"))


def test_what_tfds_does_not_see_in_its_metadata_verify_does(tmp_path: Path) -> None:
    """Names of labels have no checksum: another letter is another name, of the same number."""
    import tensorflow_datasets as tfds

    dataset, folder = _published(tmp_path)
    path = folder / "nsfw.labels.txt"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"UNSURE", b"INSURE"))
    builder = tfds.builder_from_directory(str(folder))
    assert builder.info.features["nsfw"].names[1] == "INSURE"
    assert len(list(builder.as_dataset(split="train"))) == len(dataset.rows)
    with pytest.raises(CorruptInput, match=r"nsfw\.labels\.txt: expected sha256"):
        verify_dataset("images", dataset.layout)
    # The next publication sees it as well.
    publish_dataset("images", dataset.layout, shard_count=SHARD_COUNT)
    assert (folder / "nsfw.labels.txt").read_bytes() == whole
    verify_dataset("images", dataset.layout)
