"""Moving shapes without files: captions that tell the truth, the same clips in every run, and bad names."""

import pytest
import torch
from linear_generator import LinearGenerator

from reelign.algorithms.flow_matching import Config, FlowMatching
from reelign.datasets.clips import ClipOrder, ClipReader
from reelign.datasets.drawn_clips import COUNT, open_clips
from reelign.datasets.moving_shapes import parse_caption
from reelign.errors import DataError
from reelign.metrics.shapes_instrument import agreement
from reelign.paths import FlowPath


def test_captions_tell_what_is_drawn():
    clips, reader = open_clips("shapes:24", 17, (64, 64), 8.0)
    video = torch.stack([reader.read(clip.path) for clip in clips])
    assert video.shape == (24, 17, 3, 64, 64)
    right = agreement(video, [parse_caption(clip.caption) for clip in clips])
    assert all(part.mean() > 0.9 for part in right.values())


def test_a_clip_is_its_number():
    few, reader = open_clips("shapes:3", 9, (32, 32), 8.0)
    many, other = open_clips("shapes", 9, (32, 32), 8.0)
    assert len(many) == COUNT
    assert many[:3] == few
    assert torch.equal(reader.read(few[2].path), other.read(few[2].path))
    assert not torch.equal(reader.read(few[1].path), reader.read(few[2].path))


def test_sources_are_told_apart(tmp_path, monkeypatch):
    from reelign.datasets.moving_shapes import MovingShapes
    from reelign.datasets.shapes_folder import write_shapes

    list(write_shapes(tmp_path / "shapes", MovingShapes(frames=9), 2, seed=0))
    clips, reader = open_clips(str(tmp_path / "shapes"), 9, (64, 64), 8.0)
    assert isinstance(reader, ClipReader)
    assert len(clips) == 2
    monkeypatch.chdir(tmp_path)  # a folder that is there is meant, whatever its name
    assert isinstance(open_clips("shapes", 9, (64, 64), 8.0)[1], ClipReader)
    for bad in ("shapes:0", "shapes:many", "shapes:-1"):
        with pytest.raises(DataError, match="shapes:COUNT"):
            open_clips(bad, 9, (64, 64), 8.0)
    with pytest.raises(DataError, match="there is no 'shape'"):
        open_clips("shape", 9, (64, 64), 8.0)
    with pytest.raises(DataError, match="moving shapes are square; this generator makes clips of 64x96"):
        open_clips("shapes:5", 9, (64, 96), 8.0)


def test_flow_matching_pretrains_on_them():
    """A bare network learns the mean of the data: the loss falls, and goes on alike after a resume."""
    random = torch.Generator().manual_seed(1)
    w, u, v = (0.1 * torch.randn(*s, generator=random) for s in ((4, 4), (4,), (4, 5)))

    def make():
        generator = LinearGenerator(FlowPath(3.0), w.clone(), u.clone(), v.clone(), shape=(4, 5, 32, 32))
        clips, reader = open_clips("shapes:16", 5, (32, 32), 8.0)
        return FlowMatching(generator, Config(lr=0.05)), ClipOrder(clips, reader, 3)

    algorithm, order = make()
    losses = [algorithm.step(order.request(4))["loss"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    state, place = algorithm.state(), order.state()
    again, other = make()
    again.restore(state)
    other.restore(place)
    assert again.step(other.request(4)) == algorithm.step(order.request(4))
