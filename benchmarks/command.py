"""What the benchmarks' command lines have in common: their sizes, and how results are shown and kept."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Failed


def add_sizes(parser: argparse.ArgumentParser, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Add ``--quick``, ``--output`` and an option for each size.

    Args:
        parser: to add them to.
        sizes: setting -> its value in full and with ``--quick``.
    """
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: does it work?")
    for name, (full, quick) in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=f"{full}; with --quick {quick}")
    parser.add_argument("--output", type=Path, help="where the JSON goes; nowhere by default")


def parse(parser: argparse.ArgumentParser, sizes: Mapping[str, tuple[int, int]]) -> argparse.Namespace:
    """The arguments, each size that was not given being the one in full or with ``--quick``."""
    arguments = parser.parse_args()
    for name, values in sizes.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, values[arguments.quick])
    return arguments


def measured(
    measure: Callable[[argparse.Namespace, Console], dict[str, Any]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """What was measured; a program that fails or is missing ends this one, with its message."""
    console = Console(stderr=True)
    try:
        return measure(arguments, console)
    except Failed as error:
        console.print(str(error), markup=False, style="red")
        sys.exit(1)


def show(
    results: dict[str, Any],
    tables: Sequence[Table],
    remarks: Sequence[str],
    *,
    output: Path | None,
    columns: int,
) -> None:
    """Print tables and remarks, and write the results, the headline's figures at their top level.

    Args:
        results: what was measured.
        tables: what a person reads of it.
        remarks: how it was measured.
        output: where the JSON goes, if anywhere.
        columns: width of the tables where there is no terminal.
    """
    screen = Console(width=None if sys.stdout.isatty() else columns)
    for table in tables:
        screen.print(table)
    for remark in remarks:
        screen.print(remark, markup=False, highlight=False)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        rest = {name: value for name, value in results.items() if name != "headline"}
        output.write_text(json.dumps({**results["headline"], **rest}, indent=1) + "\n")
