"""Bytes on disk: how each kind of file is written, checked and published. Knows nothing of stages."""
