"""`nn.Module`: registration, modes, names, reprs, captured steps."""

from __future__ import annotations

import copy
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from minigrad import Tensor, dtypes, jit, nn
from minigrad.errors import GradientError, JitError, ShapeError, StateError


class Block(nn.Module):
    def __init__(self):
        self.norm, self.linear, self.drop = nn.LayerNorm(4), nn.Linear(4, 4), nn.Dropout(0.5)

    def forward(self, x):
        return x + self.drop(self.linear(self.norm(x)))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), Tensor.tanh)
        self.scale = nn.Parameter(Tensor.ones(1))
        self.register_buffer("steps", Tensor.zeros(1))
        self.register_buffer("cache", Tensor.zeros(2), persistent=False)
        self.mask = nn.buffer(Tensor.ones(3, 3).tril())
        self.register_parameter("bias", None)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


class Plain:
    def __init__(self):
        self.drop = nn.Dropout(0.5)

    def __call__(self, x):
        return self.drop(x)


class Agent(nn.Module):
    def __init__(self):
        self.body = nn.Linear(2, 1)
        self.state, self.saved = (Tensor.zeros(1, 2), Tensor.zeros(1, 2)), {"log_probs": []}
        self.optimizer = nn.optim.Adam(self.parameters(), lr=0.1)
        self.schedules = [nn.optim.lr_scheduler.StepLR(self.optimizer, 3)]


def drops(model, shape=(8, 4)):
    x = Tensor.ones(*shape)
    return (model(x).numpy() != model(x).numpy()).any()


def test_what_trains_a_module_is_no_part_of_it(on_device):
    """An optimizer in a module is not in its state or buffers; in a plain container it still is."""
    agent = Agent()
    assert [*agent.state_dict()] == ["body.weight", "body.bias"] and not [*agent.buffers()]
    agent.load_state_dict(nn.Linear(2, 1).state_dict(prefix="body."))
    agent.to(dtype="float16")
    assert agent.optimizer.lr.dtype is dtypes.float32
    saved = nn.state.get_state_dict({"agent": agent, "optimizer": agent.optimizer})
    assert "optimizer.moments.exp_avg.0" in saved and "agent.optimizer.t" not in saved


def test_tensors_in_lists_of_a_module_are_as_its_attributes(on_device):
    """States and an episode's tensors are not parameters; marked ones still are."""
    agent = Agent()
    assert len([*agent.parameters()]) == 2
    agent.rows = [Tensor.rand(2)]
    with pytest.warns(UserWarning, match=r"rows\.0 is a plain Tensor and is neither"):
        assert len([*agent.parameters()]) == 2
    del agent.rows
    agent.state = nn.LSTM(2, 2)(Tensor.ones(1, 2))[1]
    agent.saved["log_probs"].append(agent.body(Tensor.ones(1, 2)).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.optim.Adam(agent.parameters())
        assert len(nn.state.get_parameters(agent)) == 2 and len(agent.state_dict()) == 2
    agent.rows = [nn.Parameter(Tensor.ones(2)), {"mask": nn.buffer(Tensor.ones(2))}]
    assert [*agent.state_dict()][2:] == ["rows.0", "rows.1.mask"]


def test_names_and_kinds(on_device):
    net = Net()
    block = ["norm.weight", "norm.bias", "linear.weight", "linear.bias"]
    inner = [f"blocks.{n}.{name}" for n in "01" for name in block]
    inner += ["head.0.weight", "head.0.bias"]
    assert list(net.state_dict()) == ["scale", "steps", "mask", *inner]
    assert list(nn.state.get_state_dict(net)) == list(net.state_dict())
    assert next(iter(net.state_dict("net."))) == "net.scale"
    assert [name for name, _ in net.named_parameters()] == ["scale", *inner]
    assert [name for name, _ in net.named_modules("net")][:1] == ["net"]
    assert [name for name, _ in net.named_parameters(recurse=False)] == ["scale"]
    assert [name for name, _ in net.named_buffers()] == ["steps", "mask", "cache"]
    assert next(net.parameters()) is net.scale
    assert all(a is b for a, b in zip(net.parameters(), nn.state.get_parameters(net), strict=True))
    assert [name for name, _ in net.named_children()] == ["blocks", "head"]
    assert [type(m).__name__ for m in net.modules()].count("Linear") == 3
    assert all(tensor.requires_grad is False for tensor in net.buffers())
    seen = []
    assert net.apply(lambda module: seen.append(type(module).__name__)) is net
    assert seen[:4] == ["LayerNorm", "Linear", "Dropout", "Block"] and seen[-1] == "Net"


def test_kinds_stay_when_values_are_replaced(on_device):
    net = Net()
    net.requires_grad_(False)
    assert len(list(net.parameters())) == 11 and not nn.state.get_parameters(net)
    assert [name for name, _ in net.named_buffers()] == ["steps", "mask", "cache"]
    net.requires_grad_(True)
    net.steps, net.scale = net.steps + 1, nn.Parameter(Tensor([3.0]))
    assert "scale" in dict(net.named_parameters()) and "steps" in dict(net.named_buffers())
    for plain in (Tensor([4.0]), net.scale * 2, net.scale.detach()):  # it would not be trained
        with pytest.raises(TypeError, match=r"Net\.scale = …: expected nn\.Parameter\(tensor\)"):
            net.scale = plain
    assert net.scale.item() == 3
    tied = Net()
    tied.head[0].weight = tied.other = nn.Parameter(Tensor.ones(3, 4))
    assert "other" in tied.state_dict() and "head.0.weight" in tied.state_dict()
    assert len(list(tied.parameters())) == 11
    with pytest.raises(GradientError, match="float"):
        nn.Parameter(Tensor([1, 2]))


def test_plain_tensors_are_told_apart(on_device):
    net = Net()
    net.weight, net.lazy, net.number = Tensor.rand(2), Tensor.ones(2, 2).tril(), Tensor([1])
    with pytest.warns(UserWarning, match=r"weight is a plain Tensor .* nn\.Param") as seen:
        found = list(net.parameters())
        net.zero_grad()
        dict(net.named_parameters())
    assert [one.filename for one in seen] == [__file__] * 3
    assert len(found) == 11 and "weight" not in net.state_dict()
    model = Plain()
    model.linear, model.table = nn.Linear(2, 2), Tensor.ones(2, 2).tril()
    with pytest.warns(UserWarning, match=r"table is a plain Tensor and will be trained") as seen:
        assert len(nn.state.get_parameters(model)) == 3
    assert seen[0].filename == __file__
    model.table = nn.buffer(model.table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(nn.state.get_parameters(model)) == 2
        assert len(nn.state.get_parameters([Tensor.ones(2), {"a": Tensor.rand(2)}])) == 2
    assert "table" in nn.state.get_state_dict(model)


def test_modes(on_device):
    print("seed 3")
    Tensor.manual_seed(3)
    net = Net()
    assert net.training and net.blocks[0].drop.training and net.blocks.training and drops(net)
    assert not Tensor.training
    net.eval()
    assert not net.training and not net.head[1].training and not drops(net)
    with Tensor.train():
        assert not drops(net)  # the module's own mode has priority
    net.blocks[1].train()
    assert drops(net) and not net.blocks[0].training
    net.blocks[1].drop.eval()
    assert not drops(net)
    net.train().blocks.append(Block())
    assert net.blocks[2].drop.training and len(net.blocks) == 3
    model = Plain()
    assert not drops(model) and not model.drop.training
    with Tensor.train():
        assert drops(model) and model.drop.training
    model.drop.train()
    assert drops(model)
    layers = nn.Sequential(nn.Dropout(0.5))
    assert not drops(layers) and drops(layers.train()) and not drops(layers.eval())


class Outer(nn.Module):
    def __init__(self):
        self.plain, self.items = Plain(), [nn.Dropout(0.5), Block()]

    def forward(self, x):
        self.seen = Tensor.training
        for item in self.items:
            x = item(x)
        return self.plain(x).dropout(0.5)


def test_plain_objects_in_a_module_follow_it(on_device):
    print("seed 4")
    Tensor.manual_seed(4)
    outer = Outer()
    assert drops(outer) and outer.seen and not Tensor.training
    outer.eval()
    assert not drops(outer) and not outer.seen and not outer.plain.drop.training
    assert len(list(outer.parameters())) == 4
    with pytest.raises(ShapeError):
        outer.train()(Tensor.ones(3, 5))
    assert not Tensor.training


def test_batch_norm_of_a_frozen_part(on_device):
    net = nn.Sequential(nn.BatchNorm(3), nn.BatchNorm(3)).train()
    net[0].eval()
    net(Tensor.rand(6, 3)).realize()
    assert net[0].num_batches_tracked.item() == 0 and net[1].num_batches_tracked.item() == 1


def test_forward_and_call_are_one(on_device):
    class Twice(nn.Module):
        def forward(self, x, times=2):
            """Twice x."""
            return x * times

    class Thrice(Twice):
        def __call__(self, x):
            return super().__call__(x, times=3)

    x = Tensor([1.0])
    assert Twice()(x).item() == Twice().forward(x).item() == 2
    assert Thrice()(x).item() == Thrice().forward(x).item() == 3
    assert Twice.__call__.__doc__ == "Twice x."
    assert nn.Linear(2, 2).forward(Tensor.ones(1, 2)).shape == (1, 2)
    with pytest.raises(NotImplementedError, match="define forward"):
        nn.Module()(x)


def test_another_forward(on_device):
    """One that is put into a module, or into its class, is what a call runs."""

    class Twice(nn.Module):
        def forward(self, x):
            return x * 2

    class More(Twice):
        def forward(self, x):
            return super().forward(x) + 1

    class Calls(Twice):
        def __call__(self, x):
            return super().__call__(x) + Tensor.training

        forward = Twice.forward

    x = Tensor([1.0])
    model = nn.Sequential(Twice(), nn.ReLU())
    model[1].forward = lambda x: x * 5
    assert model(x).item() == 10
    model[1].forward = SimpleNamespace(f=lambda x: x * 7).f
    assert model(x).item() == 14
    del model[1].forward
    assert model(x).item() == 2
    more, calls = More(), Calls()
    Twice.forward = lambda self, x: x * 3
    assert [m(x).item() for m in (model, more, calls)] == [3, 4, 3]


def test_what_is_deleted_is_forgotten(on_device):
    layer = nn.Linear(2, 2)
    del layer.bias
    layer.bias = Tensor([1.0, 2.0])  # neither a parameter nor a buffer
    assert [*layer.state_dict()] == ["weight"]


def test_saving_and_loading(on_device, tmp_path):
    first, second = Net().eval(), Net().eval()
    nn.state.safe_save(first.state_dict(), tmp_path / "net.safetensors")
    names = second.load_state_dict(nn.state.safe_load(tmp_path / "net.safetensors"))
    assert names == ([], [])
    x = Tensor.rand(2, 4)
    wanted = first(x).tolist()
    assert second(x).tolist() == wanted
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert other(x).tolist() == wanted and not other.training
        assert [n for n, _ in other.named_buffers()] == ["steps", "mask", "cache"]
    arrays = {name: tensor.numpy() for name, tensor in first.state_dict().items()}
    missing, unexpected = second.load_state_dict(
        {**arrays, "more": np.zeros(1), "scale": arrays["scale"] * 2}, strict=False
    )
    assert (missing, unexpected) == ([], ["more"]) and second.scale.item() == 2
    del arrays["scale"]
    with pytest.raises(KeyError, match=r"missing \['scale'\]"):
        second.load_state_dict(arrays)


def test_layers_with_functions_can_be_copied(on_device):
    """Whatever the name of the function is, and where it was taken from."""
    for owner in (Tensor, nn.functional):
        for name in dir(owner):
            function = getattr(owner, name)
            if callable(function) and not name.startswith("_"):
                assert pickle.loads(pickle.dumps(function)) == function, name
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=nn.functional.relu).eval()
    x = Tensor.rand(1, 3, 4)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        # a general program, made for earlier tests, may serve one of the two calls
        np.testing.assert_allclose(other.eval()(x).numpy(), layer(x).numpy(), rtol=1e-5, atol=1e-6)


def test_gradients_are_forgotten(on_device):
    net = Net()
    net(Tensor.ones(2, 4)).sum().backward()
    net.zero_grad(set_to_none=False)
    assert net.scale.grad.item() == 0
    net.zero_grad()
    assert all(tensor.grad is None for tensor in net.parameters())


def test_to_another_dtype_and_device(on_device, reference):
    net = Net().eval()
    x, scale = Tensor.rand(2, 4), net.scale
    wanted = net(x).numpy()
    assert net.to(dtypes.float64).scale is scale and scale.dtype is dtypes.float64
    np.testing.assert_allclose(net(x.double()).numpy(), wanted, rtol=1e-5)
    net.to("float32").to(reference)
    assert {tensor.device for tensor in (*net.parameters(), *net.buffers())} == {reference}
    np.testing.assert_allclose(net(x.to(reference)).numpy(), wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="float dtype"):
        net.to(dtype="int32")


def test_containers(on_device):
    items = nn.ModuleList([nn.Linear(2, 2)])
    items.extend([nn.ReLU()])
    items.insert(1, nn.Linear(2, 3))
    assert list(nn.state.get_state_dict(items)) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert isinstance(items[:2], nn.ModuleList) and len(items[:2]) == 2 and items[-1] is items[2]
    items[2] = nn.Tanh()
    del items[0]
    assert [type(item).__name__ for item in items] == ["Linear", "Tanh"]
    named = nn.ModuleDict({"a": nn.Linear(2, 2), "b": Block()})
    assert named["a"] is named.a and list(named) == ["a", "b"] and "b" in named and len(named) == 2
    assert named != nn.ModuleDict(named) and len({named}) == 1
    assert list(named.state_dict())[:2] == ["a.weight", "a.bias"]
    with pytest.raises(AttributeError, match="has no 'c'"):
        named.c  # noqa: B018
    layers = nn.Sequential({"first": nn.Linear(2, 3), "second": nn.ReLU()})
    assert list(layers.state_dict()) == ["first.weight", "first.bias"]
    assert layers(Tensor.ones(1, 2)).shape == (1, 3)
    weights = nn.ParameterList([Tensor.ones(2), [1.0, 2.0]])
    assert list(weights.state_dict()) == ["0", "1"] and len(list(weights.parameters())) == 2
    weights[1:] = [[3.0], Tensor.ones(1)]
    weights[0] = [5.0, 6.0]
    assert [w.tolist() for w in weights.parameters()] == [[5, 6], [3], [1]]
    layers[:1] = [nn.Linear(2, 4), nn.Linear(4, 3)]
    assert list(layers.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]
    del named["a"]
    assert list(named) == ["b"] and not any(name.startswith("a.") for name in named.state_dict())


def test_a_list_of_parameters_is_frozen_and_trained_again():
    net = nn.Module()
    net.weights = nn.ParameterList([Tensor.ones(2), Tensor.zeros(2)])
    net.requires_grad_(False)
    assert [name for name, _ in net.named_parameters()] == ["weights.0", "weights.1"]
    assert not list(net.buffers()) and list(net.state_dict()) == ["weights.0", "weights.1"]
    assert all(weight.requires_grad for weight in net.requires_grad_(True).parameters())


def test_any_name_of_an_attribute_counts():
    """Also names that this package's containers use internally."""
    net = nn.Module()
    net._items, net.layers, net.names = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1)
    assert len(list(net.parameters())) == 6


def test_layers_of_a_sequential_have_names(on_device):
    """As in PyTorch: set by add_module, assignment or a dict; kept by copies and slices."""
    net = nn.Sequential(nn.Linear(2, 3))
    net.add_module("act", nn.ReLU())
    net.last = nn.Linear(3, 1)
    assert list(net.state_dict()) == ["0.weight", "0.bias", "last.weight", "last.bias"]
    assert net.last is net[2] and net.act is net[1] and net(Tensor.ones(4, 2)).shape == (4, 1)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net[:]):
        assert list(other.state_dict()) == list(net.state_dict())
    net.last = nn.Linear(3, 5)  # replaces the layer
    assert len(net) == 3 and net(Tensor.ones(4, 2)).shape == (4, 5)
    del net[0]
    net.insert(1, nn.Linear(2, 3))
    assert [name for name, _ in net.named_children()] == ["act", "1", "last"]
    for name, said in (("lost", "you mean last"), ("double", "model.to"), ("nothing", "has no")):
        with pytest.raises(AttributeError, match=said):
            getattr(net, name)
    items, named = nn.ModuleList([]), nn.ModuleDict({})
    items.add_module("0", nn.Linear(1, 1))
    named.add_module("a", nn.Linear(1, 1))
    assert len(items) == 1 and list(items.state_dict()) == ["0.weight", "0.bias"]
    assert list(named.state_dict()) == ["a.weight", "a.bias"]


def test_a_sequential_with_more_than_layers(on_device):
    class Scaled(nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            self.scale = nn.Parameter(Tensor.full((1,), 2.0))

        def forward(self, x):
            return super().forward(x) * self.scale

    net = Scaled(nn.Linear(2, 3))
    assert list(net.state_dict()) == ["scale", "0.weight", "0.bias"] and len(net) == 1
    net[0].weight = nn.Parameter(Tensor.ones(3, 2))
    net[0].bias = nn.Parameter(Tensor.zeros(3))
    assert net(Tensor.ones(1, 2)).tolist() == [[4.0, 4.0, 4.0]]


def test_names_that_pytorch_has_for_parts():
    net = nn.Module()
    net.register_module("one", nn.Linear(1, 2))
    net.frozen = nn.Parameter([1.0], requires_grad=False)
    assert list(net.state_dict()) == ["frozen", "one.weight", "one.bias"]
    assert len(list(net.parameters())) == 2 and repr(nn.Module()) == "Module()"


def test_dropout_between_the_layers_of_an_lstm(on_device):
    net, x = nn.LSTM(3, 8, 2, dropout=0.5).train(), Tensor.ones(4, 2, 3)
    assert (net(x)[0].numpy() != net(x)[0].numpy()).any()
    net.eval()
    assert (net(x)[0].numpy() == net(x)[0].numpy()).all()


def test_a_class_is_no_layer():
    with pytest.raises(TypeError, match=r"got the class ReLU; write ReLU\(…\)"):
        nn.Sequential(nn.Linear(2, 3), nn.ReLU)  # type: ignore[arg-type]
    net = nn.Sequential(nn.ReLU())
    for wrong in (
        lambda: net.__setitem__(0, nn.ReLU),
        lambda: net.__setitem__(slice(1), [nn.ReLU]),
        lambda: net.add_module("act", nn.ReLU),
    ):
        with pytest.raises(TypeError, match="got the class ReLU"):
            wrong()


def test_training_in_a_mode_that_nobody_chose(on_device):
    """Inactive dropout in a training loop like PyTorch's warns when the optimizer steps."""
    x = Tensor.ones(4, 3)

    def step(net):
        optimizer = nn.optim.SGD(net.parameters(), lr=0.1)
        net(x).sum().backward()
        optimizer.step()

    for layer in (nn.Dropout(0.5), nn.BatchNorm(3)):
        net = nn.Sequential(nn.Linear(3, 3), layer)
        said = rf"{type(layer).__name__} was in evaluation mode .* model\.train\(\)"
        with pytest.warns(UserWarning, match=said) as seen:
            step(net)
        assert seen[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Tensor.train():
                step(net)
            with Tensor.no_grad():
                net(x)
            step(nn.Linear(3, 3))
            step(net.train())
            step(net.eval())


def test_reprs():
    assert repr(nn.Linear(2, 32)) == "Linear(in_features=2, out_features=32, bias=True)"
    wanted = """Outer(
  (plain.drop): Dropout(p=0.5)
  (items.0): Dropout(p=0.5)
  (items.1): Block(
    (norm): LayerNorm((4,), eps=1e-05, elementwise_affine=True)
    (linear): Linear(in_features=4, out_features=4, bias=True)
    (drop): Dropout(p=0.5)
  )
)"""
    assert repr(Outer()) == wanted
    assert repr(nn.Sequential(nn.ReLU(), Tensor.tanh)) == (
        "Sequential(\n  (0): ReLU()\n  (1): tanh\n)"
    )


@pytest.mark.parametrize("mode", ["dropout", "batch norm"])
def test_a_captured_step(on_device, mode):
    print("seed 5")
    Tensor.manual_seed(5)
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5) if mode == "dropout" else nn.BatchNorm(3))
    net.train()
    optimizer = nn.optim.SGD(net.parameters(), lr=0.01)

    @jit
    def train(x):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss.realize()

    @jit
    def evaluate(x):
        return net(x).realize()

    x, other = Tensor.rand(4, 3), nn.Dropout(0.5)
    for _ in range(4):
        before = net[0].weight.numpy()
        net.train()
        train(x).item()
        assert (net[0].weight.numpy() != before).any()
        net.eval()
        other.eval()  # not called, so it does not matter
        np.testing.assert_allclose(evaluate(x).numpy(), net(x).numpy(), rtol=1e-5, atol=1e-6)
    assert train.captured and evaluate.captured
    with pytest.raises(JitError, match="whose training was True in the capture and is False"):
        train(x)
    net.train()
    with pytest.raises(JitError, match="whose training was False"):
        evaluate(x)
    net[1].eval()
    with pytest.raises(JitError, match=r"a (BatchNorm|Dropout)"):
        train(x)
    train.reset()
    for _ in range(3):
        train(x)
    assert train.captured
    net.to("float64")
    with pytest.raises(JitError, match="whose moves"):
        train(x)


def test_a_step_may_set_the_mode_itself(on_device):
    net = nn.Sequential(nn.Dropout(0.5))

    @jit
    def evaluate(x):
        net.eval()
        return net(x) * 1

    for _ in range(4):
        net.train()
        assert evaluate(Tensor.ones(2)).tolist() == [1, 1]


def test_a_captured_module(on_device):
    class Scaled(nn.Module):
        def __init__(self):
            self.scale = 2.0

        def forward(self, x):
            return x * self.scale

    model = Scaled()
    step = jit(model)
    for _ in range(3):
        assert step(Tensor([1.0])).item() == 2
    model.scale = 3.0
    with pytest.raises(JitError, match=r"calls a Scaled whose scale was 2\.0"):
        step(Tensor([1.0]))


@pytest.mark.parametrize("name", ["", "a.b", 5, None])
@pytest.mark.parametrize("method", ["register_buffer", "register_parameter", "add_module"])
def test_a_name_of_which_none_can_be_made(method, name):
    """A dot in a name, or an empty name, gave state dicts with wrong names."""
    part = nn.ReLU() if method == "add_module" else Tensor.ones(2)
    error = StateError if isinstance(name, str) else TypeError
    for module in (nn.Module(), nn.Sequential(nn.ReLU())):
        before = list(vars(module))
        with pytest.raises(error, match=rf"{method}\(.*\): expected a (non-empty|string)"):
            getattr(module, method)(name, part)
        assert list(vars(module)) == before


def test_state_dicts_share_memory():
    """As in PyTorch: values show training steps, and can be written and averaged as they are."""
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    state, best = model.state_dict(), {n: t.clone() for n, t in model.state_dict().items()}
    before = model.weight.tolist()
    assert not state["weight"].requires_grad and model.weight.requires_grad
    with Tensor.no_grad():
        model.weight += 1
    assert state["weight"].tolist() == model.weight.tolist() != before
    assert best["weight"].tolist() == before
    state["bias"].fill_(3)
    assert model.bias.tolist() == [3]
    mean = copy.deepcopy(model.state_dict())
    for name in mean:  # federated averaging
        mean[name] += other.state_dict()[name]
        mean[name] = mean[name].div(2)
    assert model.bias.tolist() == [3]
    assert mean["bias"].item() == pytest.approx((3 + other.bias.item()) / 2)
    model.load_state_dict(mean)
    assert model.bias.item() == mean["bias"].item() and model.weight.requires_grad


def test_hooks(on_device):
    """They see inputs and outputs and replace them, in order, until they are removed."""
    model, seen = nn.Sequential(nn.Linear(2, 3), nn.ReLU()).eval(), {}
    x = Tensor([[1.0, 2.0]])
    plain = model(x).tolist()

    def keep(module, inputs, output):
        seen["layer"] = module, inputs, output

    first = model[0].register_forward_hook(keep)
    assert model(x).tolist() == plain
    module, inputs, output = seen["layer"]
    assert module is model[0] and inputs[0] is x and output.relu().tolist() == plain
    (gradient,) = model(x).sum().gradient(seen["layer"][2])
    assert gradient.tolist() == [[float(value > 0) for value in plain[0]]]
    doubled = model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    model[1].register_forward_pre_hook(lambda module, inputs: -inputs[0].abs())
    after = model[1].register_forward_hook(lambda module, inputs, output: (output, inputs))
    output, inputs = model(x)
    assert output.tolist() == [[0, 0, 0]]
    np.testing.assert_allclose(inputs[0].numpy(), -2 * abs(seen["layer"][2].numpy()), rtol=1e-6)
    assert [*model.state_dict()] == ["0.weight", "0.bias"]
    for hook in (first, first, doubled, after):
        hook.remove()
    assert model(x).tolist() == [[0, 0, 0]] and not model[0]._hooks


def test_hooks_of_a_captured_module():
    """A replay updates what a hook has kept; a hook that was added or removed is noticed."""
    model, seen = nn.Linear(2, 2).eval(), {}
    hook = model.register_forward_hook(lambda module, inputs, output: seen.update(kept=output))
    step = jit(model)
    for number in range(4):
        assert step(Tensor([[1.0, number]])).tolist() == seen["kept"].tolist()
    hook.remove()
    with pytest.raises(JitError, match="hooks"):
        step(Tensor([[1.0, 2.0]]))


def test_what_a_hook_of_a_captured_module_reads(on_device):
    """A replay runs no hook, so a change of a value that one reads is noticed."""
    state, model = SimpleNamespace(scale=2.0), nn.ReLU()
    model.register_forward_hook(lambda module, inputs, output: output * state.scale)
    step = jit(lambda x: model(x))
    for _ in range(3):
        assert step(Tensor([1.0])).item() == 2
    state.scale = 3.0
    with pytest.raises(JitError, match=r"reads 'state\.scale', which was 2\.0"):
        step(Tensor([1.0]))



def test_what_a_module_keeps_is_no_state():
    """A hidden state, a list of features, a trainer with copies of weights: as in PyTorch."""

    class Trainer:
        def __init__(self, model):
            self.model, self.backup = model, {n: p.data for n, p in model.named_parameters()}
            self.best = {name: value.clone() for name, value in model.state_dict().items()}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.hidden, self.seen = None, []
            self.register_buffer("last", Tensor.zeros(1, 2))
            self.row = Tensor([1.0, 2.0]).reshape(1, 2).requires_grad_(False)

        def forward(self, x):
            y = self.layer(x)
            self.hidden, self.kept, self.last = y.detach(), y.data[0], y.detach() + 1
            self.seen.append(y.detach())
            return y

    model = Model()
    names = ["last", "row", "layer.weight", "layer.bias"]
    model(Tensor.ones(1, 2))
    model.trainer = Trainer(model)
    assert [*model.state_dict()] == names
    assert [name for name, _ in model.named_buffers()] == ["last", "row"]
    assert "trainer" not in " ".join(name for name, _ in model.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.optim.SGD(model.parameters(), lr=0.1)
    model.load_state_dict(model.state_dict())
