"""Extras bring one package of onnxruntime on every platform, the training build where it exists."""

from __future__ import annotations

from importlib.metadata import metadata, requires

import pytest
from packaging.requirements import Requirement

import onnxcustom

LINUX = {"sys_platform": "linux", "platform_machine": "x86_64"}
ARM_LINUX = {"sys_platform": "linux", "platform_machine": "aarch64"}
WINDOWS = {"sys_platform": "win32", "platform_machine": "AMD64"}
ARM_WINDOWS = {"sys_platform": "win32", "platform_machine": "ARM64"}
MAC = {"sys_platform": "darwin", "platform_machine": "x86_64"}
ARM_MAC = {"sys_platform": "darwin", "platform_machine": "arm64"}
PLATFORMS = [LINUX, ARM_LINUX, WINDOWS, ARM_WINDOWS, MAC, ARM_MAC]
VERSIONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]

# The wheels of 1.19.2, the last release of both.
TRAINING = {
    "cpu": ("onnxruntime-training-cpu", [LINUX, WINDOWS, MAC, ARM_MAC], ["3.10", "3.11", "3.12"]),
    "cuda": ("onnxruntime-training", [LINUX], ["3.10", "3.11"]),
}
PLAIN = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu"}


def selected(extra: str, environment: dict[str, str]) -> list[str]:
    requirements = [Requirement(text) for text in requires("onnxcustom") or ()]
    return [
        r.name
        for r in requirements
        if r.name.startswith("onnxruntime") and r.marker and r.marker.evaluate(environment | {"extra": extra})
    ]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("platform", PLATFORMS, ids="-".join)
@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_one_runtime_per_platform(extra: str, platform: dict[str, str], version: str) -> None:
    package, platforms, versions = TRAINING[extra]
    expected = package if platform in platforms and version in versions else PLAIN[extra]
    assert selected(extra, platform | {"python_version": version}) == [expected]


def test_no_runtime_without_an_extra() -> None:
    for extra in ("", "data", "plot", "test", "docs"):
        assert selected(extra, LINUX | {"python_version": "3.11"}) == []


def test_metadata() -> None:
    found = metadata("onnxcustom")
    assert found["Version"] == onnxcustom.__version__
    assert found["Requires-Python"] == ">=3.10"
    assert {"cpu", "cuda", "data", "docs", "plot", "test"} == set(found.get_all("Provides-Extra") or ())
