"""The dataset card of an export: README.md, whose front matter ``datasets`` reads, and people the rest.

Its keys are the Hub's (huggingface.co/docs/hub/datasets-cards and datasets-manual-configuration).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from laion_assets.formats.hugging_face import Part, columns
from laion_assets.formats.sealed import fingerprint
from laion_assets.formats.tfds import SPLIT, About

CARD_FILE: Final = "README.md"

_CARD: Final = """\
---
pretty_name: LAION-400M
license: other
license_name: cc-by-4.0-for-the-metadata-alone
license_link: LICENSE
language:
- en
task_categories:
- text-to-image
- image-to-text
configs:
{configs}
---

# LAION-400M

{description}

| config | rows | files | bytes |
|---|---|---|---|
{sizes}

```python
from datasets import load_dataset

dataset = load_dataset("path/of/this/folder", "{first}", split="{split}")
```

A shard keeps its number; one that is missing is not made yet, or has no rows. `sha256sum -c SHA256SUMS`
checks every file; `croissant.json` describes them to other tools.

{tables}

## Licence

LAION's metadata is under CC BY 4.0. The pictures are not: each one keeps its own copyright. See `LICENSE`.

## Citation

```bibtex
{citation}
```
"""


def card(parts: Sequence[Part], about: About) -> str:
    """The card's text.

    Args:
        parts: the configs; the first one is opened where none is asked for.
        about: what is said of the data set.
    """
    return _CARD.format(
        configs="\n".join(line for part in parts for line in _config(part, is_first=part is parts[0])),
        description=about.description,
        sizes="\n".join(
            f"| {part.config} | {part.rows:,} | {len(part.files):,} | {part.bytes:,} |" for part in parts
        ),
        first=parts[0].config,
        split=SPLIT,
        tables="\n\n".join("\n".join(_table(part)) for part in parts),
        citation=about.citation,
    )


def _config(part: Part, *, is_first: bool) -> Iterator[str]:
    yield f"- config_name: {part.config}"
    # datasets 5.2 names its cache by this text and the folder's last name, and looks at no file (load.py,
    # LocalDatasetModuleFactory): without a word that changes with them, it would show others' or old data.
    yield f"  description: data version {fingerprint(dict(part.files))}"
    yield "  data_files:"
    yield f"  - split: {SPLIT}"
    yield f"    path: {part.pattern}"
    if is_first:
        yield "  default: true"


def _table(part: Part) -> Iterator[str]:
    yield from (f"## {part.config}", "", "| column | meaning |", "|---|---|")
    for column in columns(part.config, part.width):
        yield f"| {column.name} | {column.description} |"
