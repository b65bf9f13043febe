"""The published schemas of what cluster/kubernetes uses, and strict validation by them.

    python tests/cluster/published_schemas.py      # fetch the three custom resource definitions into .cache/crds

The definitions are large and not ours, so they are not in the repository: they come from the release tags below, are
known by their SHA-256, and are looked for in $GLOMO_CRDS, .cache/crds and ../shared/crds before they are fetched.
The schemas of Kubernetes itself are in the package kubernetes-validate.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Published:
    """A custom resource definition in a public repository (all three: Apache License 2.0)."""

    repository: str
    tag: str
    path: str
    sha256: str

    @property
    def url(self) -> str:
        return f"{SOURCE}/{self.repository}/{self.tag}/{self.path}"

    @property
    def name(self) -> str:
        return f"{self.tag}-{Path(self.path).name}"


DEFINITIONS = {
    "RayJob": Published(
        "ray-project/kuberay", "v1.7.0", "ray-operator/config/crd/bases/ray.io_rayjobs.yaml",
        "01a5cf3b17c1769fda44af7e82debcd98722f0c27b9ab84d084681c6649121f5",
    ),
    "JobSet": Published(
        "kubernetes-sigs/jobset", "v0.12.0", "config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml",
        "d022b87624512cf0b6741b31b24a2bea9945b5a838b50713af29332c878bb6fe",
    ),
    "PyTorchJob": Published(
        "kubeflow/training-operator", "v1.9.0", "manifests/base/crds/kubeflow.org_pytorchjobs.yaml",
        "eb80e57a984cdc7ceefaaf3fc561e21b673c30cbb58589f2389528d2b2760d22",
    ),
}  # fmt: skip


class NotHere(Exception):
    """The definition is neither on this machine nor to be had."""


def definition(kind: str) -> dict[str, Any]:
    """The custom resource definition of `kind`, its bytes checked. Raises NotHere."""
    published = DEFINITIONS[kind]
    cache = ROOT / ".cache" / "crds"
    for folder in (os.environ.get("GLOMO_CRDS"), cache, ROOT.parent / "shared" / "crds"):
        path = Path(folder, published.name) if folder else None
        if path is not None and path.is_file():
            return yaml.load(_checked(path.read_bytes(), published, str(path)), _Loader)
    try:
        with urllib.request.urlopen(published.url, timeout=10) as answer:
            data = _checked(answer.read(), published, published.url)
    except OSError as e:
        raise NotHere(f"no {published.name} in {cache}, and {published.url} does not come: {e}") from e
    cache.mkdir(parents=True, exist_ok=True)
    temporary = cache / f"{published.name}.{os.getpid()}"
    temporary.write_bytes(data)
    temporary.replace(cache / published.name)
    return yaml.load(data, _Loader)


def _checked(data: bytes, published: Published, where: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    assert found == published.sha256, f"{where}: SHA-256 {found}, expected {published.sha256}"
    return data


# PyYAML's own loader takes 4 s for these megabytes; both are safe loaders.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def schema_of(kind: str, version: str) -> dict[str, Any]:
    """JSON Schema of one version, in which what the API server would drop as unknown is an error."""
    versions = definition(kind)["spec"]["versions"]
    (found,) = (v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == version)
    strict = closed(found)
    strict["properties"]["metadata"] = METADATA
    strict["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return strict


# Of the object itself: the API server knows it, definitions say only "object".
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema of Kubernetes as JSON Schema: closed objects, int-or-string, nullable.

    What stands in allOf, anyOf, oneOf and not only restricts values, so it is left as it is.
    """
    result = {key: value for key, value in schema.items() if not key.startswith("x-")}
    result.pop("nullable", None)
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("anyOf", None)
        result["type"] = ["integer", "string"]
    if "properties" in schema:
        result["properties"] = {key: closed(value) for key, value in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        result["items"] = closed(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    elif schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if schema.get("nullable"):
        return {"anyOf": [result, {"type": "null"}]}
    return result


def problems(schema: dict[str, Any], document: Any) -> list[str]:
    """What is wrong with the document, each with its place; empty if nothing is."""
    errors = jsonschema.Draft202012Validator(schema).iter_errors(document)
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in errors]


def misspelt(document: Any) -> Iterator[tuple[str, Any]]:
    """Every copy of the document in which one key has a letter too many, with the place of that key."""

    def walk(value: Any, place: str, rebuild: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                swapped = {(f"{k}x" if k == key else k): v for k, v in value.items()}
                yield f"{place}.{key}", rebuild(swapped)
                yield from walk(inner, f"{place}.{key}", lambda new, k=key, v=value: rebuild({**v, k: new}))
        elif isinstance(value, list):
            for i, inner in enumerate(value):
                yield from walk(
                    inner, f"{place}[]", lambda new, i=i, v=value: rebuild([*v[:i], new, *v[i + 1 :]])
                )

    yield from walk(document, re.sub(r"\W", "", str(document.get("kind"))), lambda new: new)


if __name__ == "__main__":
    for kind in DEFINITIONS:
        try:
            definition(kind)
        except NotHere as e:
            sys.exit(str(e))
        print(kind, DEFINITIONS[kind].name)
