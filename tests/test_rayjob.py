"""The RayJob manifest against KubeRay's schema, as far as the manifest uses it, and against what its command asks for.

Kubernetes drops a field that it does not know, so a misspelt one would be found when the GPUs are not used. The schema
below was written from the types of ray.io/v1 (KubeRay's rayjob_types.go and raycluster_types.go) and of core/v1 pods; it
is closed, so a field that is new to the manifest is looked up there first. Not covered: a Kubernetes that takes it.
"""

from __future__ import annotations

import copy
import re
import shlex
from itertools import pairwise

import jsonschema
import pytest
import yaml

from speechlab import config
from speechlab.share import Share

TEXT, FLAG, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
NAME = {"type": "string", "pattern": r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", "maxLength": 63}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|[kMGTPE]i?|Ki)?$"},
}


def closed(required: tuple[str, ...] = (), **properties: object) -> dict[str, object]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def listed(item: object) -> dict[str, object]:
    return {"type": "array", "items": item, "minItems": 1}


CONTAINER = closed(
    ("name", "image"),
    name=NAME,
    image=TEXT,
    env=listed(closed(("name",), name=TEXT, value=TEXT)),
    ports=listed(closed(("containerPort",), containerPort={**NUMBER, "maximum": 65535}, name={**NAME, "maxLength": 15})),
    resources=closed(requests=QUANTITIES, limits=QUANTITIES),
    volumeMounts=listed(closed(("name", "mountPath"), name=NAME, mountPath=TEXT, readOnly=FLAG)),
)
POD = closed(
    ("spec",),
    spec=closed(
        ("containers",),
        containers=listed(CONTAINER),
        volumes=listed(closed(("name",), name=NAME, persistentVolumeClaim=closed(("claimName",), claimName=NAME, readOnly=FLAG))),
    ),
)
CLUSTER = closed(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=closed(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    headGroupSpec=closed(("rayStartParams", "template"), rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=listed(
        closed(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            groupName=NAME,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            rayStartParams=TEXTS,
            template=POD,
        )
    ),
)
RAYJOB = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(name=NAME, generateName={"type": "string", "pattern": r"^[a-z0-9][a-z0-9-]*-$", "maxLength": 47}, namespace=NAME),
    spec=closed(
        ("rayClusterSpec",),
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=NUMBER,
        activeDeadlineSeconds=NUMBER,
        suspend=FLAG,
        rayClusterSpec=CLUSTER,
    ),
)


@pytest.fixture
def manifest(root):
    return yaml.safe_load((root / "configs/cluster/rayjob.yaml").read_text("utf-8"))


def test_the_manifest_is_a_rayjob(manifest):
    jsonschema.Draft202012Validator.check_schema(RAYJOB)
    jsonschema.validate(manifest, RAYJOB)


@pytest.mark.parametrize(
    ("place", "change"),
    [
        (["spec"], {"ttlSecondsAfterFinish": 1}),
        (["spec"], {"ttlSecondsAfterFinished": "3600"}),
        (["spec", "rayClusterSpec"], {"workerGroupSpec": []}),
        (["spec", "rayClusterSpec", "headGroupSpec"], {"rayStartParams": {"num-cpus": 0}}),  # Kubernetes wants text
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0], {"replica": 4}),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0], {"resource": {}}),
        (
            ["spec", "rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "resources"],
            {"limits": {"memory": "32 GB"}},
        ),
        (["spec", "rayClusterSpec", "authOptions"], {"mode": "on"}),
        ([], {"apiVersion": "ray.io/v1alpha1"}),
    ],
)
def test_a_misspelt_field_or_value_is_refused(manifest, place, change):
    wrong = copy.deepcopy(manifest)
    part = wrong
    for key in place:
        part = part[key]
    part.update(change)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, RAYJOB)


def machines(manifest) -> list[dict[str, float]]:
    """What Ray would find, by the containers' limits."""
    found = [{"CPU": float(manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"])}]
    for group in manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        found += [{"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}] * group["replicas"]
    return found


def test_the_command_is_ours_and_finds_room(manifest, root):
    words = shlex.split(manifest["spec"]["entrypoint"])
    assert words[:2] == ["speechlab", "train"]
    path = words[words.index("--config") + 1].removeprefix("/speechlab/")
    overrides = [value for word, value in pairwise(words) if word == "--set"]
    assert set(words[2:]) == {"--no-progress", "--config", "--set", f"/speechlab/{path}", *overrides}
    experiment = config.load(root / path, overrides)
    share = Share.of(experiment.cluster, machines(manifest))
    assert share == Share(1 + experiment.cluster.loader_workers, gpu=True)
    assert share.room(machines(manifest)) == experiment.cluster.workers


def test_every_machine_sees_what_the_command_names(manifest):
    cluster = manifest["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], *(g["template"]["spec"] for g in cluster["workerGroupSpecs"])]
    for pod in pods:
        container = pod["containers"][0]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
        asked = re.findall(r"=(/[a-z]+)/", manifest["spec"]["entrypoint"]) + [
            "/" + e["value"].split("/")[1] for e in container["env"] if e["name"] == "SPEECHLAB_CACHE"
        ]
        assert asked
        assert set(asked) <= mounts
        assert container["resources"]["requests"] == container["resources"]["limits"], "nobody is evicted for want of memory"
    assert len({pod["containers"][0]["image"] for pod in pods}) == 1


def test_ray_s_version_is_the_locked_one(manifest):
    from importlib.metadata import version

    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")


def test_its_header_gives_command_cost_and_expected_result(root):
    header = (root / "configs/cluster/rayjob.yaml").read_text("utf-8").split("apiVersion")[0]
    assert all(re.search(rf"^# +{line}: +\S", header, re.MULTILINE) for line in ("command", "cost", "expected"))
