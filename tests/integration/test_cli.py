"""Wrong input is one clear line and exit code 2; help is complete."""

import pytest
from export_inputs import WIDTH, inodes_of, write_all, write_images

from laion_assets import __version__
from laion_assets.layout import Layout, ShardId

COMMANDS = ("build", "status", "check", "verify", "export", "show", "ui", "demo")


def test_help_names_every_command_and_option(run_cli, tmp_path):
    result = run_cli("--help", cwd=tmp_path)
    assert result.returncode == 0
    for command in COMMANDS:
        assert command in result.stdout
        help_text = run_cli(command, "--help", cwd=tmp_path)
        assert help_text.returncode == 0
        assert "Usage:" in help_text.stdout


def test_it_says_its_version(run_cli, tmp_path):
    result = run_cli("--version", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"laion-assets {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("bild",), "bild"),
        (("show",), "SHARD"),
        (("show", "42"), "00042"),
        (("build", "--shards", "00009..00001"), "ends before it begins"),
        (("build", "--shards", "all"), "is not a shard"),
        (("build", "--bogus"), "--bogus"),
        (("ui", "--port", "99999999"), "--port"),
        (("status", "--settings", "none.toml"), "none.toml"),
        (("export", "--config", "imges"), "imges: known are images, embeddings, image_embeddings"),
    ],
)
def test_wrong_words_are_one_line(run_cli, tmp_path, arguments, says):
    result = run_cli(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("laion-assets: ")
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rows_per_shard = -1", "rows_per_shard"),
        ("[raw]\nsource = 'nowhere/*.parquet'", "nowhere"),
        ("[raw\n", "is not TOML"),
    ],
)
@pytest.mark.parametrize("command", ["build", "status", "check"])
def test_wrong_settings_are_one_line(run_cli, tmp_path, text, says, command):
    (tmp_path / "laion.toml").write_text(text)
    result = run_cli(command, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_with_no_data_it_says_what_to_put_where(run_cli, tmp_path):
    built = run_cli("build", cwd=tmp_path)
    assert built.returncode == 1
    assert "[raw] source" in built.stderr
    assert "Traceback" not in built.stderr
    status = run_cli("status", cwd=tmp_path)
    assert status.returncode == 0
    assert "Nothing is built yet" in status.stdout
    checked = run_cli("check", cwd=tmp_path)
    assert checked.returncode == 1
    assert "nothing to check yet" in checked.stderr
    exported = run_cli("export", cwd=tmp_path)
    assert exported.returncode == 1
    assert exported.stderr == (
        "laion-assets: nothing is built that can be exported: run laion-assets build first\n"
    )


def test_an_export_says_where_it_is_and_what_is_damaged(run_cli, tmp_path):
    layout = Layout(tmp_path / "data")
    write_all(layout)
    (tmp_path / "laion.toml").write_text(f"[embeddings]\nwidth = {WIDTH}")
    result = run_cli("export", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"3 Parquet files, 8 rows: {layout.export_folder}\n"
    assert len(inodes_of(layout)) == 3
    result = run_cli("export", "--config", "images", "--config", "embeddings", cwd=tmp_path)
    assert result.stdout.startswith("2 Parquet files, 6 rows: ")
    rows = write_images(layout, 1)
    tar = layout.images_tar(ShardId(1))
    tar.write_bytes(tar.read_bytes().replace(rows[1].picture, rows[1].picture[:-1] + b"!"))
    result = run_cli("export", cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith(f"laion-assets: {tar}: expected XXH3-128 ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert len(inodes_of(layout)) == 2


def test_a_shard_that_is_not_there_is_named(run_cli, tmp_path):
    result = run_cli("show", "00007", cwd=tmp_path)
    assert result.returncode == 1
    assert "00007" in result.stderr
    assert "Traceback" not in result.stderr
