"""The command line. Wrong input is one line and exit code 2; a failed shard or check is exit code 1."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import DownloadColumn, Progress, track
from rich.table import Table
from rich.text import Text

from laion_assets import __version__
from laion_assets.errors import CorruptInput, LaionAssetsError, MissingInput, SettingsError
from laion_assets.layout import ShardId, shard_key
from laion_assets.settings import SETTINGS_FILE, SETTINGS_FILE_VARIABLE, Settings
from laion_assets.text import MESSAGE_CHARACTERS, printable, with_printable_errors

if TYPE_CHECKING:
    from laion_assets.quality.checks import Rule, Verdict

app = typer.Typer(
    name="laion-assets",
    help="Turn LAION-400M's list of URLs into TensorFlow Datasets, shard by shard.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# Where nobody watches (a pipe, a CI log) there is no width to keep to, so names need not be cut. What is
# printed may quote the data set, and is never markup.
console = Console(
    width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 160, markup=False, emoji=False
)

_WRONG_INPUT = 2
_FAILED = 1
_INTERRUPTED = 130  # what Typer makes of a KeyboardInterrupt

SettingsOption = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FILE",
        help=f"Settings file; else the one that {SETTINGS_FILE_VARIABLE} names, else ./{SETTINGS_FILE}.",
    ),
]
ShardsOption = Annotated[
    str | None,
    typer.Option("--shards", metavar="RANGE", help="Image shards: 00042, or 00000..00024. All by default."),
]


@with_printable_errors
def main() -> None:
    """Run the command line; every expected error ends in one clear line."""
    try:
        code = app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = _WRONG_INPUT
    except (click.ClickException, SettingsError) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        code = _complain(message, _WRONG_INPUT)
    except (LaionAssetsError, OSError) as error:
        code = _complain(str(error), _FAILED)
    if code == _INTERRUPTED:
        _complain("interrupted; run the same command again to go on", code)
    sys.exit(code)


def _complain(message: str, code: int) -> int:
    print(f"laion-assets: {printable(message, MESSAGE_CHARACTERS)}", file=sys.stderr)
    return code


def _print_version(asked: bool) -> None:
    if asked:
        print(f"laion-assets {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        # Eager, since otherwise it is a command that is missed first.
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    del version


@app.command()
def build(
    settings_file: SettingsOption = None,
    shards: ShardsOption = None,
    embedding_shards: Annotated[
        str | None,
        typer.Option(
            "--embedding-shards", metavar="RANGE", help="Embedding shards, in the same form. All by default."
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Go over finished shards too, and redo what new settings, inputs or code changed."
        ),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Ask again for pictures that timed out, were refused or met a server's error; the other "
            "pictures of their shards are kept.",
        ),
    ] = False,
) -> int:
    """Build what is missing, through Dagster.

    Runs and materializations are recorded in the instance that the UI shows.
    """
    from laion_assets.defs.build import Request, pending
    from laion_assets.defs.build import build as run
    from laion_assets.defs.instance import home_of, open_instance, prepare_home
    from laion_assets.formats.durable import naming_storage_errors
    from laion_assets.progress import showing_progress
    from laion_assets.published import retryable_shards

    settings = Settings.load(settings_file)
    request = Request(
        shards=_range(shards),
        embedding_shards=_range(embedding_shards),
        again=again,
        retry_failed=retryable_shards(settings.layout) if retry_failed else (),
    )
    home = prepare_home(home_of(settings))
    with naming_storage_errors("Dagster's records", home), open_instance(home) as instance:
        _print_room(settings, pending(settings, instance, request))
        with showing_progress(lambda: pending(settings, instance, request).total(), console) as watcher:
            done = run(settings, instance, request, watcher)
    for complaint in done.complaints:
        _complain(complaint, _FAILED)
    console.print(
        f"{len(done.manifests)} partitions built or found current, {len(done.failures)} failed, "
        f"{len(done.blocked)} blocking checks failed, {len(done.crashes)} crashes"
    )
    return 0 if done.went_well else _FAILED


@app.command()
def status(settings_file: SettingsOption = None) -> int:
    """Count what is done, failed and missing."""
    from laion_assets.defs.instance import home_of, open_instance, prepare_home
    from laion_assets.defs.status import stage_statuses

    settings = Settings.load(settings_file)
    with open_instance(prepare_home(home_of(settings))) as instance:
        statuses = stage_statuses(settings, instance)
    table = Table("stage", "partitions", "done", "failed", "missing", "rows", "bytes")
    for status in statuses:
        table.add_row(
            status.stage,
            status.axis,
            *(
                f"{number:,}"
                for number in (status.done, status.failed, status.missing, status.rows, status.bytes)
            ),
        )
    console.print(table)
    _print_room(settings, {status.stage: status.failed + status.missing for status in statuses})
    if not any(status.done for status in statuses):
        console.print(_FIRST_STEPS)
    return 0


def _print_room(settings: Settings, missing: Mapping[str, int]) -> None:
    from laion_assets.formats.durable import free_bytes
    from laion_assets.space import estimate

    needed, free = estimate(settings, missing), free_bytes(settings.data_root)
    console.print(f"what is missing will take about {decimal(needed)}; {decimal(free)} are free")


_FIRST_STEPS = (
    'Nothing is built yet. Name the raw Parquet files in laion.toml ([raw] source = "folder"), or place '
    "shards made by img2dataset in the data root's images/ folder, then run: laion-assets build"
)


@app.command()
def check(
    settings_file: SettingsOption = None,
    shards: ShardsOption = None,
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="Also write the results as JUnit XML, for CI systems."),
    ] = None,
) -> int:
    """Run every quality rule on what is built.

    The exit code is 1 if a rule that blocks fails; warnings do not change it.
    """
    from laion_assets.partitions import Axis, find_partitions
    from laion_assets.pipeline import STAGES, keys_of
    from laion_assets.published import partitions_of
    from laion_assets.quality.checks import evaluate, rules_of
    from laion_assets.quality.junit import junit_xml

    settings = Settings.load(settings_file)
    found = find_partitions(settings)
    asked = _range(shards)
    wanted = None if asked is None else set(asked)
    table = Table("stage", "rule", "partitions", "passed", "failed", "blocks", "first that failed")
    blocked = 0
    ran: list[tuple[Rule, str, Verdict]] = []
    for stage in STAGES:
        keys = keys_of(stage, found)
        if stage.axis is Axis.SHARD and wanted is not None:
            keys = tuple(key for key in keys if key in wanted)
        published = set(partitions_of(settings.layout, stage.name))
        there = [key for key in keys if key in published]
        for rule in rules_of(stage.name):
            with console.status(Text(f"{stage.name}: {rule.name}")):
                verdicts = {key: evaluate(rule, settings.layout, settings.quality, key) for key in there}
            failed = {key: verdict for key, verdict in verdicts.items() if not verdict.passed}
            ran += [(rule, key, verdict) for key, verdict in verdicts.items()]
            blocked += len(failed) if rule.blocking else 0
            first = next((f"{key}: {', '.join(verdict.examples[:2])}" for key, verdict in failed.items()), "")
            table.add_row(
                stage.name,
                rule.name,
                str(len(verdicts)),
                str(len(verdicts) - len(failed)),
                str(len(failed)),
                "yes" if rule.blocking else "no",
                first,
            )
    if not ran:
        raise MissingInput("there is nothing to check yet: run laion-assets build first")
    console.print(table)
    if junit is not None:
        junit.write_bytes(junit_xml(ran))
    console.print(f"{len(ran)} checks ran, {blocked} failed that block")
    return _FAILED if blocked else 0


@app.command()
def verify(settings_file: SettingsOption = None, shards: ShardsOption = None) -> int:
    """Read every published file and compare its checksum.

    The exit code is 1 if a file is not the one that its manifest vouches for, or if TFDS's folders hold
    another than was published.
    """
    from laion_assets.formats import publish, tfds
    from laion_assets.partitions import Axis
    from laion_assets.pipeline import STAGES
    from laion_assets.published import partitions_of
    from laion_assets.published_dataset import verify_dataset

    layout = Settings.load(settings_file).layout
    configs = {layout.dataset(config).stage: config for config in tfds.CONFIGS}
    asked = _range(shards)
    table = Table("stage", "partitions", "files", "bytes", "damaged")
    damaged: list[str] = []
    for stage in STAGES:
        keys = partitions_of(layout, stage.name)
        if stage.axis is Axis.SHARD and asked is not None:
            keys = tuple(key for key in keys if key in set(asked))
        manifests = []
        before = len(damaged)
        for key in track(keys, stage.name, console=console, transient=True):
            try:
                manifests.append(publish.verify_published(stage.output(layout, key)))
                if stage.name in configs:
                    verify_dataset(configs[stage.name], layout)
            except (CorruptInput, MissingInput) as error:
                damaged.append(str(error))
        counts = (
            len(keys),
            sum(len(manifest.files) for manifest in manifests),
            sum(manifest.bytes for manifest in manifests),
            len(damaged) - before,
        )
        table.add_row(stage.name, *(f"{count:,}" for count in counts))
    console.print(table)
    for message in damaged:
        _complain(message, _FAILED)
    return _FAILED if damaged else 0


@app.command()
def export(
    settings_file: SettingsOption = None,
    configs: Annotated[
        list[str] | None,
        typer.Option(
            "--config", metavar="NAME", help="One of images, embeddings, image_embeddings. All by default."
        ),
    ] = None,
) -> int:
    """Export what is built as Parquet, for Hugging Face's datasets and Croissant.

    It then holds these configs and no others; a shard that did not change is not written again.
    """
    from laion_assets.space import check_room_for_export
    from laion_assets.stages import export as stage

    settings = Settings.load(settings_file)
    layout = settings.layout
    chosen = [config for config in stage.CONFIGS if configs is None or config in configs]
    if unknown := set(configs or ()).difference(stage.CONFIGS):
        raise SettingsError(f"--config {min(unknown)}: known are {', '.join(stage.CONFIGS)}")

    check_room_for_export(settings, stage.built_shards(layout, chosen))

    def watch(work: Sequence[stage.Work]) -> Iterable[stage.Work]:
        return track(work, "export", console=console, transient=True, disable=not console.is_terminal)

    manifest = stage.export(layout, chosen, settings.embeddings.width, watch)
    counts = manifest.counts
    console.print(
        f"{counts['files']:,} Parquet files, {manifest.rows:,} rows: {layout.export_folder}",
        soft_wrap=True,
    )
    return 0


@app.command()
def sync(
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="The folder that TFDS is given as data_dir.")
    ],
    settings_file: SettingsOption = None,
    dataset: Annotated[
        str, typer.Option("--dataset", metavar="NAME", help="images, embeddings or image_embeddings.")
    ] = "images",
    shards: Annotated[
        str | None,
        typer.Option("--shards", metavar="RANGE", help="Shards: 00042, or 00000..00024. All by default."),
    ] = None,
) -> int:
    """Copy a published dataset, or some of its shards, to a disk.

    TFDS cannot read object storage, and reads this. Every file is compared with its checksum; what is there
    already stays, so run it again after an interruption, for more shards, or once more is published.
    """
    from laion_assets.dataset_sync import sync_dataset
    from laion_assets.formats.tfds import CONFIGS
    from laion_assets.published_dataset import PublishedShard

    settings = Settings.load(settings_file)
    if dataset not in CONFIGS:
        raise SettingsError(f"--dataset {dataset}: known are {', '.join(CONFIGS)}")
    asked = _range(shards)
    wanted = None if asked is None else {ShardId.parse(key) for key in asked}

    def watch(work: Sequence[PublishedShard]) -> Iterable[PublishedShard]:
        with Progress(
            *Progress.get_default_columns(),
            DownloadColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        ) as progress:
            task = progress.add_task(dataset, total=sum(shard.bytes for shard in work))
            for shard in work:
                yield shard
                progress.advance(task, shard.bytes)

    report = sync_dataset(dataset, settings.layout, target, wanted, watch)
    console.print(
        f"{report.copied:,} shards copied ({decimal(report.bytes)}), {report.kept:,} were there: "
        f"{report.shards:,} of the {report.shards_published:,} published are in {report.folder}",
        soft_wrap=True,
    )
    return 0


@app.command()
def orphans(
    settings_file: SettingsOption = None,
    older_than_days: Annotated[
        float, typer.Option(min=0, help="Leave out what is younger: it may be about to be published.")
    ] = 7,
    delete: Annotated[bool, typer.Option("--delete", help="Remove them.")] = False,
) -> int:
    """Find objects in the store that nothing names any more.

    They are of workers that lost or were killed, or of older versions, and harm nothing but the bill.
    """
    from laion_assets.orphans import delete_orphans, find_orphans

    layout = Settings.load(settings_file).layout
    if not layout.store:
        raise SettingsError("no store is set, and a data root has no orphans")
    found = find_orphans(layout, older_than_days=older_than_days)
    for orphan in found:
        console.print(f"{orphan.bytes:>16,}  {layout.store}/{orphan.key}", soft_wrap=True)
    if delete:
        delete_orphans(layout, found)
    size = decimal(sum(orphan.bytes for orphan in found))
    console.print(f"{len(found):,} orphans, {size}{', deleted' if delete and found else ''}")
    return 0


@app.command()
def show(
    shard: Annotated[str, typer.Argument(help="The shard, such as 00042.")],
    settings_file: SettingsOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="PNG", help="Where to write the picture.")
    ] = None,
) -> int:
    """Draw one shard as a contact sheet.

    The sheet, a PNG, shows the pictures with captions and labels.
    """
    from laion_assets.quality.contact_sheet import draw_contact_sheet

    layout = Settings.load(settings_file).layout
    parsed = ShardId.parse(shard)
    path = output or layout.contact_sheet(parsed)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_contact_sheet(layout, parsed, path)
    console.print(f"{drawn} pictures of shard {parsed}: {path}", soft_wrap=True)
    return 0


@app.command()
def ui(
    settings_file: SettingsOption = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port on 127.0.0.1.")] = 3000,
    workspace: Annotated[
        Path | None,
        typer.Option("--workspace", metavar="FILE", help="workspace.yaml; by default this project alone."),
    ] = None,
) -> int:
    """Serve Dagster's UI, and run its daemon.

    It listens on 127.0.0.1 only, because it has no login.
    """
    from laion_assets.defs.instance import home_of, prepare_home
    from laion_assets.demo.run import serving_demo_web

    settings = Settings.load(settings_file)
    if settings_file is not None:
        os.environ[SETTINGS_FILE_VARIABLE] = str(settings_file.absolute())
    prepare_home(home_of(settings))
    code = ["-w", str(workspace)] if workspace else ["-m", "laion_assets.definitions"]
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port), *code]
    console.print(f"Dagster's UI: http://127.0.0.1:{port} (Ctrl+C ends it)")
    # A script's background jobs are born deaf to SIGINT, and so would Dagster be, which knows no other end.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with serving_demo_web(settings), subprocess.Popen(command) as dagster:  # noqa: S603 (our own words)
        # Dagster ends its own processes when it is interrupted, and only then.
        signal.signal(signal.SIGTERM, lambda *_: dagster.send_signal(signal.SIGINT))
        with suppress(KeyboardInterrupt):  # Ctrl+C reaches Dagster too
            return dagster.wait()
        return dagster.wait()


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the demo lives.")] = Path(".demo"),
) -> int:
    """Make a small data set and build all of it."""
    from laion_assets.demo.run import run_demo

    done, is_true = run_demo(folder, console)
    for complaint in done.complaints:
        _complain(complaint, _FAILED)
    return 0 if done.went_well and is_true else _FAILED


def _range(text: str | None) -> Sequence[str] | None:
    """Partition keys of ``00042`` or ``00000..00024``."""
    if text is None:
        return None
    first, dots, last = text.partition("..")
    low = ShardId.parse(first)
    high = ShardId.parse(last.lstrip(".")) if dots else low
    if high < low:
        raise SettingsError(f"range {text!r} ends before it begins")
    return list(map(shard_key, range(low.number, high.number + 1)))
