"""cluster/kubernetes: valid by the published schemas, and consistent with the image, the scripts and the program."""

from __future__ import annotations

import copy
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster_samples import CLUSTER, ROOT, STAND_INS, environment
from published_schemas import NotHere, Published, _checked, misspelt, problems, schema_of

from glomo_dist.cli import main
from glomo_dist.data.reading.config import Reading

FOLDER = CLUSTER / "kubernetes"
FILES = ("evaluate-rayjob.yaml", "pretrain-jobset.yaml", "pretrain-pytorchjob.yaml")
BY_HAND = "files.yaml"  # a pod, which no operator looks after
CORE_VERSION = "1.32"

# Keys below these are the user's own words: names of labels, resources, replicas, flags of `ray start`.
FREE = r"(labels|matchLabels|requests|limits|rayStartParams|pytorchReplicaSpecs)\.[^\[\]]*$"


def load(name: str) -> dict[str, Any]:
    (document,) = yaml.safe_load_all((FOLDER / name).read_text())
    return document


def schema(document: dict[str, Any]) -> dict[str, Any]:
    try:
        return schema_of(document["kind"], document["apiVersion"].rpartition("/")[2])
    except NotHere as e:
        pytest.skip(str(e))


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod template in the document."""
    found = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "containers" in value.get("spec", {}):
                found.append(value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    return found


def test_every_file_is_looked_at() -> None:
    assert {p.name for p in FOLDER.glob("*.y*ml")} == {*FILES, BY_HAND, "storage.yaml"}


@pytest.mark.parametrize("name", FILES)
def test_valid_by_the_published_definition(name: str) -> None:
    document = load(name)
    assert problems(schema(document), document) == []


@pytest.mark.parametrize("name", FILES)
def test_every_misspelt_key_is_found(name: str) -> None:
    document = load(name)
    strict = schema(document)
    changed = list(misspelt(document))
    missed = {place for place, wrong in changed if not problems(strict, wrong)}
    assert len(changed) > 100 and not {p for p in missed if not re.search(FREE, p)}


def test_wrong_types_are_found() -> None:
    document = load("pretrain-jobset.yaml")
    strict = schema(document)
    document["spec"]["failurePolicy"]["maxRestarts"] = "many"
    assert any(p.startswith("spec.failurePolicy.maxRestarts") for p in problems(strict, document))


def test_another_file_than_the_published_one_is_refused() -> None:
    with pytest.raises(AssertionError, match="SHA-256"):
        _checked(b"kind: other", Published("a/b", "v1", "c.yaml", "0" * 64), "c.yaml")


def core_problems(document: dict[str, Any]) -> str:
    """By Kubernetes' own schemas, unknown keys refused; empty if the document is valid."""
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    try:
        validator.validate(document, CORE_VERSION, strict=True)
    except validator.ValidationError as e:
        return f"{'.'.join(map(str, e.path))}: {e.message}"
    return ""


@pytest.mark.parametrize("name", FILES)
def test_pods_are_valid_kubernetes(name: str) -> None:
    templates = pods(load(name))
    assert len(templates) == {"evaluate-rayjob.yaml": 3, "pretrain-jobset.yaml": 1}.get(name, 2)
    for template in templates:
        template = copy.deepcopy(template)  # YAML's anchors share their parts
        wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}
        assert core_problems(wrapped) == ""
        template["spec"]["containers"][0]["securityContext"]["readOnlyRootFilesystemx"] = True
        assert "readOnlyRootFilesystemx" in core_problems(wrapped)


def test_the_job_in_the_jobset_is_valid_kubernetes() -> None:
    (host,) = load("pretrain-jobset.yaml")["spec"]["replicatedJobs"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, **host["template"]}
    assert core_problems(job) == ""


def test_storage_is_valid_kubernetes() -> None:
    claim = load("storage.yaml")
    assert core_problems(claim) == "" and claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_pod_for_files_is_valid_kubernetes_and_sees_the_storage() -> None:
    pod = load(BY_HAND)
    assert core_problems(pod) == ""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    (container,) = pod["spec"]["containers"]
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    claim = load("storage.yaml")["metadata"]["name"]
    assert mounts["/data"]["persistentVolumeClaim"]["claimName"] == claim and len(mounts) == len(volumes)
    named = re.findall(
        r"kubectl (?:exec|cp|delete pod|cp \S+) (glomo-files)\b", (CLUSTER / "README.md").read_text()
    )
    assert set(named) == {pod["metadata"]["name"]}


@pytest.mark.parametrize("name", FILES[1:])
def test_the_cache_of_shards_fits_where_it_is(name: str) -> None:
    """It was in the home of 1 GiB. Kubernetes evicts a pod whose volume grows past its limit."""
    (cache,) = re.findall(r"XDG_CACHE_HOME=(\S+)", (FOLDER / "Dockerfile").read_text())
    for template in pods(load(name)):
        volumes = {v["name"]: v for v in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        (volume,) = (
            m["name"] for m in container["volumeMounts"] if Path(m["mountPath"]) in Path(cache).parents
        )
        limit = volumes[volume]["emptyDir"]["sizeLimit"]
        assert (int(limit.removesuffix("Gi")) << 30) > 1.5 * Reading().cache_gb * 1e9


@pytest.mark.parametrize("name", [*FILES, BY_HAND])
def test_no_pod_has_rights_it_does_not_need(name: str) -> None:
    for template in pods(load(name)):
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in template["spec"]["containers"]:
            rights = container["securityContext"]
            assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()


@pytest.mark.parametrize("name", FILES)
def test_volumes(name: str) -> None:
    claim = load("storage.yaml")["metadata"]["name"]
    for template in pods(load(name)):
        volumes = {v["name"]: v for v in template["spec"].get("volumes", [])}
        for container in template["spec"]["containers"]:
            mounts = {m["name"]: m["mountPath"] for m in container.get("volumeMounts", [])}
            assert mounts.keys() == volumes.keys()
            if mounts:
                assert mounts["shm"] == "/dev/shm" and volumes["shm"]["emptyDir"]["medium"] == "Memory"
                assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim


@pytest.mark.parametrize("name", FILES[1:])
def test_pretraining_pods_call_the_script_as_it_wants_to_be_called(name: str, tmp_path: Path) -> None:
    """The command of the container, run here with the variables of the pod and a stand-in for the interpreter."""
    document = load(name)
    for template in pods(document):
        (container,) = template["spec"]["containers"]
        given = {e["name"]: e.get("value", "10.0.0.7") for e in container["env"]}
        ports = [p["containerPort"] for p in container["ports"]]
        # what the operators add, for the first host, which does not wait for anyone
        if document["kind"] == "PyTorchJob":
            replicas = document["spec"]["pytorchReplicaSpecs"]
            nodes = sum(r["replicas"] for r in replicas.values())
            given |= {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(ports[0])}
        else:
            (host,) = document["spec"]["replicatedJobs"]
            nodes = host["template"]["spec"]["parallelism"]
            assert nodes == host["template"]["spec"]["completions"] and host["replicas"] == 1
            label = document["metadata"]["name"]
            assert given["MEET"] == f"{label}-{host['name']}-0-0.{label}:{ports[0]}"
            given["JOB_COMPLETION_INDEX"] = "0"
        assert given["NODES"] == str(nodes)
        assert template["spec"]["terminationGracePeriodSeconds"] > 60 + 30
        command = [word.replace("/opt/glomo", str(ROOT)) for word in container["command"]]
        variables = {
            "PYTHON": str(STAND_INS / "interpreter"),
            "STAND_IN_DO": "finish",
            "STAND_IN_STATE": str(tmp_path),
        }
        done = subprocess.run(
            [*command, *container["args"]], env={**environment(**variables), **given}, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"<--rdzv-endpoint> <{given.get('MEET', f'localhost:{ports[0]}')}>" in done.stdout
        assert "<--local-addr> <10.0.0.7>" in done.stdout
        assert done.stdout.rstrip().endswith(" ".join(f"<{w}>" for w in ["pretrain", *container["args"]]))


def test_arguments_are_those_of_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command gets as far as the data that is not here."""
    for name in FILES[1:]:
        for template in pods(load(name)):
            assert main(["pretrain", *template["spec"]["containers"][0]["args"]]) == 2
            assert "/data/shards" in capsys.readouterr().err
    program, *words = shlex.split(load("evaluate-rayjob.yaml")["spec"]["entrypoint"])
    assert program == "glomo" and main(words) == 2
    assert "/data/plan.yaml" in capsys.readouterr().err


def test_ray_is_the_one_of_the_image() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and load("evaluate-rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


def test_dockerfile() -> None:
    text = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    users = {t["spec"]["securityContext"]["runAsUser"] for name in FILES for t in pods(load(name))}
    assert [line.split()[1] for line in lines if line.startswith("USER")] == [f"{u}:{u}" for u in users]
    installs = re.findall(r"pip install[^&]*", text)
    assert len(installs) == 4 and all("-c constraints.txt" in install for install in installs)
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}
    assert {line.split()[0] for line in lines} <= known
    for line in lines:  # the shell of each RUN, as Docker would hand it to sh
        if line.startswith("RUN "):
            assert subprocess.run(["sh", "-n", "-c", line[4:]], check=False).returncode == 0, line


def test_images_are_the_users_to_name() -> None:
    for path in sorted(CLUSTER.rglob("*")):
        if path.is_file() and path.suffix in (".yaml", ".sbatch", ".sh"):
            text = path.read_text()
            assert not re.search(r"image: (?!REGISTRY/glomo-dist:)", text), path
            assert os.path.expanduser("~") not in text, path
