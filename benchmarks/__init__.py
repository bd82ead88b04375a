"""Measurements of this project, and of other programs beside it; nothing of it is installed."""
