"""Dagster's own folder: made ready once, with settings that send nothing home."""

import fcntl
import os
from importlib.resources import files
from pathlib import Path

import dagster as dg

from laion_assets.defs.pools import set_limits
from laion_assets.errors import SettingsError
from laion_assets.formats.durable import naming_storage_errors, write_durably
from laion_assets.settings import Settings


def home_of(settings: Settings) -> Path:
    """Folder of Dagster's records: the one DAGSTER_HOME names, else the one the settings name."""
    return Path(os.environ.get("DAGSTER_HOME") or settings.dagster_home).absolute()


def prepare_home(home: Path) -> Path:
    """Put a dagster.yaml and an initialised database into a folder, and make it DAGSTER_HOME.

    Several processes may do so at once; that they take turns is this project's doing, for Dagster fails
    where two of them initialise one database.

    Raises:
        SettingsError: if the folder's place is taken by a file.
        StorageError: if the disk or its rights do not let it be made.
    """
    with naming_storage_errors("Dagster's records", home):
        try:
            home.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise SettingsError(f"dagster_home {home}: {error.strerror}") from error
        os.environ["DAGSTER_HOME"] = str(home)
        with (home / ".prepare.lock").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not (home / "dagster.yaml").exists():
                write_durably(home / "dagster.yaml", (files("laion_assets") / "dagster.yaml").read_bytes())
            with open_instance(home) as instance:
                instance.get_run_records(limit=1)
                set_limits(instance)
    return home


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance whose records lie in ``home``; also a context manager."""
    # The event log's place, which Dagster itself takes from the instance's folder, dagster.yaml can only name
    # by the environment.
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        return dg.DagsterInstance.from_config(str(home))
    finally:
        if before is None:
            del os.environ["DAGSTER_HOME"]
        else:
            os.environ["DAGSTER_HOME"] = before
