"""The files of `deploy/`: written from the values, and accepted by the schemas of Ray Serve and of Kubernetes."""

import importlib.util
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml

from manylora.config.settings import Config, leaves, load_config
from manylora.ray_serve.names import BUILD
from tests.conftest import missing
from tests.ray_serve.deploy_files import (
    FOLDER,
    VALUES,
    kubernetes_objects,
    pod_templates,
    rendered,
    serve_config,
    written,
)

KUBERNETES = "1.37"


def test_the_files_are_those_of_the_values() -> None:
    present = [*FOLDER.glob("*"), *(FOLDER / "helm").rglob("*")]  # the other folders have makers of their own
    found = {path: path.read_text(encoding="utf-8") for path in present if path.is_file()}
    assert found == written(), "run `make pages`"


def test_the_chart_with_its_values_is_the_plain_manifest() -> None:
    chart = FOLDER / "helm" / "manylora"
    values = yaml.safe_load((chart / "values.yaml").read_text(encoding="utf-8"))
    text = (chart / "templates" / "manylora.yaml").read_text(encoding="utf-8")
    assert [*yaml.safe_load_all(rendered(text, values))] == kubernetes_objects(VALUES)
    other = {**values, "image": "other/image:2", "mostEngines": 99}
    assert "other/image:2" in rendered(text, other)
    assert "most_engines = 99" in rendered(text, other)


def test_the_settings_in_the_manifest_are_settings(tmp_path: Path) -> None:
    (settings, *_) = kubernetes_objects(VALUES)
    file = tmp_path / "manylora.toml"
    file.write_text(settings["data"]["manylora.toml"], encoding="utf-8")
    config = load_config(file, environ={"MANYLORA_CONTROL_EDGE_TOKEN": "e" * 32})
    assert (config.ray.edges, config.ray.least_engines, config.ray.most_engines) == (2, 0, 8)
    assert config.control.url
    changed = {name for name, value in leaves(config).items() if value != leaves(Config())[name]}
    given = tomllib.loads(settings["data"]["manylora.toml"])
    assert {name for name in changed if name.split(".")[0] in given}


def test_kubernetes_accepts_every_object_and_every_pod() -> None:
    if importlib.util.find_spec("kubernetes_validate") is None:
        missing("kubernetes-validate is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate
    objects = kubernetes_objects(VALUES)
    pods = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **each} for each in pod_templates(objects)]
    assert len(pods) == 4
    for each in pods:  # a fresh volume belongs to root, and the processes run as another user
        users = {container["securityContext"]["runAsUser"] for container in each["spec"]["containers"]}
        assert users == {each["spec"]["securityContext"]["fsGroup"]}
    for each in [*(each for each in objects if each["kind"] != "RayService"), *pods]:
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**objects[3], "spec": {"ports": [{"port": "x"}]}}, KUBERNETES, strict=True)


@pytest.mark.long
def test_serve_accepts_its_configuration_and_finds_the_application() -> None:
    if importlib.util.find_spec("ray") is None:
        missing("Ray Serve is not installed: pip install -e '.[ray]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.serve.schema import ServeDeploySchema

    service = kubernetes_objects(VALUES)[-1]["spec"]["serveConfigV2"]
    for config in (serve_config(), yaml.safe_load(service)):
        (application,) = ServeDeploySchema.model_validate(config).applications
        assert application.import_path == BUILD
    module, _, function = BUILD.partition(":")
    source = importlib.util.find_spec(module)
    assert source is not None
    assert source.origin is not None
    assert f"def {function}(" in Path(source.origin).read_text(encoding="utf-8")
