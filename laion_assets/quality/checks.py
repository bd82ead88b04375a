"""Evaluates rules. A rule that crashes is a crash; a file that cannot be read is a rule that failed."""

from __future__ import annotations

from laion_assets.errors import CorruptInput
from laion_assets.formats.publish import bring
from laion_assets.layout import Layout
from laion_assets.published import output_of
from laion_assets.quality.rules import RULES, Rule, Subject, Verdict
from laion_assets.quality.thresholds import Thresholds
from laion_assets.text import with_printable_errors

__all__ = ["Rule", "Verdict", "evaluate", "rules_of"]


def rules_of(stage: str) -> tuple[Rule, ...]:
    """The rules of one stage."""
    return tuple(rule for rule in RULES if rule.stage == stage)


@with_printable_errors
def evaluate(rule: Rule, layout: Layout, thresholds: Thresholds, partition: str) -> Verdict:
    """Look at one published partition.

    Args:
        rule: what must hold.
        layout: where the files are.
        thresholds: what to compare with.
        partition: partition key; the stage's own name where it has no partitions.

    Returns:
        What was found. Where a file of the partition, or one that it was made from, is damaged, the
        verdict fails and its example says which file, what was expected and what was found.

    Raises:
        MissingInput: if the partition, or what the rule compares it with, is not published.
    """
    subject = Subject(layout=layout, thresholds=thresholds, partition=partition)
    try:
        for stage in (rule.stage, *rule.needs):
            bring(output_of(layout, stage, partition))
        return rule.check(subject)
    except CorruptInput as error:
        return Verdict.of_corrupt_file(error)
