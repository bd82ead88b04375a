"""LAION-400M's list of URLs turned into two TensorFlow Datasets, shard by shard."""

__version__ = "0.1.0"
