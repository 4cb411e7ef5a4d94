"""The machine's measured limits, and the report that states them."""

from __future__ import annotations

import pytest

from minigrad import Context, Tensor
from minigrad.runtimes import cpu_limits
from minigrad.runtimes.cpu_limits import limits
from minigrad.runtimes.host import host, threads
from minigrad.runtimes.jit_compiler import Compiler


def test_limits_are_believable() -> None:
    """From a slow shared core to a large server."""
    found = limits(threads())
    assert 1e9 < found.operations < 1e14
    assert found.operations / found.vectors >= 8
    assert all(2e8 < bandwidth < 2e13 for _, bandwidth in found.bandwidths)
    assert 0 < found.moving(1000) < found.moving(10**6) < found.moving(10**10)
    assert limits(threads()) is found  # measured once


def test_bandwidths_between_the_sizes_measured() -> None:
    found = cpu_limits.Limits(1.0, 1.0, ((100, 10.0), (400, 5.0)), ((100, 8.0), (400, 4.0)))
    assert [found.moving(n) for n in (0, 50, 100, 400, 800)] == [0, 5, 10, 80, 160]
    assert found.moving(200) == pytest.approx(200 / 7.5)
    assert found.moving(800, reads_only=True) == 200


@pytest.mark.skipif(host().architecture != "x86_64", reason="needs an x86 processor")
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_the_work_is_not_optimized_away(lanes: int) -> None:
    """Each chain's multiply-add and each load are in the machine code."""
    compiler = Compiler(cpu="x86-64-v3" if lanes < 16 else "x86-64-v4")
    code = compiler.assembly(cpu_limits._multiply_adds(lanes))
    assert code.count("vfmadd") >= cpu_limits.CHAINS
    code = compiler.assembly(cpu_limits._reader(lanes))
    assert code.count("vaddps") >= cpu_limits.ACCUMULATORS
    code = compiler.assembly(cpu_limits._copy(lanes, streams=True))
    assert "vmovntps" in code
    assert "vmovnt" not in compiler.assembly(cpu_limits._copy(lanes, streams=False))


def test_the_report_quotes_them(capsys: pytest.CaptureFixture[str], cpu: str) -> None:
    with Context(DEBUG=2):
        (Tensor([[1.0, 2.0]], device=cpu) * 3).sum(1).realize()
    text = capsys.readouterr().err
    assert "limit" in text and "program:" in text and "GB/s" in text


def test_the_report_compares_with_as_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def known(count: int = 0) -> cpu_limits.Limits:
        asked.append(count)
        return cpu_limits.Limits(1.0, 1.0, ((1, 1.0),), ((1, 1.0),))

    monkeypatch.setattr(cpu_limits, "limits", known)
    for count in (1, 2):
        with Context(THREADS=count, DEBUG=2):  # a device gets its threads when it is first used
            (Tensor([[1.0, 2.0]], device=f"CPU:{9 + count}") * 3).sum(1).realize()
    assert set(asked) == {1, 2}
