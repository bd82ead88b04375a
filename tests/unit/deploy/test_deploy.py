"""The deployment files, as far as they can be judged without a cluster."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.ref import InstanceRef

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
INSTANCES = {path.stem: path for path in sorted((DEPLOY / "dagster").glob("*.yaml"))}
SECRETS = {
    "DAGSTER_POSTGRES_URL": "postgresql+psycopg2://user:password@host:5432/database",
    "DAGSTER_RAY_ADDRESS": "http://head:8265",
    "DAGSTER_CELERY_BROKER": "redis://host:6379/0",
    "DAGSTER_CELERY_BACKEND": "redis://host:6379/1",
}
# Where the programs' command lines are.
MODULES = {
    "dagster": "dagster._cli",
    "dagster-daemon": "dagster._daemon.cli",
    "dagster-webserver": "dagster_webserver.cli",
}


def read(path):
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("name", INSTANCES)
def test_dagster_accepts_its_settings(name, tmp_path, monkeypatch):
    for variable, value in SECRETS.items():
        monkeypatch.setenv(variable, value)
    (tmp_path / "dagster.yaml").write_bytes(INSTANCES[name].read_bytes())
    reference = InstanceRef.from_dir(str(tmp_path))  # raises where a setting is unknown, or of another type
    for data in (reference.run_launcher_data, reference.storage_data, reference.run_coordinator_data):
        declared = getattr(importlib.import_module(data.module_name), data.class_name)
        result = process_config(declared.config_type(), data.config_dict)
        assert result.success, result.errors


@pytest.mark.parametrize("name", INSTANCES)
def test_only_what_the_place_asks_for_differs_from_one_machine(name):
    usual, settings = read(ROOT / "laion_assets" / "dagster.yaml"), read(INSTANCES[name])
    places = {"event_log_storage", "storage", "run_launcher", "concurrency", "run_monitoring"}
    assert {key: settings[key] for key in settings.keys() - places} == {
        key: usual[key] for key in usual.keys() - places
    }
    runs = [one["concurrency"]["runs"]["tag_concurrency_limits"] for one in (usual, settings)]
    assert runs[0] == runs[1]
    # Celery itself gives the runs of a lost node to another.
    assert settings["run_monitoring"]["enabled"] == (name != "celery")


def test_a_celery_worker_has_its_launchers_settings():
    launcher = read(INSTANCES["celery"])["run_launcher"]["config"]
    assert read(DEPLOY / "celery" / "worker.yaml")["execution"]["config"] == launcher
    settings = launcher["config_source"]
    assert settings["task_acks_late"] is settings["task_reject_on_worker_lost"] is True


def test_secrets_are_named_and_never_written():
    for path in (path for path in DEPLOY.rglob("*") if path.is_file()):
        # Of comments, in which an address shows its form, nothing is read.
        text = "\n".join(line.split(" #")[0] for line in path.read_text().splitlines())
        text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
        assert not re.search(r"://[^\s/$]*:(?!\$\{)[^\s/@]+@", text), path
        for value in re.findall(r"(?i)^\s*\S*password\S*:\s*(\S.*)$", text, re.MULTILINE):
            assert value.startswith("${") or value == "false", (path, value)


def test_compose_serves_the_ui_on_this_machine_alone():
    services = read(DEPLOY / "compose.yaml")["services"]
    assert {name: service.get("ports") for name, service in services.items() if "ports" in service} == {
        "webserver": ["127.0.0.1:3000:3000"]
    }
    for name in services.keys() - {"postgres"}:
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]


def test_compose_keeps_to_its_schema():
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    result = subprocess.run([*command, DEPLOY / "compose.yaml"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("service", ["migrate", "code", "daemon", "webserver"])
def test_dagsters_commands_know_the_options_that_compose_gives(service):
    command = read(DEPLOY / "compose.yaml")["services"][service]["command"]
    known = importlib.import_module(MODULES[command[0]]).cli
    for word in command[1:]:
        known = getattr(known, "commands", {}).get(word, known)
    options = {name for parameter in known.params for name in parameter.opts}
    assert {word for word in command if word.startswith("-")} <= options


def test_the_image_has_what_its_files_need():
    context = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for line in DOCKERFILE.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in context
    pins = dict(
        re.findall(r"^(\S+)==(\S+)", (ROOT / "requirements" / "deploy.txt").read_text(), re.MULTILINE)
    )
    runtime = re.findall(r"^(\S+)==(\S+)", (ROOT / "requirements" / "runtime.txt").read_text(), re.MULTILINE)
    assert dict(runtime).items() <= pins.items()
    assert {"dagster-postgres", "dagster-ray", "dagster-k8s", "dagster-celery", "ray"} <= pins.keys()
    assert read(DEPLOY / "kubernetes" / "raycluster.yaml")["spec"]["rayVersion"] == pins["ray"]


def test_hadolint_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, DOCKERFILE], capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (0, b"")


def test_systemd_accepts_the_unit_and_calls_it_confined(tmp_path, program):
    analyze = program("systemd-analyze", package="systemd")
    text = (DEPLOY / "systemd" / "laion-assets.service").read_text()
    unit = tmp_path / "laion-assets.service"
    # It wants the program to be there.
    unit.write_text(text.replace("/opt/laion-assets/.venv/bin/laion-assets", sys.executable))
    verified = subprocess.run([analyze, "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    rate = [analyze, "security", "--offline=true", "--no-pager", "--threshold=20", unit]  # 2 of 10
    rated = subprocess.run(rate, capture_output=True, text=True, check=False)
    assert rated.returncode == 0, rated.stdout


# -- Kubernetes ---------------------------------------------------------------------------------------------


def pods_of_ray():
    spec = read(DEPLOY / "kubernetes" / "raycluster.yaml")["spec"]
    return [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]


def jobs_of_helm():
    """The Job of a run, as the chart's launcher makes it, with what it takes from the code's deployment."""
    from dagster_k8s import job as launcher
    from dagster_k8s.container_context import K8sContainerContext

    values = read(DEPLOY / "helm" / "values.yaml")
    (code,) = values["dagster-user-deployments"]["deployments"]
    given = values["runLauncher"]["config"]["k8sRunLauncher"]
    context = K8sContainerContext.create_from_config(
        {
            "k8s": {
                "env": [{"name": name, "value": value} for name, value in code["env"].items()],
                "volumes": code["volumes"],
                "volume_mounts": code["volumeMounts"],
                "resources": given["resources"],
                "run_k8s_config": {
                    "pod_spec_config": {"security_context": code["podSecurityContext"]},
                    "container_config": {"security_context": code["securityContext"]},
                    "job_spec_config": given["runK8sConfig"]["jobSpecConfig"],
                },
            }
        }
    )
    job = launcher.construct_dagster_k8s_job(
        job_config=launcher.DagsterK8sJobConfig(
            job_image=f"{code['image']['repository']}:{code['image']['tag']}",
            dagster_home="/opt/dagster/dagster_home",
            instance_config_map="dagster-instance",
            postgres_password_secret=values["global"]["postgresqlSecretName"],
        ),
        args=["dagster", "api", "execute_run", "{}"],
        job_name="dagster-run",
        user_defined_k8s_config=context.run_k8s_config,
        pod_name="dagster-run",
    )
    from kubernetes.client import ApiClient

    return [ApiClient().sanitize_for_serialization(job)]


def test_kubernetes_would_take_what_is_given_to_it():
    import kubernetes_validate as validator

    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **pod} for pod in pods_of_ray()]
    for resource in [*pods, *jobs_of_helm()]:
        validator.validate(resource, validator.latest_version(), strict=True)
