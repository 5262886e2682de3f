# SPDX-License-Identifier: MIT
"""Makes packaging/kubernetes/prometheusrule.yaml, the Prometheus operator's form of our rules.

`python tools/prometheusrule.py` writes it again; a test compares it with the rules.
"""

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "dashboards/prometheus/vftrace.rules.yml"
MADE = ROOT / "packaging/kubernetes/prometheusrule.yaml"

HEAD = """\
# Made from dashboards/prometheus/vftrace.rules.yml by tools/prometheusrule.py.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: vftrace
  namespace: vftrace
  labels: {app.kubernetes.io/name: vftrace}
spec:
"""


def prometheus_rule(rules: str) -> str:
    """The custom resource with these rules; their comments come along."""
    yaml.safe_load(rules)
    start = rules.index("groups:\n")
    return HEAD + "".join(f"  {line}\n" if line else "\n" for line in rules[start:].splitlines())


if __name__ == "__main__":
    # The Helm chart has the rules too: tools/chart.py.
    MADE.write_text(prometheus_rule(RULES.read_text()))
