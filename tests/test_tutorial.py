"""The tutorial: its toolbox says and draws what it should, and its scripts run."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import structural_similarity

from reelign.datasets.moving_shapes import parse_caption
from reelign.datasets.prompts import load_prompts
from reelign.errors import ReelignError
from reelign.metrics.shapes_instrument import read_clips
from reelign.tutorial import (
    ToyDataset,
    TrainingPlotter,
    compute_all_metrics,
    create_video_comparison,
    create_video_gif,
    save_video_grid,
)
from reelign.video_io import read_clip

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "self_forcing"
SCRIPTS = sorted(FOLDER.glob("0*.py"))


@pytest.fixture(autouse=True)
def _somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that bare file names have a place


def test_captions_describe_the_clips():
    data = ToyDataset(num_samples=12)
    clips = torch.stack([item["video"] for item in data])
    right = [
        all(reading.agrees(parse_caption(prompt)).values())
        for reading, prompt in zip(read_clips(clips), data.prompts, strict=True)
    ]
    assert len(right) == 12
    assert sum(right) >= 11


def test_a_clip_does_not_depend_on_what_was_drawn_before_and_no_global_state_moves():
    torch.manual_seed(7)
    np.random.seed(7)
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    data = ToyDataset(num_samples=5, seed=3)
    late = data[4]["video"]
    assert torch.equal(late, ToyDataset(num_samples=5, seed=3)[4]["video"])
    assert not torch.equal(late, ToyDataset(num_samples=5, seed=4)[4]["video"])
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.random.get_state()[1].tolist() == numpy_before
    request = data.batch([1, 4])
    assert request.prompts == (data.prompts[1], data.prompts[4])
    assert torch.equal(request.source_videos[1], late)


def test_prompts_and_metadata_are_files_by_bare_names():
    data = ToyDataset(num_samples=6)
    data.save_prompts("prompts.txt")
    data.save_metadata("about.json")
    assert load_prompts("prompts.txt") == list(dict.fromkeys(data.prompts))
    assert json.loads(Path("about.json").read_text())["prompts"] == data.prompts


def test_a_gif_keeps_its_colours_and_its_time():
    """Rescaled once: grey levels come back as they were; a duration is in seconds."""
    video = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, 3, 16, 16)
    create_video_gif(video, "clip.gif", duration=0.2)
    back = read_clip("clip.gif")
    assert back.video[:, 0, 0, 0].tolist() == pytest.approx(video[:, 0, 0, 0].tolist(), abs=0.01)
    assert back.fps == pytest.approx(5)
    create_video_gif(video, "fast.gif", fps=10)
    assert read_clip("fast.gif").fps == pytest.approx(10)


def test_grids_and_comparisons_show_each_clip():
    red, blue = (torch.zeros(4, 3, 32, 32) for _ in range(2))
    red[:, 0], blue[:, 2] = 1, 1
    save_video_grid([red, blue, red], "grid.png", ["a red square", "a blue one, with a caption longer than it", "x"], 2)
    page = np.asarray(Image.open("grid.png"))
    colours = [page[y, x].tolist() for y, x in ((60, 60), (60, 260), (260, 60))]
    assert colours == [[255, 0, 0], [0, 0, 255], [255, 0, 0]]
    create_video_comparison(red, blue[:2], "two.gif", "before", "after")
    clip = read_clip("two.gif").video
    assert clip[-1, :, 60, 60].tolist() == pytest.approx([1, 0, 0], abs=0.02)
    assert clip[-1, :, 60, 260].tolist() == pytest.approx([0, 0, 1], abs=0.02)


def test_metrics_against_others():
    data = ToyDataset(num_samples=3)
    truth = [item["video"] for item in data]
    noisy = [(clip + 0.05 * torch.randn(clip.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
             for clip in truth]  # fmt: skip
    found = compute_all_metrics(noisy, data.prompts, truth, [2.0, 4.0, 8.0])
    levels = [(255 * clip).round().permute(0, 2, 3, 1).numpy() for clip in (noisy[0], truth[0])]
    first = compute_all_metrics(noisy[:1], data.prompts[:1], truth[:1])
    error = ((levels[0] - levels[1]) ** 2).mean()
    assert first["psnr"] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-4)
    grey = [np.round(side @ np.array([0.299, 0.587, 0.114])) for side in levels]
    expected = np.mean([
        structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        for a, b in zip(*grey, strict=True)
    ])  # fmt: skip
    assert first["ssim"] == pytest.approx(expected, abs=2e-3)
    assert found["fps"] == pytest.approx(np.mean([17 / 2, 17 / 4, 17 / 8]))
    swapped = compute_all_metrics(noisy, [*data.prompts[1:], data.prompts[0]])
    assert swapped["clip_score"] < found["clip_score"]
    still = compute_all_metrics([truth[0][:1].expand(4, -1, -1, -1)], data.prompts[:1])
    assert still["frame_consistency"] == 1
    assert "psnr" not in still
    same = compute_all_metrics(truth[:1], data.prompts[:1], truth[:1])
    assert same["psnr_identical"] == 1
    assert "psnr" not in same


def test_curves_are_kept_and_drawn():
    plotter = TrainingPlotter("plots")
    for step in range(5):
        plotter.log_metric("loss", 1 / (step + 1), step)
        plotter.log_metric("other", step, step)
    assert plotter.plot_metric("loss") == Path("plots/loss.png")
    assert plotter.plot_metric("loss", save_path="mine.png").is_file()
    assert plotter.plot_multiple_metrics(["loss", "other"]).is_file()
    assert plotter.plot_loss_components({"a": [1.0, 0.1], "b": [2.0, 0.2]}, [0, 1]).is_file()
    plotter.save_history("history.json")
    again = TrainingPlotter()
    again.load_history("history.json")
    assert again.metrics_history == plotter.metrics_history


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ToyDataset(num_samples=0), "at least 1"),
        (lambda: ToyDataset(2, 64, 32), "64x32"),
        (lambda: create_video_gif(torch.rand(2, 3, 8, 8) * 2 - 1, "a.gif"), "lie in"),
        (lambda: create_video_gif(torch.rand(2, 3, 8, 8), "a.gif", duration=0.0), "duration"),
        (lambda: save_video_grid([torch.rand(2, 3, 8, 8) * 2 - 1], "a.png"), r"\(x \+ 1\)/2"),
        (lambda: save_video_grid([torch.rand(2, 3, 8, 8)], "a.png", ["one", "two"]), "2 prompts"),
        (lambda: compute_all_metrics([torch.rand(2, 3, 16, 16)], []), "0 prompts"),
        (lambda: compute_all_metrics([torch.rand(2, 3, 16, 16)], ["a"], None, [0.0]), "takes time"),
        (lambda: TrainingPlotter().plot_metric("loss"), "'loss'"),
        (lambda: TrainingPlotter().plot_loss_components({"a": [0.0]}, [1]), "above 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ReelignError, match=message):
        call()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_run(script, tmp_path, monkeypatch, capsys):
    """Each part, in its short form; it asserts what it claims."""
    monkeypatch.setenv("TUTORIAL_SHORT", "1")
    monkeypatch.setenv("TUTORIAL_OUT", str(tmp_path))
    monkeypatch.delenv("TUTORIAL_WEIGHTS", raising=False)
    monkeypatch.delitem(sys.modules, "toolbox", raising=False)  # it reads the settings when it is imported
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out, "a part says what it measured"
    assert any(tmp_path.glob("*.png")), "a part draws something"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_pages_are_what_the_scripts_say(script):
    """A page has its script's words and code; its figures are there, and small."""
    render = runpy.run_path(str(FOLDER.parent / "render.py"))
    text = script.with_suffix(".md").read_text(encoding="utf-8")
    assert render["without_outputs"](text) == render["page"](script.read_text(encoding="utf-8"))
    for figure in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (FOLDER / figure).stat().st_size <= 300 * 1024


def test_there_are_seven_parts():
    assert len(SCRIPTS) == 7
