"""Prints the README's table of assets, files and checks, from the code that makes them."""

from __future__ import annotations

from pathlib import Path

from laion_assets.layout import Layout
from laion_assets.partitions import Axis
from laion_assets.pipeline import STAGES
from laion_assets.quality.checks import rules_of

_EXAMPLE_KEYS = {Axis.PART: "PART", Axis.SHARD: "00042", Axis.EMBEDDING_SHARD: "00007", Axis.NONE: ""}


def asset_table() -> str:
    """The table, as markdown."""
    lines = ["| asset | partition | files | checks (**bold** blocks) |", "|---|---|---|---|"]
    for stage in STAGES:
        output = stage.output(Layout(Path()), _EXAMPLE_KEYS[stage.axis] or stage.name)
        files = ", ".join(f"`{output.folder / name}`" for name in output.names)
        rules = ", ".join(f"**{rule.name}**" if rule.blocking else rule.name for rule in rules_of(stage.name))
        partition = "" if stage.axis is Axis.NONE else stage.axis
        lines.append(f"| {stage.name} | {partition} | {files} | {rules} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(asset_table())
