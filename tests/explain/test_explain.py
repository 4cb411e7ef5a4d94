"""`explain`: its page says what a step does; and the page in a browser."""

from __future__ import annotations

import base64
import gc
import json
import re
import weakref
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
from devices import CPU, REFERENCE
from lessons import site
from lessons.site import axe, faults, resize, said, scheme, too_wide, visit

from minigrad import Context, Mesh, P, Tensor, explain, jit, nn
from minigrad.errors import DeviceError, MinigradError
from minigrad.explain import modules
from minigrad.explain import page as page_module
from minigrad.explain.origins import FOLLOWED, Origins
from minigrad.explain.watch import Timed
from minigrad.graph import node
from minigrad.models import gpt_commands, moe_commands
from minigrad.models.errors import InputError
from minigrad.models.parallel import Rank, all_reduce, run
from minigrad.programs import programs
from minigrad.runtimes.cpu_limits import Limits

ABSENT = site.missing()
LINES = Path(__file__).read_text("utf-8").splitlines()


class Net(nn.Module):
    def __init__(self) -> None:
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh()
        return self.second(hidden)


def training(device: str) -> tuple[Callable[..., Tensor], Net, list[Tensor]]:
    """A step, its model, and the arguments of a call."""
    Tensor.manual_seed(1)
    net = Net().to(device)
    optimizer = nn.optim.Adam(nn.state.get_parameters(net), lr=0.1)

    def step(x: Tensor, y: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        return loss.realize()

    arguments = [Tensor.rand(32, 8, device=device), Tensor.rand(32, 4, device=device)]
    return step, net, arguments


def data_of(path: Path) -> dict[str, Any]:
    """The data in a page."""
    found = re.search(r'id="data">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def inflated(text: str) -> str:
    return zlib.decompress(base64.b64decode(text)).decode()


def lines_of(data: dict[str, Any], kernel: dict[str, Any]) -> set[str]:
    """The source lines of this file that created a kernel."""
    numbers = {line for stack, _ in kernel["stacks"] for _, line, _ in data["stacks"][stack]}
    return {LINES[number - 1].strip() for number in numbers}


@pytest.mark.parametrize("captured", [True, False])
def test_a_kernel_comes_from_its_lines_and_modules(
    captured: bool, cpu: str, tmp_path: Path
) -> None:
    step, _, arguments = training(cpu)
    out = tmp_path / "page.html"
    assert explain(jit(step) if captured else step, *arguments, out=out, rounds=2) == out
    data = data_of(out)
    names = {row["name"] for row in data["modules"]}
    assert names == {"model", "first", "second"}
    assert 2 <= len(data["plain"]) <= 6
    kernels = data["kernels"]
    assert all(lines_of(data, kernel) for kernel in kernels)
    forward = [k for k in kernels if k["kind"] == "contraction" and k["phases"][0][0] == "forward"]
    assert [k["modules"][0][0] for k in forward] == ["first", "second"]
    assert "hidden = self.first(x).tanh()" in lines_of(data, forward[0])
    assert "return self.second(hidden)" in lines_of(data, forward[1])
    assert "loss = (net(x) - y).square().mean()" in lines_of(data, forward[1])
    back = [k for k in kernels if k["kind"] == "contraction" and k["phases"][0][0] == "backward"]
    assert {k["modules"][0][0] for k in back} == {"first", "second"}
    written = {name for k in kernels for name in k["writes"]}
    assert {"first.weight", "first.bias", "second.weight", "second.bias"} <= written
    for kernel in kernels:
        for name in kernel["writes"]:
            if name in ("first.weight", "second.bias"):
                assert "optimizer.step()" in lines_of(data, kernel)
                assert name.partition(".")[0] in dict(kernel["modules"])


def test_times_are_of_the_step_and_add_up(cpu: str, tmp_path: Path) -> None:
    step, _, arguments = training(cpu)
    explain(jit(step), *arguments, out=tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    ends = [0.0]
    for kernel in data["kernels"]:
        assert kernel["start"] >= ends[-1] and kernel["seconds"] > 0
        ends.append(kernel["start"] + kernel["seconds"])
    assert ends[-1] <= data["seconds"]
    for kernel in data["kernels"]:
        for shares in ("modules", "phases", "stacks"):
            assert sum(share for _, share in kernel[shares]) == pytest.approx(1, abs=1e-2)


def test_the_way_to_machine_code(cpu: str, tmp_path: Path) -> None:
    x, w = Tensor.rand(64, 64, device=cpu), Tensor.rand(64, 64, device=cpu)
    Tensor.realize(x, w)
    explain(lambda: (x @ w).relu().realize(), out=tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    (kernel,) = data["kernels"]
    code = data["codes"][kernel["code"]]
    steps = inflated(code["steps"])
    assert steps.startswith("naive loops") and "vectorize(" in steps and "parallelize" in steps
    assert inflated(code["nest"]).startswith("kernel ")
    assert "define" in inflated(code["ir"]) and "ret" in inflated(code["assembly"])
    assert "sum over k0<64" in kernel["plan"] and kernel["operations"] >= 2 * 64**3
    nodes = [node for node, *_ in json.loads(inflated(kernel["nodes"]))]
    assert any(text.startswith("SUM") for text in nodes)
    passes = [one["name"] for one in data["programs"][0]["passes"]]
    assert passes[0] == "canonicalize" and passes[-1] == "schedule" and "simplify" in passes


def test_why_kernels_are_apart(cpu: str, tmp_path: Path) -> None:
    x = Tensor.rand(256, 256, device=cpu).realize()
    explain(lambda: (x - x.mean()).exp().sum(0).realize(), out=tmp_path / "page.html")
    first, *others = data_of(tmp_path / "page.html")["kernels"]
    assert others and not any("does not join" in sentence for sentence in first["why"])
    assert any("does not join" in s or "begins a kernel" in s for k in others for s in k["why"])


def test_a_lazy_tensor_has_no_lines(cpu: str, tmp_path: Path) -> None:
    x = Tensor.rand(8, 8, device=cpu).realize()
    made = (x @ x).softmax(1)
    explain(made, out=tmp_path / "page.html")
    assert made.is_realized()
    data = data_of(tmp_path / "page.html")
    assert data["kernels"] and not data["files"] and data["what"] == "a tensor"


def test_what_a_step_gives_is_part_of_it(cpu: str, tmp_path: Path) -> None:
    net = Net().to(cpu)
    x = Tensor.rand(32, 8, device=cpu).realize()
    explain(net, x, out=tmp_path / "page.html", rounds=1)
    made = data_of(tmp_path / "page.html")["kernels"]
    explain(lambda: {"doubled": [x * 2, None]}, out=tmp_path / "page.html", rounds=1)
    assert made and data_of(tmp_path / "page.html")["kernels"]


def test_a_result_instead_of_a_step() -> None:
    with pytest.raises(TypeError, match=r"explain: expected a function .*, got float; write expl"):
        explain(0.25)


@pytest.mark.parametrize(
    "step", [lambda x: None, lambda x: x, lambda x: ((x * n).realize() for n in range(2)), "tensor"]
)
def test_a_step_that_computes_nothing(cpu: str, tmp_path: Path, step: Any) -> None:
    x = Tensor.rand(4, device=cpu).realize()
    page = tmp_path / "page.html"
    with pytest.raises(MinigradError, match="explain: the step ran no kernel; return tensors"):
        explain(x, out=page) if step == "tensor" else explain(step, x, out=page)
    assert not page.exists()


def test_a_loop_runs_a_program_many_times(cpu: str, tmp_path: Path) -> None:
    xs = Tensor.rand(5, 8, 8, device=cpu).realize()
    first = Tensor.rand(8, 8, device=cpu).realize()

    def step() -> Tensor:
        carry, _ = Tensor.scan(lambda one, x: (one @ x, one), first, xs)
        return carry.realize()

    step()
    explain(step, out=tmp_path / "page.html", rounds=1)
    data = data_of(tmp_path / "page.html")
    products = [kernel for kernel in data["kernels"] if kernel["kind"] == "contraction"]
    assert len(products) == 5 and len({kernel["code"] for kernel in products}) == 1
    assert all("lambda one, x" in str(lines_of(data, kernel)) for kernel in products)


def test_it_leaves_nothing_behind(cpu: str, tmp_path: Path) -> None:
    table, known = node._interned, programs
    step, net, arguments = training(cpu)
    explain(step, *arguments, out=tmp_path / "page.html", rounds=1)
    from minigrad import program

    assert node._interned is table and program.programs is known
    link = weakref.ref(net)
    del step, net
    gc.collect()
    assert link() is None


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_step_calls_captured_ones(calls: int, cpu: str, tmp_path: Path) -> None:
    """Their kernels are shown; afterwards they are unchanged, and no timed program is left."""
    x = Tensor.rand(8, 8, device=cpu).realize()

    @jit
    def inner(x: Tensor) -> Tensor:
        return (x @ x).realize()

    for _ in range(calls):
        inner(x)
    before = {id(one) for one in gc.get_objects() if isinstance(one, Timed)}
    explain(lambda: inner(x) + 1, out=tmp_path / "page.html", rounds=1)
    data = data_of(tmp_path / "page.html")
    product, _ = data["kernels"]
    assert "return (x @ x).realize()" in lines_of(data, product)
    assert all(np.array_equal(inner(x).numpy(), (x @ x).numpy()) for _ in range(3))
    gc.collect()
    left = [one for one in gc.get_objects() if isinstance(one, Timed) and id(one) not in before]
    assert inner.captured and not left


def test_followed_functions_have_their_variables() -> None:
    for code, name in FOLLOWED.items():
        assert name in code.co_varnames + code.co_cellvars, code.co_qualname


class Owner:
    """Holds a model; the object, its method and its captured method are steps."""

    def __init__(self) -> None:
        self.net = Net()

    def step(self, x: Tensor) -> Any:
        return self.net(x)

    __call__ = step
    captured = jit(step)


def test_models_are_found_wherever_a_step_has_them() -> None:
    owner, net = Owner(), Net()
    for step in (owner, owner.step, owner.captured, jit(owner.step)):
        assert modules.models_of(step) == {"owner": owner}
    assert modules.models_of(net) == modules.models_of(jit(net)) == {"net": net}

    def late(x: Tensor) -> Any:
        return unbound(x)

    assert modules.models_of(late) == {}
    unbound = Net()
    assert modules.models_of(late) == {"unbound": unbound}


def test_wrong_use(cpu: str, tmp_path: Path) -> None:
    x = Tensor.rand(4, device=REFERENCE)
    with pytest.raises(DeviceError, match=f"expected a step on a CPU device, got {REFERENCE}"):
        explain(lambda: x.exp().realize(), out=tmp_path / "page.html")
    calls: list[int] = []
    y = Tensor.rand(4, device=cpu).realize()

    def changing() -> None:
        calls.append(1)
        (y * len(calls)).realize()

    with pytest.raises(MinigradError, match="different programs in its second call"):
        explain(changing, out=tmp_path / "page.html")


def test_ranks(cpu: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"

    def program(rank: Rank) -> None:
        x = Tensor.rand(64, 64).realize()

        @jit
        def step(y: Tensor) -> Tensor:
            return all_reduce(y @ y, rank.world).exp().realize()

        explain(step, x, out=out if rank.is_first else None, rounds=1, ranks=rank.world)

    run(program, 2)
    data = data_of(out)
    kinds = [kernel["kind"] for kernel in data["kernels"]]
    assert kinds.index("exchange") < kinds.index("wait")
    sent = next(kernel for kernel in data["kernels"] if kernel["kind"] == "exchange")
    assert sent["bytes"] == 64 * 64 * 4
    assert any("all_reduce" in line for line in lines_of(data, sent))
    assert [rank["same"] for rank in data["ranks"]] == [True, True]
    for rank in data["ranks"]:
        assert len(rank["kernels"]) == len(kinds)
        assert all(seconds > 0 for _, seconds in rank["kernels"])
    own = [[round(k["start"], 7), round(k["seconds"], 7)] for k in data["kernels"]]
    assert data["ranks"][0]["kernels"] == own


def test_threads_that_record_end_in_any_order(cpu: str) -> None:
    """Each thread records its own nodes; when the last one ends, recording is switched off."""
    table, x = node._interned, Tensor.rand(4, device=cpu).realize()
    began, ended = Event(), Event()
    first, second = (Origins({}, frozenset()) for _ in range(2))

    def sine() -> Tensor:
        return x.sin()

    def exponential() -> Tensor:
        return x.exp()

    def other() -> None:
        with second.recording():
            began.set()
            ended.wait()
            exponential()

    thread = Thread(target=other)
    with first.recording():
        thread.start()
        began.wait()
        sine()
    ended.set()
    thread.join()
    seen = [
        {LINES[line - 1].strip() for one in origins.known.values() for _, line, _ in one.stack}
        for origins in (first, second)
    ]
    assert seen == [{"return x.sin()"}, {"return x.exp()"}]
    assert node._interned is table


def test_a_mesh(cpu: str, tmp_path: Path) -> None:
    mesh = Mesh(dp=2)
    step, net, (x, y) = training(mesh.name)
    x, y = x.shard(mesh, P("dp")), y.shard(mesh, P("dp"))
    explain(jit(step), x, y, out=tmp_path / "page.html", model=net, rounds=1, values=True)
    data = data_of(tmp_path / "page.html")
    kernels = data["kernels"]
    kinds = [kernel["kind"] for kernel in kernels]
    assert kinds.count("exchange") == kinds.count("wait") > 0
    assert [rank["same"] for rank in data["ranks"]] == [True, True]
    assert "partition" in [one["name"] for one in data["programs"][0]["passes"]]
    assert {"first", "second"} <= {name for k in kernels for name, _ in k["modules"]}
    assert all(lines_of(data, kernel) for kernel in kernels)
    assert {"first.weight", "second.bias"} <= {name for k in kernels for name in k["writes"]}
    shapes = [value["shape"] for kernel in kernels for value in kernel["values"]]
    assert [16, 16] in shapes and [32, 16] not in shapes  # (rows, hidden): half the rows on each


def test_limits_are_of_a_devices_threads(
    cpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device's kernels are compared with the limits for its own number of threads."""

    def known(count: int = 0) -> Limits:
        return Limits(1.0, 1000.0 ** count, ((1, 1e30),), ((1, 1e30),))

    monkeypatch.setattr(page_module, "limits", known)
    found = []
    for count in (1, 2):
        with Context(THREADS=count):  # a device gets its threads at its first use
            x = Tensor.rand(64, 64, device=f"{CPU}:{6 + count}").realize()
            explain((x @ x).exp(), out=tmp_path / "page.html", rounds=1)
        (kernel,) = data_of(tmp_path / "page.html")["kernels"]
        found.append(kernel["limit"] * kernel["seconds"])
    assert found[0] == pytest.approx(1000 * found[1])


# ---- values ----


def test_values_are_what_kernels_wrote(cpu: str, tmp_path: Path) -> None:
    x = Tensor.arange(1000, device=cpu).float().reshape(50, 20).realize()
    explain(lambda: (x - 100).relu().sum(1).realize(), out=tmp_path / "page.html", values=True)
    data = data_of(tmp_path / "page.html")
    (row,) = data["kernels"][-1]["values"]
    expected = np.maximum(np.arange(1000.0) - 100, 0).reshape(50, 20).sum(1)
    assert row["name"] == "result 0" and row["shape"] == [50] and row["dtype"] == "float32"
    assert (row["low"], row["high"]) == (expected.min(), expected.max())
    assert row["mean"] == pytest.approx(expected.mean()) and row["zeros"] == 5
    assert row["spread"] == pytest.approx(expected.std()) and row["nan"] == row["inf"] == 0
    assert row["first"][:6] == ["0", "0", "0", "0", "0", "190"] and max(row["bars"]) == 100
    assert data["looked"] and data["firsts"] == []
    explain(lambda: x.sum().realize(), out=tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    assert not data["looked"] and "values" not in data["kernels"][0]


def test_numbers_whose_squares_are_infinite(cpu: str, tmp_path: Path) -> None:
    x = Tensor([1e300, -1.5e308, 1.5e308, 0.0], dtype="float64", device=cpu).realize()
    explain(lambda: (x * 1.0625).realize(), out=tmp_path / "page.html", values=True)
    (row,) = data_of(tmp_path / "page.html")["kernels"][-1]["values"]
    assert row["high"] == -row["low"] == pytest.approx(1.59375e308)
    assert (row["zeros"], row["inf"]) == (1, 0)
    assert row["mean"] == pytest.approx(1.0625e300 / 4, rel=1e-6)
    assert row["spread"] == pytest.approx(1.59375e308 / 2**0.5)
    assert row["bars"][0] == row["bars"][-1] == 50 and sum(row["bars"]) == 200


def test_where_what_is_not_finite_began(cpu: str, tmp_path: Path) -> None:
    x = Tensor.linspace(0, 1, 64, device=cpu).reshape(8, 8).realize()

    def step() -> Tensor:
        hidden = (x @ x).exp()
        roots = (hidden - 5.0).sqrt()  # of negative numbers: NaN
        return (roots @ x).mean().realize()

    explain(step, out=tmp_path / "page.html", values=True)
    data = data_of(tmp_path / "page.html")
    (first,) = data["firsts"]
    assert first["fault"] == "NaN" and first["how"] == "made" and first["node"].startswith("SQRT")
    lines = (LINES[line - 1].strip() for s in first["stacks"] for _, line, _ in data["stacks"][s])
    assert next(lines).startswith("roots =")
    written = [value["nan"] > 0 for k in data["kernels"] for value in k["values"]]
    assert written.index(True) == [n for n, k in enumerate(data["kernels"])
                                   if k["values"]].index(first["kernel"])  # fmt: skip

    tall = Tensor.full((8, 8), 90.0, device=cpu).realize()
    explain(lambda: (tall.exp() * 1e4).sum(0).realize(), out=tmp_path / "page.html", values=True)
    (first,) = data_of(tmp_path / "page.html")["firsts"]
    assert first["fault"] == "infinite" and first["node"].startswith(("EXP", "MUL", "SUM"))


def test_what_was_not_finite_before(cpu: str, tmp_path: Path) -> None:
    x = Tensor([1.0, float("nan"), 2.0], device=cpu).realize()
    explain(lambda y: (y * 2).realize(), x, out=tmp_path / "page.html", values=True)
    (first,) = data_of(tmp_path / "page.html")["firsts"]
    assert (first["fault"], first["kernel"], first["how"]) == ("NaN", -1, "given")
    assert first["what"] == "argument 0"


def test_an_update_that_makes_a_parameter_infinite(cpu: str, tmp_path: Path) -> None:
    w = Tensor.ones(64, device=cpu).realize()

    def step() -> None:
        w.assign(Tensor.full((64,), 1.0, device=cpu)).realize()
        w.assign((w - 1).log()).realize()

    explain(step, out=tmp_path / "page.html", rounds=1, values=True)
    data = data_of(tmp_path / "page.html")
    (first,) = data["firsts"]
    assert (first["fault"], first["kernel"], first["node"]) == ("infinite", 1, "")
    lines = [LINES[line - 1] for s in first["stacks"] for _, line, _ in data["stacks"][s]]
    assert any("log()" in line for line in lines)


def test_values_of_a_lazy_tensor(cpu: str, tmp_path: Path) -> None:
    x = Tensor([4.0, 9.0], device=cpu).realize()
    explain(x.sqrt(), out=tmp_path / "page.html", values=True)
    (kernel,) = data_of(tmp_path / "page.html")["kernels"]
    assert kernel["values"][0]["first"] == ["2", "3"]


def test_a_nan_that_another_rank_has_sent(cpu: str, tmp_path: Path) -> None:
    out = tmp_path / "page.html"

    def program(rank: Rank) -> None:
        value = float("nan") if rank.number else 1.0
        x = Tensor.full((4, 4), value).contiguous().realize()
        explain(
            lambda y: all_reduce(y * 2, rank.world).exp().realize(), x, rounds=1, values=True,
            out=out if rank.is_first else None, ranks=rank.world,
        )  # fmt: skip

    run(program, 2)
    (first,) = data_of(out)["firsts"]
    assert first["fault"] == "NaN" and first["how"] == "received"


# ---- scripts ----


def test_scripts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--layers", "1", "--heads", "2", "--dim", "32", "--context", "16", "--batch", "2"]
    out = tmp_path / "step.html"
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question " * 50)
    small += ["--text", str(text)]
    for main, flags in (
        (gpt_commands.main, small), (moe_commands.main, [*small, "--experts", "2"]),
    ):  # fmt: skip
        out.unlink(missing_ok=True)
        main([*flags, "--explain", str(out)])
        assert "explains a step" in capsys.readouterr().out
        modules = {row["name"] for row in data_of(out)["modules"]}
        assert {"model", "wte", "h.0.attn.c_attn", "ln_f"} <= modules
    with pytest.raises(InputError, match="there is no folder"):
        gpt_commands.main([*small, "--explain", str(tmp_path / "none" / "step.html")])


# ---- the page ----


@pytest.fixture(scope="module", params=["one device", "two ranks"])
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("explain") / "page.html"
    if request.param == "one device":
        step, _, arguments = training(CPU)
        explain(jit(step), *arguments, out=out, rounds=1, values=True)
        return out

    def program(rank: Rank) -> None:
        net = Net()
        x, weights = Tensor.rand(16, 8).realize(), nn.state.get_parameters(net)

        @jit
        def step() -> Tensor:
            loss = net(x).square().mean()
            gradients = loss.gradient(*weights)
            summed = [all_reduce(gradient, rank.world, "mean") for gradient in gradients]
            Tensor.realize(loss, *summed)
            return loss

        path = out if rank.is_first else None
        explain(step, out=path, model=net, rounds=1, values=True, ranks=rank.world)

    run(program, 2)
    return out


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with site.browser() as found:
        yield found


LIT = """return [...new Set([...document.querySelectorAll("svg rect[data-kernel]:not(.dim)")]
    .map(e => Number(e.dataset.kernel)))].sort((a, b) => a - b)"""
FIRSTS = 'return document.getElementById("firsts").textContent'
ROWS = 'return [...document.querySelectorAll(".clock svg text")].map(e => e.textContent)'
SHOWN = 'return document.querySelector(".detail").dataset.shown'
FIRST_LINE = 'return document.querySelector(".line.lit [data-line]").dataset.line'
PANEL = 'return document.getElementById("panel").textContent'


@pytest.mark.skipif(ABSENT is not None, reason=f"no browser: {ABSENT}")
@pytest.mark.parametrize("width", site.WIDTHS)
def test_page(width: str, page: Path, driver: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    resize(driver, site.WIDTHS[width])
    scheme(driver, "dark" if width == "phone" else "light")
    assert visit(driver, page) == []
    assert too_wide(driver) == []
    kernels = data_of(page)["kernels"]

    def click(selector: str) -> None:
        driver.execute_script(  # a rectangle has no click()
            f"document.querySelector('{selector}').dispatchEvent(new Event('click'))"
        )

    click('[data-module="second"]')
    expected = [n for n, k in enumerate(kernels) if dict(k["modules"]).get("second", 0) >= 0.005]
    assert driver.execute_script(LIT) == expected and 0 < len(expected) < len(kernels)
    for number in range(len(kernels)):
        click(f'svg rect[data-kernel="{number}"]')
        assert driver.execute_script(LIT) == [number]
        line = driver.execute_script(FIRST_LINE)
        click(f'[data-line="{line}"]')
        assert number in driver.execute_script(LIT)
        click(f'svg rect[data-kernel="{number}"]')
    one = next(n for n, kernel in enumerate(kernels) if kernel["values"] and kernel["code"] >= 0)
    click(f'svg rect[data-kernel="{one}"]')
    rows, several = " ".join(driver.execute_script(ROWS)), bool(data_of(page)["ranks"])
    assert ("rank 0" in rows and "rank 1" in rows and "exchanges" in rows) is several
    assert "are finite" in driver.execute_script(FIRSTS)
    click('[data-tab="values"]')
    shown = driver.execute_script(PANEL)
    for value in kernels[one]["values"]:
        assert value["name"] in shown and ", ".join(value["first"]) in shown
    assert too_wide(driver) == []
    for tab in ("nodes", "plan", "steps", "nest", "ir", "assembly"):
        click(f'[data-tab="{tab}"]')
        WebDriverWait(driver, 30).until(lambda one, tab=tab: one.execute_script(SHOWN) == tab)
        assert len(driver.execute_script(PANEL)) > 60
        assert too_wide(driver) == []
    assert said(driver) == []


@pytest.mark.skipif(ABSENT is not None, reason=f"no browser: {ABSENT}")
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_accessibility(colours: str, page: Path, driver: Any) -> None:
    script = axe()
    if script is None:
        pytest.skip("axe-playwright-python is not installed")
    resize(driver, site.WIDTHS["desktop"])
    scheme(driver, colours)
    visit(driver, page)
    assert faults(driver, script) == []
