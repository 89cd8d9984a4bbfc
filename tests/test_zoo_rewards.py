"""How the zoo's rewards are trained: targets and losses by hand, and one step of everything."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import VideoMAEForVideoClassification

from reelign.datasets.moving_shapes import COLOURS, SHAPES, MovingShapes, ShapeSpec
from reelign.zoo import helper, models, tiny_clip, tiny_videomae
from reelign.zoo.degrade import roughen, tint


def test_contents_by_hand() -> None:
    specs = [ShapeSpec("square", "red", "growing"), ShapeSpec("circle", "green", "turning", "white")]
    caption = tiny_clip.caption_content(specs).view(2, len(COLOURS), len(SHAPES))
    assert caption[0, 0, 1] == 1
    assert caption[1, 1, 0] == 0.5
    assert caption[1, 7, 0] == 0.5
    assert caption.sum() == 2
    red, between = torch.tensor([0.86, 0.14, 0.16]), torch.tensor([0.90, 0.32, 0.13])  # half way to orange
    shown = tiny_clip.frame_content(torch.stack([red, between]), specs).view(2, len(COLOURS), len(SHAPES))
    torch.testing.assert_close(shown.sum((1, 2)), torch.ones(2))
    assert shown[0, 0, 1] > 0.98
    torch.testing.assert_close(shown[1, 0, 0], shown[1, 5, 0], atol=1e-4, rtol=0)
    assert shown[1, 0, 0] > 0.45


def test_contrastive_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    agreement = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    rows = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2)) - 1.0) / 2  # second row: half and half
    columns = (math.log(1 + math.e) - 0.5 + math.log(1 + math.exp(-2))) / 2
    torch.testing.assert_close(tiny_clip.contrastive_loss(logits, agreement), torch.tensor((rows + columns) / 2))


def test_seen_colour_is_the_drawn_one() -> None:
    specs = [ShapeSpec("triangle", "cyan", "growing"), ShapeSpec("square", "purple", "moving up")]
    video = MovingShapes().render(specs, torch.Generator().manual_seed(0))
    seen = tiny_clip.seen_colour(video[:, 3])
    torch.testing.assert_close(seen, torch.tensor([[0.18, 0.80, 0.86], [0.60, 0.22, 0.78]]))


def test_visible_track_by_hand() -> None:
    video = torch.zeros(1, 2, 3, 64, 64)
    video[0, :, 0, 16:32, 32:48] = 0.8  # a square of side 16 whose centre is at (40, 24)
    video[0, 1] = video[0, 0].flip(-1)
    track = helper.visible_track(video)[0]
    area = 4 * (math.log((16 / 32) ** 2) + 1.2)
    square = 90 * -1 / 60  # c_3 of a square is 0, c_4 of an upright one −1/60
    expected = torch.tensor([3 * 0.25, 3 * -0.25, area, 0.0, 0.0, square, 0.0, 2 * 0.3, 2 * -0.5, 2 * -0.5])
    torch.testing.assert_close(track[0], expected, atol=0.02, rtol=0)
    torch.testing.assert_close(track[1, :2], torch.tensor([-0.75, -0.75]), atol=1e-5, rtol=0)


def test_tubes_follow_the_models_tokens() -> None:
    planes = torch.arange(4 * 8 * 8.0).view(1, 4, 8, 8)
    cut = helper.tubes(planes, (2, 4, 2))
    assert cut.shape == (1, 2 * 2 * 4, 16)
    assert cut[0, 5].view(2, 4, 2)[0, 0].tolist() == [
        34.0,
        35.0,
    ]  # first moment, second row of patches, second column
    embed = tiny_videomae.build_videomae().videomae.embeddings.patch_embeddings
    video = torch.zeros(1, 16, 3, 64, 64)
    video[0, 5, :, 40, 30] = 1.0
    moved = (embed(video) - embed(torch.zeros_like(video))).abs().sum(-1)[0]
    lit = helper.tubes(video[:, :, 0], (tiny_videomae.TUBELET, *tiny_videomae.PATCH))[0].sum(-1)
    assert moved.nonzero().tolist() == lit.nonzero().tolist() == [[2 * 16 + 8 + 3]]


def test_helper_adds_masks_and_tracks() -> None:
    video = MovingShapes(frames=2).batch(2, torch.Generator().manual_seed(0))[0]
    reader = helper.Helper(64, (1, 8, 8))
    masks = helper.tubes(helper.visible_mask(video), (1, 8, 8))
    torch.nn.init.eye_(reader.mask.weight)
    torch.nn.init.zeros_(reader.mask.bias)
    torch.nn.init.zeros_(reader.track.weight)
    torch.nn.init.zeros_(reader.track.bias)
    guess = reader(1000 * (masks - 0.5).sign(), video) - helper.visible_track(video).square().mean()
    entropy = 10 * torch.nn.functional.binary_cross_entropy_with_logits(1000 * (masks - 0.5).sign(), masks)
    torch.testing.assert_close(guess, entropy)


def test_a_turning_triangle_turns_its_third_moment() -> None:
    data = MovingShapes(frames=9)
    video = data.render([ShapeSpec("triangle", "red", "rotating clockwise")], torch.Generator().manual_seed(0))
    moment = torch.view_as_complex(helper.visible_track(video)[0, :, 3:5].contiguous())
    angle = (moment[1:] * moment[:-1].conj()).angle().sum() / 3
    assert 0.5 * math.pi - 0.1 < angle < 0.8 * math.pi + 0.1  # clockwise on the screen, a third of a turn or so


def test_degraded_clips_stay_clips() -> None:
    video = torch.rand(2, 5, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    again = [roughen(tint(video, g), g) for g in (torch.Generator().manual_seed(1) for _ in range(2))]
    assert torch.equal(again[0], again[1])
    assert again[0].shape == video.shape
    assert 0 <= again[0].min() < again[0].max() <= 1
    assert (again[0] - video).abs().mean() > 0.01


def test_both_checkpoints_stay_small() -> None:
    for model in (tiny_clip.build_clip(), tiny_videomae.build_videomae()):
        assert sum(p.numel() for p in model.parameters()) < 1_500_000


def test_one_step_trains_measures_and_saves(tmp_path: Path) -> None:
    model, tokenizer = tiny_clip.train_clip(steps=1, batch=4)
    measured = tiny_clip.measure_clip(model, tokenizer, clips=64)
    tiny_clip.save(tmp_path / "clip", model, tokenizer, measured)
    assert f"{measured['colour']:.1%}" in (tmp_path / "clip" / "README.md").read_text()
    action = tiny_videomae.train_videomae(steps=1, batch=2)
    found = tiny_videomae.measure_videomae(action, clips=64)
    tiny_videomae.save(tmp_path / "action", action, found)
    assert isinstance(models.load_whole(VideoMAEForVideoClassification, str(tmp_path / "action")), torch.nn.Module)
    assert 0 <= found["worst_motion"] <= found["motion"] <= 1
