"""What all of LAION-400M would take: hours, cores, network, disk, money, and what gives way first.

Nothing is measured here. Every figure is one that was measured, named with where it is from, or an
assumption that an option changes; :mod:`benchmarks.backfill_model` puts them together. ``make plan`` prints
the tables and writes ``benchmarks/results/plan.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from benchmarks.backfill_model import Cluster, closed_form_s, simulate
from benchmarks.command import show
from laion_assets.fetch.policy import FetchPolicy
from laion_assets.settings import Settings

_RESULTS: Final = Path(__file__).parent / "results"
_ROWS: Final = 413_000_000
_PARTS: Final = 32
_HOUR: Final = 3_600.0
_DAY: Final = 24 * _HOUR
_TERA: Final = 1e12

# Seen with Dagster 1.13.27 and its libraries 0.29.27, dagster-ray 0.4.8: docs/scale.md says how.
_SUBMITTED_PER_S: Final = 9.0
_RUN_START_S: Final = 5.6
_RUN_START_ON_RAY_S: Final = 30.0
_NOTICED_ON_RAY_S: Final = 18.0


@dataclass(frozen=True)
class Figure:
    """A measured figure, and where it is from."""

    value: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What nobody measured; each is an option of the command line.

    Attributes:
        cores: of a machine, each as fast as one of those that were measured.
        cores_per_run: 4 is where one run's single process that speaks to the web is just busy.
        gbit_s: of a machine's network.
        storage_gb_s: that the data root takes from all machines together.
        failing: share of shards that fail once, for whatever reason.
        mean_life_days: of a machine, until it is lost.
        replaced_s: seconds until another one stands in its place.
        dollars_per_core_hour: of a machine, memory included.
        dollars_per_tb_month: of storage that all machines reach.
    """

    cores: int = 16
    cores_per_run: int = 4
    gbit_s: float = 1.0
    storage_gb_s: float = 1.0
    failing: float = 0.005
    mean_life_days: float = 30.0
    replaced_s: float = 600.0
    dollars_per_core_hour: float = 0.04
    dollars_per_tb_month: float = 25.0


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How many machines take how many rows."""

    rows: int
    machines: int
    mean_life_days: float | None = None

    @property
    def shards(self) -> int:
        """Of 10,000 rows; each part's last one is short."""
        return _PARTS * math.ceil(self.rows / _PARTS / _rows_per_shard())


SCENARIOS: Final[Mapping[str, Scenario]] = {
    "1 machine": Scenario(rows=_ROWS, machines=1),
    "4 machines, Ray": Scenario(rows=_ROWS, machines=4),
    "10 machines, Ray": Scenario(rows=_ROWS, machines=10),
    "10 machines, each lost once a day": Scenario(rows=_ROWS, machines=10, mean_life_days=1.0),
    "40 machines, Ray, 10 times the rows": Scenario(rows=10 * _ROWS, machines=40),
}


def read_figures(results: Path = _RESULTS) -> dict[str, Figure]:
    """What the plan rests on, from the benchmarks' own results and the documents."""
    download, tfds = (json.loads((results / f"{name}.json").read_text()) for name in ("download", "tfds"))
    https, ours = download["scenarios"]["https"], download["medians"]["https"]["laion_assets"]
    start_cpu_s = statistics.median(run["cpu_s"] for run in download["start_up"]["laion_assets"])
    parent_s = statistics.median(run["laion_assets"]["parent_cpu_s"] for run in https["rounds"]) - start_cpu_s
    times = [math.log(seconds) for seconds in download["many_shards"]["seconds"]]
    of_tfds = {
        name: tfds["medians"][name]
        for name in ("images", "images_copy", "join", "embeddings_chain_most", "split")
    }
    images, vectors = of_tfds["images"], of_tfds["embeddings_chain_most"]
    source = "download.json, https, ours: "
    return {
        "core_s_per_url": Figure(
            download["machine"]["cores"] / ours["net_urls_per_s"],
            source + "cores / net_urls_per_s; the server ran beside it",
        ),
        "parent_cpu_s_per_url": Figure(
            parent_s / https["urls"], source + "parent_cpu_s less start-up's cpu_s; one process for each run"
        ),
        "pictures_per_url": Figure(ours["success_share"], source + "success_share"),
        "body_bytes": Figure(
            download["settings"]["corpora"]["small"]["mean_bytes"],
            "download.json, corpora, small: mean_bytes",
        ),
        "busiest_host_share": Figure(
            https["busiest_host_share"], "download.json, https: busiest_host_share, of real URLs"
        ),
        "spread": Figure(statistics.stdev(times), "download.json, many_shards: deviation of log(seconds)"),
        "tar_bytes_per_picture": Figure(
            of_tfds["images_copy"]["bytes"] / images["examples"], "tfds.json, images_copy: bytes a picture"
        ),
        "example_bytes_per_picture": Figure(
            images["bytes"] / images["examples"], "tfds.json, images: bytes an example"
        ),
        "tfds_s_per_picture": Figure(images["cpu_s"] / images["examples"], "tfds.json, images: cpu_s"),
        "split_s_per_row": Figure(
            of_tfds["split"]["cpu_s"] / of_tfds["split"]["examples"], "tfds.json, split: cpu_s"
        ),
        "vectors_s_per_row": Figure(
            vectors["cpu_s"] / vectors["examples"], "tfds.json, embeddings_chain_most: cpu_s"
        ),
        "vectors_bytes_per_row": Figure(
            vectors["bytes"] / vectors["examples"] + of_tfds["join"]["bytes"] / of_tfds["join"]["examples"],
            "tfds.json, embeddings_chain_most and join: bytes",
        ),
        "dagster_s_per_shard": Figure(
            9.4 / 25, "docs/orchestration.md: a run over 25 current shards, SQLite"
        ),
        "publication_s_per_shard": Figure(47 / 41_455, "docs/tfds.md: a first publication"),
    }


def shard_seconds(figures: Mapping[str, Figure], assumed: Assumptions, machines: int) -> dict[str, float]:
    """Seconds of one shard in a run's slot, by what takes them; of downloading, by what would limit it.

    By the storage: if all slots of all machines write their pictures at once, for as long as a shard takes.
    """
    value = {name: figure.value for name, figure in figures.items()}
    rows, slots = _rows_per_shard(), _slots(assumed)
    body_bits = 8 * value["body_bytes"] * value["pictures_per_url"]
    return {
        "download, by cores": rows * value["core_s_per_url"] * slots / assumed.cores,
        "download, by the run's own process": rows * value["parent_cpu_s_per_url"],
        "download, by the machine's network": rows * body_bits * slots / (assumed.gbit_s * 1e9),
        "TFDS": rows * value["pictures_per_url"] * value["tfds_s_per_picture"],
        "samples": rows * value["split_s_per_row"],
        "Dagster": value["dagster_s_per_shard"],
        "all, by the storage": rows * value["pictures_per_url"] * _stored_bytes(value)
        * machines * slots / (assumed.storage_gb_s * 1e9),
    }  # fmt: skip


def plan(
    figures: Mapping[str, Figure], assumed: Assumptions, scenario: Scenario, seed: int = 1
) -> dict[str, Any]:
    """One scenario's figures."""
    value = {name: figure.value for name, figure in figures.items()}
    if scenario.mean_life_days is not None:
        assumed = replace(assumed, mean_life_days=scenario.mean_life_days)
    cluster = Cluster(
        machines=scenario.machines,
        slots=_slots(assumed),
        batch_shards=Settings().batch_shards,
        run_start_s=_RUN_START_S if scenario.machines == 1 else _RUN_START_ON_RAY_S,
        submitted_per_s=_SUBMITTED_PER_S,
        spread=value["spread"],
        failing=assumed.failing,
        mean_life_s=assumed.mean_life_days * _DAY,
        noticed_s=_NOTICED_ON_RAY_S,
        replaced_s=assumed.replaced_s,
    )
    shard_s, limit = _limited(shard_seconds(figures, assumed, scenario.machines))
    backfill = simulate(scenario.shards, shard_s, cluster, seed)
    slots = cluster.machines * cluster.slots
    vectors_s = scenario.rows * value["vectors_s_per_row"] / slots
    publication_s = scenario.shards * value["publication_s_per_shard"]
    hours = (backfill.seconds + vectors_s + publication_s) / _HOUR
    pictures = scenario.rows * value["pictures_per_url"]
    terabytes = {
        "fetched_tb": pictures * value["body_bytes"] / _TERA,
        "pictures_tb": pictures * _stored_bytes(value) / _TERA,
        "vectors_tb": scenario.rows * value["vectors_bytes_per_row"] / _TERA,
    }
    stored_tb = terabytes["pictures_tb"] + terabytes["vectors_tb"]
    urls_per_s = scenario.rows / backfill.seconds
    # Of the busiest host, for each URL of the list, at the pace that one run keeps.
    polite_s = value["busiest_host_share"] * FetchPolicy().per_domain_interval_s
    return {
        "machines": scenario.machines,
        "shards": scenario.shards,
        "shard_s": shard_s,
        "limited_by": limit,
        "closed_form_hours": closed_form_s(scenario.shards, shard_s, cluster) / _HOUR,
        "backfill_hours": backfill.seconds / _HOUR,
        "hours": hours,
        "runs": backfill.runs,
        "machines_lost": backfill.machines_lost,
        "lost_share": backfill.lost_s / (backfill.work_s + backfill.lost_s),
        "last_wave_hours": backfill.last_wave_s / _HOUR,
        "core_hours": hours * assumed.cores * scenario.machines,
        **terabytes,
        "urls_per_s": urls_per_s,
        "dollars_machines": hours * assumed.cores * scenario.machines * assumed.dollars_per_core_hour,
        "dollars_storage_a_month": stored_tb * assumed.dollars_per_tb_month,
        # Each as a share of what it can give: above 1 it is more than that.
        "submission_used": scenario.shards / _SUBMITTED_PER_S / backfill.seconds,
        "network_used": urls_per_s * 8 * value["body_bytes"] * value["pictures_per_url"]
        / (scenario.machines * assumed.gbit_s * 1e9),
        "storage_used": terabytes["pictures_tb"] * _TERA / backfill.seconds / (assumed.storage_gb_s * 1e9),
        "busiest_host_used": urls_per_s * polite_s,
        "polite_hours": scenario.rows * polite_s / _HOUR,
    }  # fmt: skip


def _limited(seconds: Mapping[str, float]) -> tuple[float, str]:
    """Seconds of a shard, and what would have to give more for it to take less."""
    downloads = {name: taken for name, taken in seconds.items() if name.startswith("download")}
    slowest = max(downloads, key=downloads.__getitem__)
    storage = seconds["all, by the storage"]
    alone = downloads[slowest] + seconds["TFDS"] + seconds["samples"] + seconds["Dagster"]
    return (storage, "storage") if storage > alone else (alone, slowest.removeprefix("download, by "))


def _stored_bytes(value: Mapping[str, float]) -> float:
    """Of a picture: in its tar, and in the data set."""
    return value["tar_bytes_per_picture"] + value["example_bytes_per_picture"]


def _slots(assumed: Assumptions) -> int:
    return max(1, assumed.cores // assumed.cores_per_run)


def _rows_per_shard() -> int:
    return Settings().rows_per_shard


_COLUMNS: Final = {
    "hours": "hours", "closed_form_hours": "without faults", "runs": "runs", "machines_lost": "machines lost",
    "lost_share": "work lost", "last_wave_hours": "last wave, hours", "core_hours": "core hours",
    "fetched_tb": "TB fetched", "pictures_tb": "TB of pictures", "vectors_tb": "TB of vectors",
    "dollars_machines": "$ machines", "dollars_storage_a_month": "$ storage a month",
}  # fmt: skip
_LIMITS: Final = {
    "limited_by": "limited by",
    "submission_used": "Dagster's submission", "network_used": "a machine's network",
    "storage_used": "the storage", "busiest_host_used": "the busiest site's pace",
    "polite_hours": "hours, at one run's pace",
}  # fmt: skip


def main() -> None:
    """Print the plan, and write it where asked."""
    parser = argparse.ArgumentParser(description="What all of LAION-400M would take.")
    for name, value in asdict(Assumptions()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"{value}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where the JSON goes; nowhere by default")
    arguments = parser.parse_args()
    figures = read_figures()
    assumed = Assumptions(**{name: getattr(arguments, name) for name in asdict(Assumptions())})
    plans = {name: plan(figures, assumed, scenario, arguments.seed) for name, scenario in SCENARIOS.items()}
    results: dict[str, Any] = {
        "headline": {"hours_1_machine": plans["1 machine"]["hours"],
                     "hours_10_machines": plans["10 machines, Ray"]["hours"]},
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "assumptions": asdict(assumed),
        "seed": arguments.seed,
        "shard_seconds": {
            name: shard_seconds(figures, assumed, one.machines) for name, one in SCENARIOS.items()
        },
        "plans": plans,
    }  # fmt: skip
    tables = [_table("What it takes", _COLUMNS, plans), _table("Used, of what it can give", _LIMITS, plans)]
    show(results, tables, [], output=arguments.output, columns=200)


def _table(title: str, columns: Mapping[str, str], plans: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("", *columns.values(), title=title)
    for name, figures in plans.items():
        table.add_row(name, *(_cell(figures[column]) for column in columns))
    return table


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2g}"


if __name__ == "__main__":
    main()
