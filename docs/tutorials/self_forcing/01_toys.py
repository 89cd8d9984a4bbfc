# %% [markdown]
# # 1. The toys
#
# This tutorial builds a video generator that makes a clip block after block, and teaches it to live with its own
# mistakes. It takes minutes on a laptop. Every claim is measured by the script that makes it.
#
# First, something to generate: one coloured shape that does one thing, and the sentence that says so.

# %%
import torch
from toolbox import OUT, SHORT, student

from reelign.contracts import Request
from reelign.datasets.moving_shapes import parse_caption
from reelign.metrics.shapes_instrument import read_clips
from reelign.tutorial import ToyDataset, compute_all_metrics, create_video_comparison, create_video_gif, save_video_grid

OUT.mkdir(parents=True, exist_ok=True)
dataset = ToyDataset(num_samples=12, seed=42)
clips = [dataset[i]["video"] for i in range(len(dataset))]
dataset.save_prompts(OUT / "toy_prompts.txt")
save_video_grid(clips[:6], OUT / "01_grid.png", dataset.prompts[:6])
create_video_gif(clips[0], OUT / "01_clip.gif", duration=1 / 8)  # seconds a frame
print(dataset.prompts[0])

# %% [markdown]
# ![Middle frames of six clips](figures/01_grid.png)
#
# ![The first clip](figures/01_clip.gif)
#
# ## Does the sentence belong to the clip?
#
# An instrument without any learned weights reads colour, shape and motion off the pixels. If prompts and clips belong
# together, it must read the prompts back.

# %%
read = read_clips(torch.stack(clips))
agree = [all(reading.agrees(parse_caption(p)).values()) for reading, p in zip(read, dataset.prompts, strict=True)]
print(f"{sum(agree)} of {len(agree)} clips show what their prompt says")
assert sum(agree) >= 11

# %% [markdown]
# ## Does the same sentence mean the same thing twice?
#
# A text encoder that answers with fresh random numbers cannot teach anything. The zoo's is a small UMT5, the kind that
# Wan has.

# %%
generator = student()
first, second = (generator.encode(Request((dataset.prompts[0],))).positive["text"] for _ in range(2))
other = generator.encode(Request((dataset.prompts[1],))).positive["text"]
apart = [(first - states).abs().max().item() for states in (second, other)]
print(f"the same sentence twice: {apart[0]:.1f} apart; another sentence: {apart[1]:.1f}")
assert torch.equal(first, second)
assert not torch.equal(first, other)

# %% [markdown]
# ## How far is a clip from another?
#
# PSNR looks at single pixels. SSIM looks at windows of 11×11 pixels. A metric that takes a whole frame for one window
# cannot see where things are: here a clip is compared with itself mirrored, and with a blurred copy.

# %%
truth = clips[: 2 if SHORT else 6]
mirrored = [clip.flip(-1) for clip in truth]
blurred = [torch.nn.functional.avg_pool2d(clip, 5, 1, 2, count_include_pad=False) for clip in truth]
for name, changed in (("mirrored", mirrored), ("blurred", blurred)):
    found = compute_all_metrics(changed, dataset.prompts[: len(truth)], truth)
    print(f"{name:9} PSNR {found['psnr']:.1f} dB, SSIM {found['ssim']:.2f}")
create_video_comparison(truth[0], blurred[0], OUT / "01_comparison.gif", "drawn", "blurred")


def global_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """SSIM with one window a frame: means and variances of whole pictures."""
    a, b = a.mean(1).flatten(1), b.mean(1).flatten(1)
    joint = ((a - a.mean(1, True)) * (b - b.mean(1, True))).mean(1)
    spread = a.var(1, unbiased=False) + b.var(1, unbiased=False)
    means = a.mean(1), b.mean(1)
    top = (2 * means[0] * means[1] + 1e-4) * (2 * joint + 9e-4)
    return float((top / ((means[0] ** 2 + means[1] ** 2 + 1e-4) * (spread + 9e-4))).mean())


def shuffled(clip: torch.Tensor) -> torch.Tensor:
    """The clip with its pixels in another order, the same in every frame."""
    order = torch.randperm(clip[0, 0].numel(), generator=torch.Generator().manual_seed(0))
    return clip.flatten(2)[..., order].view_as(clip)


blind = global_ssim(shuffled(truth[0]), shuffled(blurred[0])), global_ssim(truth[0], blurred[0])
local = [compute_all_metrics([b], dataset.prompts[:1], [a])["ssim"]
         for a, b in ((shuffled(truth[0]), shuffled(blurred[0])), (truth[0], blurred[0]))]  # fmt: skip
print(f"pixels in order and out of order: one window a frame {blind[1]:.3f} and {blind[0]:.3f}, ", end="")
print(f"11×11 windows {local[1]:.3f} and {local[0]:.3f}")
assert abs(blind[0] - blind[1]) < 1e-4 < abs(local[0] - local[1])

# %% [markdown]
# One window a frame gives the same number when all pixels are out of order: it measures no structure at all. The 11×11
# windows notice.
#
# Next: [why training and testing differ](02_why.md).
