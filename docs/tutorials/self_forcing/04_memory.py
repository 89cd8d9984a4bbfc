# %% [markdown]
# # 4. What is remembered
#
# A block looks at keys and values of the frames before it. These never change once a frame is finished, so they are
# kept: that is the *memory* (people say KV cache). A block takes four denoising steps with the memory before it, and
# one more pass, clean, that enters it into the memory.
#
# Here a memory is a value. Each pass gives back a new one, and nothing is overwritten; so one can go back to any
# earlier moment, change the prompt, or differentiate through it.

# %%
import time

import torch
from matplotlib.figure import Figure
from toolbox import SHORT, STEPS, save, student

from reelign.contracts import Request
from reelign.sampling import RolloutOptions, SeededNoise, begin, roll

FRAMES = 9 if SHORT else 12
prompt = Request(("a blue square moving right",))
kinds = {"everything": {}, "window of 5": {"window": 5}, "window of 5, 2 of it sink": {"window": 5, "sink": 2}}


@torch.no_grad()
def grow(frames: int, **options: int) -> list[tuple[int, list[int]]]:
    """Bytes of the memory, and the frames in it, after each block."""
    generator = student(**options)
    condition = generator.encode(prompt)
    memory, found = generator.begin(condition), []
    x = torch.randn(1, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for end in range(1, frames + 1):
        memory = generator.advance(x, torch.tensor(0.0), condition, memory)[1]
        seen = [frame for low, high in generator.layout.seen(end) for frame in range(low, high)]
        found.append((memory.bytes(), seen))
    return found


figure = Figure(figsize=(9.2, 3.2), layout="constrained")
for axes, (name, options) in zip(figure.subplots(1, 3), kinds.items(), strict=True):
    found = grow(FRAMES, **options)
    one_frame = found[0][0]
    picture = torch.zeros(FRAMES, FRAMES)
    for row, (size, seen) in enumerate(found):
        assert size == one_frame * len(seen)  # what is said to be kept is what is held
        picture[row, seen] = 1
        picture[row, row] = 1.4
        axes.text(FRAMES - 0.3, row, f"{size / 1024:.0f} KiB", va="center", fontsize=6)
    axes.imshow(picture, cmap="Greens", vmin=0, vmax=2)
    axes.set_title(name, fontsize=9)
    axes.set(xlabel="frames kept", ylabel="after block")
    axes.tick_params(labelsize=6)
    print(f"{name:26} {found[-1][0] / 1024:.0f} KiB after {FRAMES} frames")
save(figure, "04_memory.png")

# %% [markdown]
# ![Frames kept after each block](figures/04_memory.png)
#
# Without a window the memory grows with the clip. With one it stops growing: a stream may go on for ever.
#
# ## What a memory saves
#
# Without it, each step of each block has to run all frames before it again.

# %%
generator = student()
condition, schedule = generator.encode(prompt), generator.path.schedule(STEPS)
through = 0


def count(_: object, inputs: tuple[torch.Tensor]) -> None:
    """Called before each pass of the network."""
    global through
    through += inputs[0].shape[2]


handle = generator.network.patch_embedding.register_forward_pre_hook(count)
start = time.process_time()
with torch.no_grad():
    made = roll(
        generator, condition, [1] * FRAMES, schedule, SeededNoise([3]), RolloutOptions(), begin(generator, condition)
    )
    with_memory = torch.cat([block for block, _ in made], dim=2)
seconds = time.process_time() - start
handle.remove()
print(f"with memory: {through} frames through the network, {seconds:.2f} s of the processor")
assert through in (FRAMES * (STEPS + 1) - 1, FRAMES * (STEPS + 1))  # the last block need not be remembered

draw, levels, past = SeededNoise([3]), schedule.to(with_memory), torch.zeros(1, 8, 0, 8, 8)
frames_run, start = 0, time.process_time()
with torch.no_grad():
    for _ in range(FRAMES):
        x = draw((8, 1, 8, 8))
        for i in range(STEPS):
            times = torch.zeros(1, past.shape[2] + 1)
            times[:, -1] = levels.t[i]
            flow = generator.predict(torch.cat([past, x], dim=2), times, condition)[:, :, -1:]
            frames_run += past.shape[2] + 1
            x0 = x - levels.sigma[i] * flow
            if i < STEPS - 1:
                x = levels.alpha[i + 1] * x0 + levels.sigma[i + 1] * draw((8, 1, 8, 8))
        past = torch.cat([past, x0], dim=2)
again = time.process_time() - start
difference = (past - with_memory).abs().max().item()
print(f"without: {frames_run} frames run, {again:.2f} s; the clips are {difference:.1e} apart")
assert difference < 1e-3
assert frames_run == STEPS * FRAMES * (FRAMES + 1) // 2

# %% [markdown]
# The same clip, for a fraction of the work; and the longer the clip, the smaller the fraction.
#
# Next: [the few steps of a block](05_schedules.md).
