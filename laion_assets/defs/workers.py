"""What a process that executes runs owes the others: a proof that it lives.

The proof is a lock on a file in Dagster's folder, which the kernel releases when its holder dies, however it
does: no process id that another could have by now, and no beat that a loaded machine could miss.
"""

import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import dagster as dg
from dagster._core.events import DagsterEvent
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES, RunsFilter
from dagster._serdes import ConfigurableClassData

from laion_assets.formats.durable import make_folder

BUILD_TAG: Final = "laion_assets/build"
"""Tag of the runs that ``laion-assets build`` executes itself; its value names the build's lock."""

# Between a run's start and its lock lie the run's own first steps, which take well under a second.
_UNLOCKED_START_S: Final = 20.0


@contextmanager
def attended(home: Path, name: str) -> Iterator[None]:
    """Prove, while the block runs, that whoever executes the run or build of this name lives."""
    lock = _lock_of(home, name)
    make_folder(lock.parent)
    draft = lock.with_name(f".{lock.name}.{os.getpid()}")
    with draft.open("w") as file:
        # Locked before it has its name, so that nobody finds it without the lock.
        fcntl.flock(file, fcntl.LOCK_EX)
        draft.replace(lock)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def is_attended(home: Path, run: dg.DagsterRun) -> bool:
    """Whether the process that executes a run lives, as :func:`attended` proves it."""
    lock = _lock_of(home, run.tags.get(BUILD_TAG, run.run_id))
    try:
        with lock.open("r+") as file:  # NFS locks alone only what is open for writing
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.unlink(missing_ok=True)  # of a process that was killed
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def fail_orphans(instance: dg.DagsterInstance, home: Path) -> None:
    """Mark runs of builds that were killed as failed, which otherwise only Dagster's daemon does."""
    # A build may be killed between creating a run and starting it, too.
    statuses = [*IN_PROGRESS_RUN_STATUSES, dg.DagsterRunStatus.NOT_STARTED]
    for run in instance.get_runs(RunsFilter(statuses=statuses)):
        if BUILD_TAG in run.tags and not is_attended(home, run):
            instance.report_run_failed(run, "The build that executed this run was killed.")


def _lock_of(home: Path, name: str) -> Path:
    return home / "workers" / f"{name}.lock"


# -- Dagster's side ---------------------------------------------------------------------------------------


class _AttendedExecutor(InProcessExecutor):
    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        home = Path(plan_context.instance.root_directory)
        with attended(home, plan_context.run_id):
            yield from super().execute(plan_context, execution_plan)


@dg.executor(name="in_process")
def attended_executor(_: dg.InitExecutorContext) -> InProcessExecutor:
    """All steps of a run in one process, which proves that it lives.

    Parallelism belongs inside a stage; a process for each step would cost 12 CPU seconds a run. A step begins
    once those before it have handed on what it needs, also if they fail after that: they do where some
    partitions failed, and the others are to go on.
    """
    return _AttendedExecutor(
        retries=RetryMode.ENABLED,
        step_dependency_config=StepDependencyConfig(require_upstream_step_success=False),
    )


class AttendedRunLauncher(DefaultRunLauncher):
    """Dagster's own launcher, and the word on whether a run's process lives, which run monitoring asks for.

    Without it, runs whose processes were killed together with the code server stay STARTED for a day.
    """

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """As Dagster makes it from dagster.yaml."""
        del config_value
        return cls(inst_data=inst_data)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Always."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the process that executes a started run lives."""
        if is_attended(Path(self._instance.root_directory), run):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        record = self._instance.get_run_record_by_id(run.run_id)
        started = record.start_time if record is not None else None
        if started is not None and time.time() - started < _UNLOCKED_START_S:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "The process that executed this run is gone.")
