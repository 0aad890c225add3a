"""The files of `deploy/`, from one set of values: `python -m tests.ray_serve.deploy_files`.

serve.yaml        the application on any Ray cluster (`serve deploy`)
rayservice.yaml   KubeRay's RayService with the settings, the control plane and its volume
helm/             a chart of the same objects. Its templates are never rendered here, since no Helm is installed
"""

import re
from pathlib import Path
from typing import Any

import yaml

from manylora.ray_serve.names import APPLICATION, BUILD, CLUSTER_VARIABLES
from tests.support.paths import ROOT

FOLDER = ROOT / "deploy"
RAY = "2.60.0"
KUBERAY = "1.5.1"
SETTINGS_PATH = "/etc/manylora/manylora.toml"
FILES_PATH = "/var/lib/manylora"
LEDGER_PATH = "/var/lib/manylora-control"
LEDGER = "manylora-control"
USER = 1000
"""User and group of every process; Kubernetes gives a pod's volumes to the group."""
SECRET = "manylora"
VALUES: dict[str, Any] = {
    "image": "registry.example.com/manylora:0.1.0",
    "base": "SmolLM2-135M-Instruct",
    "edges": 2,
    "leastEngines": 0,
    "engines": 1,
    "mostEngines": 8,
    "engineCpus": 4,
    "engineMemory": "8Gi",
    "edgeCpus": 1,
    "headMemory": "4Gi",
    "files": "manylora-files",
    "filesSize": "50Gi",
    "ledgerSize": "10Gi",
}


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]  # PyYAML ships no types
    """Writes texts of several lines as blocks, and equal values in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent)
HEAD = "# Written by `make pages` (tests/ray_serve/deploy_files.py): change the values there, not here.\n"
UNRENDERED = "# Not rendered by Helm in the tests: they compare its text with deploy/rayservice.yaml.\n"


def settings_text(values: dict[str, Any]) -> str:
    """Return the TOML file of settings of every pod."""
    return f"""\
[model]
base = "{values["base"]}"
cache_dir = "{FILES_PATH}"

[adapters]
registry_dir = "{FILES_PATH}/uploads"
pushed_bytes = 0

[server]
host = "0.0.0.0"

[control]
url = "http://manylora-control:8090"

[ray]
edges = {values["edges"]}
least_engines = {values["leastEngines"]}
engines = {values["engines"]}
most_engines = {values["mostEngines"]}
engine_cpus = {values["engineCpus"]}
edge_cpus = {values["edgeCpus"]}
"""


def serve_config(settings: str = SETTINGS_PATH) -> dict[str, Any]:
    """Return Serve's configuration. The settings have the numbers of replicas; a long stream has no time limit here."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000, "keep_alive_timeout_s": 75},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": [
            {"name": APPLICATION, "route_prefix": "/", "import_path": BUILD, "args": {"config": settings}}
        ],
    }


def kubernetes_objects(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the objects of the namespace, the RayService last."""
    return [
        _object("v1", "ConfigMap", "manylora", data={"manylora.toml": settings_text(values)}),
        _claim(values["files"], "ReadWriteMany", values["filesSize"]),
        _claim(LEDGER, "ReadWriteOnce", values["ledgerSize"]),
        _control(values),
        _object(
            "v1",
            "Service",
            "manylora-control",
            spec={"selector": {"app": "manylora-control"}, "ports": [{"port": 8090, "targetPort": 8090}]},
        ),
        _ray_service(values),
    ]


def pod_templates(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the templates of pods in the objects, those of the RayService included."""
    found = []
    for each in objects:
        spec = each.get("spec", {})
        cluster = spec.get("rayClusterConfig", {})
        groups = [cluster[name] for name in ("headGroupSpec",) if name in cluster] + cluster.get("workerGroupSpecs", [])
        found += [holder["template"] for holder in (spec, *groups) if "template" in holder]
    return found


def written() -> dict[Path, str]:
    """Return the text of each file by its path."""
    objects = kubernetes_objects(VALUES)
    plain = _dumped(*objects)
    chart = FOLDER / "helm" / "manylora"
    return {
        FOLDER / "serve.yaml": HEAD + _dumped(serve_config()),
        FOLDER / "rayservice.yaml": HEAD + plain,
        chart / "Chart.yaml": HEAD
        + _dumped(
            {
                "apiVersion": "v2",
                "name": "manylora",
                "description": "manylora on KubeRay",
                "type": "application",
                "version": "0.1.0",
                "appVersion": "0.1.0",
            }
        ),
        chart / "values.yaml": HEAD + _dumped(VALUES),
        chart / "templates" / "manylora.yaml": UNRENDERED + HEAD + template(VALUES),
    }


def template(values: dict[str, Any]) -> str:
    """Return the chart's template: the objects, with a place for each value."""
    places = {name: f"@@{name}@@" for name in values}
    text = _dumped(*kubernetes_objects(places))
    for name in values:
        place = f"{{{{ .Values.{name} }}}}"
        text = text.replace(f"'@@{name}@@'", place).replace(f"@@{name}@@", place)
    return text


def rendered(text: str, values: dict[str, Any]) -> str:
    """Return a template with its places filled, as far as it uses values alone."""
    return re.sub(r"\{\{ \.Values\.(\w+) \}\}", lambda match: str(values[match[1]]), text)


def _object(version: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, **fields}


def _claim(name: str, mode: str, size: str) -> dict[str, Any]:
    resources = {"requests": {"storage": size}}
    return _object("v1", "PersistentVolumeClaim", name, spec={"accessModes": [mode], "resources": resources})


def _container(name: str, values: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a container with the settings, the secrets and the files."""
    token = {"name": SECRET, "key": "edge-token"}
    edge_token = {"name": "MANYLORA_CONTROL_EDGE_TOKEN", "valueFrom": {"secretKeyRef": token}}
    return {
        "name": name,
        "image": values["image"],
        "env": [edge_token],
        "volumeMounts": [
            {"name": "settings", "mountPath": "/etc/manylora", "readOnly": True},
            {"name": "files", "mountPath": FILES_PATH},
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True, "runAsUser": USER},
        **fields,
    }


def _volumes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": "settings", "configMap": {"name": "manylora"}},
        {"name": "files", "persistentVolumeClaim": {"claimName": values["files"]}},
    ]


def _group() -> dict[str, Any]:
    """Return the group of a pod's volumes. A large volume changes hands at its first mount alone."""
    return {"securityContext": {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"}}


def _control(values: dict[str, Any]) -> dict[str, Any]:
    """Return the control plane: one pod, since its database is a file. It fetches the base for all pods."""
    own = ("--host", "0.0.0.0", "--set", "control.url=", "--set", f"control.dir={LEDGER_PATH}")
    command = ["manylora", "control", "--config", SETTINGS_PATH, *own]
    container = _container("control", values, command=command, ports=[{"containerPort": 8090}])
    container["volumeMounts"].append({"name": "ledger", "mountPath": LEDGER_PATH})
    fetch = _container("fetch-base", values, command=["manylora", "pull", values["base"]])
    fetch["env"].append({"name": "MANYLORA_MODEL_CACHE_DIR", "value": FILES_PATH})
    labels = {"app": "manylora-control"}
    volumes = [*_volumes(values), {"name": "ledger", "persistentVolumeClaim": {"claimName": LEDGER}}]
    return _object(
        "apps/v1",
        "Deployment",
        "manylora-control",
        spec={
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {**_group(), "initContainers": [fetch], "containers": [container], "volumes": volumes},
            },
        },
    )


def _ray_service(values: dict[str, Any]) -> dict[str, Any]:
    application = {"applications": serve_config()["applications"], "proxy_location": "EveryNode"}
    return _object(
        "ray.io/v1",
        "RayService",
        "manylora",
        spec={
            "serveConfigV2": _dumped(application),
            "rayClusterConfig": {
                "rayVersion": RAY,
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": True,
                "headGroupSpec": {
                    "rayStartParams": {"num-cpus": "0"},
                    "template": _ray_pod("ray-head", values, {"cpu": "2", "memory": values["headMemory"]}),
                },
                "workerGroupSpecs": [
                    {
                        "groupName": "engines",
                        "replicas": values["engines"],
                        "minReplicas": values["leastEngines"],
                        "maxReplicas": values["mostEngines"],
                        "rayStartParams": {},
                        "template": _ray_pod(
                            "ray-worker", values, {"cpu": values["engineCpus"], "memory": values["engineMemory"]}
                        ),
                    },
                    {
                        "groupName": "edges",
                        "replicas": values["edges"],
                        "minReplicas": values["edges"],
                        "maxReplicas": values["edges"],
                        "rayStartParams": {},
                        "template": _ray_pod("ray-worker", values, {"cpu": values["edgeCpus"], "memory": "4Gi"}),
                    },
                ],
            },
        },
    )


def _ray_pod(name: str, values: dict[str, Any], resources: dict[str, Any]) -> dict[str, Any]:
    container = _container(name, values, resources={"requests": resources, "limits": resources})
    # KubeRay sets the variables of the token itself (`authOptions`).
    cluster = [{"name": key, "value": text} for key, text in CLUSTER_VARIABLES.items() if key != "RAY_AUTH_MODE"]
    container["env"] += cluster
    return {"spec": {**_group(), "containers": [container], "volumes": _volumes(values)}}


def _dumped(*values: Any) -> str:
    return str(yaml.dump_all(values, Dumper=_Dumper, sort_keys=False, width=120))


if __name__ == "__main__":
    for path, text in written().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
