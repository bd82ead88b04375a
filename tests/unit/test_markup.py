"""Nothing in the code can make markup of the data set's text: neither in Dagster's UI nor on a terminal.

The UI has no login and takes mutations by GET, so an image tag in a caption would run one in the browser of
whoever looks at it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import laion_assets

PACKAGE = Path(laion_assets.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# The one place that may write markdown, around a PNG that the project drew itself; and descriptions put
# together from the schemas' own words.
PICTURES = "defs/metadata.py"
ALLOWED = {"picture": "md is rendered", "columns_of": "a description is markdown"}

# Metadata whose values the UI renders as markup, as a link or as a notebook.
_LIVE = ("md", "url", "notebook")
_LIVE_CLASSES = ("MarkdownMetadataValue", "UrlMetadataValue", "NotebookMetadataValue")
# What takes a description that is no markdown of Dagster's: an error, a progress bar, a column of the export.
_PLAIN_DESCRIPTIONS = ("Failure", "update", "Column")


def offences(source: str) -> Iterator[tuple[int, str]]:
    """Line and reason of whatever could make markup of data."""
    for node in ast.walk(ast.parse(source)):
        if reason := _reason(node):
            yield node.lineno, reason


def _reason(node: ast.AST) -> str | None:
    if isinstance(node, ast.Attribute):
        if node.attr in _LIVE_CLASSES or (node.attr in _LIVE and _name(node.value) == "MetadataValue"):
            return f"{node.attr} is rendered: use text or json"
    elif isinstance(node, ast.ImportFrom):
        return _reason_of_import(node)
    elif isinstance(node, ast.Call):
        return _reason_of_call(node)
    return None


def _reason_of_import(node: ast.ImportFrom) -> str | None:
    module, names = node.module or "", [alias.name for alias in node.names]
    if module.startswith("dagster") and {"MetadataValue", *_LIVE_CLASSES} & set(names):
        return "dagster's metadata values are asked for as dg.MetadataValue, where this test finds them"
    if module == "rich.markup" or (module == "rich" and "print" in names):
        return "a console without markup needs none escaped"
    return None


def _reason_of_call(node: ast.Call) -> str | None:
    called = _name(node.func)
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    description = keywords.get("description")
    if called not in _PLAIN_DESCRIPTIONS and isinstance(description, ast.JoinedStr | ast.BinOp | ast.Call):
        return "a description is markdown: only constants"
    if called in ("Console", "TextColumn") and not _is(keywords.get("markup"), False):
        return f"{called} needs markup=False"
    if called == "Console" and not _is(keywords.get("emoji"), False):
        return "Console needs emoji=False"
    if called != "Console" and _is(keywords.get("markup"), True):
        return "markup=True"
    # These two take markup, whatever the console does.
    if called == "from_markup" or (called == "status" and not _is_call(node.args[:1], "Text")):
        return f"{called} takes markup: give it a Text"
    if called == "track" and not all(isinstance(arg, ast.Constant | ast.Attribute) for arg in node.args[1:]):
        return "track takes markup: only names"
    return None


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_call(nodes: list[ast.expr], name: str) -> bool:
    return all(isinstance(node, ast.Call) and _name(node.func) == name for node in nodes)


@pytest.mark.parametrize("module", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_no_module_makes_markup_of_data(module):
    found = offences(module.read_text())
    if str(module.relative_to(PACKAGE)) == PICTURES:
        found = (offence for offence in found if not is_allowed(module.read_text(), *offence))
    assert [f"{module}:{line}: {reason}" for line, reason in found] == []


def is_allowed(source, line, reason):
    """Whether it is in the one function that may do so."""
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    function = functions[next(name for name, said in ALLOWED.items() if reason.startswith(said))]
    return function.lineno <= line <= function.end_lineno


@pytest.mark.parametrize(
    "snippet",
    [
        "dg.MetadataValue.md(caption)",
        "dg.MetadataValue.url(row['url'])",
        "show = dg.MetadataValue.notebook",
        "dg.MarkdownMetadataValue(caption)",
        "dagster.UrlMetadataValue(url)",
        "from dagster import MetadataValue",
        "from dagster import MarkdownMetadataValue as Text",
        "dg.asset(description=f'of {part}')",
        "dg.AssetMaterialization(asset_key=key, description='of ' + part)",
        "dg.AssetCheckResult(passed=True, description='of {}'.format(caption))",
        "Console()",
        "Console(markup=True, emoji=False)",
        "Console(markup=False)",
        "console.print(caption, markup=True)",
        "console.status(f'{caption}')",
        "Text.from_markup(caption)",
        "TextColumn('{task.description}')",
        "track(rows, f'{caption}')",
        "from rich.markup import escape",
        "from rich import print",
    ],
)
def test_the_rule_can_be_broken(snippet):
    assert list(offences(snippet))


@pytest.mark.parametrize(
    "snippet",
    [
        "dg.MetadataValue.text(caption)",
        "dg.MetadataValue.json([caption])",
        "dg.asset(description='one shard' ' of many')",
        "dg.asset(description=stage.description)",
        "dg.Failure(description=f'{error}')",
        "Console(markup=False, emoji=False)",
        "console.print(f'{caption}')",
        "console.status(Text(f'{caption}'))",
        "track(rows, stage.name, console=console)",
        "found.url",
    ],
)
def test_and_kept(snippet):
    assert list(offences(snippet)) == []
