"""The cluster's manifests: valid, one with the rules and with the service's unit."""

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tools import prometheusrule

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
