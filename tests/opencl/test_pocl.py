"""A PoCL that is older than the processor is told which one it is like."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from types import SimpleNamespace

import pytest

from minigrad.errors import DeviceError
from minigrad.runtimes import opencl_pocl
from minigrad.runtimes.host import host

OLD = "OpenCL 3.0 PoCL HSTR: pthread-x86_64-unknown-linux-gnu-generic"


class Device:
    """A description of a device as PoCL has it: words, some of which point to text."""

    def __init__(self, *texts, version=OLD):
        libc = ctypes.CDLL(None)
        libc.strdup.restype = ctypes.c_void_p
        self.texts = [libc.strdup(text.encode()) for text in texts]
        self.words = (ctypes.c_uint64 * 600)(7, 1 << 60, 1 << 40, *self.texts)
        self.int_ptr = ctypes.addressof(self.words)
        self.version = version
        self.platform = SimpleNamespace(name=opencl_pocl.POCL, version="OpenCL 3.0 PoCL 3.0-rc2")

    def read(self):
        return [ctypes.string_at(text).decode() for text in self.texts]


@pytest.fixture(autouse=True)
def x86(monkeypatch):
    machine = replace(host(), architecture="x86_64", features=frozenset(("avx", "sse2")))
    monkeypatch.setattr(opencl_pocl, "host", lambda: machine)


def test_the_one_word_is_replaced_once():
    device = Device("pthread", "generic", "generic-64")
    assert opencl_pocl.name_processor(device) == "x86-64"
    assert device.read() == ["pthread", "x86-64", "generic-64"]
    assert opencl_pocl.name_processor(device) == "x86-64"  # a second time
    assert device.read() == ["pthread", "x86-64", "generic-64"]


@pytest.mark.parametrize("texts", [("pthread",), ("generic", "generic")])
def test_what_cannot_be_told_is_an_error(texts):
    device = Device(*texts)
    with pytest.raises(DeviceError, match=r"PoCL 3.0-rc2 is older than this processor.*newer one"):
        opencl_pocl.name_processor(device)
    assert device.read() == list(texts)


def test_a_pocl_that_knows_the_processor_is_left_alone():
    device = Device("generic", version=OLD.replace("generic", "haswell"))
    assert opencl_pocl.name_processor(device) == ""
    assert device.read() == ["generic"]


def test_the_name_is_of_a_processor_whose_code_this_one_runs():
    features = frozenset(("avx2", "fma", "bmi", "bmi2", "f16c", "movbe", "avx512f"))
    machine = replace(host(), features=features)
    assert opencl_pocl.name_for(machine) == "haswell"
    rest = ("avx512bw", "avx512cd", "avx512dq", "avx512vl")
    assert opencl_pocl.name_for(replace(machine, features=features.union(rest))).endswith("avx512")
