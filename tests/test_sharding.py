"""Networks kept in parts by two processes (FSDP2): the run of one process, with half of the weights in each."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pandas as pd
import process_runs
import pytest
import torch
import torch.distributed as dist
from process_runs import require_logged_alike, settings, train, train_in_parts

from reelign import checkpoint, run_parts
from reelign.config import parse_config
from reelign.errors import ConfigError
from reelign.generators import causal_wan, denoisers, wan

pytestmark = [
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="processes on a CPU need torch built with gloo"
    ),
    pytest.mark.timeout(900),
]
CLOSE = {"rtol": 0, "atol": 1e-6}


def adapted(folder, output, steps=2):
    """Gradient through two random steps of a chain in micro-batches, blocks computed again, a pass without adapter."""
    config = settings(folder, output, steps, guard={"action": "off"})
    config["training"]["checkpoint_every"] = 1
    config["evaluation"]["batch"] = 1  # three clips, of which one process makes two and the other repeats its own
    config["generator"]["gradient_checkpointing"] = True
    config["reward_gradient"] |= {"steps": 3, "k": 2, "micro_batch": 1}
    return config


def all_trained(folder, output, steps=2):
    """Every weight is trained; the gradient is clipped."""
    config = adapted(folder, output, steps)
    config["generator"]["train_all"] = True
    config["reward_gradient"] |= {"kl_weight": 0.0, "micro_batch": 4, "max_grad_norm": 1e-3}
    config["rewards"] = config["rewards"][:1]
    return config


KINDS = {"adapted": adapted, "all_trained": all_trained}


@pytest.fixture(scope="module")
def runs(random_wan_folder, tmp_path_factory):
    """The same runs by one process and by two with parts, and one of each stopped half-way and resumed by the other."""
    root, model = tmp_path_factory.mktemp("parts"), random_wan_folder
    launch = partial(process_runs.launch, tmp_path_factory.mktemp("found"))

    def whole(count, do):
        return {name: (do, {"config": kind(model, root / f"{name}{count}")}) for name, kind in KINDS.items()}

    def half(count):
        return {f"half_{n}": (train, {"config": k(model, root / f"half_{n}{count}", 1)}) for n, k in KINDS.items()}

    def rest(count):
        tracked = {"trackers": ["tensorboard"]}
        configs = {n: kind(model, root / f"half_{n}{count}") | tracked for n, kind in KINDS.items()}
        return {f"rest_{n}": (train, {"config": config, "resume": True}) for n, config in configs.items()}

    one = launch(1, **whole(1, train), **half(1))
    two = launch(2, True, **whole(2, train_in_parts), **half(2), **rest(1))
    return root, one[0] | launch(1, **rest(2))[0], two


@pytest.mark.parametrize("name", KINDS)
def test_parts_change_nothing(runs, name):
    """Weights, scores of evaluations, logged values and the files of checkpoints are those of one process."""
    root, one, two = runs
    first, _ = two[0][name]
    assert one[name].keys() == first.keys()
    for key, weights in one[name].items():
        torch.testing.assert_close(first[key], weights, **CLOSE)
    alone, shared = root / f"{name}1", root / f"{name}2"
    scores = [pd.read_csv(folder / "samples/step_000002/scores.csv") for folder in (alone, shared)]
    pd.testing.assert_frame_equal(*scores, rtol=1e-4, atol=1e-6)
    require_logged_alike(alone, shared)
    written = [
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (alone / "checkpoints/step_000002/adapter", shared / "checkpoints/step_000002/adapter")
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
    parts = [checkpoint.load(root / f / "checkpoints/step_000002")["algorithm"] for f in folders]
    for other in parts[1:]:
        torch.testing.assert_close(other["average"], parts[0]["average"], **CLOSE)
        torch.testing.assert_close(other["optimiser"]["state"], parts[0]["optimiser"]["state"], **CLOSE)


@pytest.mark.parametrize("name", KINDS)
def test_each_process_holds_half(runs, name):
    bytes_of = [found[name][1] for found in runs[2]]
    for here in bytes_of:
        assert 0.4 < here["weights"] / here["whole"] < 0.6
    if name == "all_trained":  # two moments of everything
        assert sum(here["moments"] for here in bytes_of) == pytest.approx(2 * bytes_of[0]["whole"], rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": {"offload": True}}, "FSDP cuts plain weights; leave out memory.quantise and memory.offload"),
        ({"train_all": True, "dtype": "float16"}, "train_all is in float32 or bfloat16; got dtype float16"),
    ],
)
def test_generators_that_cannot_be_cut_are_refused(monkeypatch, random_wan_folder, options, message):
    monkeypatch.setattr(denoisers, "shards", lambda: True)
    with pytest.raises(ConfigError, match=message):
        wan.load_wan(model=str(random_wan_folder), height=32, width=32, frames=5, device="cpu", **options)


def test_a_causal_generator_is_refused(monkeypatch, tiny_wan):
    monkeypatch.setattr(causal_wan, "shards", lambda: True)
    with pytest.raises(ConfigError, match="causal generators run parts of blocks: launch with --multi_gpu"):
        causal_wan.CausalWanGenerator(tiny_wan, causal_wan.CausalWanOptions())


def test_two_experts_by_row_are_refused(monkeypatch):
    monkeypatch.setattr(wan, "shards", lambda: True)
    two = SimpleNamespace(experts=lambda: [None, None])
    with pytest.raises(ConfigError, match="all processes run the same expert"):
        wan.WanGenerator.predict(two, torch.zeros(2, 1), torch.tensor([1.0, 9.0]), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch": 3}, "divides the 4 prompts that a process has of a batch, or is a multiple of it; got 3"),
        ({"conflict_every": 2}, "conflict_every is 0; got 2"),
    ],
)
def test_passes_of_its_own_are_refused(monkeypatch, tmp_path, change, message):
    """Micro-batches are those of the whole update; of ten rows in threes, a process may have another number."""
    monkeypatch.setattr(run_parts, "shards", lambda: True)
    config = settings("zoo:tiny-wan", tmp_path)
    config["reward_gradient"] |= {"micro_batch": 4, **change}
    with pytest.raises(ConfigError, match=message):
        run_parts.my_rows(parse_config(config))
    config["reward_gradient"] |= {"micro_batch": 2, "conflict_every": 0}
    assert run_parts.my_rows(parse_config(config)) == slice(0, 4)
