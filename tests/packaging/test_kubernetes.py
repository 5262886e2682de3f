# SPDX-License-Identifier: MIT
"""The cluster's manifests: valid, one with the rules and with the service's unit."""

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import vftrace
from tools import chart, prometheusrule

FILES = sorted((prometheusrule.ROOT / "packaging/kubernetes").glob("*.yaml"))
OF_KUBERNETES = {"Namespace", "DaemonSet", "Service"}
"""Kinds whose schema is Kubernetes' own; the others are the Prometheus operator's and kustomize's."""


def manifest(name: str) -> Any:
    return yaml.safe_load(
        (prometheusrule.ROOT / "packaging/kubernetes" / f"{name}.yaml").read_text()
    )


def test_kustomize_names_every_file() -> None:
    listed = set(manifest("kustomization")["resources"])
    assert listed == {file.name for file in FILES} - {"kustomization.yaml"}


@pytest.mark.parametrize("name", ["namespace", "daemonset", "service"])
def test_manifests_fit_the_schema_of_kubernetes(name: str) -> None:
    made = manifest(name)
    assert made["kind"] in OF_KUBERNETES
    kubernetes_validate.validate(made, "1.29", strict=True)


def test_a_wrong_manifest_does_not_fit() -> None:
    made = manifest("daemonset")
    made["spec"]["template"]["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(made, "1.29", strict=True)


def test_the_rules_are_those_of_prometheus() -> None:
    rules = prometheusrule.RULES.read_text()
    assert prometheusrule.MADE.read_text() == prometheusrule.prometheus_rule(rules)
    assert manifest("prometheusrule")["spec"] == yaml.safe_load(rules)


def test_the_service_monitor_selects_the_service_and_its_port() -> None:
    service, monitor = manifest("service"), manifest("servicemonitor")
    assert (
        monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    )
    assert {e["port"] for e in monitor["spec"]["endpoints"]} == {
        port["name"] for port in service["spec"]["ports"]
    }


def test_the_container_has_only_capabilities_that_the_unit_has() -> None:
    (container,) = manifest("daemonset")["spec"]["template"]["spec"]["containers"]
    unit = (prometheusrule.ROOT / "packaging/systemd/vftrace.service").read_text()
    bounding = re.search(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)
    assert bounding is not None
    added = {f"CAP_{name}" for name in container["securityContext"]["capabilities"]["add"]}
    assert added <= set(bounding[1].split())
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


# -- the Helm chart -----------------------------------------------------------------------------


def test_the_chart_is_made_from_the_manifests() -> None:
    for path, text in chart.templates().items():
        assert (chart.CHART / path).read_text() == text, "run: python tools/chart.py"


@pytest.fixture(scope="module")
def tools() -> Path:
    """The directory with helm and kubectl, fetched once."""
    done = subprocess.run(
        [Path(__file__).with_name("cluster-tools")], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


Objects = dict[tuple[str, str], Any]


def objects(*command: str | Path) -> Objects:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    every = [made for made in yaml.safe_load_all(done.stdout) if made is not None]
    return {(made["kind"], made["metadata"]["name"]): made for made in every}


def of_helm(tools: Path, *settings: str) -> Objects:
    chosen = [word for setting in settings for word in ("--set-json", setting)]
    return objects(
        tools / "helm", "template", "vftrace", chart.CHART, "--namespace", "vftrace", *chosen
    )


@pytest.mark.needs("npm")
def test_helm_makes_what_kustomize_makes(tools: Path) -> None:
    """Both make equal objects, except for the namespace, which is an option of Helm, and the image pull policy."""
    kustomized = objects(tools / "kubectl", "kustomize", chart.MANIFESTS)
    del kustomized["Namespace", "vftrace"]
    helmed = of_helm(tools, 'image.tag="latest"')
    (container,) = helmed["DaemonSet", "vftrace"]["spec"]["template"]["spec"]["containers"]
    assert container.pop("imagePullPolicy") == "IfNotPresent"
    assert helmed == kustomized
    assert len(helmed) == 4


@pytest.mark.needs("npm")
def test_the_chart_follows_its_values(tools: Path) -> None:
    made = of_helm(
        tools,
        "nodeSelector=null",
        'extraArgs=["--retain=30d"]',
        'image={"repository":"registry.example.org/vftrace","tag":"1.2"}',
        "serviceMonitor.enabled=false",
        'prometheusRule.labels={"release":"prometheus"}',
    )
    pod = made["DaemonSet", "vftrace"]["spec"]["template"]["spec"]
    kubernetes_validate.validate(made["DaemonSet", "vftrace"], "1.29", strict=True)
    assert "nodeSelector" not in pod
    assert pod["containers"][0]["args"][-1] == "--retain=30d"
    assert pod["containers"][0]["image"] == "registry.example.org/vftrace:1.2"
    assert made["PrometheusRule", "vftrace"]["metadata"]["labels"] == {
        "app.kubernetes.io/name": "vftrace",
        "release": "prometheus",
    }
    assert ("ServiceMonitor", "vftrace") not in made


@pytest.mark.needs("npm")
def test_helm_finds_nothing_wrong_with_the_chart(tools: Path) -> None:
    done = subprocess.run(
        [tools / "helm", "lint", "--strict", chart.CHART], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_chart_is_of_this_version() -> None:
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == vftrace.__version__
