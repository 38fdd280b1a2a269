"""The Kubernetes manifests: KubeRay's own schema takes them, and their parts fit each other. No cluster is asked."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jsonschema.protocols import Validator

from core.config.load import load_config
from router.keys import new_key

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
SCHEMA = Path(__file__).with_name("schemas") / "rayjob-v1.json.gz"

pytestmark = pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])


def of_kind(file: Path, kind: str) -> dict[str, Any]:
    found = [document for document in yaml.safe_load_all(file.read_text()) if document["kind"] == kind]
    assert len(found) == 1
    only: dict[str, Any] = found[0]
    return only


def closed(schema: Any) -> Any:
    """Make a schema refuse unknown keys, which Kubernetes would drop without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: closed(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        strict["additionalProperties"] = False
    return strict


def pod_specs(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    pods = {"head": cluster["headGroupSpec"]["template"]["spec"]}
    return pods | {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}


def baton_config(file: Path, folder: Path) -> Path:
    """Write the configuration that the manifest carries to a file of its own, with tenants, which a secret brings."""
    tenants = folder / "tenants.yaml"
    tenants.write_text("\n".join(new_key("my-team").lines()[-5:-2]) + "\n")
    path = folder / "slo.yaml"
    path.write_text(
        of_kind(file, "ConfigMap")["data"]["slo.yaml"].replace("/etc/baton-tenants/tenants.yaml", str(tenants))
    )
    return path


@pytest.fixture(scope="module")
def kuberay() -> Validator:
    """Make what validates by KubeRay's schema, once, for to check the schema itself takes longest."""
    schema = closed(json.loads(gzip.decompress(SCHEMA.read_bytes())))
    schema["properties"]["metadata"] = {}
    kind = jsonschema.validators.validator_for(schema)
    kind.check_schema(schema)
    return kind(schema)


def test_kuberay_schema_accepts_it(file: Path, kuberay: Validator) -> None:
    kuberay.validate(of_kind(file, "RayJob"))


def test_a_misspelt_key_would_not_pass(file: Path, kuberay: Validator) -> None:
    job = of_kind(file, "RayJob")
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        kuberay.validate(job)


def test_its_ray_is_the_version_of_the_project(file: Path) -> None:
    version = re.search(r"ray\[default\]==([\d.]+)", (ROOT / "pyproject.toml").read_text())
    assert version is not None
    assert of_kind(file, "RayJob")["spec"]["rayClusterSpec"]["rayVersion"] == version[1]


def test_the_service_finds_the_router(file: Path) -> None:
    service, job = of_kind(file, "Service"), of_kind(file, "RayJob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    assert service["spec"]["selector"].items() <= head["metadata"]["labels"].items()
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert not service["spec"]["selector"].items() <= group["template"]["metadata"]["labels"].items()
    ports = {port["containerPort"] for port in head["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def test_every_mount_has_its_volume(file: Path) -> None:
    for pod in pod_specs(of_kind(file, "RayJob")).values():
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes


def test_its_configuration_is_valid_and_is_what_the_job_reads(file: Path, tmp_path: Path) -> None:
    job = of_kind(file, "RayJob")
    config = load_config(baton_config(file, tmp_path), environ={})
    assert config.router.host == "0.0.0.0"  # a service reaches no loopback address
    assert config.router.port == of_kind(file, "Service")["spec"]["ports"][0]["targetPort"]
    assert job["spec"]["entrypoint"] == "python /opt/baton/baton.py up /etc/baton/slo.yaml --foreground"
    mounts = {mount["mountPath"] for mount in pod_specs(job)["head"]["containers"][0]["volumeMounts"]}
    assert "/etc/baton" in mounts


def test_the_pools_fit_the_pods(file: Path, tmp_path: Path) -> None:
    """Each pool's workers fit the pods that carry its mark, by GPUs and by cores."""
    job = of_kind(file, "RayJob")
    config = load_config(baton_config(file, tmp_path), environ={})
    assert config.pools != "auto"
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        name = group["groupName"]
        marks = json.loads(json.loads(group["rayStartParams"]["resources"]))
        assert set(marks) == {f"{name}_capable"}
        pool = getattr(config.pools, name)
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = pool.tensor_parallel * pool.pipeline_parallel if pool.gpus is None else pool.gpus
        per_pod = min(int(limits["nvidia.com/gpu"]) // gpus, int(limits["cpu"]) // pool.cpus)
        assert pool.replicas <= per_pod * group["replicas"]
