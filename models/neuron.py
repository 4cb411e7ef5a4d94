"""One neuron: signals, weights, their sum, a threshold, an activation."""

from __future__ import annotations

from minigrad import Tensor

SIGNALS, WEIGHTS, THRESHOLD = (0.9, 0.1, 0.8), (1.5, -2.0, 0.5), 1.0
ACTIVATIONS = {"sigmoid": Tensor.sigmoid, "relu": Tensor.relu, "gelu": Tensor.gelu}


def show() -> None:
    """Print a neuron's computation for three signals, and its answers to weaker and stronger ones.
    """
    signals, weights = Tensor(SIGNALS), Tensor(WEIGHTS)
    products = signals * weights
    total = products.sum() - THRESHOLD
    print("a neuron weights its signals, adds them up, and compares the sum with a threshold\n")
    for signal, weight, product in zip(SIGNALS, WEIGHTS, products.tolist(), strict=True):
        print(f"  signal {signal:4.1f} · weight {weight:4.1f} = {product:6.3f}")
    print(f"  sum {products.sum().item():.3f} − threshold {THRESHOLD} = {total.item():.3f}: "
          f"{'active' if total.item() > 0 else 'silent'}")  # fmt: skip
    print("\nits answer when all signals are this many times as strong")
    factors = Tensor([0.0, 0.5, 0.75, 1.0, 1.5, 2.0])
    sums = factors * products.sum() - THRESHOLD
    header = "".join(f"{factor:9.2f}" for factor in factors.tolist())
    print(f"  {'times':<9}{header}")
    rows = {"sum": sums, **{name: bend(sums) for name, bend in ACTIVATIONS.items()}}
    for name, values in rows.items():
        print(f"  {name:<9}" + "".join(f"{value:9.3f}" for value in values.tolist()))
    print("\ntraining finds its weights and its threshold (as a bias, −threshold)")
