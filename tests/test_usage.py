"""How busy the machine is, as psutil and the driver say."""

from __future__ import annotations

import time

import psutil
import pytest
import torch

from speechlab import usage


def test_a_busy_processor_is_seen_and_memory_is_the_machine_s():
    usage.now("cpu")
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        sum(range(1000))
    found = usage.now("cpu")
    assert set(found) == {"cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage"}
    assert 100 / (2 * psutil.cpu_count()) < found["cpu_utilization_percentage"] <= 100, "one core of them was ours"
    assert found["system_memory_usage_megabytes"] == pytest.approx(psutil.virtual_memory().used / 1e6, rel=0.2)
    assert 0 < found["system_memory_usage_percentage"] < 100


def test_names_are_mlflow_s():
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor

    theirs = CPUMonitor()
    theirs.collect_metrics()
    assert set(theirs.metrics) == set(usage.now("cpu"))


@pytest.mark.parametrize("nvml", [True, False])
def test_a_gpu_s_values_are_there_as_far_as_the_driver_tells(nvml, monkeypatch):
    def utilization(device):
        if not nvml:
            raise ModuleNotFoundError("pynvml does not seem to be installed or it can't be imported.")
        return 87

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60_000_000_000, 80_000_000_000))
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    found = {key: value for key, value in usage.now("cuda:1").items() if key.startswith("gpu")}
    memory = {"gpu_1_memory_usage_megabytes": 20_000.0, "gpu_1_memory_usage_percentage": 25.0}
    assert found == memory | ({"gpu_1_utilization_percentage": 87.0} if nvml else {})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_real_gpu_s_values():
    held = torch.zeros(250_000_000, device="cuda")
    found = usage.now("cuda")
    assert found["gpu_0_memory_usage_megabytes"] >= 4 * held.numel() / 1e6
    assert 0 <= found["gpu_0_utilization_percentage"] <= 100
