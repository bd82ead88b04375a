"""Runs the demo from nothing to two data sets, and says what came of it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.table import Table

from laion_assets.defs.build import Build, Request, build, pending
from laion_assets.defs.instance import open_instance, prepare_home
from laion_assets.demo.dataset import captions_true, make_demo
from laion_assets.demo.web import DemoWeb
from laion_assets.errors import SettingsError
from laion_assets.formats.durable import write_durably
from laion_assets.formats.publish import require
from laion_assets.formats.records import read_records
from laion_assets.formats.tfds import Config
from laion_assets.formats.tfds_examples import decode_example
from laion_assets.layout import DATASET_NAME, Layout, ShardId
from laion_assets.outcomes import count_failures
from laion_assets.partitions import Axis, find_partitions
from laion_assets.pipeline import STAGES
from laion_assets.progress import showing_progress
from laion_assets.quality.checks import evaluate, rules_of
from laion_assets.settings import SETTINGS_FILE, Settings

_WEB_FILE: Final = "web.json"


def run_demo(folder: Path, console: Console) -> tuple[Build, bool]:
    """Make the demo's data, build everything from it, and print what came of it.

    Returns:
        What the build did, and whether every caption of the built data set is true of its picture.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with _serving(folder / _WEB_FILE) as web:
        make_demo(folder, web.base_url)
        settings = Settings.load(folder / SETTINGS_FILE)
        home = prepare_home(settings.dagster_home)
        with (
            open_instance(home) as instance,
            showing_progress(lambda: pending(settings, instance, Request()).total(), console) as bar,
        ):
            done = build(settings, instance, Request(), bar)
    if not done.went_well:
        return done, False
    shards = find_partitions(settings).shards
    _print_shards(settings, shards, console)
    true, false = captions_true(_examples(settings.layout, shards))
    console.print(f"{true} of {true + len(false)} captions are true of their pictures, by their pixels.\n")
    _print_next_steps(folder, settings.layout, console)
    return done, bool(true) and not false


@contextmanager
def serving_demo_web(settings: Settings) -> Iterator[None]:
    """Serve the demo's web while the block runs, if these are the demo's settings."""
    record = settings.data_root.parent / _WEB_FILE
    with _serving(record) if record.exists() else nullcontext():
        yield


@contextmanager
def _serving(record: Path) -> Iterator[DemoWeb]:
    """The demo's web, at the port it had before: the port is part of every URL of the data set."""
    port = json.loads(record.read_text())["port"] if record.exists() else 0
    web = DemoWeb(port=port)
    try:
        web.__enter__()
    except OSError as error:
        raise SettingsError(
            f"the demo's web cannot listen on port {port} of 127.0.0.1 ({error.strerror}): end what uses it, "
            f"or delete {record.parent} to begin anew"
        ) from error
    try:
        write_durably(record, json.dumps({"port": web.port}).encode() + b"\n")
        yield web
    finally:
        web.__exit__(None, None, None)


def _print_shards(settings: Settings, shards: Sequence[str], console: Console) -> None:
    """A line for each shard: what became of its rows, and how many checks of its files pass."""
    rules = [rule for stage in STAGES if stage.axis is Axis.SHARD for rule in rules_of(stage.name)]
    table = Table("shard", "rows", "images", "failures by class", "checks passed")
    remarks = []
    for key in shards:
        manifest = require(settings.layout.images(ShardId.parse(key)))
        failures = count_failures(manifest.counts)
        verdicts = {rule: evaluate(rule, settings.layout, settings.quality, key) for rule in rules}
        failed = {rule: verdict for rule, verdict in verdicts.items() if not verdict.passed}
        remarks += [
            f"{'failed' if rule.blocking else 'warning'}: {rule.stage} {key}: {rule.name}: "
            + "; ".join(verdict.examples[:2])
            for rule, verdict in failed.items()
        ]
        table.add_row(
            key,
            str(manifest.rows),
            str(manifest.counts["success"]),
            ", ".join(f"{name} {count}" for name, count in sorted(failures.items())),
            f"{len(verdicts) - len(failed)} of {len(verdicts)}",
        )
    console.print(table)
    for remark in remarks:
        console.print(remark, highlight=False, soft_wrap=True)


def _examples(layout: Layout, shards: Sequence[str]) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Caption and pixels of every example, from the TFRecords themselves."""
    for key in shards:
        path = layout.tfds_images(ShardId.parse(key)).only
        for record, payload in enumerate(read_records(path, layout.file_format)):
            features = decode_example(payload, path=path, record=record)
            with Image.open(io.BytesIO(features["image"].bytes_list.value[0])) as picture:
                yield features["caption"].bytes_list.value[0].decode(), np.asarray(picture.convert("RGB"))


def _print_next_steps(folder: Path, layout: Layout, console: Console) -> None:
    data_dir, settings_file = _shown(layout.tfds_data_dir), _shown(folder / SETTINGS_FILE)
    made = [f"{DATASET_NAME}/{config}" for config in get_args(Config) if layout.tfds_version(config).exists()]
    for line in (
        f"The datasets {', '.join(made)} are in {data_dir}. To load one:",
        "",
        "  import tensorflow_datasets as tfds",
        f"  dataset = tfds.load('laion400m/images', split='train', data_dir='{data_dir}')",
        "",
        "To see every shard of every stage in Dagster: make ui, then open http://127.0.0.1:3000",
        f"To see a shard's pictures: .venv/bin/laion-assets show 00000 --settings {settings_file}",
    ):
        console.print(line, highlight=False, soft_wrap=True)


def _shown(path: Path) -> Path:
    """A path as a person would type it here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
