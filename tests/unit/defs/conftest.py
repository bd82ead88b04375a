from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.orchestration_servers import serving_postgres
from laion_assets.defs.instance import open_instance, prepare_home

DEPLOY = Path(__file__).resolve().parents[3] / "deploy" / "dagster"


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def opened(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("DAGSTER_HOME", str(home))  # which preparing sets, restored at the end
        if request.param == "postgres":
            address = stack.enter_context(serving_postgres())
            if address is None:
                pytest.skip("PostgreSQL is missing; on Debian: apt-get install postgresql")
            patch.setenv("DAGSTER_POSTGRES_URL", address)
            (home / "dagster.yaml").write_bytes((DEPLOY / "postgres.yaml").read_bytes())
        yield stack.enter_context(open_instance(prepare_home(home)))


@pytest.fixture
def instance(opened):
    opened.event_log_storage.wipe()
    opened.run_storage.wipe()
    return opened
