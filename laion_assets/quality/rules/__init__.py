"""Every quality rule, once: Dagster's checks, the command line and the tests all read :data:`RULES`."""

from __future__ import annotations

from typing import Final

from laion_assets.published import STAGE_NAMES
from laion_assets.quality.rules.datasets import DATASET_RULES
from laion_assets.quality.rules.drift import DRIFT_RULES
from laion_assets.quality.rules.duplicates import DUPLICATE_RULES
from laion_assets.quality.rules.embedding_index import EMBEDDING_INDEX_RULES
from laion_assets.quality.rules.embeddings import EMBEDDING_RULES
from laion_assets.quality.rules.images import IMAGE_RULES
from laion_assets.quality.rules.metadata import METADATA_RULES
from laion_assets.quality.rules.records import RECORD_RULES
from laion_assets.quality.rules.rule import Query, Rule, Subject, Verdict

__all__ = ["RULES", "Query", "Rule", "Subject", "Verdict"]

RULES: Final[tuple[Rule, ...]] = tuple(
    sorted(
        (
            *METADATA_RULES,
            *DUPLICATE_RULES,
            *IMAGE_RULES,
            *EMBEDDING_RULES,
            *EMBEDDING_INDEX_RULES,
            *RECORD_RULES,
            *DATASET_RULES,
            *DRIFT_RULES,
        ),
        key=lambda rule: STAGE_NAMES.index(rule.stage),
    )
)
"""All rules; those of one stage follow each other."""
