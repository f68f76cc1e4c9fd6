"""What each worker gets, worked out for machines that are not here; asking real ones is tests/test_nodes.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechlab.budget import Budget
from speechlab.config import ClusterConfig, Experiment
from speechlab.errors import InputError
from speechlab.share import Share, explain

LAPTOP = [{"CPU": 8.0}]
DGX = [{"CPU": 16.0}, {"CPU": 96.0, "GPU": 8.0}, {"CPU": 96.0, "GPU": 8.0}]  # a head without GPUs, two machines with
BUDGET = Budget(seconds=240.0, fixed=2e9, per_second=10e6, free=8e9)


def experiment(**cluster: object) -> Experiment:
    return Experiment.model_validate(
        {"name": "a", "question": "Does it fit?", "training": {"micro_batches": 12}, "model": {"family": "whisper"}, "cluster": cluster}
    )


@pytest.mark.parametrize(
    ("machines", "cluster", "cpus", "gpu"),
    [
        (LAPTOP, {"workers": 1}, 8, False),
        (LAPTOP, {"workers": 3}, 2, False),
        (LAPTOP, {"workers": 8}, 1, False),
        (DGX, {"workers": 16, "loader_workers": 4}, 5, True),
        (DGX, {"workers": 16, "loader_workers": 30}, 12, True),  # 96 cores for 8 workers: the loader gets what there is
        (DGX, {"workers": 2, "loader_workers": 30}, 31, True),
        (DGX, {"workers": 2, "device": "cpu"}, 96, False),
        (DGX, {"workers": 3, "device": "cpu"}, 48, False),
        ([{"CPU": 1.0}, {"CPU": 1.0}], {"workers": 2}, 1, False),
        ([{"CPU": 4.0}], {"workers": 8, "workers_min": 2}, 1, False),  # begins with four
    ],
)
def test_the_share_of_a_worker(machines, cluster, cpus, gpu):
    share = Share.of(ClusterConfig(**cluster), machines)
    assert (share.cpus, share.gpu) == (cpus, gpu)
    assert share.resources == ({"CPU": cpus, "GPU": 1} if gpu else {"CPU": cpus})
    assert share.room(machines) >= min(cluster["workers"], Share(1, gpu).room(machines))


@given(st.lists(st.integers(1, 64), min_size=1, max_size=5), st.integers(1, 32))
def test_no_share_is_too_large_and_none_could_be_larger(cores, workers):
    machines = [{"CPU": float(n)} for n in cores]
    if sum(cores) < workers:
        with pytest.raises(InputError):
            Share.of(ClusterConfig(workers=workers), machines)
        return
    share = Share.of(ClusterConfig(workers=workers), machines)
    assert share.room(machines) >= workers
    assert share.cpus == max(cores) or Share(share.cpus + 1, False).room(machines) < workers


@pytest.mark.parametrize(
    ("machines", "cluster", "expected"),
    [
        (LAPTOP, {"workers": 9}, ["room for 8 on 1 machine: 8 CPUs, 0 GPUs", "1 CPU for each of cluster.workers = 9"]),
        (DGX, {"workers": 32}, ["room for 16 on 3 machines", "1 GPU and 1 CPU for each of cluster.workers = 32", "workers_min"]),
        (LAPTOP, {"workers": 32, "workers_min": 16}, ["each of cluster.workers_min = 16"]),
        (LAPTOP, {"workers": 1, "device": "cuda"}, ["No CUDA device"]),
    ],
)
def test_no_room_says_what_there_is_and_what_it_takes(machines, cluster, expected):
    with pytest.raises(InputError) as error:
        Share.of(ClusterConfig(**cluster), machines)
    assert [part for part in expected if part not in str(error.value)] == [], error.value


def test_a_dry_run_says_who_does_what_with_how_much():
    lines = explain(experiment(workers=4, loader_workers=4), DGX, BUDGET)
    assert lines["workers"] == "4 with 1 GPU and 5 CPUs each on 3 machines; gradients by nccl"
    assert lines["memory"].startswith("4.4 GB a worker at 240 s heard in a pass: 2.0 GB, and 10 MB a second")
    assert "8.0 GB would be free for each" in lines["memory"]
    assert lines["a step"] == "12 micro-batches; shared evenly by 1, 2, 3, 4, 6 or 12 workers: 3 for each of 4"


def test_a_dry_run_of_elastic_workers_counts_those_that_there_are():
    lines = explain(experiment(workers=12, workers_min=2, device_seconds=60.0), [{"CPU": 5.0}], BUDGET)
    assert lines["workers"] == "5 with 1 CPU each on 1 machine; gradients by gloo; elastic, 2 to 12"
    assert lines["memory"].startswith("2.6 GB a worker at 60 s")
    assert lines["a step"].endswith("2 or 3 for each of 5")


def test_a_dry_run_without_workers_or_without_the_machines():
    assert explain(experiment(workers=0), LAPTOP, BUDGET)["workers"] == "none: this process trains, without Ray"
    elsewhere = explain(experiment(workers=1, device="cuda"), LAPTOP, BUDGET)
    assert elsewhere["workers"].startswith("No CUDA device was found.")
    assert "12 micro-batches" in elsewhere["a step"]
