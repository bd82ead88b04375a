"""Bytes from the web: who may be asked, for how long, and what came back. Knows nothing of shards."""
