"""Captioned clips: every form of source, cutting to size, clips that cannot be used; and a run on them."""

from __future__ import annotations

import json

import pytest
import torch
from test_loop import Quiet, equal, logged, settings

from reelign import checkpoint
from reelign.config import parse_config
from reelign.datasets.clips import ClipOrder, ClipReader, cover, load_clips
from reelign.datasets.moving_shapes import MovingShapes
from reelign.datasets.shapes_folder import write_shapes
from reelign.errors import ClipError, ConfigError, DataError
from reelign.loop import Run
from reelign.video_io import read_clip

READER = ClipReader(frames=5, height=32, width=32, fps=8.0)


@pytest.fixture(scope="module")
def takes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("takes") / "shapes"
    list(write_shapes(folder, MovingShapes(frames=9, size=64), 4, seed=0))
    return folder


def test_a_folder_a_table_and_a_list_give_the_same_clips(takes, tmp_path):
    from_folder = load_clips(takes)
    assert len(from_folder) == 4
    assert load_clips(takes / "metadata.csv") == from_folder
    lines = [f"{takes}/{clip.path.name}|||{clip.caption}" for clip in from_folder]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n\n")
    assert load_clips(tmp_path / "list.txt") == from_folder


def test_sources_that_hold_nothing_are_refused(takes, tmp_path):
    (tmp_path / "list.txt").write_text("clip.mp4, a cat\n")
    with pytest.raises(DataError, match=r"line 1"):
        load_clips(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe|||a cat")
    with pytest.raises(DataError, match="UTF-8"):
        load_clips(tmp_path / "list.txt")
    with pytest.raises(DataError, match="there is no"):
        load_clips(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds none"):
        load_clips(tmp_path)


def test_a_clip_is_taken_at_the_generators_rate_and_size(takes):
    path = load_clips(takes)[0].path
    whole = read_clip(path).video
    assert ClipReader(5, 64, 64, 8.0).read(path).equal(whole[:5])
    assert ClipReader(5, 64, 64, 4.0).read(path).equal(whole[:9:2])
    assert ClipReader(3, 32, 64, 8.0).read(path).shape == (3, 3, 32, 64)
    with pytest.raises(ClipError, match=r"lasts 2\.12 s or more; this one lasts 1\.12 s"):
        ClipReader(17, 64, 64, 8.0).read(path)


def test_cover_keeps_the_aspect_and_the_centre():
    video = torch.zeros(1, 3, 20, 40)
    video[..., 18:22] = 1
    cut = cover(video, 10, 10)
    assert cut.shape == (1, 3, 10, 10)
    assert cut[0, 0, 5, 4:6].min() > 0.8
    assert cut[0, 0, 5, :3].max() < 0.1


def test_what_cannot_be_read_is_named_and_left_out(takes, tmp_path, caplog):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    good = load_clips(takes)[0]
    (tmp_path / "list.txt").write_text(f"{bad}|||a cat\n{good.path}|||{good.caption}\n")
    order = ClipOrder(load_clips(tmp_path / "list.txt"), READER, seed=0)
    request = order.request(4)
    assert set(request.prompts) == {good.caption}
    assert request.source_videos.shape == (4, 5, 3, 32, 32)
    assert sum("bad.mp4" in record.message for record in caplog.records) == 1
    (tmp_path / "list.txt").write_text(f"{bad}|||a cat\n")
    with pytest.raises(DataError, match="none of the 1 clips"):
        ClipOrder(load_clips(tmp_path / "list.txt"), READER, seed=0).request(1)


def partial(folder, takes, output, **training):
    config = settings(folder, output, **training)
    chain = {"steps": 4, "tau": 0.5, "lr": 1e-2, "frames": {"choose": "segments", "segments": 2, "attenuation": 1.0}}
    config |= {"algorithm": "partial_chain", "partial_chain": chain, "clips": {"source": str(takes)}}
    config["rewards"] = [{"name": "brightness_range"}]
    return config


def test_a_run_on_clips_resumes_bit_for_bit(random_wan_folder, takes, tmp_path):
    straight = Run(parse_config(partial(random_wan_folder, takes, tmp_path / "a", steps=4)))
    assert straight.train(Quiet())
    half = partial(random_wan_folder, takes, tmp_path / "b", steps=2)
    assert Run(parse_config(half)).train(Quiet())
    rest = partial(random_wan_folder, takes, tmp_path / "b", steps=4)
    assert Run(parse_config(rest), resume=True).train(Quiet())
    assert logged(tmp_path / "a") == logged(tmp_path / "b")
    one, other = (checkpoint.load(tmp_path / run / "checkpoints" / "step_000004") for run in "ab")
    one.pop("seconds"), other.pop("seconds")
    assert equal(one, other)
    assert len(list((tmp_path / "a" / "latents").glob("*.safetensors"))) == 4
    assert json.loads((tmp_path / "a" / "status.json").read_text())["finished"]


def test_clips_and_partial_chain_go_together(random_wan_folder, takes, tmp_path):
    config = partial(random_wan_folder, takes, tmp_path / "x")
    with pytest.raises(ConfigError, match="cannot do without"):
        parse_config({**config, "clips": None})
    with pytest.raises(ConfigError, match="with no other"):
        parse_config({**config, "algorithm": "reward_gradient"})
