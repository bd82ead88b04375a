"""Measures downloading, ours beside img2dataset's: ``python -m benchmarks.download --help``."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.corpus import make_corpus
from benchmarks.programs import run_img2dataset, run_ours
from benchmarks.server import check_programs, serving, trusted_bundle
from benchmarks.urls import make_urls

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scenario", default="https")
    parser.add_argument("--only", default="both")
    parser.add_argument("--urls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fetch", default="{}")
    parser.add_argument("--img2dataset", type=Path, default=REPOSITORY / ".venv-img2dataset/bin/img2dataset")
    a = parser.parse_args()
    print(check_programs())
    cache = REPOSITORY / ".bench"
    small = make_corpus(cache / "corpora", "small", count=600, seed=1)
    print(small.source, small.mean_bytes, small.reaching)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        work = Path(name)
        with serving(work / "server", cache / "corpora", frozenset()) as ports:
            bundle = trusted_bundle(work / "server")
            urls = make_urls(
                a.urls, scheme=a.scenario, corpus=small.folder.name, names=small.names, ports=ports, seed=1
            )
            print(urls.kinds)
            for r in range(a.rounds):
                for who in ("ours", "theirs"):
                    if a.only not in ("both", who):
                        continue
                    if who == "ours":
                        o = run_ours(
                            urls, work / who, bundle, fetch=json.loads(a.fetch), image={}, limit_s=300
                        )
                    else:
                        o = run_img2dataset(urls, work / who, bundle, program=a.img2dataset, limit_s=300)
                    u = o.usage
                    print(
                        who,
                        f"wall {u.wall_s:.1f} cpu {u.cpu_s:.1f} mem {u.peak_memory_bytes / 1e6:.0f} MB",
                        o.successes,
                        o.messages if r == 0 else "",
                    )


if __name__ == "__main__":
    main()
