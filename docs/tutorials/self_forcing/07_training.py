# %% [markdown]
# # 7. Training on one's own past
#
# Part 2 left us with a student that gets worse on its own past. Now we train it on that past, twice: first with a
# *truth* to compare with, which shows the idea in ten lines; then without one, which is self-forcing.
#
# ## With a truth
#
# Two true blocks say where a shape is going. So let the student go on from there, on its own past, and then ask it for
# the *true* next blocks. It learns what to do when its past is a little off: come back.
#
# Nothing else changes. The same loss, the same number of updates; a second student gets these with true pasts, so that
# nobody can say it was the extra training.

# %%
import time

import torch
from toolbox import (
    GIVEN,
    OUT,
    SHORT,
    STEPS,
    WEIGHTS,
    clips,
    judge,
    panels,
    save,
    student,
    teacher_forced,
    two_pasts,
)

from reelign.algorithms.causal_finetuning import LEVELS, CausalFinetuning
from reelign.algorithms.causal_finetuning import Config as FinetuningConfig
from reelign.algorithms.self_forcing import Config, SelfForcing
from reelign.contracts import Request
from reelign.datasets.moving_shapes import all_specs
from reelign.metrics.over_time import STEADY
from reelign.metrics.statistics import paired_delta
from reelign.plots.over_time import over_time_figure
from reelign.sampling import RolloutOptions, SeededNoise, rollout
from reelign.tutorial import TrainingPlotter, save_video_grid

UPDATES, CLIPS, COUNT, BATCH = (2, 8, 4, 2) if SHORT else (300, 384, 48, 16)
MORE = 2 if SHORT else 80
MEASURES = ("error", "shape", "motion", "sharpness")


def train_on(past: str) -> tuple[object, dict[str, dict[str, torch.Tensor]]]:
    """The student of part 2 after ``MORE`` further updates, each block after ``past``; and its test."""
    generator = teacher_forced(UPDATES, CLIPS, BATCH)
    algorithm = CausalFinetuning(generator, FinetuningConfig(weighting="none", lr=2e-4, average=0.95))
    video, _, request = clips(CLIPS, seed=1)
    random, start = torch.Generator().manual_seed(4), time.process_time()
    schedule, blocks = generator.path.schedule(STEPS), generator.latent_shape()[1]
    for _ in range(MORE):
        rows = torch.randint(CLIPS, (BATCH,), generator=random).tolist()
        part = Request(tuple(request.prompts[row] for row in rows))
        truth = algorithm.latents.encode(video[rows])
        seen, seeds = truth, torch.randint(2**40, (BATCH,), generator=random).tolist()
        if past == "its own past":
            with torch.no_grad():
                draw, given = SeededNoise(seeds), truth[:, :, :GIVEN]
                seen = rollout(generator, generator.encode(part), blocks, schedule, draw, RolloutOptions(), given)
        noise = torch.randn(truth.shape, generator=random)
        level = torch.randint(LEVELS, (BATCH, blocks), generator=random)
        inputs = part, (truth, noise), level, (seen, torch.zeros(BATCH, blocks))
        algorithm.optimisation.clear()
        algorithm.loss(*inputs).backward()
        algorithm.optimisation.step()
    print(f"{MORE} updates on {past}: {(time.process_time() - start) / 60:.1f} minutes of one processor core")
    with algorithm.exported():
        generator.save(str(WEIGHTS / past.replace(" ", "_")))
        return algorithm, two_pasts(generator, COUNT)


before = two_pasts(teacher_forced(UPDATES, CLIPS, BATCH), COUNT)
_, control = train_on("the true past")
algorithm, after = train_on("its own past")

# %% [markdown]
# What does one's own past cost, on the last block? It is the error there on the student's own past, less that on the
# true one.


# %%
def cost(found: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
    """What the student's own past adds to its error on the last block, clip by clip."""
    return found["its own past"]["error"][:, -1] - found["the true past"]["error"][:, -1]


for name, found in (("more training on true pasts", control), ("training on its own past", after)):
    fallen = paired_delta(cost(before).numpy(), cost(found).numpy())
    print(
        f"{name}: {fallen.before:.2f} before, {fallen.after:.2f} after; "
        f"change {fallen.delta:+.2f} ({fallen.ci95[0]:+.2f} … {fallen.ci95[1]:+.2f})"
    )
against = paired_delta(cost(control).numpy(), cost(after).numpy())
print(f"its own past against true pasts: {against.delta:+.2f} ({against.ci95[0]:+.2f} … {against.ci95[1]:+.2f})")
curves = {
    "before": before["its own past"],
    "more true pasts": control["its own past"],
    "its own past": after["its own past"],
    "before, tested on the true past": before["the true past"],
}
figure = over_time_figure(
    panels(curves, MEASURES), "block", ("shape", "motion"), "before, tested on the true past", first=3
)
save(figure, "07_own_past.png")
assert SHORT or against.ci95[1] < 0

# %% [markdown]
# ![Blocks 3 to 5, tested on the student's own past](figures/07_own_past.png)
#
# Exposure bias has fallen, and only where the student met its own past.
#
# ## Without a truth
#
# That worked because two blocks of a moving shape say how it goes on. A prompt does not: of all clips of "a red circle
# moving left", which one would be the true one? Self-forcing needs none. The student makes whole clips from nothing.
# Two scores say in which direction each should move to look more like a clip of the teacher's: one knows the teacher's
# clips, the other learns the student's. No clips are needed, only prompts.

# %%
ROUNDS = 3 if SHORT else 120
generator = student(train_all=True)
generator.load(str(WEIGHTS / "its_own_past"))
config = Config(
    steps=STEPS, lr=5e-5, critic="all", critic_lr=2e-4, critic_ratio=3, real_guidance=1.0, weight_decay=0.0,
    average=0.9, average_from=5,
)  # fmt: skip
forcing, random = SelfForcing(generator, config), torch.Generator().manual_seed(3)
prompts = [spec.caption for spec in all_specs(STEADY)]
plotter, start = TrainingPlotter(OUT), time.process_time()
for update in range(ROUNDS):
    rows = torch.randint(len(prompts), (BATCH // 2,), generator=random).tolist()
    logged = forcing.step(Request(tuple(prompts[row] for row in rows)))
    for name in ("critic_loss", "loss"):
        if name in logged:
            plotter.log_metric(name, logged[name], update)
print(f"{ROUNDS} updates: {(time.process_time() - start) / 60:.1f} minutes of one processor core")
plotter.plot_multiple_metrics(["critic_loss", "loss"], "self-forcing", OUT / "07_losses.png")

# %% [markdown]
# ![Losses](figures/07_losses.png)
#
# Such curves say little: the loss is a step towards a target that moves. What counts is measured on clips: made from
# nothing, block by block, beside drawn ones.

# %%
video, specs, request = clips(COUNT, seed=99)
condition, schedule, blocks = generator.encode(request), generator.path.schedule(STEPS), generator.latent_shape()[1]


@torch.no_grad()
def from_nothing() -> torch.Tensor:
    """Clips of the student's own, one a prompt."""
    return generator.decode(rollout(generator, condition, blocks, schedule, SeededNoise(range(COUNT))))


with forcing.exported():
    forced = from_nothing()
generator.load(str(WEIGHTS / "its_own_past"))
unforced = from_nothing()
found = {
    "before": judge(unforced, video, specs),
    "after self-forcing": judge(forced, video, specs),
    "drawn": judge(video, video, specs),
}
NAMES = ("colour", "shape", "motion", "sharpness")
for who, values in found.items():
    print(f"{who:20}" + ", ".join(f"{name} {values[name].mean():.2f}" for name in NAMES))
save(over_time_figure(panels(found, NAMES), "block", NAMES[:3], "drawn"), "07_forced.png")
strip = [torch.cat([clip[0], clip[8], clip[16]], dim=-1)[None] for clip in (*unforced[:3], *forced[:3])]
save_video_grid(strip, OUT / "07_clips.png", [*request.prompts[:3], *request.prompts[:3]])

# %% [markdown]
# ![From nothing, before and after](figures/07_forced.png)
#
# ![First, middle and last frame: before, and after](figures/07_clips.png)
