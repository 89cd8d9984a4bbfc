# %% [markdown]
# # 6. Block 2 depends on block 1
#
# The shortest test of an autoregressive generator: change the noise of block 1, keep everything else, and look at
# block 2. If it does not move, there is no autoregression, whatever the code is called. The tutorial that this one
# follows gives exactly 0.

# %%
import torch
from matplotlib.figure import Figure
from toolbox import STEPS, save, student

from reelign.contracts import Request
from reelign.sampling import RolloutOptions, rollout

generator = student()
request = Request(("a yellow triangle moving down",))
condition, schedule = generator.encode(request), generator.path.schedule(STEPS)
BLOCKS = generator.latent_shape()[1]


def tape(changed: int | None = None) -> list[torch.Tensor]:
    """Noise for each block and step; that of one block may be another."""
    random = torch.Generator().manual_seed(0)
    noise = [torch.randn(1, 8, 1, 8, 8, generator=random) for _ in range(BLOCKS * STEPS)]
    if changed is not None:
        noise[changed * STEPS] = torch.randn(1, 8, 1, 8, 8, generator=random)
    return noise


@torch.no_grad()
def clip(changed: int | None = None) -> torch.Tensor:
    """The clip that some noise becomes."""
    noise = iter(tape(changed))
    return rollout(generator, condition, BLOCKS, schedule, lambda shape: next(noise))


usual = clip()
effect = torch.stack([(clip(changed) - usual).abs().mean((0, 1, 3, 4)) for changed in range(BLOCKS)])
print(f"new noise in block 1 moves block 2 by {effect[0, 1]:.3f} (a latent's size is about {usual.abs().mean():.2f})")
assert effect[0, 1] > 0.01

# %% [markdown]
# And the other way round? What comes later must not move what is shown already, not even a little.

# %%
earlier = effect.tril(-1)
print(f"new noise in a later block moves earlier ones by at most {earlier.max():.1f}")
assert earlier.max() == 0

figure = Figure(figsize=(3.6, 3.0), layout="constrained")
axes = figure.subplots()
shown = axes.imshow(effect.T, cmap="Greens")
axes.set(xlabel="block with new noise", ylabel="block that moves", xticks=range(BLOCKS), yticks=range(BLOCKS))
axes.set_xticklabels(range(1, BLOCKS + 1))
axes.set_yticklabels(range(1, BLOCKS + 1))
figure.colorbar(shown, label="mean |change|", shrink=0.8)
save(figure, "06_effect.png")

# %% [markdown]
# ![Which block moves when another gets new noise](figures/06_effect.png)
#
# ## Without a memory
#
# Forget the past before each block, and we are where the other tutorial is: as many clips as there are blocks, side by
# side.


# %%
@torch.no_grad()
def forgetful(changed: int | None = None) -> torch.Tensor:
    """Blocks that each begin at an empty memory."""
    noise, blocks = tape(changed), []
    for index in range(BLOCKS):
        own = iter(noise[index * STEPS : (index + 1) * STEPS])
        blocks.append(rollout(generator, condition, 1, schedule, lambda shape, own=own: next(own)))
    return torch.cat(blocks, dim=2)


apart = (forgetful(0) - forgetful())[:, :, 1].abs().max()
print(f"without a memory, new noise in block 1 moves block 2 by {apart:.1f}")
assert apart == 0

# %% [markdown]
# ## What gradient sees
#
# Block 2 depends on block 1, but training may choose not to differentiate through that. The paper says: the gradient
# stops at the memory (`detached`). Its program does something else: the memory holds clean values and the gradient of
# the noisy step (`official`). Both are one setting here. Each is tested by the gradient of block 2 with respect to the
# noise of block 1.

# %%
learner = student(train_all=True)
for kv_grad in ("detached", "official"):
    noise = [part.requires_grad_() for part in tape()]
    draws = iter([noise[0], noise[STEPS]])
    options = RolloutOptions(exits=(0, 0), kv_grad=kv_grad)
    made = rollout(learner, condition, 2, schedule, lambda shape: next(draws), options)  # noqa: B023
    gradient = torch.autograd.grad(made[:, :, 1].sum(), noise[0], allow_unused=True)[0]
    size = 0.0 if gradient is None else gradient.abs().sum().item()
    print(f"{kv_grad}: the gradient of block 2 with respect to the noise of block 1 has size {size:.2f}")
    assert (size > 0) == (kv_grad == "official")

# %% [markdown]
# Next: [training on one's own past](07_training.md).
