"""Memory of a long clip is that of a short one; memory and time of each network at its published size.

Run: ``python -m pytest -m slow -s tests/test_model_metrics_cost.py``.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

HEIGHT, WIDTH = 480, 832
SHORT, LONG = 16, 316
ALLOWED_MB = 90  # 300 frames more are 359 MB as bytes and 1,438 MB as floats
LIMIT_MB = 2000
NAMES = ("subject_consistency", "background_consistency", "imaging_quality", "lpips_consecutive")


def build(name: str, folder: Path):
    """A metric with the zoo's weights, or with random ones at the published size from files in ``folder``."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    from reelign.metrics import consistency_models, imaging_quality, lpips, musiq

    if name == "tiny":
        return consistency_models.BackgroundConsistency()
    torch.manual_seed(0)
    if name == "subject_consistency":
        ViTModel(ViTConfig(), add_pooling_layer=False).save_pretrained(folder)
        return consistency_models.SubjectConsistency(str(folder))
    if name == "background_consistency":
        CLIPModel(CLIPConfig()).save_pretrained(folder)
        return consistency_models.BackgroundConsistency(str(folder))
    if name == "imaging_quality":
        network = musiq.Musiq()
        torch.save({k: torch.randn(v.shape) * 0.05 for k, v in network.state_dict().items()}, folder / "musiq.pth")
        return imaging_quality.ImagingQuality(str(folder / "musiq.pth"))
    layers = lpips.build_layers(lpips.ALEX).state_dict()
    torch.save({f"features.{k}": v for k, v in layers.items()}, folder / "backbone.pth")
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(lpips.ALEX.channels)}
    torch.save(heads, folder / "heads.pth")
    return lpips.LpipsConsecutive(str(folder / "backbone.pth"), str(folder / "heads.pth"))


def frames(count: int):
    """A clip made frame by frame, so that only a metric can keep it."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(name: str, folder: str) -> None:
    """Print the peak memory after a short clip, what a longer one adds (MB), and its seconds of one core a frame."""
    from reelign.metrics.clip import measure

    torch.set_num_threads(1)
    metric = build(name, Path(folder))
    measure(frames(SHORT), 8.0, [metric])
    short = peak_mb()
    count = LONG if name == "tiny" else SHORT
    started = time.process_time()
    measure(frames(count), 8.0, [metric])
    print(short, peak_mb() - short, (time.process_time() - started) / count)


def run(name: str, folder: Path) -> tuple[float, float, float]:
    command = [sys.executable, __file__, name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    short, more, seconds = (float(word) for word in done.stdout.split())
    return short, more, seconds


def test_memory_does_not_grow_with_the_clip(tmp_path):
    _, more, _ = run("tiny", tmp_path)
    assert more < ALLOWED_MB


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_published_size_fit(name, tmp_path, capsys):
    peak, _, seconds = run(name, tmp_path)
    with capsys.disabled():
        print(f"\n| `{name}` | {peak:.0f} MB | {1000 * seconds:.0f} ms |")
    assert peak < LIMIT_MB


if __name__ == "__main__":
    main(*sys.argv[1:])
