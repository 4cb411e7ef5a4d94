"""A sample of the operation table and of random programs, with each kind of recipes.

OpenCL on a CPU takes a tenth of a second to build a kernel, so only a sample is checked, a new one
in each run; the docstring of tests/conftest.py has the command that checks everything.
"""

from __future__ import annotations

import random

import pytest
from property.general import failure
from property.graph_steps import make_graph
from property.graphs import report
from property.operation import disagreement, evaluate, make_case
from property.operations import OPERATIONS

SEED = random.SystemRandom().randrange(2**31)
SHARE = 12  # one of this many operations
GRAPHS = 2


def chosen():
    generator = random.Random(SEED)
    return sorted(generator.sample([o.name for o in OPERATIONS], len(OPERATIONS) // SHARE))


@pytest.mark.parametrize("number", range(len(chosen())))
def test_operations(device, reference, number):
    name = chosen()[number]
    operation = next(o for o in OPERATIONS if o.name == name)
    dtype = operation.dtypes[0]
    plans = random.Random(SEED).sample(operation.plans.edges, min(6, len(operation.plans.edges)))
    cases = [make_case(operation, plan, dtype, seed) for seed, plan in enumerate(plans)]
    results = evaluate(operation, cases, device), evaluate(operation, cases, reference)
    for case, got, wanted in zip(cases, *results, strict=True):
        problem = disagreement(operation, case, got, wanted)
        assert not problem, f"{name}, sample {SEED}: {problem}"


@pytest.mark.parametrize("number", range(GRAPHS))
def test_random_programs(device, number):
    found = report(make_graph(SEED + number), device, f"seed {SEED + number}")
    assert found is None, found


def test_random_programs_whose_sizes_vary(device):
    found = failure(SEED | 1, device)
    assert found is None, found
