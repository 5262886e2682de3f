# SPDX-License-Identifier: MIT
"""Writes the configuration of an OCI bundle (runc) for the container of packaging/kubernetes/daemonset.yaml.

    bundle.py ROOT PLACE ADDRESS [--own-pids] >config.json

What the manifest says is done: arguments, capabilities, the read-only root, the host's pid namespace, volumes. Volumes
that would write to this machine (recordings, cache) are directories below PLACE; it listens on ADDRESS. The network is
the host's, so that the test reaches it.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

MANIFEST = Path(__file__).resolve().parents[2] / "packaging/kubernetes/daemonset.yaml"


def config(pod: dict[str, Any], root: Path, place: Path, address: str) -> dict[str, Any]:
    """The pod's only container, as https://github.com/opencontainers/runtime-spec has it."""
    (container,) = pod["containers"]
    rights = container["securityContext"]
    capabilities = [f"CAP_{name}" for name in rights["capabilities"]["add"]]
    assert rights["capabilities"]["drop"] == ["ALL"]
    words = [
        f"--web.listen-address={address}" if word.startswith("--web.listen-address=") else word
        for word in container["args"]
    ]
    sources = {volume["name"]: _source(volume, place) for volume in pod["volumes"]}
    namespaces = ["mount", "ipc", "uts", *([] if pod.get("hostPID") else ["pid"])]
    return {
        "ociVersion": "1.0.2",
        "hostname": "node",
        "root": {"path": str(root), "readonly": rights["readOnlyRootFilesystem"]},
        "process": {
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": ["/usr/bin/vftrace", *words],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
            "noNewPrivileges": not rights["allowPrivilegeEscalation"],
            # As container runtimes do for root: no ambient ones.
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        },
        "mounts": [
            _mount("/proc", "proc", "proc"),
            _mount("/dev", "tmpfs", "tmpfs", "nosuid", "mode=755"),
            _mount("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
            *(_volume(each, sources[each["name"]]) for each in container["volumeMounts"]),
        ],
        "linux": {
            "namespaces": [{"type": name} for name in namespaces],
            "resources": {"memory": {"limit": 512 << 20}},
        },
    }


def _source(volume: dict[str, Any], place: Path) -> str | None:
    if "hostPath" not in volume:
        return None
    path = str(volume["hostPath"]["path"])
    if path.startswith("/sys/"):
        return path
    own = place / volume["name"]
    own.mkdir(parents=True, exist_ok=True)
    return str(own)


def _volume(mount: dict[str, Any], source: str | None) -> dict[str, Any]:
    if source is None:
        return _mount(mount["mountPath"], "tmpfs", "tmpfs", "nosuid", "nodev")
    access = "ro" if mount.get("readOnly") else "rw"
    return _mount(mount["mountPath"], "bind", source, "rbind", access)


def _mount(place: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": place, "type": kind, "source": source, "options": list(options)}


def main() -> None:
    """Read the manifest; `--own-pids` leaves out hostPID, which a cluster's administrator may forget."""
    root, place, address = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    pod = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]
    if "--own-pids" in sys.argv:
        del pod["hostPID"]
    json.dump(config(pod, root, place, address), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
