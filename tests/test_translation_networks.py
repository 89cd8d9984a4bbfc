"""The networks of video translation: causal, of any size and length, near no change at first; and what they refuse."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from reelign.contracts import Request, Translator
from reelign.errors import DataError, ModelError
from reelign.generators.translation import TranslationGenerator, load_translation
from reelign.generators.translation_layers import (
    FrameDiscriminator,
    OneWayClamp,
    QNetwork,
    ResidualBlock,
    VideoDiscriminator,
    with_detail,
)
from reelign.sampling import generate


@pytest.fixture
def translator() -> TranslationGenerator:
    """A small one whose weights are far from their first values."""
    made = load_translation(channels=8, hidden=8, device="cpu", seed=3)
    with torch.no_grad():
        random = torch.Generator().manual_seed(1)
        for weight in made.trainable().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=random))
    return made


def clip(frames: int, height: int = 16, width: int = 16, count: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_it_is_a_translator(translator: TranslationGenerator) -> None:
    assert isinstance(translator, Translator)
    assert translator.frames() == 16
    assert translator.picture_size() == (64, 64)
    assert translator.fps == 8
    assert translator.parameter_count() == sum(p.numel() for p in translator.trainable().values())


def test_a_new_translator_changes_nothing() -> None:
    made, video = load_translation(channels=8, hidden=8, device="cpu"), clip(3, 17, 20)
    for to in ("x", "y"):
        torch.testing.assert_close(made.translate(video, to)[0], video, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 1, 1), (3, 4), (6, 1), (2, 5)])
def test_a_clip_in_pieces_is_the_clip_as_a_whole(translator: TranslationGenerator, pieces: tuple[int, ...]) -> None:
    video = clip(7, 18, 22, count=2)
    whole, end = translator.translate(video, "y")
    parts, state = [], None
    for piece in video.split(pieces, dim=1):
        done, state = translator.translate(piece, "y", state)
        parts.append(done)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-6, rtol=0)
    for ours, theirs in zip(state, end, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)
    assert (whole - translator.translate(video.flip(1), "y")[0].flip(1)).abs().max() > 0.01  # the past does matter


@torch.no_grad()
def test_no_frame_depends_on_a_later_one_and_no_state_is_changed(translator: TranslationGenerator) -> None:
    video = clip(6)
    first, state = translator.translate(video[:, :3], "x")
    before = [part.clone() for part in state]
    other = torch.cat([video[:, :3], 1 - video[:, 3:]], 1)
    torch.testing.assert_close(translator.translate(other, "x")[0][:, :3], first, atol=2e-6, rtol=0)
    translator.translate(video[:, 3:], "x", state)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


@torch.no_grad()
def test_per_frame_has_no_memory(translator: TranslationGenerator) -> None:
    translator.per_frame = True
    video = clip(4)
    there, _ = translator.translate(video, "y")
    for t in range(4):
        torch.testing.assert_close(translator.translate(video[:, t : t + 1], "y")[0], there[:, t : t + 1])


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 17), (19, 33), (18, 16), (64, 40)])
def test_any_size_and_length(translator: TranslationGenerator, height: int, width: int) -> None:
    for frames in (1, 2):
        video = clip(frames, height, width, count=2)
        there, back = translator.cycle(video, "x")
        assert there.shape == back.shape == video.shape
        assert 0 <= there.min() <= there.max() <= 1
        assert FrameDiscriminator(4)(there.flatten(0, 1)).shape == (2 * frames,)
        assert VideoDiscriminator(4)(there).shape == (2,)
        assert QNetwork(3, 4)(clip(3, height, width, count=2), there[:, 0]).shape == (2,)


def test_gradient_reaches_every_weight(translator: TranslationGenerator) -> None:
    video = clip(3)
    loss = sum(translator.translate(video, to)[0].sum() for to in ("x", "y"))
    loss = loss + sum(translator.predict_next(video, domain)[0].sum() for domain in ("x", "y"))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in translator.trainable().values())


def test_clamp_keeps_the_gradient_that_leads_back() -> None:
    x = torch.tensor([-0.5, -0.5, 0.5, 1.5, 1.5], requires_grad=True)
    y = OneWayClamp.apply(x)
    assert y.tolist() == [0, 0, 0.5, 1, 1]
    y.backward(torch.tensor([1.0, -1.0, 2.0, 1.0, -1.0]))
    assert x.grad.tolist() == [0, -1, 2, 1, 0]  # descent would push the first and the last further out


def test_residual_blocks_project_where_channels_change() -> None:
    same, other = ResidualBlock(4, 4), ResidualBlock(4, 6)
    for block in (same, other):
        torch.nn.init.zeros_(block.second.weight)
        torch.nn.init.zeros_(block.second.bias)
    x = clip(1)[:, 0].repeat(1, 2, 1, 1)[:, :4]
    assert torch.equal(same(x), x)
    assert other(x).shape == (1, 6, 16, 16)
    assert other.project.weight.shape == (6, 4, 1, 1)


def test_detail_is_what_the_surroundings_do_not_say() -> None:
    picture = torch.full((1, 3, 16, 16), 0.25)
    plain = with_detail(picture)
    torch.testing.assert_close(plain[:, :3], torch.full_like(picture, -0.5))
    torch.testing.assert_close(plain[:, 3:], torch.zeros_like(picture), atol=1e-5, rtol=0)
    picture[0, :, 8, 8] = 1.0
    assert with_detail(picture)[0, 3, 8, 8].item() == pytest.approx(8 * 0.75 * 24 / 25, rel=1e-4)


def test_discriminators_are_bounded_by_their_norm() -> None:
    torch.manual_seed(0)
    judge = FrameDiscriminator(8).eval()
    layer = judge.layers[1]
    with torch.no_grad():
        layer.parametrizations.weight.original.mul_(100)
    judge.train()
    for _ in range(100):
        judge(clip(2)[0])
    largest = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)
    assert largest.item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("wanted", [-25.0, 25.0])
def test_q_can_be_any_return(wanted: float) -> None:
    torch.manual_seed(0)
    q, state, action = QNetwork(3, 4), clip(3, count=4), clip(1, count=4)[:, 0]
    optimiser = torch.optim.Adam(q.parameters(), 0.02)
    for _ in range(150):
        loss = (q(state, action) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (q(state, action) - wanted).abs().max() < 1


def test_saved_and_loaded_bit_for_bit(translator: TranslationGenerator, tmp_path) -> None:
    translator.per_frame = True
    translator.save(str(tmp_path / "w"))
    back = load_translation(model=str(tmp_path / "w"), device="cpu", frames=5)
    assert all(torch.equal(a, back.trainable()[n]) for n, a in translator.trainable().items())
    assert back.options.channels == 8
    assert back.per_frame
    assert back.frames() == 5  # asked for
    assert back.picture_size() == (64, 64)  # as saved


def test_a_run_folder_is_its_newest_checkpoint(translator: TranslationGenerator, tmp_path) -> None:
    translator.save(str(tmp_path / "checkpoints/step_000010/adapter"))
    load_translation(channels=8, hidden=8, device="cpu").save(str(tmp_path / "checkpoints/step_000002/adapter"))
    back = load_translation(model=str(tmp_path), device="cpu")
    name = "to_y.out.weight"
    assert torch.equal(back.trainable()[name], translator.trainable()[name])


def test_a_request_with_source_clips_is_translated(translator: TranslationGenerator) -> None:
    video = clip(3, count=2)
    request = Request(("a", "b"), source_videos=video)
    batch = generate(translator, request, (0, 1), 1, 1.0)
    torch.testing.assert_close(batch.video, translator.translate(video, "y")[0].detach())
    assert batch.fps == 8
    with pytest.raises(DataError, match="has none: give source_videos"):
        generate(translator, Request(("a",)), (0,), 1, 1.0)


def test_what_is_refused_in_one_line(translator: TranslationGenerator, tmp_path) -> None:
    with pytest.raises(DataError, match="to 'x' or to 'y'; got 'night'"):
        translator.translate(clip(2), "night")
    with pytest.raises(DataError, match=r"\[B,T,3,H,W\] with at least one frame; got \(2, 3, 16, 16\)"):
        translator.translate(clip(2)[0], "y")
    with pytest.raises(DataError, match="at least 16 pixels a side; got 15×40"):
        translator.translate(clip(2, 15, 40), "y")
    _, state = translator.translate(clip(2), "y")
    with pytest.raises(DataError, match="the state of its own frames"):
        translator.translate(clip(2, 24, 24), "y", state)
    with pytest.raises(ModelError, match="a run with checkpoints of one"):
        load_translation(model=str(tmp_path))
    with pytest.raises(ModelError, match="translation option chanels"):
        load_translation(chanels=8)
    with pytest.raises(ModelError, match="has not both"):
        translator.load(str(tmp_path))
    translator.save(str(tmp_path))
    with pytest.raises(ModelError, match="of channels 8, hidden 8; this translator has 16, 16"):
        load_translation(device="cpu").load(str(tmp_path))
    settings = json.loads((tmp_path / "translation.json").read_text())
    (tmp_path / "translation.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "fps"}))
    with pytest.raises(ModelError, match="lacks fps"):
        load_translation(model=str(tmp_path))
    (tmp_path / "translation.json").write_text("{")
    with pytest.raises(ModelError, match="no JSON of settings"):
        load_translation(model=str(tmp_path))
