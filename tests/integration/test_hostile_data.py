"""A data set of attacks does nothing to whoever looks at it: in the UI, in the report, in a log."""

import json
import re
import signal
from types import SimpleNamespace

import dagster as dg
import pytest
from browser import Deeds, browsing
from fault_server.server import serving
from hostile_data import BAD_PART, MARK, attacks, behaviours, lay_bad_part, lay_out
from served_ui import address_of, free_port, runs, start_ui

from laion_assets.defs.assembly import build_definitions
from laion_assets.defs.instance import open_instance
from laion_assets.settings import Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Colours that Dagster itself gives its own words in a log.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# What a page may not have made of a text: an element that asks for something, leads somewhere or acts.
_MADE_OF_TEXT = f"""() => [...document.querySelectorAll("*")].flatMap(element => [...element.attributes])
    .filter(({{name, value}}) => /^(src|srcset|srcdoc|href|action|data|style|on.*)$/.test(name)
        && (value.includes("{MARK}") || value.includes("/graphql")))
    .map(({{name, value}}) => `${{name}}=${{value}}`)"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, run_cli):
    """The UI over a hostile data set."""
    folder = tmp_path_factory.mktemp("hostile")
    port = free_port()
    texts = attacks("http://127.0.0.1:{canary}", address_of(port))
    with serving(behaviours(texts), folder) as web:
        texts = [text.replace("{canary}", str(web.canary_port)) for text in texts]
        file = lay_out(folder / "data set", web, texts)
        built = run_cli("build", "--settings", file, cwd=folder)
        # Of the whole build only the placed shard is refused.
        assert built.returncode == 1, built.stdout + built.stderr
        printed = built.stdout + built.stderr
        for command in ("check", "status"):
            printed += run_cli(command, "--settings", file, cwd=folder).stdout
        lay_bad_part(folder / "data set", texts)
        settings = Settings.load(file)
        _run_bad_part(settings)
        ui = start_ui(file, port, folder / "ui.log")
        try:
            yield SimpleNamespace(
                ui=address_of(port), web=web, texts=texts, settings=settings, printed=printed
            )
        finally:
            ui.send_signal(signal.SIGTERM)
            ui.wait(60)


def _run_bad_part(settings):
    """A run that fails, as the daemon executes one: what it logs is captured, too."""
    definitions = build_definitions(settings)
    with open_instance(settings.dagster_home) as instance:
        result = dg.materialize(
            [*definitions.assets, *definitions.asset_checks],
            selection=dg.AssetSelection.assets("raw_metadata").without_checks(),
            partition_key=BAD_PART,
            instance=instance,
            raise_on_error=False,
        )
    assert not result.success


def test_nothing_printed_acts_on_a_terminal(hostile):
    assert MARK in hostile.printed
    for line in hostile.printed.split("\n"):
        assert line.isprintable(), repr(line)


def test_nothing_acts_in_a_browser(hostile, program):
    chromium = program("chromium", "chromium-browser", "google-chrome", package="chromium")
    pytest.importorskip("playwright.sync_api")
    hits = list(hostile.web.canary_hits)
    deeds = Deeds()
    with browsing(chromium) as context:
        deeds.watch(context)
        for address, told in _pages(hostile):
            page = context.new_page()
            page.goto(address)
            page.get_by_text(told).first.wait_for(timeout=90_000)
            assert page.evaluate(_MADE_OF_TEXT) == [], address
            # What is long is shown when somebody asks for it.
            for hidden in page.get_by_text("Show JSON").all():
                hidden.dispatch_event("click")  # another button may lie over it
                page.get_by_role("dialog").wait_for()
                assert page.evaluate(_MADE_OF_TEXT) == [], address
                page.keyboard.press("Escape")
                page.get_by_role("dialog").wait_for(state="detached")
            page.close()
    assert deeds.asked == {hostile.ui, "file://"}
    assert deeds.mutations == []
    assert deeds.dialogs == []
    assert hostile.web.canary_hits == hits


def test_the_attacks_act_where_they_are_markup(tmp_path, program):
    chromium = program("chromium", "chromium-browser", "google-chrome", package="chromium")
    pytest.importorskip("playwright.sync_api")
    deeds = Deeds()
    with serving([], tmp_path) as web, browsing(chromium) as context:
        deeds.watch(context)
        ui = f"http://127.0.0.1:{web.canary_port}"
        page = context.new_page()
        for text in attacks(ui, ui)[1:4] + attacks(ui, ui)[7:8]:
            with context.expect_event("request"):
                page.set_content(text)
        assert page.evaluate(_MADE_OF_TEXT) != []
        assert web.canary_hits != []
    assert deeds.asked == {ui}
    assert len(deeds.mutations) == 1
    assert MARK in deeds.dialogs


def _pages(hostile):
    """Addresses of pages on which texts of the data could be, and a text that shows when they are there."""
    for run in runs(hostile.ui):
        if run["status"] == "FAILURE":
            is_of_bad_part = run["tags"].get("dagster/partition") == BAD_PART
            yield f"{hostile.ui}/runs/{run['runId']}", MARK if is_of_bad_part else "RUN_FAILURE"
    assets = f"{hostile.ui}/assets"
    yield f"{assets}/raw_metadata?view=checks&checkDetail=url_and_text_are_unique", "Show JSON"
    for stage, key in (
        ("raw_metadata", "part-00000"),
        ("normalized_images", "00000"),
        ("embeddings", "00000"),
    ):
        yield f"{assets}/{stage}?view=partitions&partition={key}", "Latest materialization"
    yield hostile.settings.layout.dataset_report().path("report.html").as_uri(), "LAION-400M"


def test_nothing_logged_acts_on_a_terminal(hostile):
    home = hostile.settings.dagster_home
    with open_instance(home) as instance:
        logged = [entry for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
    texts = [text for entry in logged for text in _texts(json.loads(dg.serialize_value(entry)))]
    assert any(MARK in text for text in texts)
    for text in texts:
        # A traceback has lines.
        assert text.replace("\n", "").isprintable(), repr(text)
    captured = [path.read_text() for path in (home / "storage").glob("*/compute_logs/*")]
    assert any(MARK in text for text in captured)
    for text in captured:
        assert _COLOUR.sub("", text).replace("\n", "").isprintable(), repr(text)


def _texts(value):
    """Every text in a JSON value, names included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from (name, *_texts(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
