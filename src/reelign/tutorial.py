"""The tutorial's toolbox: familiar names over what reelign has, each a few lines.

    ToyDataset               moving shapes with the captions that describe them
    create_video_gif, create_video_comparison, save_video_grid
    compute_all_metrics      consistency, likeness to the prompt, PSNR, SSIM with a local window, frames a second
    TrainingPlotter          curves

Clips are float [T,3,H,W] in [0,1], rescaled once, when they are written; one in [-1,1] is refused. A bare file name
will do for a path. No function touches a global random state.

Run: the scripts in ``docs/tutorials/self_forcing``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from reelign.contracts import Request, VideoBatch
from reelign.datasets.moving_shapes import MovingShapes, ShapeSpec, random_spec
from reelign.errors import DataError
from reelign.metrics.clip import Undefined, measure
from reelign.metrics.flicker import TemporalFlickering
from reelign.metrics.full_reference import compare
from reelign.plots.curves import INK, SIZE, STYLE, plain_axes
from reelign.plots.over_time import COLOURS
from reelign.rewards.clip_similarity import ClipSimilarity
from reelign.video_io import replacing, write_gif

PAPER, GAP, STRIP, FONT_SIZE = (250, 249, 246), 4, 20, 13  # pixels
TEXT = (28, 29, 31)


class ToyDataset:
    """Captioned clips of moving shapes, drawn when asked for: clip i is the same whenever it is drawn.

    Args:
        num_samples: how many clips.
        width, height: of a clip in pixels, equal.
        num_frames: of a clip; 17 at 64 pixels are what ``zoo:tiny-wan`` makes.
        seed: of everything.
    """

    def __init__(
        self, num_samples: int = 100, width: int = 64, height: int = 64, num_frames: int = 17, seed: int = 42
    ) -> None:
        if num_samples < 1 or width != height:
            raise DataError(f"toy clips are at least 1, and square; got {num_samples} of {width}x{height}")
        self.data = MovingShapes(frames=num_frames, size=width)
        self.seed = seed
        random = torch.Generator().manual_seed(seed)
        self.specs: list[ShapeSpec] = [random_spec(random) for _ in range(num_samples)]
        self.prompts = [spec.caption for spec in self.specs]

    def __len__(self) -> int:
        return len(self.specs)

    def __getitem__(self, idx: int) -> dict[str, object]:
        """``{"video": [T,3,H,W] in [0,1], "prompt": its caption, "idx": idx}``."""
        if not 0 <= idx < len(self):
            raise IndexError(f"clips run from 0 to {len(self) - 1}; asked for {idx}")
        random = torch.Generator().manual_seed(1_000_003 * self.seed + idx)
        return {"video": self.data.render([self.specs[idx]], random)[0], "prompt": self.prompts[idx], "idx": idx}

    def batch(self, rows: Sequence[int]) -> Request:
        """Clips and their captions as reelign's algorithms take them."""
        videos = [self[row]["video"] for row in rows]
        return Request(tuple(self.prompts[row] for row in rows), source_videos=torch.stack(videos))  # type: ignore[arg-type]

    def save_prompts(self, output_path: str | Path) -> None:
        """Write the captions to a text file, one a line, in order."""
        save_prompts(self.prompts, output_path)

    def save_metadata(self, output_path: str | Path) -> None:
        """Write how the clips are drawn, and their captions, as JSON."""
        about = {"num_samples": len(self), "width": self.data.size, "height": self.data.size}
        about |= {"num_frames": self.data.frames, "seed": self.seed}
        record = {**about, "fps": self.data.fps, "prompts": self.prompts}
        with replacing(Path(output_path)) as part:
            part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def save_prompts(prompts: Sequence[str], output_path: str | Path) -> None:
    """Write prompts to a text file, one a line, as ``reelign generate`` and ``load_prompts`` read them."""
    with replacing(Path(output_path)) as part:
        part.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")


def create_video_gif(video: Tensor, output_path: str | Path, fps: float = 8, duration: float | None = None) -> None:
    """Write a looping GIF.

    Args:
        video: [T,3,H,W] in [0,1].
        fps: frames per second.
        duration: of one frame in *seconds*; takes the place of ``fps``.
    """
    if duration is not None and not duration > 0:
        raise DataError(f"duration is the seconds that a frame stays, above 0; got {duration:g}")
    write_gif(Path(output_path), video, fps if duration is None else 1 / duration)


def create_video_comparison(
    video1: Tensor,
    video2: Tensor,
    output_path: str | Path,
    label1: str = "Video 1",
    label2: str = "Video 2",
    fps: float = 8,
) -> None:
    """Write two clips side by side as a GIF, labels above them; the clip that ends first holds its last frame."""
    frames = max(len(video1), len(video2))
    pictures = []
    for t in range(frames):
        sides = [_picture(video[min(t, len(video) - 1)]) for video in (video1, video2)]
        pictures.append(np.asarray(_page(sides, (label1, label2), 2)))
    write_gif(Path(output_path), torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255, fps)


def save_video_grid(
    videos: Sequence[Tensor], output_path: str | Path, prompts: Sequence[str] | None = None, ncols: int = 3
) -> None:
    """Write the middle frames of clips as one picture, prompts above them.

    Raises:
        DataError: no clip, or not one prompt a clip.
    """
    if not videos or ncols < 1 or (prompts is not None and len(prompts) != len(videos)):
        given = "no prompts" if prompts is None else f"{len(prompts)} prompts"
        raise DataError(f"a grid takes clips, a prompt each, and columns; got {len(videos)}, {given} and {ncols}")
    pictures = [_picture(video[len(video) // 2]) for video in videos]
    page = _page(pictures, prompts or [""] * len(videos), ncols)
    with replacing(Path(output_path)) as part:
        page.save(part, "PNG")


def compute_all_metrics(
    videos: Sequence[Tensor],
    prompts: Sequence[str],
    ground_truth_videos: Sequence[Tensor] | None = None,
    generation_times: Sequence[float] | None = None,
) -> dict[str, float]:
    """Mean over clips of everything that can be said of them; ``NAME_std`` is the spread, 0 for a single clip.

    What is undefined for a clip is left out of its mean.

    - ``frame_consistency``: (255 − mean |I_t − I_{t+1}|)/255 (VBench's temporal flickering); 1 is a still clip, so it
      falls with motion as with flicker.
    - ``clip_score``: likeness of frames and prompt, by the zoo's CLIP, which knows moving shapes and nothing else.
    - ``psnr``, ``ssim``, with ``ground_truth_videos``: pooled PSNR in dB, and SSIM with the usual 11×11 window. Clips
      equal to their truth have no PSNR; ``psnr_identical`` counts them.
    - ``fps``, with ``generation_times`` in seconds: frames made a second.

    Raises:
        DataError: no clip, or the lists differ in length.
    """
    for name, other in (("prompts", prompts), ("ground truths", ground_truth_videos), ("times", generation_times)):
        if not videos or (other is not None and len(other) != len(videos)):
            raise DataError(f"one of each a clip: {len(videos)} clips, {'no' if other is None else len(other)} {name}")
    found: dict[str, list[float | Undefined]] = defaultdict(list)
    reward = ClipSimilarity()
    for index, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
        levels = _levels(video)
        found["frame_consistency"] += measure(levels, 1.0, [TemporalFlickering()]).values()
        with torch.no_grad():
            found["clip_score"].append(reward(VideoBatch(video[None].float(), 8.0, Request((prompt,)))).item())
        if ground_truth_videos is not None:
            likeness = compare(_levels(ground_truth_videos[index]), levels)
            found["ssim"].append(likeness["ssim"])
            found["psnr"].append(likeness["psnr_pooled"])
        if generation_times is not None:
            found["fps"].append(_speed(len(video), generation_times[index]))
    results: dict[str, float] = {}
    if ground_truth_videos is not None:
        results["psnr_identical"] = float(sum(isinstance(value, Undefined) for value in found["psnr"]))
    for name, values in found.items():
        if known := [value for value in values if not isinstance(value, Undefined)]:
            results |= {name: float(np.mean(known)), f"{name}_std": float(np.std(known))}
    return results


class TrainingPlotter:
    """Keeps what training logs and draws it.

    Args:
        save_dir: where pictures go unless told otherwise.
    """

    def __init__(self, save_dir: str | Path = "plots") -> None:
        self.save_dir = Path(save_dir)
        self.metrics_history: dict[str, dict[str, list[float]]] = {}

    def log_metric(self, name: str, value: float, step: int) -> None:
        """Keep one value."""
        history = self.metrics_history.setdefault(name, {"steps": [], "values": []})
        history["steps"].append(step)
        history["values"].append(float(value))

    def plot_metric(
        self,
        metric_name: str,
        title: str | None = None,
        ylabel: str | None = None,
        save_path: str | Path | None = None,
    ) -> Path:
        """Draw one metric; the file is named after it unless ``save_path`` says otherwise."""
        return self._draw(
            [metric_name], title or metric_name, save_path or self.save_dir / f"{metric_name}.png", ylabel or ""
        )

    def plot_multiple_metrics(
        self, metric_names: Sequence[str], title: str = "training", save_path: str | Path | None = None
    ) -> Path:
        """Draw several metrics on one axis."""
        return self._draw(list(metric_names), title, save_path or self.save_dir / "all_metrics.png", "")

    def plot_loss_components(
        self, loss_components: Mapping[str, Sequence[float]], steps: Sequence[int], save_path: str | Path | None = None
    ) -> Path:
        """Draw parts of a loss over steps, on a logarithmic axis, so all of them above 0."""
        if low := [name for name, values in loss_components.items() if not min(values) > 0]:
            raise DataError(f"a logarithmic axis shows values above 0; {low[0]} has {min(loss_components[low[0]]):g}")
        kept = self.metrics_history
        self.metrics_history = {n: {"steps": list(steps), "values": list(v)} for n, v in loss_components.items()}
        try:
            names = list(loss_components)
            return self._draw(names, "loss", save_path or self.save_dir / "loss_components.png", "", logarithmic=True)
        finally:
            self.metrics_history = kept

    def save_history(self, filepath: str | Path) -> None:
        """Write everything logged as JSON."""
        with replacing(Path(filepath)) as part:
            part.write_text(json.dumps(self.metrics_history, indent=2) + "\n", encoding="utf-8")

    def load_history(self, filepath: str | Path) -> None:
        """Read back what ``save_history`` wrote."""
        self.metrics_history = json.loads(Path(filepath).read_text(encoding="utf-8"))

    def _draw(self, names: list[str], title: str, path: str | Path, ylabel: str, *, logarithmic: bool = False) -> Path:
        if missing := [name for name in names if name not in self.metrics_history]:
            raise DataError(f"only what was logged can be drawn: {', '.join(self.metrics_history)}; got {missing[0]!r}")
        path = Path(path)
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(1.4 * SIZE[0], 1.4 * SIZE[1]), layout="constrained")
            axes = figure.subplots()
            for name, colour in zip(names, COLOURS * len(names), strict=False):
                history = self.metrics_history[name]
                axes.plot(history["steps"], history["values"], color=colour, linewidth=1.6, label=name)
            plain_axes(axes)
            axes.set_title(title, loc="left", color=INK)
            axes.set_ylabel(ylabel, color=INK)
            if logarithmic:
                axes.set_yscale("log")
            if len(names) > 1:
                axes.legend(frameon=False)
            with replacing(path) as part:
                figure.savefig(part, dpi=130, format="png")
        return path


def _levels(video: Tensor) -> list[np.ndarray]:
    """Frames as uint8 pictures [H,W,3]."""
    return [np.asarray(_picture(frame)) for frame in video]


def _picture(frame: Tensor) -> Image.Image:
    """A frame [3,H,W] in [0,1] as a picture: the one place where values are rescaled."""
    low, high = (bound.item() for bound in torch.aminmax(frame.detach()))
    if frame.ndim != 3 or not (low >= -1e-3 and high <= 1 + 1e-3):
        raise DataError(
            f"a clip is [T,3,H,W] in [0,1]; got a frame of shape {tuple(frame.shape)} in [{low:.3g}, {high:.3g}]: "
            "values of [-1,1] become (x + 1)/2"
        )
    levels = frame.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def _page(pictures: Sequence[Image.Image], labels: Sequence[str], columns: int) -> Image.Image:
    """Pictures in rows, labels above them; small ones are enlarged, pixel by pixel, to have room for words."""
    scale = max(1, -(-160 // max(picture.width for picture in pictures)))
    cells = [p.resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST) for p in pictures]
    width, height = max(c.width for c in cells) + GAP, max(c.height for c in cells) + STRIP + GAP
    columns = min(columns, len(cells))
    page = Image.new("RGB", (columns * width + GAP, -(-len(cells) // columns) * height), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(FONT_SIZE)
    for index, (cell, label) in enumerate(zip(cells, labels, strict=True)):
        left, top = GAP + index % columns * width, index // columns * height
        while label and draw.textlength(label, font) > width - GAP:
            label = label[:-2].rstrip() + "…" if len(label) > 2 else ""
        draw.text((left, top + 2), label, TEXT, font)
        page.paste(cell, (left, top + STRIP))
    return page


def _speed(frames: int, seconds: float) -> float:
    if not seconds > 0:
        raise DataError(f"making a clip takes time; got {seconds:g} s")
    return frames / seconds
