"""A raw part that lists pictures of a web of the demo's."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from laion_assets.demo.pictures import Encoding, Picture
from laion_assets.demo.scenes import Scene
from laion_assets.demo.web import DemoWeb, Fault
from laion_assets.schema import RAW


def write_part(path: Path, web: DemoWeb, rows: int) -> None:
    """Write a part of so many rows, whose pictures the web hands out."""
    scenes = list(Scene.every())
    listed = []
    for row in range(rows):
        picture = Picture(scene=scenes[row], seed=row, width=120, height=100, encoding=Encoding.JPEG)
        url = web.url_for(Fault.OK, picture)
        listed.append({"URL": url, "TEXT": scenes[row].caption, "similarity": 0.31})
    pq.write_table(pa.Table.from_pylist(listed, schema=RAW), path)
