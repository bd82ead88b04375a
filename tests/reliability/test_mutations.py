"""Damaged files crash nobody and never pass for other data; whoever refuses one names it.

6,000 files with ``LAION_LONG=1``, 600 without, and a tenth as many JSON records. Each is read twice: by its
format's reader alone, and by the stages that read it in a life whose other files are whole.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import resource
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any

import life
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mutating import mutate

from laion_assets.download_progress import DownloadProgress
from laion_assets.embedding_source import read_embedding_source
from laion_assets.errors import CorruptInput, LaionAssetsError, StorageError
from laion_assets.fetch.transport import FakeTransport
from laion_assets.formats import npy, parquet, tfrecord
from laion_assets.formats.publish import read_manifest, verify
from laion_assets.formats.webdataset import index_tar
from laion_assets.layout import Layout, Output
from laion_assets.placed_images import check_placed
from laion_assets.plan import ShardPlan
from laion_assets.raw_source import read_source
from laion_assets.schema import (
    DUPLICATES,
    IMAGES,
    NORMALIZED_EMBEDDINGS,
    NORMALIZED_IMAGES,
    RAW,
    ROWS_SET_ASIDE,
    SAMPLES,
    embedding_join,
    image_embeddings,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Read at import, before the fixture that clears the environment.
FILES = 6_000 if os.environ.get("LAION_LONG") == "1" else 600
SEED = 20_240_817
# A child that dies takes the rest of its files along; starting one costs two seconds.
FILES_PER_CHILD = 300
CHILD_MEMORY = 4 << 30
CASE_CPU_S = 60
CHILD_WALL_S = 1_200


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A file that is damaged, and who reads it.

    Attributes:
        format: what it is.
        path: where it is, below the life's folder.
        readers: read it without a manifest; what one returns can be compared.
        proves: whether the format's own checksums must tell damage from data.
        of: the stage that published it.
        stages: those that read it.
        taken_by: for a source, the stages that take it as it is: they must refuse it or keep its rows.
        weight: how often it is taken, against the others of its format.
    """

    format: str
    path: str
    readers: tuple[Callable[[Path], Any], ...]
    proves: bool = True
    of: str | None = None
    stages: tuple[str, ...] = ()
    taken_by: tuple[str, ...] = ()
    weight: int = 3


# -- the formats' readers alone ---------------------------------------------------------------------------


def parquet_readers(schema: pa.Schema) -> tuple[Callable[[Path], Any], ...]:
    def in_batches(path: Path) -> pa.Table:
        return pa.Table.from_batches(parquet.read_batches(path, schema, batch_rows=7), schema)

    return (lambda path: parquet.read_table(path, schema), in_batches)


def read_foreign_parquet(path: Path) -> pa.Table:
    with parquet.open_reader(path) as reader:
        return reader.read()


def read_vectors(path: Path) -> bytes:
    with npy.open_reader(path, width=life.WIDTH) as reader:
        return b"".join(reader.read(10).tobytes() for _ in range(0, reader.rows, 10))


def map_vectors(path: Path) -> bytes:
    return npy.open_vectors(path, width=life.WIDTH).tobytes()


def read_payloads(path: Path) -> list[bytes]:
    summary = json.loads(path.with_suffix(".summary").read_text())
    return list(tfrecord.read_records(path, expected=tfrecord.RecordsSummary(**summary)))


def check_as_placed(path: Path) -> Any:
    return check_placed(life.SHARD, Layout(path.parents[1]))


def read_record(path: Path) -> Any:
    """By the reader of its kind, which refuses a whole record of another kind or partition, too."""
    folder, stage = path.parents[2], path.parent.name
    layout = life.layout_of(folder)
    if path.name.endswith((".manifest.json", ".manifest")):
        return read_manifest(life.output(stage, folder))
    if stage == "raw_metadata":
        return read_source(layout, life.PART)
    if stage == "embeddings":
        return read_embedding_source(layout, life.VECTORS)
    return ShardPlan.load(layout)


# -- what is damaged --------------------------------------------------------------------------------------

S = life.SHARD
JOURNAL = f"data/images/.journals/{S}.journal"


def published(stage: str, name: str, schema: pa.Schema, *stages: str) -> Subject:
    path = f"data/{stage}/{name}.parquet"
    return Subject(format="Parquet", path=path, readers=parquet_readers(schema), of=stage, stages=stages)


def vectors(path: str) -> Subject:
    return Subject(
        format="npy",
        path=path,
        readers=(read_vectors, map_vectors),
        proves=False,
        stages=("embedding_join",),
        taken_by=("embeddings", "embedding_join"),
    )


def records(stage: str) -> Subject:
    return Subject(format="TFRecord", path=f"data/{stage}/{S}.tfrecord", readers=(read_payloads,), of=stage)


def sealed(path: str, *stages: str, of: str | None = None) -> Subject:
    return Subject(format="JSON", path=f"data/{path}", readers=(read_record,), stages=stages, of=of)


PICTURE_READERS = ("tfds_images", "tfds_image_embeddings")
JOIN_READERS = ("embedding_index", "normalized_embeddings", "tfds_embeddings", "image_embeddings")
SUBJECTS = (
    published("raw_metadata", life.PART, RAW, "samples", "duplicates"),
    published("duplicates", "duplicates", DUPLICATES),
    published("samples", f"{S}", SAMPLES, "images"),
    published("images", f"{S}", IMAGES, "normalized_images", *PICTURE_READERS),
    published("normalized_images", f"{S}", NORMALIZED_IMAGES, "image_embeddings", *PICTURE_READERS),
    published("normalized_images", f"{S}.set_aside", ROWS_SET_ASIDE, *PICTURE_READERS),
    published("embedding_join", f"{S}", embedding_join(life.WIDTH), *JOIN_READERS),
    published("normalized_embeddings", f"{S}", NORMALIZED_EMBEDDINGS, "tfds_embeddings"),
    published("image_embeddings", f"{S}", image_embeddings(life.WIDTH), "tfds_image_embeddings"),
    Subject(format="Parquet", path="groups.parquet", readers=parquet_readers(SAMPLES)),
    Subject(format="Parquet", path=f"placed/images/{S}.parquet", readers=(check_as_placed,)),
    Subject(
        format="Parquet",
        path="vectors/metadata/metadata_0.parquet",
        readers=(read_foreign_parquet,),
        proves=False,
        stages=("embedding_join",),
        taken_by=("embeddings", "embedding_join"),
    ),
    Subject(
        format="Parquet",
        path=f"{life.PART}.parquet",
        readers=(read_foreign_parquet,),
        proves=False,
        taken_by=("raw_metadata",),
    ),
    vectors("vectors/img_emb/img_emb_0.npy"),
    vectors("vectors/text_emb/text_emb_0.npy"),
    Subject(
        format="tar",
        path=f"data/images/{S}.tar",
        readers=(index_tar,),
        proves=False,
        of="images",
        stages=("normalized_images", *PICTURE_READERS),
    ),
    Subject(format="tar", path=f"placed/images/{S}.tar", readers=(check_as_placed,), proves=False),
    records("tfds_images"),
    records("tfds_embeddings"),
    records("tfds_image_embeddings"),
    # A stage that decodes starts a process for it, which takes as long as twenty other cases.
    Subject(format="TFRecord", path=JOURNAL, readers=(read_payloads,), stages=("images",), weight=1),
    sealed(f"raw_metadata/{life.PART}.manifest.json", "samples", "duplicates"),
    sealed(f"raw_metadata/{life.PART}.source.json", "shard_plan", of="raw_metadata"),
    sealed("shard_plan/shard_plan.json", "samples", of="shard_plan"),
    sealed(f"samples/{S}.manifest.json", "images"),
    sealed(f"images/{S}.manifest", "normalized_images", *PICTURE_READERS),
    sealed(f"normalized_images/{S}.manifest.json", "image_embeddings", *PICTURE_READERS),
    sealed(f"embeddings/{S}.json", "embedding_join", of="embeddings"),
    sealed(f"embeddings/{S}.manifest.json", "embedding_join"),
    sealed(f"embedding_join/{S}.manifest.json", *JOIN_READERS),
    sealed(f"embedding_index/{S}.manifest.json", "image_embeddings"),
    sealed(f"normalized_embeddings/{S}.manifest.json", "tfds_embeddings"),
    sealed(f"image_embeddings/{S}.manifest.json", "tfds_image_embeddings"),
)
FORMATS = ("Parquet", "npy", "tar", "TFRecord")


def prepare(folder: Path) -> None:
    """A whole life, and what no life leaves: a journal, a placed shard, a table of several row groups."""
    life.live(folder, until="images")
    output = life.output("images", folder)

    def stop(progress: DownloadProgress) -> None:
        if progress.done == life.ROWS - 4:
            raise OSError(28, "No space left on device")

    with pytest.raises(StorageError):
        life.download_images(
            S,
            life.layout_of(folder),
            life.FETCH,
            life.IMAGE,
            transport=FakeTransport(life.answer, life.FETCH),
            follow=stop,
        )
    journal = output.journal.read_bytes()
    for stage in list(life.STAGES)[list(life.STAGES).index("images") : -2]:
        life.STAGES[stage](folder)
    output.journal.write_bytes(journal)
    shutil.copytree(folder / "data" / "images", folder / "placed" / "images")
    samples = parquet.read_table(folder / f"data/samples/{S}.parquet", SAMPLES)
    parquet.write_table(folder / "groups.parquet", samples, SAMPLES, row_group_rows=8)
    for subject in SUBJECTS:
        if subject.format == "TFRecord":
            path = folder / subject.path
            path.with_suffix(".summary").write_text(json.dumps(vars(tfrecord.check_records(path))))


# -- one case ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """Which file was damaged, and how."""

    number: int
    subject: Subject
    how: str
    bytes: bytes

    def __str__(self) -> str:
        return f"case {self.number} of seed {SEED}, {self.how} of {self.subject.path}"


class Life:
    """A prepared life in which one file at a time is damaged, and made whole again."""

    def __init__(self, folder: Path, whole: Path) -> None:
        self.folder = folder
        self.whole = {
            path.relative_to(whole): path.read_bytes()
            for path in whole.rglob("*")
            if path.is_file() and ".leases" not in path.parts
        }
        self.restore()
        self.read = {
            subject: [reader(folder / subject.path) for reader in subject.readers] for subject in SUBJECTS
        }
        self.manifests = {stage: read_manifest(life.output(stage, folder)) for stage in life.STAGES}

    def restore(self, *but: Path) -> None:
        for name, data in self.whole.items():
            path = self.folder / name
            if path not in but and (not path.exists() or path.read_bytes() != data):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)

    def damage(self, number: int, kind: str) -> Case:
        """Damage a file as the case's number says."""
        rng = Random(f"{SEED} {number}")
        among = [subject for subject in SUBJECTS if subject.format == kind]
        subject = rng.choices(among, [found.weight for found in among])[0]
        other = rng.choice([found for found in among if found != subject])
        how, damaged = mutate(kind, self.whole[Path(subject.path)], self.whole[Path(other.path)], rng)
        (self.folder / subject.path).write_bytes(damaged)
        return Case(number=number, subject=subject, how=how, bytes=damaged)

    def try_case(self, case: Case) -> dict[str, Any]:
        """Have a damaged file read by everyone: what came of it, and what is wrong with that."""
        subject, found = case.subject, {}
        try:
            readings = zip(subject.readers, self.read[subject], strict=True)
            found["reader"] = worst([self._read(subject, reader, expected) for reader, expected in readings])
            verdicts = [self._run(subject, stage) for stage in subject.stages]
            if subject.of is not None:
                verdicts.append(self._judge(subject, lambda: verify(life.output(subject.of, self.folder))))
            found["stage"] = worst(verdicts)
            if subject.taken_by:
                found["source"] = self._take(subject)
        except AssertionError as error:
            found |= {"wrong": str(error), "bytes": case.bytes.hex()}
        finally:
            self.restore()
        return found

    def _read(self, subject: Subject, reader: Callable[[Path], Any], expected: Any) -> str:
        read: list[Any] = []
        verdict = self._judge(subject, lambda: read.append(reader(self.folder / subject.path)))
        if verdict == "same" and read[0] != expected:
            assert not subject.proves, f"the reader returned other data: {str(read[0])[-300:]}"
            return "other"
        return verdict

    def _take(self, subject: Subject) -> str:
        for stage in subject.taken_by:
            output = self._without(stage)
            verdict = self._judge(subject, lambda stage=stage: life.STAGES[stage](self.folder))
            if verdict == "refused":
                return verdict
        rows = pq.read_metadata(
            next(output.path(name) for name in output.names if "parquet" in name)
        ).num_rows
        assert rows == life.ROWS, f"{subject.taken_by[-1]} has {rows} rows"
        return "other"

    def _without(self, stage: str) -> Output:
        output = life.output(stage, self.folder)
        output.manifest.unlink()
        for name in output.names:
            output.path(name).unlink()
        return output

    def _run(self, subject: Subject, stage: str) -> str:
        output = self._without(stage)
        verdict = self._judge(subject, lambda: life.STAGES[stage](self.folder))
        if verdict == "same":
            found, expected = read_manifest(output), self.manifests[stage]
            differ = [
                name
                for name in life.data_files(expected)
                if output.path(name).read_bytes() != self.whole[output.path(name).relative_to(self.folder)]
            ]
            assert not differ, f"{stage} made other bytes: {differ}"
            told = [replace(one, seconds=0, files=life.data_files(one)) for one in (found, expected)]
            assert told[0] == told[1], f"{stage} tells another story"
        else:
            assert read_manifest(output) is None, f"{stage} refused and published"
            assert not output.draft.exists(), f"{stage} left a draft"
        self.restore(self.folder / subject.path)  # for the next stage, which may read this one's files
        return verdict

    def _judge(self, subject: Subject, read: Callable[[], object]) -> str:
        try:
            read()
        except LaionAssetsError as refusal:
            told = str(refusal)
        except Exception as crash:  # noqa: BLE001 (a crash of any kind is what is looked for)
            raise AssertionError("a crash:\n" + "".join(traceback.format_exception(crash))) from None
        else:
            return "same"
        assert str(self.folder / subject.path) in told, f"not named in: {told}"
        return "refused"


def worst(verdicts: list[str]) -> str:
    return next((verdict for verdict in ("other", "same", "refused") if verdict in verdicts), "")


# -- children ---------------------------------------------------------------------------------------------


def run_cases(folder: Path, whole: Path, cases: Sequence[tuple[int, str]], log: Path) -> None:
    """In a child: say which case begins, and what came of it."""
    faulthandler.enable()
    disturbed = Life(folder, whole)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + CHILD_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    with log.open("w", buffering=1) as file:
        for number, kind in cases:
            case = disturbed.damage(number, kind)
            file.write(json.dumps({"case": str(case), "format": kind}) + "\n")
            # SIGPROF, which nobody handles, ends a process that a file sends round in circles.
            signal.setitimer(signal.ITIMER_PROF, CASE_CPU_S)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            file.write(json.dumps(disturbed.try_case(case) | {"peak": peak}) + "\n")


def run_child(target: Callable[..., None], *arguments: Any, log: Path) -> list[dict[str, Any]]:
    """Run cases in a child that they may kill; it logs what begins, and what came of it."""
    child = multiprocessing.get_context("spawn").Process(target=target, args=(*arguments, log))
    child.start()
    child.join(CHILD_WALL_S)
    if child.is_alive():
        child.kill()
        child.join()
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    found = [begun | ended for begun, ended in zip_longest(lines[::2], lines[1::2], fillvalue={})]
    if child.exitcode != 0:
        assert found, f"the child ended with {child.exitcode} before its first case"
        found[-1]["wrong"] = f"the child ended with {child.exitcode}"
    return found


def complain(found: list[dict[str, Any]], folder: Path) -> None:
    wrong = [f"{one['case']}: {one['wrong']}" for one in found if "wrong" in one]
    assert not wrong, f"{len(wrong)} wrong (the logs in {folder} have the bytes)\n" + "\n".join(wrong[:20])


def test_no_damaged_file_crashes_anyone_or_passes_for_other_data(tmp_path):
    folder, whole = tmp_path / "life", tmp_path / "whole"
    prepare(folder)
    shutil.copytree(folder, whole)
    found: list[dict[str, Any]] = []
    kinds = [FORMATS[number % len(FORMATS)] for number in range(FILES)] + ["JSON"] * (FILES // 10)
    cases = list(enumerate(kinds))
    for first in range(0, len(cases), FILES_PER_CHILD):
        some = cases[first : first + FILES_PER_CHILD]
        found += run_child(run_cases, folder, whole, some, log=tmp_path / f"{first}.log")
    print("\n" + table(found))
    complain(found, tmp_path)
    assert len(found) == len(cases)


def table(found: list[dict[str, Any]]) -> str:
    """By format: what its reader alone, the stages after it, and those that take a source as it is did."""
    columns = [
        *(("reader", verdict) for verdict in ("refused", "same", "other")),
        *(("stage", verdict) for verdict in ("refused", "same")),
        *(("source", verdict) for verdict in ("refused", "other")),
    ]
    lines = [f"{'format':10}{'files':>7}" + "".join(f"{f'{who} {what}':>16}" for who, what in columns)]
    for kind in (*FORMATS, "JSON"):
        of_kind = [one for one in found if one.get("format") == kind]
        counts = Counter(item for one in of_kind for item in one.items())
        lines.append(f"{kind:10}{len(of_kind):7,}" + "".join(f"{counts[column]:16,}" for column in columns))
    peak = max((one.get("peak", 0) for one in found), default=0)
    return "\n".join([*lines, f"peak memory of a child: {peak >> 10} MiB"])


# -- what of a Parquet file no checksum covers ------------------------------------------------------------


def flip_every_bit(path: Path, first: int, log: Path) -> None:
    """In a child: read a file with each of its bits flipped, from the one of this number on."""
    faulthandler.enable()
    whole, readers = path.read_bytes(), parquet_readers(ROWS_SET_ASIDE)
    expected = parquet.read_table(path, ROWS_SET_ASIDE)
    with log.open("w", buffering=1) as file:
        for bit in range(first, 8 * len(whole)):
            at = bit // 8
            file.write(json.dumps({"case": f"bit {bit % 8} of byte {at}"}) + "\n")
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit % 8]) + whole[at + 1 :])
            file.write(json.dumps(outcome(path, readers, expected)) + "\n")


def outcome(path: Path, readers: Sequence[Callable[[Path], Any]], expected: Any) -> dict[str, Any]:
    try:
        found = [reader(path) for reader in readers]
    except CorruptInput as error:
        return {"reader": "refused"} if str(path) in str(error) else {"wrong": f"not named in: {error}"}
    except Exception as crash:  # noqa: BLE001
        return {"wrong": f"a crash: {crash!r}"}
    return {} if all(one == expected for one in found) else {"wrong": "other rows"}


def test_no_flipped_bit_of_a_parquet_file_crashes_its_reader_or_passes_for_other_rows(tmp_path):
    """No checksum covers the footer and the pages' headers, so each of their bits is flipped in turn."""
    path = tmp_path / "rows.parquet"
    rows = [{name: f"{name} {row % 3}" for name in ROWS_SET_ASIDE.names} for row in range(4)]
    parquet.write_table(path, pa.Table.from_pylist(rows, ROWS_SET_ASIDE), ROWS_SET_ASIDE, row_group_rows=2)
    whole = path.read_bytes()
    found: list[dict[str, Any]] = []
    while len(found) < 8 * len(whole) and sum("wrong" in one for one in found) < 20:
        path.write_bytes(whole)
        found += run_child(flip_every_bit, path, len(found), log=tmp_path / f"{len(found)}.log")
    print(f"\n{len(found):,} files: {sum('reader' in one for one in found):,} refused")
    complain(found, tmp_path)
