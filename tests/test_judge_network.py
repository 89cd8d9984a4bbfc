"""The judge network: its loss by hand, gradients, contract, storage, and that it learns from labelled clips."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reelign.contracts import Request, TrainableReward, VideoBatch
from reelign.datasets.moving_shapes import ATTRIBUTES, MovingShapes, random_spec, wrong_spec
from reelign.errors import ContractError, DataError, ModelError, NonFiniteError
from reelign.rewards.card import golden_clip, verify
from reelign.rewards.judge_network import CARD, WEIGHTS, ClipFeatures, JudgeNetwork, NetworkConfig, preference_loss
from reelign.selection.judge_clips import NetworkTraining, fit_network
from reelign.selection.labels import check_labels
from reelign.video_io import write_clip


def tensor(*values: float) -> Tensor:
    return torch.tensor(values)


def test_loss_by_hand() -> None:
    """k = 5, a − b = log 5: P(win) = ½, P(tie) = 24·½·(1/26) = 6/13, P(loss) = 1/26; together 1."""
    a, b = tensor(math.log(5)), tensor(0.0)
    won, tied = torch.tensor([False]), torch.tensor([True])
    assert preference_loss(a, b, won, 5.0).exp().item() == pytest.approx(2)
    assert preference_loss(a, b, tied, 5.0).exp().item() == pytest.approx(13 / 6)
    assert preference_loss(b, a, won, 5.0).exp().item() == pytest.approx(26)


@given(st.floats(-8, 8), st.floats(1.001, 20))
@settings(max_examples=50, deadline=None)
def test_win_tie_and_loss_make_one(difference: float, k: float) -> None:
    a, b = torch.tensor([difference], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    won, tied = torch.tensor([False]), torch.tensor([True])
    total = sum(
        (-loss).exp()
        for loss in (preference_loss(a, b, won, k), preference_loss(a, b, tied, k), preference_loss(b, a, won, k))
    )
    assert total.item() == pytest.approx(1)
    written_out = a.exp() / (a.exp() + k * b.exp())
    assert (-preference_loss(a, b, won, k)).exp().item() == pytest.approx(written_out.item())


def test_without_ties_it_is_bradley_terry() -> None:
    loss = preference_loss(tensor(1.0, 0.0), tensor(0.0, 2.0), torch.zeros(2, dtype=torch.bool), 1.0)
    torch.testing.assert_close(loss, tensor(math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))))
    with pytest.raises(ContractError, match="tie factor above 1; got 1"):
        preference_loss(tensor(1.0), tensor(0.0), torch.tensor([True]), 1.0)


@pytest.fixture(scope="module")
def network() -> JudgeNetwork:
    return JudgeNetwork.untrained()


def test_it_is_a_trainable_reward_that_keeps_its_card(network: JudgeNetwork, tmp_path: Path) -> None:
    assert isinstance(network, TrainableReward)
    network.save(tmp_path)
    loaded = JudgeNetwork(str(tmp_path))
    checks = verify(loaded)
    assert [check.name for check in checks if not check.ok] == []
    assert "the golden clip has its golden score" in [check.name for check in checks]
    batch = golden_clip()
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch), network(batch), rtol=0, atol=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["golden.json", CARD, WEIGHTS]


def test_gradient_of_the_pixels_is_that_of_finite_differences(network: JudgeNetwork) -> None:
    batch = golden_clip()
    pixels = (batch.video[:1] * 0.8 + 0.1).requires_grad_()
    score = network(VideoBatch(pixels, batch.fps, batch.request[:1]))
    (gradient,) = torch.autograd.grad(score.sum(), pixels)
    direction = gradient / gradient.norm()
    step = 0.02
    with torch.no_grad():
        up, down = (
            network(VideoBatch((pixels + sign * step * direction).detach(), batch.fps, batch.request[:1])).item()
            for sign in (1, -1)
        )
    assert (up - down) / (2 * step) == pytest.approx(gradient.norm().item(), rel=0.05)


def test_frozen_parts_stay_and_the_head_moves(network: JudgeNetwork) -> None:
    fresh = JudgeNetwork.untrained(backbones=network.backbones)
    before = [p.clone() for p in fresh.backbones.videomae.parameters()]
    head = {name: value.clone() for name, value in fresh.head.state_dict().items()}
    batch = golden_clip()
    black = VideoBatch(torch.zeros_like(batch.video), batch.fps, batch.request)
    logged = [fresh.fit(batch, black) for _ in range(8)]
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert logged[-1]["accuracy"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(before, fresh.backbones.videomae.parameters(), strict=True))
    assert any(not torch.equal(head[name], value) for name, value in fresh.head.state_dict().items())
    with pytest.raises(ContractError, match="come in pairs; got 2 and 1"):
        fresh.fit(batch, VideoBatch(black.video[:1], 8.0, batch.request[:1]))


def drawn(network: JudgeNetwork, rows: int, seed: int) -> ClipFeatures:
    random = torch.Generator().manual_seed(seed)
    width, text = network.backbones.video_width, network.backbones.text_width
    shapes = ((rows, width), (rows, text), (rows,))
    return ClipFeatures(*(torch.randn(shape, generator=random) for shape in shapes))


def test_resumed_is_uninterrupted(network: JudgeNetwork) -> None:
    config, tied = NetworkConfig(tie_factor=5.0), torch.tensor([False, False, True, False])
    first, second = drawn(network, 4, 1), drawn(network, 4, 2)
    one, two = (JudgeNetwork.untrained(config, backbones=network.backbones) for _ in range(2))
    for _ in range(3):
        one.update(first, second, tied)
    two.restore(one.state())
    assert one.update(first, second, tied) == two.update(first, second, tied)
    for a, b in zip(one.head.parameters(), two.head.parameters(), strict=True):
        assert torch.equal(a, b)


def test_seeded_and_global_random_state_untouched(network: JudgeNetwork) -> None:
    state = torch.get_rng_state()
    a, b, c = (JudgeNetwork.untrained(seed=seed, backbones=network.backbones) for seed in (1, 1, 2))
    a.update(drawn(network, 2, 0), drawn(network, 2, 1), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(state, torch.get_rng_state())
    b.update(drawn(network, 2, 0), drawn(network, 2, 1), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(a.head.out.weight, b.head.out.weight)
    assert not torch.equal(b.head.out.weight, c.head.out.weight)


def test_normalised_scores_have_mean_0_and_deviation_1(network: JudgeNetwork) -> None:
    fresh, features = JudgeNetwork.untrained(backbones=network.backbones), drawn(network, 50, 0)
    fresh.normalise(features)
    scores = (fresh.head(features) - fresh.centre) / fresh.spread
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_a_loss_that_is_no_number(network: JudgeNetwork) -> None:
    fresh, features = JudgeNetwork.untrained(backbones=network.backbones), drawn(network, 2, 0)
    broken = ClipFeatures(features.video * math.nan, features.text, features.cosine)
    with pytest.raises(NonFiniteError, match="loss is nan"):
        fresh.update(broken, features, torch.zeros(2, dtype=torch.bool))


def test_broken_folders(network: JudgeNetwork, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has none: make one"):
        JudgeNetwork(str(tmp_path))
    network.save(tmp_path)
    card = json.loads((tmp_path / CARD).read_text())
    for change, message in (({"format": 9}, "format 9"), ({"config": {"width": 0}}, "broken")):
        (tmp_path / CARD).write_text(json.dumps(card | change))
        with pytest.raises(ModelError, match=message):
            JudgeNetwork(str(tmp_path))
    (tmp_path / CARD).write_text(json.dumps(card | {"config": card["config"] | {"width": 32}}))
    with pytest.raises(ModelError, match="does not fit"):
        JudgeNetwork(str(tmp_path))
    (tmp_path / CARD).write_text(json.dumps(card))
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match="broken"):
        JudgeNetwork(str(tmp_path))


def labelled_clips(
    folder: Path, groups: int, attributes: tuple[str, ...] = ATTRIBUTES
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A group a caption: one clip that shows it and one that is wrong in one attribute; people prefer the first."""
    random, data = torch.Generator().manual_seed(0), MovingShapes(frames=16)
    takes, labels = [], []
    for number in range(groups):
        asked = random_spec(random)
        shown = (asked, wrong_spec(asked, attributes[number % len(attributes)], random))
        video = data.render(list(shown), random)
        for name, clip in zip("ab", video, strict=True):
            write_clip(folder / f"{number}{name}.mp4", clip, data.fps)
            takes.append((f"{number}{name}", f"{number}{name}.mp4", asked.caption, f"g{number}"))
        sides = (f"{number}a", f"{number}b", "left") if number % 2 else (f"{number}b", f"{number}a", "right")
        labels.append((f"g{number}", *sides))
    return (
        pd.DataFrame(takes, columns=["take", "file", "prompt", "group"]),
        pd.DataFrame(labels, columns=["group", "left", "right", "choice"]),
    )


def test_a_clip_that_cannot_be_read_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Group 0 has only a broken clip to compare, so it goes; the features of the others stay with their takes."""
    takes, labels = labelled_clips(tmp_path, 5)
    (tmp_path / "0b.mp4").write_bytes(b"not a video")
    config = NetworkTraining(steps=5, folds=2)
    network = fit_network(takes, labels, lambda file: tmp_path / file, config)
    assert network.facts["unreadable takes"] == ["0b"]
    assert network.facts["data"]["groups"] == 4
    assert "left out" in caplog.text
    (tmp_path / "0b.mp4").unlink()
    without = takes[takes["group"] != "g0"]
    again = fit_network(without, labels[1:], lambda file: tmp_path / file, config)
    assert again.facts["held-out"] == network.facts["held-out"]
    assert torch.equal(again.head.out.weight, network.head.out.weight)


def test_no_clip_can_be_read(tmp_path: Path) -> None:
    takes, labels = labelled_clips(tmp_path, 3)
    with pytest.raises(DataError, match="none of the 6"):
        fit_network(takes, labels, lambda file: tmp_path / "nowhere" / file)


def test_ties_choose_the_tie_factor(tmp_path: Path) -> None:
    takes, labels = labelled_clips(tmp_path, 4)
    tied = check_labels(labels.assign(choice=["tie", *labels["choice"][1:]]))
    network = fit_network(takes, tied, lambda file: tmp_path / file, NetworkTraining(steps=2, folds=2))
    assert network.config.tie_factor == 5.0
    assert network.facts["held-out"]["ties"]["floor"] == 0.25


@pytest.mark.slow
def test_it_learns_what_people_prefer(tmp_path: Path) -> None:
    """Captions and clips that differ in colour, shape or motion: held-out pairs clearly above chance, 120 labels."""
    takes, labels = labelled_clips(tmp_path, 120)
    network = fit_network(takes, labels, lambda file: tmp_path / file)
    estimate = network.facts["held-out"]["accuracy"]
    assert estimate["value"] > 0.7
    assert estimate["low"] > 0.6
    network.save(tmp_path / "judge")
    judge = JudgeNetwork(str(tmp_path / "judge"))
    random, data = torch.Generator().manual_seed(99), MovingShapes(frames=16)
    asked = [random_spec(random) for _ in range(24)]
    request = Request(tuple(spec.caption for spec in asked))
    wrong = [wrong_spec(spec, ("colour", "shape")[i % 2], random) for i, spec in enumerate(asked)]
    with torch.no_grad():
        good, bad = (judge(VideoBatch(data.render(specs, random), data.fps, request)) for specs in (asked, wrong))
    assert (good > bad).float().mean().item() > 0.7


def test_it_learns_shapes(tmp_path: Path) -> None:
    """The short version: 24 labels about shapes alone; chance is 0.5, three of four is 2.4 deviations above it."""
    takes, labels = labelled_clips(tmp_path, 24, ("shape",))
    network = fit_network(takes, labels, lambda file: tmp_path / file, NetworkTraining(steps=60, folds=4))
    assert network.facts["held-out"]["accuracy"]["value"] >= 0.75
    assert network.facts["importance"] == []
