# %% [markdown]
# # 5. Few steps, one shift
#
# Noise levels run from 1, all noise, to 0, a clip. A *shift* k moves the steps in between towards noise:
#
# $$\sigma' = \frac{k\,\sigma}{1 + (k - 1)\,\sigma}$$
#
# A few-step student stops at four levels only: 1, 3/4, 1/2 and 1/4, shifted. Which ones these are decides what it
# learns.

# %%
import torch
from matplotlib.figure import Figure
from toolbox import SHORT, clips, save, student

from reelign.paths import FlowPath
from reelign.plots.curves import INK, plain_axes
from reelign.plots.over_time import COLOURS

SHIFTS = (1.0, 3.0, 5.0, 8.0)
schedules = {shift: FlowPath(shift, grid_end=0.0).schedule(4) for shift in SHIFTS}
for shift, schedule in schedules.items():
    print(f"shift {shift:.0f}: " + ", ".join(f"{1000 * s:.1f}" for s in schedule.sigma.tolist()))
assert [round(t, 1) for t in schedules[5.0].t.tolist()] == [1000.0, 937.5, 833.3, 625.0]

figure = Figure(figsize=(5.2, 3.0), layout="constrained")
axes = figure.subplots()
u = torch.linspace(0, 1, 201)
for (shift, schedule), colour in zip(schedules.items(), COLOURS, strict=False):
    axes.plot(1 - u, shift * u / (1 + (shift - 1) * u), color=colour, linewidth=1.4, label=f"shift {shift:.0f}")
    axes.plot([0, 0.25, 0.5, 0.75], schedule.sigma[:-1], "o", color=colour, markersize=4)
plain_axes(axes)
axes.set_xlabel("share of the steps done", color=INK)
axes.set_ylabel("noise level", color=INK)
axes.legend(frameon=False)
save(figure, "05_schedules.png")

# %% [markdown]
# ![Noise levels at four shifts](figures/05_schedules.png)
#
# ## The hidden inconsistency
#
# In the released program the shift is written down in several places: 5 for the generator, 8 as a default elsewhere,
# the demo's transformer among them. Each place is right on its own. Together they ask a student, trained at
# 1000, 937.5, 833.3 and 625, to denoise from 1000, 960, 888.9 and 727.3: levels that it never saw.
#
# What does a wrong shift cost? The zoo's Wan has shift 3. We put noise of its levels on drawn clips, and let it guess
# the clip, once told the true level, once told the level that shift 8 has at the same step.

# %%
generator = student()
video, specs, request = clips(4 if SHORT else 32, seed=5)
z, condition = generator.encode_video(video), generator.encode(request)
noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
true, wrong = schedules[3.0].to(z), schedules[8.0].to(z)
assert generator.path.shift == 3.0


@torch.no_grad()
def error(step: int, told: torch.Tensor) -> float:
    """Mean squared error of the clip that is guessed from level ``step``, when the network is told a time."""
    sigma = true.sigma[step]
    x = (1 - sigma) * z + sigma * noise
    bidirectional = generator.wan.predict(x, told, condition)
    return float((x - sigma * bidirectional - z).square().mean())


for step in range(1, 4):
    honest, lied = error(step, true.t[step]), error(step, wrong.t[step])
    print(f"level {true.t[step]:.0f}: error {honest:.3f}; told {wrong.t[step]:.0f} instead: {lied:.3f}")
    assert lied > honest

# %% [markdown]
# The cure is dull and complete: a generator has one path, the path has one shift, and sampling, training, teacher and
# critic all ask it. There is no second place.
#
# Next: [block 2 depends on block 1](06_block_two.md).
