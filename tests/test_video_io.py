"""Reading and writing clips: round trips, every ordinary and hostile file, and damage that codecs don't notice."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from reelign.errors import ClipError, ContractError, DataError, RunFolderError
from reelign.video_io import find_clips, read_clip, replacing, write_clip, write_gif

CLIPS = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "clips"
HOSTILE = CLIPS / "hostile"
av = pytest.importorskip("av")
shared = pytest.mark.skipif(not CLIPS.is_dir(), reason=f"the shared test clips are not here: {CLIPS}")


def manifest(kind_is_hostile: bool) -> list[dict[str, str]]:
    if not CLIPS.is_dir():
        return []
    with (CLIPS / "manifest.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if (row["kind"] == "hostile") is kind_is_hostile]


def by_name(row: dict[str, str]) -> str:
    return row["file"]


def smooth(frames: int = 8, height: int = 48, width: int = 64) -> torch.Tensor:
    """A grey ramp along x that brightens with time, warmer to the bottom: [T,3,H,W]."""
    t, y, x = torch.meshgrid(
        torch.linspace(0, 0.3, frames),
        torch.linspace(-0.15, 0.15, height),
        torch.linspace(0.2, 0.5, width),
        indexing="ij",
    )
    return torch.stack([x + t + y, x + t, x + t - y], 1)


def write_raw(
    path: Path, pictures: list[np.ndarray], codec: str, pixels: str, source: str = "rgb24", setup=None
) -> None:
    """A file straight from PyAV, for what ``write_clip`` never writes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        if setup:
            setup(stream)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, source)))
        container.mux(stream.encode())


def test_what_is_written_is_read_back(tmp_path):
    video = smooth()
    write_clip(tmp_path / "new" / "a.mp4", video, 12.5)
    clip = read_clip(tmp_path / "new" / "a.mp4")
    assert clip.video.shape == video.shape
    assert clip.video.dtype == torch.float32
    assert clip.fps == 12.5
    assert clip.notes == ()
    assert (clip.video - video).abs().max() < 0.035
    assert (clip.video - video).mean((0, 2, 3)).abs().max() < 0.004  # no channel drifts: matrix and range agree
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0), (0.9, 0.5, 0.1)])
def test_pure_colours_survive(tmp_path, colour):
    video = torch.tensor(colour, dtype=torch.float32).view(1, 3, 1, 1).expand(3, 3, 32, 32)
    write_clip(tmp_path / "a.mp4", video, 8)
    read = read_clip(tmp_path / "a.mp4").video
    assert (read - video).abs().max() < 0.012  # three of 255 levels: what 8-bit limited-range YUV can hold


def test_odd_sizes_are_padded_with_their_edge(tmp_path):
    video = smooth(4, 47, 63)
    write_clip(tmp_path / "a.mp4", video, 8)
    read = read_clip(tmp_path / "a.mp4").video
    assert read.shape == (4, 3, 48, 64)
    assert (read[..., :47, :63] - video).abs().max() < 0.03
    assert (read[..., 47, :] - read[..., 46, :]).abs().max() < 0.03
    assert (read[..., :, 63] - read[..., :, 62]).abs().max() < 0.03


@pytest.mark.parametrize("fps", [1, 23.976, 29.97, 60])
def test_frame_rate_is_kept(tmp_path, fps):
    write_clip(tmp_path / "a.mp4", smooth(5, 16, 16), fps)
    clip = read_clip(tmp_path / "a.mp4")
    assert clip.fps == pytest.approx(fps, rel=1e-5)
    assert len(clip.video) == 5


def test_written_clip_suits_browsers(tmp_path):
    write_clip(tmp_path / "a.mp4", smooth().double().requires_grad_(), 8)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is loaded whole
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range) == (1, 1)


@pytest.mark.parametrize(
    ("video", "fps", "error"),
    [
        (torch.zeros(3, 8, 8), 8, "shape"),
        (torch.zeros(2, 1, 8, 8), 8, "shape"),
        (torch.zeros(0, 3, 8, 8), 8, "shape"),
        (torch.full((2, 3, 8, 8), 255.0), 8, r"\[0,1\]; got \[255, 255\]"),
        (torch.full((2, 3, 8, 8), float("nan")), 8, "NaN"),
        (torch.zeros(2, 3, 8, 8), 0, "above 0; got 0"),
    ],
)
def test_wrong_videos_are_refused(tmp_path, video, fps, error):
    for write, name in ((write_clip, "a.mp4"), (write_gif, "a.gif")):
        with pytest.raises(ContractError, match=error):
            write(tmp_path / name, video, fps)
    assert list(tmp_path.iterdir()) == []


def test_only_mp4_is_written(tmp_path):
    with pytest.raises(DataError, match="webm"):
        write_clip(tmp_path / "a.webm", smooth(), 8)


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for write, name in ((write_clip, "a.mp4"), (write_gif, "a.gif")):
        with pytest.raises(RunFolderError, match="cannot write"):
            write(tmp_path / "file" / name, smooth(), 8)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing(tmp_path / "a") as part:
        part.write_text("half \ud800", "utf-8")
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("fps", [8, 12, 24])
def test_gif_round_trip(tmp_path, fps):
    video = smooth(12)
    write_gif(tmp_path / "a.gif", video, fps)
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in (tmp_path / "a.gif").read_bytes()  # loops for ever
    clip = read_clip(tmp_path / "a.gif")
    assert clip.video.shape == video.shape
    assert clip.fps == pytest.approx(fps, rel=0.01)
    assert (clip.video - video).abs().max() < 0.1


def test_gif_that_browsers_would_slow_down_is_refused(tmp_path):
    with pytest.raises(DataError, match="at most 50"):
        write_gif(tmp_path / "a.gif", smooth(), 60)


def test_only_so_many_frames(tmp_path):
    video = smooth(8)
    write_clip(tmp_path / "a.mp4", video, 8)
    clip = read_clip(tmp_path / "a.mp4", max_frames=3)
    assert clip.notes == ("only the first 3 of 8 frames were read",)
    assert len(clip.video) == 3
    assert (clip.video - video[:3]).abs().max() < 0.035
    assert clip.fps == 8
    assert read_clip(tmp_path / "a.mp4", max_frames=8).notes == ()
    with pytest.raises(DataError, match="max_frames=0"):
        read_clip(tmp_path / "a.mp4", max_frames=0)


def test_resizing_is_antialiased(tmp_path):
    checks = (torch.arange(64) % 2).float().expand(2, 3, 64, 64)
    write_clip(tmp_path / "a.mp4", checks, 8, crf=1)
    small = read_clip(tmp_path / "a.mp4", size=(16, 24)).video
    assert small.shape == (2, 3, 16, 24)
    assert (small - 0.5).abs().max() < 0.1  # stripes finer than a pixel give grey, not a moiré


@pytest.mark.skipif(not hasattr(av.video.stream.VideoStream, "set_display_rotation"), reason="PyAV is too old to tag")
@pytest.mark.parametrize(
    ("degrees", "mirrored"), [(0, False), (90, False), (180, False), (-90, False), (0, True), (90, True)]
)
def test_tags_turn_and_mirror(tmp_path, degrees, mirrored):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:8, :8] = 255  # top left

    def tag(stream):
        stream.set_display_rotation(degrees, hflip=mirrored)

    write_raw(tmp_path / "a.mov", [picture] * 2, "libx264", "yuv444p", setup=tag)
    read = read_clip(tmp_path / "a.mov").video[0].mean(0)
    # FFmpeg's angle is counter-clockwise, and av_display_matrix_flip mirrors what is already turned.
    turned = np.rot90(picture, degrees // 90)
    shown = torch.from_numpy((turned[:, ::-1] if mirrored else turned).copy()).float().mean(-1) / 255
    assert read.shape == shown.shape
    assert (read - shown).abs().mean() < 0.02
    resized = read_clip(tmp_path / "a.mov", size=(20, 10)).video
    assert resized.shape[-2:] == (20, 10)


def test_sixteen_bits_stay_sixteen(tmp_path):
    grey = np.linspace(0, 65535, 64 * 16).reshape(16, 64).astype(np.uint16)
    write_raw(tmp_path / "a.mkv", [grey] * 2, "ffv1", "gray16le", source="gray16le")
    read = read_clip(tmp_path / "a.mkv").video
    assert (read[0, 0] - torch.from_numpy(grey.astype(np.float32)) / 65535).abs().max() < 1e-4  # 8 bits: 2e-3


@shared
@pytest.mark.parametrize("row", manifest(False), ids=by_name)
def test_ordinary_clips(row):
    if int(row["width"]) * int(row["height"]) * int(row["frames"]) > 4e7:
        clip = read_clip(CLIPS / row["file"], size=(int(row["height"]) // 4, int(row["width"]) // 4))
        assert tuple(clip.video.shape[2:]) == (int(row["height"]) // 4, int(row["width"]) // 4)
    else:
        clip = read_clip(CLIPS / row["file"])
        assert tuple(clip.video.shape[2:]) == (int(row["height"]), int(row["width"]))
    assert len(clip.video) == int(row["frames"])
    assert clip.fps == pytest.approx(float(row["fps"]), rel=1e-3)
    assert clip.notes == ()
    assert clip.video.std() > 0.05


BROKEN = {
    "hostile/zero_byte.mp4": r"empty file \(0 bytes\)",
    "hostile/text_named.mp4": "cannot be opened as a video",
    "hostile/truncated_no_index.mp4": "truncated: 2552 of 4040 bytes",
    "hostile/truncated_with_index.mp4": r"damaged: 6 of 24 announced frames decode \(5650 of 9418 bytes",
    "hostile/decord_corrupted.mp4": "damaged: 49 of 50 announced frames decode",
}


@shared
@pytest.mark.parametrize("row", manifest(True), ids=by_name)
def test_hostile_clips(row):
    path = CLIPS / row["file"]
    if row["file"] in BROKEN:
        with pytest.raises(ClipError, match=BROKEN[row["file"]]) as caught:
            read_clip(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)
        if not row["frames"]:
            with pytest.raises(ClipError):
                read_clip(path, strict=False)
            return
    clip = read_clip(path, strict=row["file"] not in BROKEN)
    size = (int(row["height"]), int(row["width"]))
    assert tuple(clip.video.shape) == (int(row["frames"]), 3, *(size[::-1] if row["rotation"] == "-90" else size))
    assert clip.fps == pytest.approx(float(row["fps"]), rel=1e-3)
    assert any("damaged" in note for note in clip.notes) == (row["file"] in BROKEN)


@shared
@pytest.mark.parametrize(("name", "turns"), [("decord_rotated_90.mov", -1), ("decord_rotated_180.mov", 2)])
def test_rotation_is_applied_to_the_picture(name, turns):
    with av.open(str(HOSTILE / name)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    upright = torch.from_numpy(np.rot90(stored, turns).copy()).permute(2, 0, 1) / 255
    read = read_clip(HOSTILE / name).video[0]
    assert (read - upright).abs().mean() < 0.01
    assert (read - upright.flip(1, 2)).abs().mean() > 0.05  # the test could tell


@shared
def test_known_content_of_hostile_clips():
    assert read_clip(HOSTILE / "decord_unordered.mov").video.min() > 0.98  # all white
    clip = read_clip(HOSTILE / "variable_frame_rate.mp4")
    assert clip.fps == pytest.approx(20 / (1.486 + 0.0333), rel=1e-3)
    assert clip.notes == ("variable frame rate: 13.16 a second on average",)
    grey = read_clip(HOSTILE / "gray16.mkv").video
    with av.open(str(HOSTILE / "gray16.mkv")) as container:
        stored = next(container.decode(video=0)).to_ndarray().astype(np.float32) / 65535
    for channel in grey[0]:
        assert (channel - torch.from_numpy(stored)).abs().max() < 1e-4
    webm, mp4 = (read_clip(HOSTILE / f"odd_65x47{suffix}").video for suffix in (".webm", ".mp4"))
    assert (webm - mp4).abs().mean() < 0.03  # the same pictures by two codecs, last odd column included
    assert (webm - mp4)[..., -1].abs().mean() < 0.05


@shared
def test_colours_match_the_standard():
    """BT.601 limited range by hand, on pixels whose chroma is flat: Y' = 16 + 219·luma (ITU-R BT.601, 2.5.1)."""
    with av.open(str(CLIPS / "videoscore_video1.mp4")) as container:
        frame = next(container.decode(video=0))
    planes = [np.frombuffer(bytes(p), np.uint8).reshape(-1, p.line_size)[:, : p.width] for p in frame.planes]
    y, u, v = (plane.astype(np.float64) for plane in planes)
    u, v = (np.kron(plane - 128, np.ones((2, 2))) / 224 for plane in (u, v))
    luma = (y - 16) / 219
    rgb = np.stack([luma + 1.402 * v, luma - 0.344136 * u - 0.714136 * v, luma + 1.772 * u]).clip(0, 1)
    read = read_clip(CLIPS / "videoscore_video1.mp4", max_frames=1).video[0].double().numpy()
    assert np.abs((read - rgb).mean((1, 2))).max() < 0.0015  # swscale's fast path is 0.005 too dark


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".avi", ".gif"])
@pytest.mark.parametrize("kept", [0.4, 0.75, 0.95])
def test_cut_files_never_pass_for_shorter_clips(tmp_path, suffix, kept):
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    codec, pixels = {
        ".mp4": ("libx264", "yuv420p"),
        ".webm": ("libvpx-vp9", "yuv420p"),
        ".mkv": ("ffv1", "yuv420p"),
        ".avi": ("mpeg4", "yuv420p"),
        ".gif": ("gif", "rgb8"),
    }[suffix]
    noise = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    write_raw(whole, list(noise), codec, pixels)
    assert len(read_clip(whole).video) == 12
    data = whole.read_bytes()
    cut.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ClipError, match=r"truncated|damaged|no frame decodes|bytes are there|cannot be opened"):
        read_clip(cut)


def test_file_cut_between_two_frames(tmp_path):
    write_clip(tmp_path / "a.mp4", smooth(8), 8)
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: packets[5]])  # the decoder sees nothing wrong
    with pytest.raises(ClipError, match=rf"of 8 announced frames decode \({packets[5]} of {len(data)} bytes"):
        read_clip(tmp_path / "a.mp4")


def test_pictures_patched_over_lost_data_are_damage(tmp_path):
    noise = torch.rand(12, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "a.mp4"
    write_clip(path, (smooth(12) + 0.1 * noise).clamp(0, 1), 8)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    whole, reasons = path.read_bytes(), []
    for start, size in packets:
        data = bytearray(whole)
        data[start + size // 4] ^= 0x55
        path.write_bytes(data)
        try:
            read_clip(path)  # a changed byte may also be a valid stream, of another picture
        except ClipError as error:
            reasons.append(str(error))
    patched = "12 of 12 announced frames decode (a frame is patched over lost data)"
    assert any(patched in reason for reason in reasons)  # FFmpeg itself raises nothing here


def test_other_things_than_clips(tmp_path):
    with pytest.raises(ClipError, match="No such file"):
        read_clip(tmp_path / "missing.mp4")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(ClipError, match="cannot be opened"):
        read_clip(tmp_path / "folder.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match="only sound"):
        read_clip(tmp_path / "sound.mp4")
    write_clip(tmp_path / "a.mp4", smooth(), 8)
    data = (tmp_path / "a.mp4").read_bytes().replace(b"avc1", b"zzz9").replace(b"avcC", b"zzzC")
    (tmp_path / "codec.mp4").write_bytes(data)
    with pytest.raises(ClipError, match="unknown codec"):
        read_clip(tmp_path / "codec.mp4")


@pytest.mark.skipif(os.name != "posix", reason="colons are file names on POSIX only")
def test_names_that_look_like_protocols(tmp_path, monkeypatch):
    write_clip(tmp_path / "concat:b.mp4", smooth(3), 8)
    monkeypatch.chdir(tmp_path)
    assert len(read_clip("concat:b.mp4").video) == 3


def test_find_clips(tmp_path):
    for name in ("b.MP4", "a/z.webm", "a/c.gif", "notes.txt", ".hidden/x.mp4", "._b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in find_clips(tmp_path)] == ["a/c.gif", "a/z.webm", "b.MP4"]
    with pytest.raises(DataError, match="not there"):
        find_clips(tmp_path / "nowhere")


def test_the_same_clip_gives_the_same_bytes(tmp_path):
    """Takes are known by the hash of their bytes; x264's macroblock tree gave four to ten different files of 25."""
    video = torch.rand(17, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    smooth = torch.nn.functional.avg_pool3d(video.transpose(0, 1)[None], 5, 1, 2)[0].transpose(0, 1)
    files = set()
    for _ in range(25):
        write_clip(tmp_path / "a.mp4", smooth, 8)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1
