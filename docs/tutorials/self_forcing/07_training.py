# %% [markdown]
# # 7. Training on one's own past
#
# Self-forcing in three sentences. The student makes whole clips, block after block, from its own memory. Two scores,
# one of the teacher's clips and one of the student's own, say in which direction each clip should move. The student
# moves that way, and the score of its own clips keeps learning, because those clips change.
#
# The teacher is the zoo's bidirectional Wan. The student begins as part 2 left it: taught on clean pasts.

# %%
import time

import torch
from toolbox import OUT, SHORT, STEPS, WEIGHTS, clips, panels, save, teacher_forced, two_pasts

from reelign.algorithms.self_forcing import Config, SelfForcing
from reelign.contracts import Request
from reelign.datasets.moving_shapes import all_specs
from reelign.metrics.over_time import STEADY
from reelign.metrics.statistics import paired_delta
from reelign.plots.over_time import over_time_figure
from reelign.tutorial import TrainingPlotter

UPDATES, CLIPS, COUNT, BATCH = (2, 8, 4, 2) if SHORT else (300, 384, 48, 16)
ROUNDS = 2 if SHORT else 160
MEASURES = ("error", "shape", "motion", "sharpness")
generator = teacher_forced(UPDATES, CLIPS, BATCH)
before = two_pasts(generator, COUNT)

# %% [markdown]
# ## The run
#
# No clips are needed: prompts are enough. Each update makes clips, teaches the critic, and every second one teaches the
# student.

# %%
config = Config(steps=STEPS, lr=1e-4, critic_lr=4e-4, critic_ratio=2, weight_decay=0.0, average=0.9, average_from=5)
algorithm, random = SelfForcing(generator, config), torch.Generator().manual_seed(3)
prompts = [spec.caption for spec in all_specs(STEADY)]
plotter, start = TrainingPlotter(OUT), time.process_time()
for update in range(ROUNDS):
    rows = torch.randint(len(prompts), (BATCH // 2,), generator=random).tolist()
    logged = algorithm.step(Request(tuple(prompts[row] for row in rows)))
    for name in ("critic_loss", "loss"):
        if name in logged:
            plotter.log_metric(name, logged[name], update)
    if update % max(1, ROUNDS // 8) == 0:
        print(f"update {update}: " + ", ".join(f"{k} {v:.3f}" for k, v in logged.items() if "loss" in k))
print(f"{ROUNDS} updates, {(time.process_time() - start) / 60:.1f} minutes of one processor core")
plotter.plot_multiple_metrics(["critic_loss", "loss"], "self-forcing", OUT / "07_losses.png")

# %% [markdown]
# ![Losses](figures/07_losses.png)
#
# These curves say little: the generator's loss is a distance to a moving target. What counts is measured on clips.

# %%
with algorithm.exported():
    after = two_pasts(generator, COUNT)
    generator.save(str(WEIGHTS / "self_forced"))
curves = {
    "its own past, before": before["its own past"],
    "its own past, after": after["its own past"],
    "the true past, before": before["the true past"],
}
figure = over_time_figure(panels(curves, MEASURES), "block", ("shape", "motion"), "the true past, before", first=3)
save(figure, "07_before_after.png")


def cost(found: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
    """What the student's own past adds to its error on the last block, clip by clip."""
    return found["its own past"]["error"][:, -1] - found["the true past"]["error"][:, -1]


fallen = paired_delta(cost(before).numpy(), cost(after).numpy())
print(f"what one's own past costs on block 5: {fallen.before:.2f} before, {fallen.after:.2f} after self-forcing")
print(f"change {fallen.delta:+.2f} ({fallen.ci95[0]:+.2f} … {fallen.ci95[1]:+.2f})")
assert SHORT or fallen.ci95[1] < 0

# %% [markdown]
# ![Blocks 3 to 5 before and after](figures/07_before_after.png)
#
# ## And clips of its own, from nothing?

# %%
from reelign.sampling import generate  # noqa: E402
from reelign.tutorial import create_video_gif  # noqa: E402

_, _, request = clips(2 if SHORT else 4, seed=99)
with algorithm.exported():
    made = generate(generator, Request(request.prompts), range(len(request)), STEPS, 1.0).video
create_video_gif(torch.cat(list(made), dim=-1), OUT / "07_clips.gif", fps=8)
print("; ".join(request.prompts))

# %% [markdown]
# ![Clips after self-forcing](figures/07_clips.gif)
#
# This was a run of minutes. The zoo's `tiny-causal-wan` is the same idea with more patience, and `reelign stream` shows
# it live.
