"""Measures downloading, ours beside img2dataset's, from a web on the loopback interface.

``make bench-download`` runs all of it and writes ``benchmarks/results/download.json``. To see ours alone:
``python -m benchmarks.download --only ours --scenario https``.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from benchmarks import programs, server, urls
from benchmarks.command import add_sizes, measured, parse, show
from benchmarks.corpus import make_corpus
from benchmarks.report import describe_machine, headline, medians, tables
from benchmarks.scenarios import OURS, SCENARIOS, THEIRS, Bench, compete, dead_hosts, many_shards, start_up

REPOSITORY: Final = Path(__file__).resolve().parents[1]
CACHE: Final = REPOSITORY / ".bench"
IMG2DATASET: Final = REPOSITORY / ".venv-img2dataset" / "bin" / "img2dataset"
_ONLY: Final = {"ours": (OURS,), "img2dataset": (THEIRS,), "both": (OURS, THEIRS)}
_PARTS: Final = (*SCENARIOS, "shards", "dead")

# Setting -> its value in full and with --quick.
_SIZES: Final = {
    "rounds": (3, 1),
    "urls": (2_000, 200),
    "dead_urls": (10_000, 200),
    "shards": (50, 5),
    "urls_per_shard": (100, 20),
    "small_pictures": (600, 120),
    "large_pictures": (60, 8),
}

REMARKS: Final = (
    "Both programs verify certificates, which is their default, and trust the system's authorities and ours.",
    "The lead over HTTPS rests on the TLS context that img2dataset makes for each connection, as urllib does",
    "before Python 3.12: tls_context_cpu_ms each, most of it reading authorities. That over HTTP does not.",
    "With retries, img2dataset asks again after every failure, and ours after those that may pass.",
    "Each answer comes after latency_s; connecting and TLS take no round trips' time. HTTP/1.1, keep-alive.",
    "A list has more URLs than there are files: each file is served under many URLs.",
    "nginx runs on the same cores; its CPU time is in cores_busy and in no program's own.",
    "net: without start-up, which a list of one URL measures; so is the CPU time per success.",
    "SSIM (11 x 11 Gaussian window, Wang et al. 2004) is of grey values, PSNR of all channels; both against",
    "the original, reduced from full size with Lanczos's filter and not encoded.",
    "bare is decoding, reducing and encoding in one thread; bare_twice is that with two threads at once.",
)


def main() -> None:
    """Measure what is asked for, print it, write it."""
    arguments = _parse()
    # So that nginx and what is being measured end with this, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results = measured(measure_all, arguments)
    show(results, tables(results), REMARKS, output=arguments.output, columns=150)


def measure_all(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Every measurement asked for, and what was made of them.

    Raises:
        Missing: if a program is missing.
        Failed: if one ends with an error, or leaves URLs out.
    """
    sizes = {name: getattr(arguments, name) for name in _SIZES}
    with _prepared(arguments, console) as (bench, machine):
        results: dict[str, Any] = {"machine": machine, "settings": _settings(arguments, bench)}
        results["start_up"] = start_up(bench, sizes["rounds"])
        scenarios = [name for name in SCENARIOS if name in arguments.scenario]
        results["scenarios"] = {
            name: compete(bench, name, sizes["urls"], sizes["rounds"]) for name in scenarios
        }
        results["medians"] = {
            name: medians(found, results["start_up"]) for name, found in results["scenarios"].items()
        }
        if OURS in bench.programs and "shards" in arguments.scenario:
            results["many_shards"] = many_shards(bench, sizes["shards"], sizes["urls_per_shard"])
        if OURS in bench.programs and "dead" in arguments.scenario:
            results["dead_hosts"] = {
                name: dead_hosts(bench, name, sizes["dead_urls"]) for name in ("https", "http")
            }
    results["headline"] = headline(results)
    return results


@contextmanager
def _prepared(arguments: argparse.Namespace, console: Console) -> Iterator[tuple[Bench, dict[str, Any]]]:
    """Corpora made, and the web being served."""
    nginx = server.check_programs()
    if THEIRS in _ONLY[arguments.only] and not arguments.img2dataset.exists():
        raise server.Missing("img2dataset is needed in a virtual environment of its own: make bench-download")
    corpora = {
        kind: make_corpus(CACHE / "corpora", kind, count=count, seed=arguments.seed)
        for kind, count in (("small", arguments.small_pictures), ("large", arguments.large_pictures))
    }
    with tempfile.TemporaryDirectory(prefix="laion-bench-") as name:
        work = Path(name)
        with server.serving(work / "server", CACHE / "corpora") as ports:
            bundle = server.trusted_bundle(work / "server")
            bench = Bench(
                corpora=corpora,
                ports=ports,
                bundle=bundle,
                work=work,
                programs=_ONLY[arguments.only],
                img2dataset=arguments.img2dataset,
                retries=arguments.retries,
                fetch={"attempts": arguments.retries + 1, **json.loads(arguments.fetch)},
                image=json.loads(arguments.image),
                seed=arguments.seed,
                limit_s=arguments.limit_s,
                say=lambda text: console.print(text, markup=False, highlight=False),
            )
            yield bench, describe_machine(bundle, bench.img2dataset, nginx, bench.programs)


def _settings(arguments: argparse.Namespace, bench: Bench) -> dict[str, Any]:
    return {
        **{name: getattr(arguments, name) for name in _SIZES},
        "seed": bench.seed,
        "scenarios": arguments.scenario,
        "fetch": {"allow_loopback": True, **bench.fetch},
        "image": bench.image,
        "img2dataset": {
            "processes_count": programs.PROCESSES,
            "image_size": programs.SIZE,
            "encode_quality": programs.QUALITY,
            "timeout": programs.TIMEOUT_S,
            "retries": bench.retries,
        },
        "latency_s": server.LATENCY_S,
        "nginx_workers": server.WORKERS,
        "hosts": urls.HOSTS,
        "hosts_after": "real URLs" if urls.WEB_URLS.exists() else "Zipf's law",
        "failing": urls.FAILING,
        "corpora": {
            kind: {
                "source": corpus.source,
                "files": len(corpus.names),
                "mean_bytes": corpus.mean_bytes,
                "formats": corpus.formats,
                "share_reaching": corpus.reaching,
            }
            for kind, corpus in bench.corpora.items()
        },
        "remarks": REMARKS,
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=_ONLY, default="both", help="which program (both)")
    parser.add_argument(
        "--scenario", nargs="+", choices=_PARTS, default=list(_PARTS), help="what is measured (everything)"
    )
    add_sizes(parser, _SIZES)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--retries", type=int, default=1, help="of both programs (1)")
    parser.add_argument("--fetch", default="{}", metavar="JSON", help="settings of FetchPolicy for ours")
    parser.add_argument("--image", default="{}", metavar="JSON", help="settings of ImagePolicy for ours")
    parser.add_argument("--img2dataset", type=Path, default=IMG2DATASET, help="its program")
    parser.add_argument("--limit-s", type=float, default=900.0, help="longest that one run may take")
    return parse(parser, _SIZES)


if __name__ == "__main__":
    main()
