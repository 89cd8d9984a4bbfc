# %% [markdown]
# # 2. Why training and testing differ
#
# A causal generator makes a clip block after block. The natural way to teach it: show it the *true* beginning of a
# clip, and ask for the next block. That is teacher forcing. Its past is always clean.
#
# When it makes a clip of its own, nobody gives it a true past. It sees what it made itself, with all the small errors.
# It never learned to live with these, so they grow. People call this *exposure bias*.
#
# Let us measure it. First, teach a student that way: 300 updates on drawn clips. It takes minutes the first time; the
# weights are kept.

# %%
from toolbox import SHORT, panels, save, teacher_forced, two_pasts

from reelign.metrics.over_time import drift
from reelign.metrics.statistics import paired_delta
from reelign.plots.over_time import over_time_figure

UPDATES, CLIPS, COUNT, BATCH = (2, 8, 4, 2) if SHORT else (300, 384, 48, 16)
generator = teacher_forced(UPDATES, CLIPS, BATCH)

# %% [markdown]
# ## One student, two pasts
#
# Now the test. The student gets the first two blocks of a drawn clip, and its prompt. They say nearly all there is to
# know: where the shape is, what colour, how fast. Then it makes blocks 3, 4 and 5, twice:
#
# - on *the true past*: before each block, the true blocks, as in training;
# - on *its own past*: before each block, what it made itself, as in use.
#
# The same weights, the same prompts, the same noise. Block 3 has the same past both times, so it must be the same
# block, and the difference there must be 0. From then on any difference comes from the past: from its own mistakes, and
# from the little that two blocks leave open and later true ones tell. The error of a block is its distance to the drawn
# clip: mean difference of pixels, in grey levels of 255.

# %%
MEASURES = ("error", "shape", "motion", "sharpness")
found = two_pasts(generator, COUNT)
own, true = found["its own past"], found["the true past"]
for name in ("colour", *MEASURES):
    rows = ", ".join(f"{a:.2f} / {b:.2f}" for a, b in zip(own[name].mean(0), true[name].mean(0), strict=True))
    print(f"{name:9} own / true past, blocks 3 to 5: {rows}")
assert (own["error"][:, 0] - true["error"][:, 0]).abs().max() < 1e-2

save(over_time_figure(panels(found, MEASURES), "block", ("shape", "motion"), "the true past", first=3), "02_pasts.png")

# %% [markdown]
# ![Blocks 3 to 5 on the student's own past and on the true one](figures/02_pasts.png)
#
# Bars are 95 % intervals over clips. Is what is seen more than chance? The same clips are compared pair by pair.

# %%
for who, values in found.items():
    change = drift(values["error"])
    print(f"error on {who}, block 3 to 5: {change.delta:+.2f} ({change.ci95[0]:+.2f} … {change.ci95[1]:+.2f})")
cost = paired_delta(true["error"][:, -1].numpy(), own["error"][:, -1].numpy())
print(f"what its own past costs on block 5: {cost.delta:+.2f} ({cost.ci95[0]:+.2f} … {cost.ci95[1]:+.2f})")
assert SHORT or (cost.ci95[0] > 0 and drift(own["error"]).ci95[0] > 0 >= drift(true["error"]).ci95[0])

# %% [markdown]
# On a true past the student does not get worse along the clip. On its own past it does, block after block.
#
# The cure is simple to say: *train on the past that you will have*. Parts 3 to 6 build what that takes;
# [part 7](07_training.md) does it.
#
# Next: [who sees whom](03_masks.md).
