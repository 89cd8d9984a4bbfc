"""Domains of unpaired translation: drawn day and night, folders of clips, and everything wrong a folder can be."""

from __future__ import annotations

import logging

import pytest
import torch
from conftest import SHARED

from reelign.datasets.day_night import GRAIN, DayNight
from reelign.datasets.translation import DomainOptions, Domains
from reelign.errors import ConfigError, DataError, RunFolderError
from reelign.video_io import write_clip

HOSTILE = SHARED / "data" / "clips" / "hostile"


def folder_of(path, *shapes, fps=8.0):
    """A folder of random clips of shapes (T, H, W)."""
    for number, (frames, height, width) in enumerate(shapes):
        video = torch.rand(frames, 3, height, width, generator=torch.Generator().manual_seed(number))
        write_clip(path / f"{number}.mp4", video, fps)
    return str(path)


@pytest.mark.parametrize("domain", ["x", "y"])
def test_drawn_batches(domain, random):
    clips = Domains(DomainOptions(size=32, frames=5)).batch(domain, 3, random)
    assert clips.shape == (3, 5, 3, 32, 32)
    assert clips.dtype == torch.float32
    assert 0 <= clips.min() < clips.max() <= 1
    assert not torch.equal(clips[0], clips[1])


def test_the_same_numbers_give_the_same_clips():
    domains = Domains(DomainOptions(size=32, frames=4))
    first, second = (domains.batch("y", 2, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("light", "grain"), GRAIN.items())
def test_pairs_are_one_scene_in_two_lights(light, grain, random):
    """What is filmed differs from the known scene by grain alone, and things move alike."""
    scenes = DayNight(frames=6, size=48)
    state = random.get_state()
    both = dict(zip(("day", "night"), scenes.pair(2, random), strict=True))
    known = both[light]
    random.set_state(state)
    filmed = scenes.batch(light, 2, random)
    assert (filmed - known)[(known > 0.1) & (known < 0.9)].std() == pytest.approx(grain, rel=0.05)
    # Where the day changes by much from frame to frame, so does the night.
    day, night = ((clip[:, 1:] - clip[:, :-1]).abs().amax(2) > 0.15 for clip in both.values())
    assert (day & night).sum() > 0.7 * day.sum()


def test_backward_pairs(random):
    domains = Domains(DomainOptions(x="shapes:night:rotating", y="shapes:day:rotating", size=32, frames=3))
    night, day = domains.pair(4, random)
    assert night.mean() < 0.3 < day.mean()


def test_rotating_shapes_stay_where_they_are(random):
    scenes = DayNight(frames=9, size=64, motion="rotating")
    day, _ = scenes.pair(6, random)
    moved = (day[:, 1:] - day[:, :1]).abs().amax((1, 2)) > 0.1
    assert 0.01 < moved.float().mean() < 0.3  # within the circles that the corners draw


def test_no_map_of_single_channels_is_close(random):
    """Even the best map of each channel alone, fitted to the very pairs, stays under 20 dB: colours are mixed."""
    day, night = Domains().pair(24, random)
    best = torch.empty_like(night)
    for channel in range(3):
        level, target = (day[:, :, channel] * 63).round().long(), night[:, :, channel]
        total = torch.zeros(64).index_add_(0, level.flatten(), target.flatten())
        table = total / torch.bincount(level.flatten(), minlength=64).clamp(min=1)
        best[:, :, channel] = table[level]
    fit = -10 * (best - night).square().mean().log10()
    assert 15 < fit < 20


@pytest.mark.parametrize("source", ["shapes", "shapes:dusk", "shapes:day:flying", "shapes:day:rotating:fast"])
def test_drawn_names(source):
    with pytest.raises(ConfigError, match=r"a drawn domain is named shapes:\{day,night\}"):
        Domains(DomainOptions(x=source))


def test_folders_are_cut_and_split(tmp_path, random):
    x = folder_of(tmp_path / "x", *[(12, 40, 64)] * 5)
    y = folder_of(tmp_path / "y", *[(20, 90, 36)] * 2, fps=16.0)  # thinned to 10 frames
    domains = Domains(DomainOptions(x=x, y=y, size=32, frames=6))
    assert domains.batch("x", 3, random).shape == domains.batch("y", 3, random).shape == (3, 6, 3, 32, 32)
    assert domains.batch("y", 2, random, held_out=True).shape == (2, 6, 3, 32, 32)
    assert domains.describe() == f"{x} (4 clips, 1 held out) ↔ {y} (1 clips, 1 held out)"
    assert not domains.has_pairs
    with pytest.raises(DataError, match="no pairing of these domains is known"):
        domains.pair(1, random)


def test_windows_come_from_everywhere(tmp_path, random):
    """A clip whose grey level is its frame number: all beginnings are drawn, and frames follow each other."""
    ramp = (torch.arange(20) * 10 / 255).view(-1, 1, 1, 1).expand(-1, 3, 32, 48)
    write_clip(tmp_path / "x" / "ramp.mp4", ramp, 8.0)
    domains = Domains(DomainOptions(x=str(tmp_path / "x"), size=32, frames=4, held_out=0))
    levels = domains.batch("x", 200, random).mean((2, 3, 4)) * 25.5
    assert set(levels[:, 0].round().int().tolist()) == set(range(17))
    assert torch.allclose(levels.diff(dim=1), torch.ones(200, 3), atol=0.15)


def test_thinning_keeps_time(tmp_path, random):
    ramp = (torch.arange(25) * 10 / 255).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
    write_clip(tmp_path / "ramp.mp4", ramp, 20.0)
    domains = Domains(DomainOptions(x=str(tmp_path), size=32, frames=10, fps=8.0, held_out=0))
    levels = (domains.batch("x", 1, random).mean((2, 3, 4)) * 25.5).round().int()[0].tolist()
    assert levels == [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]


def test_what_cannot_be_used_is_named(tmp_path, caplog, random):
    folder_of(tmp_path, (8, 40, 40), (8, 40, 40), (1, 40, 40), (8, 20, 80), (3, 40, 40))
    (tmp_path / "empty.mp4").touch()
    with caplog.at_level(logging.WARNING):
        domains = Domains(DomainOptions(x=str(tmp_path), size=32, frames=8, held_out=0))
    said = [record.message for record in caplog.records]
    assert len(said) == 4
    assert "2.mp4: a window is 8 frames at 8 a second; this clip has 1" in said[0]
    assert "3.mp4: clips are at least as large as the crop of 32 pixels; this one is 80x20" in said[1]
    assert "4.mp4: a window is 8 frames" in said[2]
    assert "empty.mp4" in said[3]
    assert domains.batch("x", 2, random).shape == (2, 8, 3, 32, 32)


def test_damage_further_in(tmp_path, caplog, random):
    """Found when the clip is read, named once, and another is drawn."""
    folder_of(tmp_path, *[(40, 64, 64)] * 3)
    data = bytearray((tmp_path / "1.mp4").read_bytes())
    middle = len(data) * 2 // 3
    data[middle : middle + 4000] = bytes(4000)
    (tmp_path / "1.mp4").write_bytes(data)
    domains = Domains(DomainOptions(x=str(tmp_path), size=32, held_out=0))
    with caplog.at_level(logging.WARNING):
        domains.batch("x", 30, random)
    assert [record.message for record in caplog.records if "1.mp4: damaged" in record.message][1:] == []
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((), "a domain needs at least one clip"),
        (((1, 40, 40),), "none of the 1 clips in .* can be used; the first: .*this clip has 1"),
        (((8, 16, 16),) * 2, "none of the 2 clips in .* can be used; the first: .*this one is 16x16"),
        (((20, 40, 40),), "some clips must be left for training: 1 usable"),
    ],
    ids=["empty", "one frame", "small", "single"],
)
def test_folders_of_nothing(tmp_path, shapes, message):
    (tmp_path / "y").mkdir()
    folder_of(tmp_path / "y", *shapes)
    with pytest.raises(DataError, match=message):
        Domains(DomainOptions(y=str(tmp_path / "y"), size=32, frames=8))


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        Domains(DomainOptions(y=str(tmp_path / "nothing")))


def test_pairs_from_a_folder(tmp_path, random):
    for side in "xy":
        folder_of(tmp_path / side, (8, 32, 48), (8, 32, 32))
    domains = Domains(DomainOptions(pairs=str(tmp_path), size=32, frames=8))
    x, y = domains.pair(2, random)
    assert torch.equal(x, y)
    with pytest.raises(DataError, match="3 pairs are asked for"):
        domains.pair(3, random)
    (tmp_path / "y" / "1.mp4").unlink()
    with pytest.raises(DataError, match="1 names are on one side only"):
        Domains(DomainOptions(pairs=str(tmp_path)))


@pytest.mark.skipif(not HOSTILE.is_dir(), reason="needs the shared clips")
def test_hostile_files(caplog, random):
    with caplog.at_level(logging.WARNING):
        domains = Domains(DomainOptions(x=str(HOSTILE), size=32, frames=4, held_out=0))
    named = " ".join(record.message for record in caplog.records)
    for name in ("one_frame", "zero_byte", "text_named", "truncated_no_index", "truncated_with_index"):
        assert f"{name}.mp4" in named
    for name in ("odd_65x47.mp4", "with_audio", "variable_frame_rate", "gray16"):
        assert name not in named
    assert domains.batch("x", 20, random).shape == (20, 4, 3, 32, 32)


def test_the_command(tmp_path, random):
    from typer.testing import CliRunner

    from reelign.cli.main import app

    command = [
        "data",
        "translation",
        str(tmp_path / "d"),
        *["--clips", "3", "--pairs", "2", "--size", "32", "--frames", "4"],
    ]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert f"3 clips in {tmp_path}/d/x and {tmp_path}/d/y each, 2 pairs" in result.output.replace("\n", "")
    x, y, pairs = (str(tmp_path / "d" / name) for name in ("x", "y", "pairs"))
    domains = Domains(DomainOptions(x=x, y=y, pairs=pairs, size=32, frames=4))
    assert domains.batch("x", 1, random).mean() > 0.5 > domains.batch("y", 1, random).mean()
    day, night = domains.pair(2, random)
    assert day.mean() > 0.5 > night.mean()
    with pytest.raises(RunFolderError, match="new or empty folder"):
        CliRunner().invoke(app, command, catch_exceptions=False)
