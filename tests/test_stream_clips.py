"""Clips that are saved while their frames come: every frame is there, in order, and old ones go."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch

from reelign.errors import ContractError, DataError, RunFolderError
from reelign.stream.clips import ClipShelf
from reelign.video_io import GrowingClip, read_clip, to_pictures, write_clip


def frames(count: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """A bright bar that wanders over a dark ground, four columns a frame."""
    video = torch.full((count, 3, height, width), 0.1)
    for t in range(count):
        place = 4 * (t % (width // 4))
        video[t, :, :, place : place + 4] = 0.9
    return video


def bar(video: torch.Tensor) -> list[int]:
    """Where the bar is in each frame."""
    columns = video.mean((1, 2))
    return columns[:, : columns.shape[1] // 4 * 4].unflatten(1, (-1, 4)).mean(2).argmax(1).tolist()


def test_saved_while_it_grows(tmp_path):
    video = frames(120)
    clip = GrowingClip(tmp_path / "clip.h264", 32, 48, 8)
    with pytest.raises(DataError, match="at least one frame"):
        clip.save(tmp_path / "none.mp4")
    lengths = (1, 2, 49, 120)
    for index, picture in enumerate(to_pictures(video), start=1):
        clip.add(picture)
        if index in lengths:
            clip.save(tmp_path / f"{index}.mp4")
    clip.save(tmp_path / "part.mp4", 30)
    clip.close()
    clip.close()
    clip.save(tmp_path / "closed.mp4")
    for name, length in (*((str(n), n) for n in lengths), ("part", 30), ("closed", 120)):
        found = read_clip(tmp_path / f"{name}.mp4")
        assert (len(found.video), found.fps, found.notes) == (length, 8, ()), name
        assert bar(found.video) == bar(video[:length])
        assert (found.video - video[:length]).abs().mean() < 0.02
    assert not list(tmp_path.glob(".*"))


def test_as_write_clip_says_it(tmp_path):
    """The same size, rate, colours and pixel format as a clip written at once; odd sizes are padded."""
    video = frames(9, 33, 35)
    write_clip(tmp_path / "whole.mp4", video, 7.5)
    clip = GrowingClip(tmp_path / "clip.h264", 33, 35, 7.5)
    for picture in to_pictures(video):
        clip.add(picture)
    clip.save(tmp_path / "grown.mp4")
    facts = []
    for name in ("whole", "grown"):
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            described = (context.colorspace, context.color_range, context.color_primaries, context.color_trc)
            facts.append(
                (stream.average_rate, stream.frames, context.width, context.height, context.pix_fmt, described)
            )
    assert facts[0] == facts[1]
    whole, grown = (read_clip(tmp_path / f"{name}.mp4").video for name in ("whole", "grown"))
    assert (whole - grown).abs().mean() < 0.02


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(RunFolderError, match="cannot write"):
        GrowingClip(tmp_path / "nowhere" / "clip.h264", 32, 48, 8)
    clip = GrowingClip(tmp_path / "clip.h264", 32, 48, 8)
    with pytest.raises(ContractError, match="pictures of this clip"):
        clip.add(np.zeros((48, 32, 3), np.uint8))


def test_a_shelf_keeps_the_last(tmp_path):
    shelf = ClipShelf(tmp_path, kept=2)
    pictures = to_pictures(frames(6))
    clips = [shelf.begin((32, 48), 8) for _ in range(5)]
    for kept in clips[:4]:  # the last stays without a frame
        kept.clip.add(pictures[0])
    running, *rest = clips
    for kept in rest:
        shelf.end(kept)
    assert [name in shelf._clips for name in (kept.id for kept in clips)] == [True, False, True, True, False]
    with pytest.raises(DataError, match="not among them"):
        shelf.save(rest[0].id)
    assert shelf.save(rest[1].id)[1] == 1

    names = []
    for picture in pictures[1:4]:
        running.clip.add(picture)
        names.append(shelf.save(running.id)[0])
        assert shelf.save(running.id)[0] == names[-1]
    assert [shelf.file(name) is not None for name in names] == [False, True, True]
    assert shelf.file("../" + names[-1]) is None
    shelf.end(running)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f"{kept.id}.h264" for kept in (running, rest[2])} | set(names[1:])
