import importlib.util
from pathlib import Path

from laion_assets.outcomes import Outcome

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_assets_is_that_of_the_code():
    spec = importlib.util.spec_from_file_location("asset_table", ROOT / ".ci" / "asset_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.asset_table() in (ROOT / "README.md").read_text(), "run .ci/asset_table.py and paste"


def test_no_picture_or_file_that_is_linked_is_missing():
    import re

    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
            if "://" not in target:
                assert (ROOT / target).exists(), (name, target)


def test_every_outcome_is_explained():
    text = (ROOT / "docs" / "downloading.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    explained = {name.strip() for row in rows for name in row.split(",")}
    assert {str(outcome) for outcome in Outcome} <= explained
