import pytest

from laion_assets.errors import SettingsError
from laion_assets.layout import Layout
from laion_assets.settings import Settings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAION_SETTINGS", raising=False)


def write(tmp_path, text):
    path = tmp_path / "laion.toml"
    path.write_text(text)
    return path


def test_without_a_file_there_are_defaults(tmp_path):
    settings = Settings.load()
    assert settings.data_root == tmp_path / "data"
    assert settings.rows_per_shard == 10_000
    assert settings.raw_files() == {}


def test_paths_are_relative_to_the_file(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "raw").mkdir()
    (folder / "raw" / "part-0.parquet").touch()
    (folder / "raw" / "notes.txt").touch()
    path = write(folder, 'data_root = "d"\n[raw]\nsource = "raw"\n[embeddings]\nsource = "e"\n')
    settings = Settings.load(path)
    assert settings.data_root == folder / "d"
    assert settings.embeddings.source == str(folder / "e")
    assert settings.raw_files() == {"part-0": str(folder / "raw" / "part-0.parquet")}


def test_environment_wins_over_the_file(tmp_path, monkeypatch):
    path = write(tmp_path, "[fetch]\nattempts = 3\nbackoff_s = 2\n")
    monkeypatch.setenv("LAION_FETCH__ATTEMPTS", "4")
    monkeypatch.setenv("LAION_FETCH__PORTS", "[80]")
    monkeypatch.setenv("LAION_RAW__SOURCE", '["https://example.org/a.parquet?x=1"]')
    settings = Settings.load(path)
    assert (settings.fetch.attempts, settings.fetch.backoff_s, settings.fetch.ports) == (4, 2.0, (80,))
    assert settings.raw_files() == {"a": "https://example.org/a.parquet?x=1"}


def test_the_file_may_be_named_by_the_environment(tmp_path, monkeypatch):
    path = tmp_path / "other.toml"
    path.write_text("rows_per_shard = 7\n")
    monkeypatch.setenv("LAION_SETTINGS", str(path))
    assert Settings.load().rows_per_shard == 7


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("rows_per_shard = 0", "rows_per_shard"),
        ("rows_per_shrad = 5", "rows_per_shrad"),
        ("[fetch]\nattempts = 'x'", "fetch.attempts"),
        ("[fetch]\nattempt = 1", "fetch.attempt"),
        ("[raw]\nsource_schema = 'laion5b'", "laion400m, laion2b, relaion, coyo700m, datacomp, cc12m"),
        ("[raw", "is not TOML"),
        ('[fetch]\ncontact = "a\\nInjected: b"', "fetch.contact"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, text, names):
    with pytest.raises(SettingsError) as caught:
        Settings.load(write(tmp_path, text))
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(SettingsError, match="does not exist"):
        Settings.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "source", ["nowhere", "no/*.parquet", "ftp://example.org/a.parquet", "https://example.org/a.csv"]
)
def test_a_source_that_names_nothing_is_refused(tmp_path, source):
    settings = Settings.load(write(tmp_path, f'[raw]\nsource = "{source}"\n'))
    with pytest.raises(SettingsError, match=r"raw\.source"):
        settings.raw_files()


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.parquet").touch()
    settings = Settings.load(write(tmp_path, '[raw]\nsource = ["a", "b"]\n'))
    with pytest.raises(SettingsError, match="rename one"):
        settings.raw_files()


def test_pictures_with_vectors_are_made_only_if_asked_for(tmp_path, monkeypatch):
    assert Settings.load().tfds.image_embeddings is False
    assert Settings.load(write(tmp_path, "[tfds]\nimage_embeddings = true\n")).tfds.image_embeddings is True
    monkeypatch.setenv("LAION_TFDS__IMAGE_EMBEDDINGS", "0")
    assert Settings.load(tmp_path / "laion.toml").tfds.image_embeddings is False


def test_the_layout_follows_format_and_density(tmp_path, monkeypatch):
    path = write(tmp_path, '[tfds]\nformat = "array_record"\n')
    assert Settings.load(path).layout == Layout(tmp_path / "data", "array_record")
    monkeypatch.setenv("LAION_TFDS__DENSE", "true")
    assert Settings.load(path).layout == Layout(tmp_path / "data", "array_record", dense=True)
