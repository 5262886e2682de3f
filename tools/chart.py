# SPDX-License-Identifier: MIT
"""Makes the Helm chart's templates from the manifests of packaging/kubernetes, so that there is one source of both.

`python tools/chart.py` writes them again; a test compares them, and what Helm and kustomize make of both.
"""

from pathlib import Path

from tools import prometheusrule

ROOT = Path(__file__).resolve().parent.parent
MANIFESTS = ROOT / "packaging/kubernetes"
CHART = ROOT / "packaging/helm/vftrace"

HEAD = "{{{{- /* Made from packaging/kubernetes/{name} by tools/chart.py. */}}}}\n"
NAMESPACE = ("  namespace: vftrace\n", "  namespace: {{ .Release.Namespace }}\n")
LABELS = (
    "  labels: {app.kubernetes.io/name: vftrace}\n",
    """\
  labels:
    app.kubernetes.io/name: vftrace
    {{- with .Values.VALUE.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
""",
)


def _labels(value: str) -> tuple[str, str]:
    return LABELS[0], LABELS[1].replace("VALUE", value)


CHANGES: dict[str, tuple[tuple[str, str], ...]] = {
    "daemonset.yaml": (
        NAMESPACE,
        (
            """\
      # KubeVirt puts this label on nodes that can run VMs. Remove it for other clusters.
      nodeSelector: {kubevirt.io/schedulable: "true"}
      tolerations:
        - operator: Exists
""",
            """\
      {{- with .Values.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with .Values.imagePullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
""",
        ),
        (
            "          image: vftrace\n",
            """\
          image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
          imagePullPolicy: {{ .Values.image.pullPolicy }}
""",
        ),
        (
            "            - --log.format=json\n",
            """\
            - --log.format=json
            {{- range .Values.extraArgs }}
            - {{ . | quote }}
            {{- end }}
""",
        ),
        (
            """\
          resources:
            requests: {cpu: 20m, memory: 128Mi}
            limits: {memory: 512Mi}
""",
            """\
          resources: {{- toYaml .Values.resources | nindent 12 }}
""",
        ),
    ),
    "service.yaml": (NAMESPACE,),
    "servicemonitor.yaml": (
        NAMESPACE,
        _labels("serviceMonitor"),
        ("      interval: 15s\n", "      interval: {{ .Values.serviceMonitor.interval }}\n"),
    ),
}
"""What becomes a value of the chart; each stands in its manifest once."""
ONLY_IF = {"servicemonitor.yaml": "serviceMonitor", "prometheusrule.yaml": "prometheusRule"}


def templates() -> dict[str, str]:
    """The chart's generated files: path below the chart to text."""
    made = {
        name: _changed(name, (MANIFESTS / name).read_text(), changes)
        for name, changes in CHANGES.items()
    }
    # The rules have templates of their own, so Helm reads them as a file.
    head = prometheusrule.HEAD.partition("\n")[2]
    changes = (NAMESPACE, _labels("prometheusRule"))
    made["prometheusrule.yaml"] = _changed("prometheusrule.yaml", head, changes) + (
        '{{ .Files.Get "rules.yml" | indent 2 }}\n'
    )
    for name, value in ONLY_IF.items():
        made[name] = f"{{{{- if .Values.{value}.enabled }}}}\n{made[name]}{{{{- end }}}}\n"
    files = {f"templates/{name}": HEAD.format(name=name) + text for name, text in made.items()}
    return {**files, "rules.yml": prometheusrule.RULES.read_text()}


def _changed(name: str, text: str, changes: tuple[tuple[str, str], ...]) -> str:
    for before, after in changes:
        if text.count(before) != 1:
            raise SystemExit(f"{name} has {text.count(before)} times: {before}")
        text = text.replace(before, after)
    return text


if __name__ == "__main__":
    for path, content in templates().items():
        (CHART / path).write_text(content)
