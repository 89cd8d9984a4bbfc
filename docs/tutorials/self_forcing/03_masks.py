# %% [markdown]
# # 3. Who sees whom
#
# A clip is a row of *latent frames*; each stands for four pictures. A bidirectional generator lets every frame see
# every other. A causal one must not see the future, so that it can show the past while it makes what comes next.
#
# The pictures below are drawn by the code that the network runs with: row = who looks, column = who is seen.

# %%
import torch
from matplotlib.figure import Figure
from toolbox import save, student

from reelign.contracts import Request
from reelign.generators.causal_layout import Layout, visible

FRAMES = 9
layouts = {
    "blocks of 3": Layout(3),
    "frame by frame": Layout(1),
    "window of 6": Layout(3, window=6),
    "window of 6, 1 of it sink": Layout(1, window=6, sink=1),
}
figure = Figure(figsize=(9.2, 2.7), layout="constrained")
for axes, (name, layout) in zip(figure.subplots(1, 4), layouts.items(), strict=True):
    axes.imshow(visible(layout, FRAMES), cmap="Greens", vmin=0, vmax=1.4)
    axes.set_title(name, fontsize=9)
    axes.set(xticks=range(FRAMES), yticks=range(FRAMES))
    axes.tick_params(labelsize=6)
save(figure, "03_masks.png")

# %% [markdown]
# ![Four masks](figures/03_masks.png)
#
# *Blocks of 3*: three frames are denoised together and see each other. *Window*: memory stays small, and so does what
# is seen. *Sink*: the very first frame stays in sight for ever; it is what keeps long clips from drifting away.
#
# ## Does the network obey?
#
# Pictures are easy to draw. So we ask the network: change one frame of its input, and see which frames of its output
# move.

# %%
prompt = Request(("a red circle moving left",))


@torch.no_grad()
def who_moves(frames: int, **options: int) -> torch.Tensor:
    """Row i, column j: whether output frame i changes when input frame j does."""
    generator = student(frames=4 * frames - 3, **options)  # pictures of that many latent frames
    condition = generator.encode(prompt)
    x = torch.randn(1, 8, frames, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(500.0)
    before, columns = generator.predict(x, t, condition), []
    for frame in range(frames):
        changed = x.clone()
        changed[:, :, frame] += 1
        moved = (generator.predict(changed, t, condition) - before).abs().amax((0, 1, 3, 4))
        columns.append(moved > 0)
    return torch.stack(columns, dim=1)


for frames_per_block in (3, 1):
    measured = who_moves(FRAMES, frames_per_block=frames_per_block)
    assert torch.equal(measured, visible(Layout(frames_per_block), FRAMES))
    print(f"blocks of {frames_per_block}: {int(measured.sum())} of {FRAMES * FRAMES} pairs, exactly those drawn")

# %% [markdown]
# ## A window is larger than it looks
#
# In one layer a frame sees its window. But what it sees has seen its own window in the layer before. So in a network
# of six layers news travels six windows far. (This is the whole clip at once; a rollout keeps such news in its memory.)

# %%
measured = who_moves(FRAMES, frames_per_block=1, window=2)
one_layer = visible(Layout(1, window=2), FRAMES)
layers = len(student().network.blocks)
reached = torch.linalg.matrix_power(one_layer.double(), layers) > 0
print(f"window of 2: one layer sees {int(one_layer[-1].sum())} frames, {layers} layers see {int(measured[-1].sum())}")
assert torch.equal(measured, reached)

# %% [markdown]
# ## Teacher forcing, in one pass
#
# Training could make a clip block after block, as sampling does. It is quicker to run all blocks at once: a clean copy
# of the clip beside the noisy one. A noisy block sees the *clean* blocks before it, and itself. Nobody sees the future.

# %%
layout = Layout(3)
clean = visible(layout, FRAMES)
own = clean & clean.T  # the same block
past = clean & ~own
mask = torch.cat([torch.cat([clean, torch.zeros_like(clean)], 1), torch.cat([past, own], 1)])
figure = Figure(figsize=(3.6, 3.4), layout="constrained")
axes = figure.subplots()
axes.imshow(mask, cmap="Greens", vmin=0, vmax=1.4)
axes.axhline(FRAMES - 0.5, color="#5b5f66", linewidth=0.8)
axes.axvline(FRAMES - 0.5, color="#5b5f66", linewidth=0.8)
places = [FRAMES / 2 - 0.5, 1.5 * FRAMES - 0.5]
axes.set_xticks(places, ["clean frames", "noisy frames"])
axes.set_yticks(places, ["clean frames", "noisy frames"], rotation=90, va="center")
save(figure, "03_teacher_forcing.png")

generator = student(frames_per_block=3, frames=4 * FRAMES - 3)
condition, random = generator.encode(prompt), torch.Generator().manual_seed(1)
z, noisy = (torch.randn(1, 8, FRAMES, 8, 8, generator=random) for _ in range(2))
t, zero = torch.tensor(500.0), torch.tensor(0.0)
with torch.no_grad():
    together = generator.predict_after(noisy, t, condition, z, zero)
    memory, blocks = generator.begin(condition), []
    for start in range(0, FRAMES, 3):
        blocks.append(generator.advance(noisy[:, :, start : start + 3], t, condition, memory)[0])
        memory = generator.advance(z[:, :, start : start + 3], zero, condition, memory)[1]
apart = (together - torch.cat(blocks, 2)).abs().max().item()
print(f"one pass against block after block: {apart:.1e} apart")
assert apart < 1e-4

# %% [markdown]
# ![The mask of teacher forcing](figures/03_teacher_forcing.png)
#
# The two ways are the same network on the same past. What differs between training and sampling is only *whose* past it
# is.
#
# Next: [what is remembered](04_memory.md).
