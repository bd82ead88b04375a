"""From raw figures to ratios, a table and JSON."""

from __future__ import annotations

import math
import os
import platform
import ssl
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.scenarios import OURS, THEIRS


def medians(scenario: Mapping[str, Any], starts: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Program -> figures of a scenario, medians of the rounds.

    A list is what somebody waits for, start-up and all. ``net_…``, and the CPU time per success, have
    start-up taken off: it counts for little where a process takes many shards of 10,000 URLs.
    """
    found = {}
    urls = scenario["urls"]
    for program, start in starts.items():
        rounds = [taken[program] for taken in scenario["rounds"]]
        start_wall, start_cpu = _median(start, "wall_s"), _median(start, "cpu_s")
        found[program] = {
            "net_urls_per_s": _inverse(_middle(run["wall_s"] - start_wall for run in rounds), urls),
            "net_cpu_s_per_1000_urls": _middle((run["cpu_s"] - start_cpu) / urls * 1e3 for run in rounds),
            "cpu_ms_per_success": _middle(
                (run["cpu_s"] - start_cpu) / run["successes"] * 1e3 for run in rounds
            ),
            "urls_per_s": _inverse(_middle(run["wall_s"] for run in rounds), urls),
            "cpu_s_per_1000_urls": _middle(run["cpu_s"] / urls * 1e3 for run in rounds),
            "peak_memory_mb": _median(rounds, "peak_memory_mb"),
            "success_share": _middle(run["successes"] / urls for run in rounds),
            **{name: scenario["likeness"][program][name] for name in ("ssim", "psnr_db")},
        }
    for name in ("bare", "bare_twice"):
        runs = [taken[name] for taken in scenario["rounds"]]
        found[name] = {"cpu_ms_per_success": _middle(run["cpu_s"] / run["pictures"] * 1e3 for run in runs)}
    return found


def headline(results: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures by which the project judges itself; None for what was not measured.

    Ratios are of medians, ours over img2dataset's.
    """
    figures = results["medians"]

    def ratio(scenario: str, name: str) -> float | None:
        return _from(lambda: figures[scenario][OURS][name] / figures[scenario][THEIRS][name])

    def delta(scenario: str, name: str) -> float | None:
        return _from(lambda: figures[scenario][OURS][name] - figures[scenario][THEIRS][name])

    def limit(scenario: str, bare: str = "bare") -> float | None:
        per_success = "cpu_ms_per_success"
        return _from(lambda: figures[scenario][OURS][per_success] / figures[scenario][bare][per_success])

    def busy(name: str) -> float | None:
        rounds = results["scenarios"].get("https", {}).get("rounds", [])
        return _from(lambda: _median([taken[OURS] for taken in rounds], name))

    starts = results["start_up"]
    success_delta = delta("https", "success_share")
    return {
        "cpu_ratio": ratio("https", "cpu_s_per_1000_urls"),
        "rate_ratio": ratio("https", "urls_per_s"),
        "memory_ratio": ratio("https", "peak_memory_mb"),
        "startup_ratio": _from(lambda: _median(starts[OURS], "wall_s") / _median(starts[THEIRS], "wall_s")),
        "ssim_delta": delta("https", "ssim"),
        "psnr_delta_db": delta("https", "psnr_db"),
        "success_delta": None if success_delta is None else 100 * success_delta,
        "limit_ratio": limit("https"),
        "limit_ratio_both_cores_busy": limit("https", "bare_twice"),
        "http_limit_ratio": limit("http"),
        "large_limit_ratio": limit("large"),
        "http_cpu_ratio": ratio("http", "cpu_s_per_1000_urls"),
        "http_rate_ratio": ratio("http", "urls_per_s"),
        "large_cpu_ratio": ratio("large", "cpu_s_per_1000_urls"),
        "large_rate_ratio": ratio("large", "urls_per_s"),
        "large_ssim_delta": delta("large", "ssim"),
        "net_cpu_ratio": ratio("https", "net_cpu_s_per_1000_urls"),
        "net_rate_ratio": ratio("https", "net_urls_per_s"),
        "http_net_cpu_ratio": ratio("http", "net_cpu_s_per_1000_urls"),
        "http_net_rate_ratio": ratio("http", "net_urls_per_s"),
        "large_net_cpu_ratio": ratio("large", "net_cpu_s_per_1000_urls"),
        "large_net_rate_ratio": ratio("large", "net_urls_per_s"),
        "cores_busy": busy("cores_busy"),
        "cores_busy_by_ours": busy("cores_busy_by_ours"),
        "memory_slope_mb_per_shard": _from(lambda: results["many_shards"]["memory_slope_mb_per_shard"]),
        "fd_slope": _from(lambda: results["many_shards"]["fd_slope"]),
        "dead_hosts_ratio": _from(lambda: results["dead_hosts"]["https"]["ratio"]),
        "dead_hosts_http_ratio": _from(lambda: results["dead_hosts"]["http"]["ratio"]),
    }


def tables(results: Mapping[str, Any]) -> list[Table]:
    """What a person reads at the end."""
    made = []
    columns = (
        "urls_per_s",
        "net_urls_per_s",
        "cpu_s_per_1000_urls",
        "net_cpu_s_per_1000_urls",
        "cpu_ms_per_success",
        "peak_memory_mb",
        "success_share",
    )
    table = Table(
        "scenario", "program", *columns, "ssim", "psnr_db", title="Medians; net: start-up taken off"
    )
    for scenario, programs in results["medians"].items():
        for program, figures in programs.items():
            cells = [_cell(figures.get(name)) for name in (*columns, "ssim", "psnr_db")]
            table.add_row(scenario, program, *cells)
    made.append(table)
    if results["start_up"]:
        table = Table("program", "seconds", "CPU seconds", title="Start-up: a list of one URL")
        for program, runs in results["start_up"].items():
            table.add_row(program, _cell(_median(runs, "wall_s")), _cell(_median(runs, "cpu_s")))
        made.append(table)
    table = Table("figure", "value", title="Ours over img2dataset's, and ours alone")
    for name, value in results["headline"].items():
        if value is not None:
            table.add_row(name, _cell(value))
    made.append(table)
    return made


def describe_machine(bundle: Path, img2dataset: Path, nginx: str, programs: Sequence[str]) -> dict[str, Any]:
    """Hardware and software, and what a TLS context costs here, on which the lead over HTTPS rests."""
    start = time.thread_time()
    for _ in range(5):
        context = ssl.create_default_context(cafile=str(bundle))
    context_ms = (time.thread_time() - start) / 5 * 1e3
    described = {
        **describe_hardware(),
        "openssl": ssl.OPENSSL_VERSION,
        "authorities": len(context.get_ca_certs()),
        "tls_context_cpu_ms": context_ms,
        "nginx": nginx,
        **{name: version(name) for name in ("laion_assets", "pillow", "pycurl")},
    }
    if THEIRS in programs:
        asked = "import sys, importlib.metadata as m; print(sys.version.split()[0], m.version('img2dataset'))"
        answer = subprocess.run(
            [str(img2dataset.parent / "python"), "-c", asked], capture_output=True, text=True, check=True
        )
        described["img2dataset_python"], described["img2dataset"] = answer.stdout.split()
    return described


def describe_hardware() -> dict[str, Any]:
    """The machine, and the Python on it."""
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9,
        "system": f"{platform.system()} {platform.release()}",
        "load_before": os.getloadavg(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _median(runs: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(statistics.median(run[name] for run in runs))


def _from(figure: Callable[[], float]) -> float | None:
    """A figure, or None where what it is made of was not measured."""
    try:
        value = figure()
    except (KeyError, TypeError, statistics.StatisticsError):
        return None
    return value if math.isfinite(value) else None


def _middle(values: Iterable[float]) -> float | None:
    """Median of amounts that are left once start-up is taken off; None where a list was too short for any."""
    middle = statistics.median(values)
    return middle if middle > 0 else None


def _inverse(seconds: float | None, count: int) -> float | None:
    return None if seconds is None else count / seconds


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
