"""Networks kept in parts by two processes (FSDP2): the run of one process, with half of the weights in each."""

from __future__ import annotations

import json
from functools import partial

import pandas as pd
import process_runs
import pytest
import torch
import torch.distributed as dist
from process_runs import held, settings, train

from reelign import checkpoint

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="processes on a CPU need torch built with gloo"
    ),
    pytest.mark.timeout(900),
]
CLOSE = {"rtol": 0, "atol": 1e-6}


def adapted(folder, output, steps=4):
    """Gradient through two random steps of a chain in micro-batches, blocks computed again, a pass without adapter."""
    config = settings(folder, output, steps)
    config["generator"]["gradient_checkpointing"] = True
    config["reward_gradient"] |= {"steps": 3, "k": 2, "micro_batch": 1}
    return config


def all_trained(folder, output, steps=4):
    """Every weight is trained; the gradient is clipped."""
    config = adapted(folder, output, steps)
    config["generator"]["train_all"] = True
    config["reward_gradient"] |= {"kl_weight": 0.0, "micro_batch": 4, "max_grad_norm": 1e-3}
    config["rewards"] = [{"name": "brightness_range", "normalise": True}]
    return config


KINDS = {"adapted": adapted, "all_trained": all_trained}


@pytest.fixture(scope="module")
def runs(random_wan_folder, tmp_path_factory):
    """The same runs by one process and by two with parts, and one of each stopped half-way and resumed by the other."""
    root, model = tmp_path_factory.mktemp("parts"), random_wan_folder
    launch = partial(process_runs.launch, tmp_path_factory.mktemp("found"))

    def whole(count):
        return {name: (train, {"config": kind(model, root / f"{name}{count}")}) for name, kind in KINDS.items()}

    def half(count):
        return {f"half_{n}": (train, {"config": k(model, root / f"half_{n}{count}", 2)}) for n, k in KINDS.items()}

    def rest(count):
        configs = {n: kind(model, root / f"half_{n}{count}") for n, kind in KINDS.items()}
        return {f"rest_{n}": (train, {"config": config, "resume": True}) for n, config in configs.items()}

    weighed = {f"held_{n}": (held, {"config": k(model, root / f"held_{n}", 1)}) for n, k in KINDS.items()}
    one = launch(1, **whole(1), **half(1))
    two = launch(2, True, **whole(2), **half(2), **rest(1), **weighed)
    return root, one[0] | launch(1, **rest(2))[0], two


@pytest.mark.parametrize("name", KINDS)
def test_parts_change_nothing(runs, name):
    """Weights, scores of evaluations, logged values and the files of checkpoints are those of one process."""
    root, one, (first, _) = runs
    assert one[name].keys() == first[name].keys()
    for key, weights in one[name].items():
        torch.testing.assert_close(first[name][key], weights, **CLOSE)
    alone, shared = root / f"{name}1", root / f"{name}2"
    scores = [pd.read_csv(folder / "samples/step_000004/scores.csv") for folder in (alone, shared)]
    pd.testing.assert_frame_equal(*scores, rtol=1e-4, atol=1e-6)
    logged = [pd.read_json(folder / "metrics.jsonl", lines=True).drop(columns="seconds") for folder in (alone, shared)]
    pd.testing.assert_frame_equal(*logged, rtol=1e-4, atol=1e-6)
    written = [
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (alone / "checkpoints/step_000004/adapter", shared / "checkpoints/step_000004/adapter")
    ]
    assert written[0].keys() == written[1].keys()
    for file in (name for name in written[0] if name.endswith("json")):
        assert json.loads(written[0][file]) == json.loads(written[1][file])


@pytest.mark.parametrize("name", KINDS)
def test_a_run_goes_on_with_parts_and_without(runs, name):
    root, one, two = runs
    for key, weights in one[name].items():
        torch.testing.assert_close(two[0][f"rest_{name}"][key], weights, **CLOSE)
        torch.testing.assert_close(one[f"rest_{name}"][key], weights, **CLOSE)
    folders = (f"{name}1", f"{name}2", f"half_{name}1", f"half_{name}2")
    parts = [checkpoint.load(root / f / "checkpoints/step_000004")["algorithm"] for f in folders]
    for other in parts[1:]:
        torch.testing.assert_close(other["average"], parts[0]["average"], **CLOSE)
        torch.testing.assert_close(other["optimiser"]["state"], parts[0]["optimiser"]["state"], **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_each_process_holds_half(runs, name):
    _, _, found = runs
    bytes_of = [of_one[f"held_{name}"] for of_one in found]
    for here in bytes_of:
        assert 0.4 < here["here"] / here["all"] < 0.6
    if name == "all_trained":  # two moments of everything
        assert sum(here["moments"] for here in bytes_of) == pytest.approx(2 * bytes_of[0]["all"], rel=0.01)
