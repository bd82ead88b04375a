"""Dagster's view of the pipeline: partitions, assets, checks, jobs. No stage's work is done here."""
