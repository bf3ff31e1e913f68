"""What a JobSet may hold, as far as the manifests in launch/ need it: JobSet v1alpha2, Job, and the pod's commonest fields.

Written by hand from the documents of Kubernetes and JobSet. A dictionary lists the fields (`!` marks a needed one), a list holds the kind
of its items, a tuple the allowed values, and `{...: kind}` is a map of any names. Fields that are not listed here are refused, so a
new one in a manifest has to be looked up first.
"""

from __future__ import annotations

import re
from typing import Any

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")  # DNS label
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_TEXTS = {...: str}
_METADATA = {"name": _NAME, "namespace": _NAME, "labels": _TEXTS, "annotations": _TEXTS}
_REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")

_CONTAINER = {
    "name!": _NAME,
    "image!": str,
    "workingDir": str,
    "command": [str],
    "args": [str],
    "env": [{"name!": str, "value": str}],
    "ports": [{"containerPort!": int, "name": _NAME, "protocol": ("TCP", "UDP", "SCTP")}],
    "resources": {"limits": {...: _QUANTITY}, "requests": {...: _QUANTITY}},
    "volumeMounts": [{"name!": _NAME, "mountPath!": str, "readOnly": bool, "subPath": str}],
}
_POD = {
    "restartPolicy": ("Never", "OnFailure"),  # Always is not allowed in a job
    "serviceAccountName": _NAME,
    "terminationGracePeriodSeconds": int,
    "nodeSelector": _TEXTS,
    "tolerations": [{"key": str, "operator": ("Exists", "Equal"), "value": str, "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute")}],
    "containers!": [_CONTAINER],
    "volumes": [
        {
            "name!": _NAME,
            "persistentVolumeClaim": {"claimName!": str, "readOnly": bool},
            "emptyDir": {"medium": ("Memory", ""), "sizeLimit": _QUANTITY},
            "csi": {"driver!": str, "readOnly": bool, "volumeAttributes": _TEXTS},
        }
    ],
}
_JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": ("Indexed", "NonIndexed"),
    "backoffLimit": int,
    "activeDeadlineSeconds": int,
    "podFailurePolicy": {
        "rules!": [
            {
                "action!": ("FailJob", "Ignore", "Count", "FailIndex"),
                "onExitCodes": {"containerName": _NAME, "operator!": ("In", "NotIn"), "values!": [int]},
                "onPodConditions": [{"type!": str, "status": ("True", "False", "Unknown")}],
            }
        ]
    },
    "template!": {"metadata": _METADATA, "spec!": _POD},
}
JOBSET = {
    "apiVersion!": ("jobset.x-k8s.io/v1alpha2",),
    "kind!": ("JobSet",),
    "metadata!": {**{key: kind for key, kind in _METADATA.items() if key != "name"}, "name!": _NAME},
    "spec!": {
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
        "network": {"enableDNSHostnames": bool, "subdomain": _NAME, "publishNotReadyAddresses": bool},
        "successPolicy": {"operator!": ("All", "Any"), "targetReplicatedJobs": [_NAME]},
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": ("Recreate", "BlockingRecreate"),
            "rules": [
                {
                    "name!": str,
                    "action!": ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
                    "targetReplicatedJobs": [_NAME],
                    "onJobFailureReasons": [_REASONS],
                }
            ],
        },
        "coordinator": {"replicatedJob!": _NAME, "jobIndex": int, "podIndex": int},
        "replicatedJobs!": [{"name!": _NAME, "replicas": int, "template!": {"metadata": _METADATA, "spec!": _JOB}}],
    },
}


def mistakes(value: Any, kind: Any, path: str = "") -> list[str]:
    """Where a value is not of a kind, as lines `path: what was found`."""
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return [f"{path}: found {value!r}, expected fields"]
        if ... in kind:
            return [line for key, item in value.items() for line in mistakes(item, kind[...], f"{path}.{key}")]
        kinds = {name.rstrip("!"): inner for name, inner in kind.items()}
        lines = [f"{path}.{name[:-1]}: missing" for name in kind if name.endswith("!") and name[:-1] not in value]
        lines += [f"{path}.{key}: unknown field" for key in value if key not in kinds]
        return lines + [line for key, item in value.items() if key in kinds for line in mistakes(item, kinds[key], f"{path}.{key}")]
    if isinstance(kind, list):
        if not isinstance(value, list):
            return [f"{path}: found {value!r}, expected a list"]
        return [line for i, item in enumerate(value) for line in mistakes(item, kind[0], f"{path}[{i}]")]
    if isinstance(kind, tuple):
        return [] if value in kind else [f"{path}: found {value!r}, expected one of {kind}"]
    if isinstance(kind, re.Pattern):
        return [] if kind.fullmatch(str(value)) else [f"{path}: found {value!r}, expected {kind.pattern}"]
    right = isinstance(value, kind) and (kind is not int or (value >= 0 and not isinstance(value, bool)))
    return [] if right else [f"{path}: found {value!r}, expected {kind.__name__}"]
