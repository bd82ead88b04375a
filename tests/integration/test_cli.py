"""Wrong input is one clear line and exit code 2; help is complete."""

import pytest

COMMANDS = ("build", "status", "check", "show", "ui", "demo")


def test_help_names_every_command_and_option(run_cli, tmp_path):
    result = run_cli("--help", cwd=tmp_path)
    assert result.returncode == 0
    for command in COMMANDS:
        assert command in result.stdout
        help_text = run_cli(command, "--help", cwd=tmp_path)
        assert help_text.returncode == 0
        assert "Usage:" in help_text.stdout


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


def test_a_shard_that_is_not_there_is_named(run_cli, tmp_path):
    result = run_cli("show", "00007", cwd=tmp_path)
    assert result.returncode == 1
    assert "00007" in result.stderr
    assert "Traceback" not in result.stderr
