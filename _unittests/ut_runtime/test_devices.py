"""Devices, providers and threads."""

from __future__ import annotations

import os
import sys

import pytest
from onnxruntime.capi import _pybind_state as pybind

from onnxcustom import runtime
from onnxcustom.exceptions import MissingRuntimeError, ProviderError
from onnxcustom.runtime import Device, default_threads, parse_device, require_runtime

HAS_CUDA = "CUDAExecutionProvider" in runtime.available_providers()


@pytest.mark.parametrize(
    "spec",
    [
        None,
        "cpu",
        "CPU",
        Device(),
        "CPUExecutionProvider",
        ["CPUExecutionProvider"],
        ("CPUExecutionProvider",),
        [("CPUExecutionProvider", {})],
        ["cpu"],
        pybind.OrtDevice(pybind.OrtDevice.cpu(), pybind.OrtDevice.default_memory(), 0),
    ],
)
def test_every_word_for_the_cpu(spec):
    device = parse_device(spec)
    assert device == Device("cpu", 0)
    assert device.providers == ["CPUExecutionProvider"]
    assert device.ort_device().device_type() == pybind.OrtDevice.cpu()


@pytest.mark.parametrize(
    "spec", ["tpu", "cpu:1", "cuda:x", ["NONE"], [], 3, 1.5, ["CPUExecutionProvider", 4], object()]
)
def test_unknown_device_is_named_with_those_that_exist(spec):
    with pytest.raises(ProviderError, match=r"CPUExecutionProvider|only one CPU"):
        parse_device(spec)


def test_provider_error_is_what_callers_expect():
    with pytest.raises(ValueError, match="NONE"):
        parse_device("NONE")
    with pytest.raises(RuntimeError, match="NONE"):
        parse_device("NONE")


@pytest.mark.skipif(HAS_CUDA, reason="CUDA is there")
@pytest.mark.parametrize("spec", ["cuda", "gpu", "cuda:1", Device("cuda"), ["CUDAExecutionProvider"]])
def test_cuda_where_there_is_none(spec):
    with pytest.raises(ProviderError):
        parse_device(spec)


def test_cuda_device_carries_its_index():
    device = Device("cuda", 2)
    assert device.name == "cuda:2"
    assert device.providers[0] == ("CUDAExecutionProvider", {"device_id": "2"})


def test_threads_are_those_of_the_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    assert default_threads() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads() == 1


def test_without_onnxruntime_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingRuntimeError, match=r"onnxcustom\[cpu\]"):
        require_runtime()
    assert not runtime.training_available()
    with pytest.raises(ImportError):
        parse_device("cuda")


def test_damaged_onnxruntime_is_recognised(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", type(sys)("onnxruntime"))
    with pytest.raises(MissingRuntimeError, match="damaged"):
        require_runtime()
