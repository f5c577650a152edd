"""The manifest for Kubernetes, as the operator and Kubernetes' own client library read it."""

import copy
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml
from stand_ins import sketched

from scapedist.workers.cluster_file import read_cluster_file

models = pytest.importorskip("kubernetes.client.models")
pytest.importorskip("dask_kubernetes")

CONFIGS = Path(__file__).parents[2] / "cluster_configs"
PLAIN = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "bool": {"type": "boolean"},
    "float": {"type": "number"},
    "datetime": {"type": "string"},
    "object": {},  # a port by its number or its name, say
}
NOWHERE = """
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:9"}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
current-context: none
users: [{name: none, user: {token: none}}]
"""


def manifest() -> dict:
    return yaml.safe_load((CONFIGS / "kubernetes_dask_cluster.yaml").read_text())


def schema_of(kind: str, definitions: dict) -> dict:
    """JSON schema of one of Kubernetes' types; no key but its own is allowed."""
    inner = re.fullmatch(r"list\[(.+)\]", kind)
    if inner:
        return {"type": "array", "items": schema_of(inner[1], definitions)}
    inner = re.fullmatch(r"dict[\[(]str, (.+)[\])]", kind)
    if inner:
        return {"type": "object", "additionalProperties": schema_of(inner[1], definitions)}
    if kind in PLAIN:
        return PLAIN[kind]
    if kind not in definitions:
        model = getattr(models, kind)
        definitions[kind] = {"type": "object", "additionalProperties": False, "properties": {}}
        names = model.attribute_map
        definitions[kind]["properties"] = {
            names[name]: schema_of(part, definitions) for name, part in model.openapi_types.items()
        }
    return {"$ref": f"#/definitions/{kind}"}


def operators_schema() -> dict:
    """JSON schema of a DaskCluster: the operator's template of its resource definition."""
    text = (files("dask_kubernetes") / "operator/customresources/templates.yaml").read_text()
    definitions = yaml.safe_load(text)["definitions"]

    def resolve(node: object) -> object:
        if isinstance(node, list):
            return [resolve(part) for part in node]
        if not isinstance(node, dict):
            return node
        reference = node.get("$ref", "")
        kubernetes = re.search(r"definitions/io\.k8s\.api\.core\.v1\.(\w+)$", reference)
        if kubernetes:
            return schema_of(f"V1{kubernetes[1]}", found)
        if reference:
            return {"$ref": "#/definitions/" + reference.rpartition("/")[2]}
        node = {name: resolve(part) for name, part in node.items()}
        if "properties" in node:
            node["additionalProperties"] = False
        return node

    found: dict = {}
    own = {name: resolve(node) for name, node in definitions.items()}
    found |= own
    cluster = found["dask.k8s.api.v1.DaskCluster"]
    metadata = schema_of("V1ObjectMeta", found)
    cluster["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": metadata}
    return {"$ref": "#/definitions/dask.k8s.api.v1.DaskCluster", "definitions": found}


def told(content: dict, schema: dict) -> list[str]:
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(content)]


def test_the_manifest_is_as_the_operator_defines_it():
    assert told(manifest(), operators_schema()) == []


def test_the_schema_sees_what_is_wrong():
    schema = operators_schema()
    wrong = manifest()
    container = wrong["spec"]["worker"]["spec"]["containers"][0]
    container["volumeMount"] = container.pop("volumeMounts")
    container["resources"]["limits"]["nvidia.com/gpu"] = 1  # Kubernetes wants it in quotes
    del wrong["spec"]["scheduler"]["service"]
    assert len(told(wrong, schema)) == 3


@pytest.mark.parametrize("part", ["scheduler", "worker"])
def test_pods_hold_together(part):
    """Names that point to other names, in what the operator makes of the manifest."""
    from dask_kubernetes.operator.controller.controller import (
        build_scheduler_deployment_spec,
        build_scheduler_service_spec,
        build_worker_deployment_spec,
    )

    content = manifest()
    name, spec = content["metadata"]["name"], content["spec"][part]["spec"]
    if part == "scheduler":
        made = build_scheduler_deployment_spec(name, spec, {}, {})
        service = content["spec"]["scheduler"]["service"]
        made_service = build_scheduler_service_spec(name, service, {}, {})
        labels = made["spec"]["template"]["metadata"]["labels"]
        assert made_service["spec"]["selector"].items() <= labels.items()
        assert service["type"] == "ClusterIP"  # nothing outside reaches it
        ports = {port["name"] for port in spec["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports
        assert {port["name"] for port in service["ports"]} == {"tcp-comm", "http-dashboard"}
        assert spec["containers"][0]["livenessProbe"]["httpGet"]["port"] in ports
    else:
        made = build_worker_deployment_spec("group", "space", name, "1", spec, {}, {})
        container = made["spec"]["template"]["spec"]["containers"][0]
        environment = {variable["name"] for variable in container["env"]}
        assert environment == {"HOME", "DASK_WORKER_NAME", "DASK_SCHEDULER_ADDRESS"}
        volumes = {volume["name"] for volume in spec["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert "nvidia.com/gpu" in container["resources"]["limits"]
    definitions: dict = {}
    schema = {**schema_of("V1Deployment", definitions), "definitions": definitions}
    assert told(made, schema) == []


@pytest.mark.parametrize("part", ["scheduler", "worker"])
def test_pods_have_no_more_rights_than_they_need(part):
    spec = manifest()["spec"][part]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] > 0
    assert not spec["automountServiceAccountToken"]
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        assert key not in spec
    for container in spec["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in container["securityContext"]
    assert not any("hostPath" in volume for volume in spec.get("volumes", []))


def test_a_worker_has_one_thread_and_loopback_pages():
    container = manifest()["spec"]["worker"]["spec"]["containers"][0]
    words = [*container["command"], *container["args"]]
    assert words[:3] == ["dask", "cuda", "worker"]
    assert words[words.index("--nthreads") + 1] == "1"
    assert words[words.index("--dashboard-address") + 1] == "127.0.0.1:0"


def test_the_network_policy_is_of_these_pods():
    policy = yaml.safe_load((CONFIGS / "kubernetes_network_policy.yaml").read_text())
    definitions: dict = {}
    schema = {**schema_of("V1NetworkPolicy", definitions), "definitions": definitions}
    assert told(policy, schema) == []
    wrong = copy.deepcopy(policy)
    wrong["spec"]["podSelectors"] = {}
    assert len(told(wrong, schema)) == 1
    labels = {"dask.org/cluster-name": manifest()["metadata"]["name"]}  # the operator gives it
    assert policy["spec"]["podSelector"]["matchLabels"] == labels


def test_the_shipped_file_starts_what_the_manifest_has():
    start = read_cluster_file(CONFIGS / "kubernetes.yaml")
    assert (start.n_workers, start.device) == (4, "cuda")


def test_a_kubernetes_that_does_not_answer(small_workdir, tmp_path):
    sketched(small_workdir, tmp_path / "run")
    (tmp_path / "config").write_text(NOWHERE)
    command = [sys.executable, "-m", "scapedist.cli", "generate", str(tmp_path / "run")]
    done = subprocess.run(
        [*command, "--cluster", str(CONFIGS / "kubernetes.yaml")],
        env=os.environ | {"KUBECONFIG": str(tmp_path / "config"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    message = done.stderr[done.stderr.index("scapedist: ") :]
    assert "Workers could not be started (All connection attempts failed). Check" in message
    assert message.count("\n") == 1, message  # nothing after it, at exit
    assert "Traceback" not in done.stderr
