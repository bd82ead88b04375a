"""Measures making TFDS shards, ours beside the official builder and beside plain writing; one core.

``make bench-tfds`` runs all of it and writes ``benchmarks/results/tfds.json``. To see ours alone:
``python -m benchmarks.tfds --only ours --part embeddings``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.command import add_sizes, measured, parse, show
from benchmarks.measuring import Failed
from benchmarks.report import describe_hardware
from benchmarks.tfds_inputs import make_embeddings, make_image_shard, make_part, make_parts, make_published
from laion_assets.schema import EMBEDDING_WIDTH

REPOSITORY: Final = Path(__file__).resolve().parents[1]
CACHE: Final = REPOSITORY / ".bench"
OFFICIAL: Final = REPOSITORY / ".venv-tfds-official" / "bin" / "python"
_ONLY: Final = ("both", "ours")
_PARTS: Final = ("embeddings", "images", "split", "publish", "memory", "duplicates")

# Setting -> its value in full and with --quick.
_SIZES: Final = {
    "rounds": (3, 1),
    "embeddings": (200_000, 2_000),
    "official_embeddings": (20_000, 500),
    "images": (10_000, 200),
    "split": (13_000_000, 40_000),
    "publish": (41_455, 40),
    "official_images": (2_000, 100),
    "duplicates": (13_000_000, 40_000),
    "most_embeddings": (1_000_000, 4_000),
    "seed": (1, 1),
}

_EMBEDDINGS: Final = ("check", "join", "normalize_embeddings", "tfds_embeddings")
_IMAGES: Final = ("normalize_images", "tfds_images")

# Part -> what is measured of it -> the steps before it, and its own.
_WORKS: Final = {
    "embeddings": {
        "embeddings": (_EMBEDDINGS[:-1], _EMBEDDINGS[-1:]),
        "embeddings_chain": ((), _EMBEDDINGS),
        "join": (_EMBEDDINGS[:1], _EMBEDDINGS[1:2]),
        "embeddings_write": (_EMBEDDINGS, ("write",)),
    },
    "images": {
        "images": (("link",), _IMAGES),
        "images_decoded": (("link",), ("normalize_and_decode", "tfds_images")),
        "images_copy": (("link",), ("copy",)),
        "images_checksums": (("link",), ("copy_with_checksums",)),
    },
    "split": {
        "split": (("part",), ("split",)),
        "split_pyarrow": (("part",), ("pyarrow",)),
        "split_duckdb": ((), ("duckdb",)),
    },
    "publish": {
        "publish_one_more": (("link_published",), ("publish",)),
        "publish_anew": (("link_published", "publish", "withdraw"), ("publish",)),
    },
}

# Figure of the headline -> the work and what was taken of it.
_AS_TAKEN: Final = {
    "split_peak_mb": ("split", "peak_mb"),
    "publish_one_more_s": ("publish_one_more", "wall_s"),
    "publish_one_more_files": ("publish_one_more", "files_touched"),
    "publish_anew_s": ("publish_anew", "wall_s"),
    "duplicates_peak_mb": ("duplicates", "peak_mb"),
    "embeddings_peak_mb": ("embeddings_most", "peak_mb"),
    "embeddings_chain_peak_mb": ("embeddings_chain_most", "peak_mb"),
}

REMARKS: Final = (
    "CPU seconds of one process on one core, after its imports; examples of the official builder are counted",
    "once the CPU time of a shard of one example is taken off, which is Apache Beam's own start.",
    "embeddings: from the joined and the normalized table to the published shard, checksums of all three",
    "files included. embeddings_chain: from the three source files, checked, joined and proven aligned.",
    "images: from the tar and its table, every picture's header read, to the published shard;",
    "images_decoded: every picture decoded in full.",
    "split: from a checked raw part to a file of samples for each 10,000 rows; split_duckdb: the same rows",
    "to one Parquet file by DuckDB's COPY, one thread, with the same compression and row groups;",
    "split_pyarrow: the same rows to a file for each 10,000, read and written by pyarrow, and nothing else.",
    "publish_one_more: a data set of all shards but one is published again with it; publish_anew: with one",
    "withdrawn, so that all others are linked anew. Examples are shards, and TFDS's own import counts.",
    "files: those of which bytes or a name were changed.",
    "duplicates: what is repeated within and across two checked parts of so many rows each, once; MB written",
    "beyond its own are what DuckDB put on the disk for want of memory.",
    "write, copy: the same bytes, written plainly in pieces of 1 MiB and synced; images_checksums: the same",
    "copy, with the three checksums that a shard's bytes need, and nothing else done.",
)


def main() -> None:
    """Measure what is asked for, print it, write it."""
    arguments = _parse()
    if arguments.only == "both" and not OFFICIAL.exists():
        sys.exit("the official builder needs an environment of its own: make bench-tfds")
    results = measured(measure_all, arguments)
    show(results, _tables(results), REMARKS, output=arguments.output, columns=130)


def measure_all(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Every measurement asked for, and what was made of them.

    Raises:
        Failed: if a program ends with an error.
    """
    with ExitStack() as folders:
        rounds = _measure(_Bench(console, folders), arguments)
    medians = {name: _median(runs) for name, runs in rounds.items()}
    settings = {name: getattr(arguments, name) for name in _SIZES}
    return {
        "headline": _headline(medians),
        "machine": describe_machine(official=arguments.only == "both"),
        "settings": settings | {"remarks": REMARKS},
        "medians": medians,
        "rounds": rounds,
    }


def _measure(bench: _Bench, arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    rounds: dict[str, list[dict[str, Any]]] = {}
    for part in (part for part in _WORKS if part in arguments.part):
        tasks = _tasks(bench, part, arguments)
        for number in range(arguments.rounds):
            # In turn from either end, so that what slows the machine down for a while slows all of them.
            for name, measure in list(tasks.items())[:: 1 if number % 2 == 0 else -1]:
                rounds.setdefault(name, []).append(measure())
                # Where thousands of files are made, none is removed: without a journal, ext4 passes over the
                # inodes of what was removed in the last minutes, one by one, for each new file.
                if part != "split":
                    bench.tidy()
        bench.tidy()
    if "memory" in arguments.part:
        source = make_embeddings(CACHE / "tfds", arguments.most_embeddings, arguments.seed)
        for name in ("embeddings", "embeddings_chain"):
            rounds[f"{name}_most"] = [bench.ours(name, source, *_WORKS["embeddings"][name])]
            bench.tidy()
    if "duplicates" in arguments.part:
        source = make_parts(CACHE / "tfds", arguments.duplicates, arguments.seed)
        rounds["duplicates"] = [bench.ours("duplicates", source, ("parts",), ("duplicates",))]
    return rounds


def _tasks(
    bench: _Bench, part: str, arguments: argparse.Namespace
) -> dict[str, Callable[[], dict[str, Any]]]:
    make = {
        "embeddings": make_embeddings,
        "images": make_image_shard,
        "split": make_part,
        "publish": make_published,
    }[part]

    def source(rows: int) -> Path:
        return make(CACHE / "tfds", rows, arguments.seed)

    ours = source(getattr(arguments, part))
    tasks = {name: partial(bench.ours, name, ours, *steps) for name, steps in _WORKS[part].items()}
    if arguments.only == "both" and part in ("embeddings", "images"):
        rows = getattr(arguments, f"official_{part}")
        tasks[f"{part}_official"] = partial(bench.official, part, source(rows))
        tasks[f"{part}_official_start"] = partial(bench.official, part, source(1))
    return tasks


class _Bench:
    """Runs programs, each in a folder of its own, and says what they took."""

    def __init__(self, console: Console, folders: ExitStack) -> None:
        self._console = console
        self._folders = folders

    def tidy(self) -> None:
        """Remove the folders that programs have worked in."""
        self._folders.close()

    def ours(self, name: str, source: Path, before: Sequence[str], measured: Sequence[str]) -> dict[str, Any]:
        folder = self._folders.enter_context(_folder())
        command = [sys.executable, "-m", "benchmarks.tfds_work", str(source), str(folder)]
        if before:
            _run(name, [*command, *before])
        start_ns = time.time_ns()
        taken = _run(name, [*command, *measured])
        return self._report(name, taken | {"files_touched": _touched(folder, start_ns)})

    def official(self, config: str, source: Path) -> dict[str, Any]:
        script = Path(__file__).with_name("tfds_official.py")
        source = source / "images" if config == "images" else source
        folder = self._folders.enter_context(_folder())
        # -P: this folder's modules are not to be found by the names of others'.
        command = [str(OFFICIAL), "-P", str(script), config, str(source), str(folder)]
        return self._report(f"{config}_official", _run(f"{config}_official", command))

    def _report(self, name: str, taken: dict[str, Any]) -> dict[str, Any]:
        self._console.print(
            f"{name}: {taken['examples']} examples, {taken['bytes'] / 1e6:.0f} MB, {taken['cpu_s']:.2f} CPU-s"
            f", {taken['wall_s']:.2f} s, {taken['peak_mb']:.0f} MB"
            + (f", {taken['files_touched']} files" if "files_touched" in taken else ""),
            markup=False,
            highlight=False,
        )
        return taken


def _run(name: str, command: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{name} ended with {done.returncode}; its output ends:\n{done.stderr[-2_000:]}")
    taken: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return taken


def _touched(folder: Path, since_ns: int) -> int:
    """Files of which something was changed since: bytes, or names."""
    statuses = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return len({status.st_ino for status in statuses if status.st_ctime_ns >= since_ns})


@contextmanager
def _folder() -> Iterator[Path]:
    # Beside the inputs, so that these can be linked.
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=CACHE) as name:
        yield Path(name)


def _median(runs: list[dict[str, Any]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def _headline(medians: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures by which the project judges itself, of what was measured."""
    found = {}
    for name, part in (
        ("embeddings", "embeddings"),
        ("embeddings_chain", "embeddings"),
        ("images", "images"),
    ):
        if f"{part}_official" in medians:
            theirs = _rate(medians[f"{part}_official"], medians[f"{part}_official_start"])
            found[f"{name}_ratio"] = _rate(medians[name]) / theirs
    for name, bare in (("embeddings", "write"), ("images", "copy")):
        if name in medians:
            found[f"{name}_{bare}_ratio"] = medians[f"{name}_{bare}"]["cpu_s"] / medians[name]["cpu_s"]
    if "images_checksums" in medians:
        copied = medians["images_copy"]["cpu_s"]
        found["images_checksums_copy_ratio"] = copied / medians["images_checksums"]["cpu_s"]
    if "split" in medians:
        for name in ("split", "split_pyarrow"):
            found[f"{name}_ratio"] = _rate(medians[name]) / _rate(medians["split_duckdb"])
    if "duplicates" in medians:
        taken = medians["duplicates"]
        found["duplicates_rows_per_cpu_s"] = _rate(taken)
        found["duplicates_spilled_bytes"] = taken["written_bytes"] - taken["bytes"]
    if "join" in medians:
        vectors = medians["join"]["examples"] * 2 * 2 * EMBEDDING_WIDTH  # two of float16
        found["join_mb_per_cpu_s"] = vectors / 1e6 / medians["join"]["cpu_s"]
    return found | {
        figure: medians[work][name] for figure, (work, name) in _AS_TAKEN.items() if work in medians
    }


def _rate(taken: Mapping[str, float], start: Mapping[str, float] | None = None) -> float:
    """Examples a CPU second."""
    if start is None:
        return taken["examples"] / taken["cpu_s"]
    return (taken["examples"] - start["examples"]) / (taken["cpu_s"] - start["cpu_s"])


def _tables(results: Mapping[str, Any]) -> list[Table]:
    medians = results["medians"]
    columns = (
        "work",
        "examples",
        "MB",
        "CPU seconds",
        "seconds",
        "examples per CPU-s",
        "peak MB",
        "MB written",
        "files",
    )
    table = Table(*columns, title="Medians")
    for name, taken in medians.items():
        start = medians.get(f"{name}_start")
        table.add_row(
            name,
            f"{taken['examples']:.0f}" if taken["examples"] else "",
            f"{taken['bytes'] / 1e6:.0f}",
            f"{taken['cpu_s']:.2f}",
            f"{taken['wall_s']:.2f}",
            f"{_rate(taken, start):.0f}" if taken["examples"] > 1 else "",
            f"{taken['peak_mb']:.0f}",
            f"{taken['written_bytes'] / 1e6:.0f}" if "written_bytes" in taken else "",
            f"{taken['files_touched']:.0f}" if "files_touched" in taken else "",
        )
    figures = Table("figure", "value", title="Ours over the official builder's, and beside plain writing")
    for name, value in results["headline"].items():
        figures.add_row(name, f"{value:.4g}")
    return [table, figures]


def describe_machine(*, official: bool) -> dict[str, Any]:
    """Hardware and software."""
    described = describe_hardware() | {name: version(name) for name in ("laion_assets", "numpy", "pyarrow")}
    if official:
        names = "tensorflow_datasets", "apache_beam", "tensorflow_cpu"
        asked = f"import importlib.metadata as m; print(*(m.version(name) for name in {names}))"
        answer = subprocess.run([str(OFFICIAL), "-c", asked], capture_output=True, text=True, check=True)
        described |= dict(zip(names, answer.stdout.split(), strict=True))
    return described


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=_ONLY, default="both", help="with the official builder or without")
    parser.add_argument(
        "--part", nargs="+", choices=_PARTS, default=list(_PARTS), help="what is measured (everything)"
    )
    add_sizes(parser, _SIZES)
    return parse(parser, _SIZES)


if __name__ == "__main__":
    main()
