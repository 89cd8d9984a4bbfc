"""Levers for small GPUs: each on and off gives the same loss and gradient, over the generators it is for.

Exact levers are held to 1e-6 of the loss and of the largest gradient, in float32, or to 3e-5 where the batch size is
another; approximate ones to what ``docs/levers.md`` says of them.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import contextmanager

import pytest
import tiny_families as tiny
import torch
from family_cases import load, request_for, shake, vae_of
from family_cases import networks_of as parts_of
from torch import nn

from reelign import checkpoint
from reelign.algorithms.reward_gradient import Config, RewardGradient
from reelign.build import build_weighted_reward
from reelign.config import parse_config
from reelign.contracts import Request, RewardCard, VideoBatch
from reelign.errors import ConfigError, ContractError
from reelign.generators.levers import MemoryOptions, decode_in_parts, tiled
from reelign.generators.loss_scale import LossScale
from reelign.optimisation import Optimisation
from reelign.rewards.parking import networks_of, score_and_leave
from reelign.rewards.weighted import Term, WeightedReward
from reelign.sampling import ChainOptions, chain, seeded_noise

EXACT, ROUND_OFF = 1e-6, 3e-5  # the same operations; the same ones in another batch size
FAMILIES = [  # those of Wan 2.2 have two experts
    "modelscope", "stable_video_diffusion", "wan_2.2", "wan_2.2_image", "cogvideox", "ltx", "hunyuan_video",
    "videocrafter2", "opensora",
]  # fmt: skip
LEVERS = {
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "decode_checkpointing": {"decode_checkpointing": True},
    "offload, checkpointed": {"memory": {"offload": True}, "gradient_checkpointing": True},
    "decode_slicing": {"memory": {"decode_slicing": True}, "decode_checkpointing": True},
}


@pytest.fixture(scope="module")
def families(folders):
    """Loads a family by name, with options."""

    def family(name, **options):
        made = load(folders(name), name, **options)
        shake(made)
        return made

    return family


class Kept:
    """Bytes that a graph keeps for its backward pass, weights aside; what a checkpoint recomputes is not among them."""

    def __init__(self, generator):
        self.weights = {p.untyped_storage().data_ptr() for p in parameters_of(generator)}

    @contextmanager
    def counted(self):
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            yield kept


class Measured:
    """Loss and gradient of a live step of each expert, decoded, and the bytes that are kept to go back."""

    def __init__(self, generator, scale=1.0):
        kept = Kept(generator)
        x, condition = seeded_noise(generator.latent_shape(), [0, 1]), generator.encode(request_for(generator))
        steps = len(generator.denoisers.all())
        options = ChainOptions(1.0, gradient_steps=range(steps))
        with kept.counted() as network:
            final = chain(generator, x, condition, generator.path.schedule(steps), options)
        with kept.counted() as decoder:
            loss = scale * generator.decode(final, [0, generator.frames() - 1]).square().mean()
        found = torch.autograd.grad(loss, list(generator.trainable().values()), allow_unused=True)
        self.loss = loss.item() / scale
        self.network, self.decoder = sum(network.values()), sum(decoder.values())
        self.experts = {name[0] for name, g in zip(generator.trainable(), found, strict=True) if g is not None}
        self.gradient = torch.cat([g.flatten().double() for g in found if g is not None]) / scale

    def far(self, other):
        """Relative distance of loss and of gradient."""
        worst = (self.gradient - other.gradient).abs().max() / other.gradient.abs().max()
        return max(abs(self.loss - other.loss) / abs(other.loss), float(worst))

    def cosine(self, other):
        return float(torch.cosine_similarity(self.gradient, other.gradient, dim=0))


def parameters_of(generator):
    return [p for module in (*generator.denoisers.all(), vae_of(generator)) for p in module.parameters()]


def resident(generator):
    """Weights of the networks that are where the network is."""
    return sum(p.numel() for network in generator.denoisers.all() for p in network.parameters())


@pytest.fixture(scope="module")
def plain(families):
    made = {}

    def measured(name):
        if name not in made:
            made[name] = Measured(families(name))
        return made[name]

    return measured


@pytest.mark.parametrize("lever", LEVERS)
@pytest.mark.parametrize("name", FAMILIES)
def test_exact_levers_change_nothing(name, lever, families, plain):
    generator, before = families(name, **LEVERS[lever]), plain(name)
    after = Measured(generator)
    assert before.gradient.abs().max() > 0
    assert len(before.experts) == len(generator.denoisers.all())
    assert after.far(before) <= (ROUND_OFF if lever == "decode_slicing" else EXACT)
    if lever == "gradient_checkpointing":
        assert after.network < 0.7 * before.network
    if lever == "decode_checkpointing":
        assert after.decoder < 0.7 * before.decoder
    if lever == "offload, checkpointed":
        assert after.network < 0.7 * before.network
        assert resident(generator) < generator.parameter_count()


def test_a_tile_as_large_as_the_picture_changes_nothing(families, plain):
    assert Measured(families("ltx", memory={"decode_tiling": 64})).far(plain("ltx")) <= EXACT


@pytest.mark.parametrize("name", FAMILIES)
def test_offloaded_weights_are_there_only_while_their_layer_works(name, families):
    generator = families(name, memory={"offload": True}, gradient_checkpointing=True)
    networks, present = generator.denoisers.all(), []
    modules = [module for network in networks for module in network.modules()]
    frozen = [m for m in modules if isinstance(m, nn.Linear) and not m.weight.requires_grad]

    def here(*_):
        present.append(sum(m.weight.numel() > 0 for m in frozen))

    for layer in frozen:
        layer.register_forward_pre_hook(here)
    assert sum(m.weight.numel() for m in frozen) == 0
    assert generator.parameter_count() == families(name).parameter_count()
    Measured(generator)
    assert max(present) == 1
    assert sum(m.weight.numel() for m in frozen) == 0
    with generator.merged():  # nothing to fold into: the adapter stays beside the weights
        assert not any(getattr(m, "_disable_adapters", False) for m in modules)


def decoder_of(generator):
    vae = vae_of(generator)
    return vae.picture_vae.decoder if hasattr(vae, "picture_vae") else vae.decoder


@pytest.mark.parametrize("name", FAMILIES)
def test_slices_and_tiles_are_all_that_the_decoder_sees(name, families):
    sizes = {}
    for lever in ({}, {"decode_slicing": True}, {"decode_tiling": 64, "decode_slicing": True}):
        generator = families(name, memory=lever, height=96, width=64)
        seen = []
        decoder_of(generator).register_forward_pre_hook(
            lambda module, args, kwargs, seen=seen: seen.append((args or tuple(kwargs.values()))[0].numel()),
            with_kwargs=True,
        )
        x = seeded_noise(generator.latent_shape(), [0, 1])
        with torch.no_grad():
            video = generator.decode(x, [0])
        assert video.shape == (2, 1, 3, 96, 64)
        sizes[len(lever)] = max(seen)
    assert sizes[1] * 2 == sizes[0]
    assert sizes[2] * 3 == sizes[1] * 2


def test_tiles_of_a_local_decoder_are_exact():
    """Where a pixel depends on its own latent alone, tiling changes nothing, and no seam has a weight but 1."""
    random = torch.Generator().manual_seed(0)
    for height, width, size in ((4, 4, 4), (9, 5, 4), (13, 8, 8), (7, 30, 5)):
        x = torch.randn(2, 3, 2, height, width, generator=random, requires_grad=True)

        def decode(z):
            return z.repeat_interleave(8, -1).repeat_interleave(8, -2).transpose(1, 2)

        torch.testing.assert_close(tiled(decode, x, size, 8), decode(x), rtol=0, atol=1e-5)
        probe = torch.randn(decode(x).shape, generator=random)
        one, other = (torch.autograd.grad((f * probe).sum(), x)[0] for f in (tiled(decode, x, size, 8), decode(x)))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_tiling_of_a_trained_decoder_is_close(tiny_wan):
    """Of zoo:tiny-wan, whose picture is 8 latents wide, in 9 tiles of 4: beyond what anyone tiles, so a lower bound."""
    from reelign.datasets.moving_shapes import MovingShapes
    from reelign.rewards.card import GOLDEN_SPECS

    clip = MovingShapes(frames=17, size=64, fps=8.0).render(list(GOLDEN_SPECS), torch.Generator().manual_seed(0))
    x = tiny_wan.encode_video(clip)
    ratio = 64 // x.shape[-1]
    found = []
    for memory in (MemoryOptions(), MemoryOptions(decode_tiling=4 * ratio)):
        z = x.clone().requires_grad_()
        video = decode_in_parts(lambda part: tiny_wan.decode(part, [0, 4]), z, ratio, memory)
        found.append((video.detach(), torch.autograd.grad((video - 0.5).square().sum(), z)[0]))
    (whole, slope), (tiles, other) = found
    psnr = -10 * (whole - tiles).square().mean().log10()
    cosine = torch.cosine_similarity(slope.flatten(), other.flatten(), dim=0)
    assert psnr > 28
    assert cosine > 0.9
    assert not torch.equal(whole, tiles)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_close(name, families, plain):
    generator = families(name, dtype="bfloat16")
    assert all(parameter.dtype == torch.float32 for parameter in generator.trainable().values())
    before, after = plain(name), Measured(generator)
    assert abs(after.loss - before.loss) <= 0.05 * abs(before.loss)
    assert after.far(before) > EXACT
    assert after.cosine(before) > 0.99


@pytest.mark.parametrize("name", FAMILIES)
def test_float16_keeps_gradients_of_any_size(name, families, plain):
    """As they are, those of a small loss would be rounded to zero: 1e-9 is that of a mean over a real clip."""
    generator = families(name, dtype="float16")
    for scale in (1.0, 1e-9):
        assert Measured(generator, scale).cosine(plain(name)) > 0.99
    generator.denoisers._scale = None
    assert Measured(generator, 1e-9).gradient.norm() < 0.5 * plain(name).gradient.norm()


def test_a_loss_scale_is_exact_and_forgotten():
    """Two layers through it twice, scaled: the gradient to input and weights is the plain one, bit for bit."""
    weight = nn.Parameter(torch.tensor([[2.0, -1.0], [0.5, 3.0]]))
    x = torch.tensor([1.0, 2.0], requires_grad=True)

    def loss(run):
        return (1e-12 * run(lambda h: weight @ h, run(lambda h: weight @ h, x))).sum()

    plain = torch.autograd.grad(loss(lambda f, h: f(h)), (weight, x))
    scale = LossScale([weight])
    for _ in range(2):
        found = torch.autograd.grad(loss(lambda f, h: scale.leave(f(scale.enter(h)))), (weight, x))
        assert all(torch.equal(a, b) for a, b in zip(plain, found, strict=True))
        assert scale.scale is None


class Patches(nn.Module):
    """A small network as a reward: tanh of weighted means of the frames.

    It says where it is and does not go there, for want of a second device.
    """

    card = RewardCard(name="patches", summary="", range=(-1.0, 1.0), source="test")

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.near = nn.Conv2d(3, 8, 3, padding=1).requires_grad_(False)
        self.far = nn.Conv2d(8, 4, 4, stride=4).requires_grad_(False)
        self.place = "cpu"

    def to(self, place):
        self.place = place
        return self

    def forward(self, frames):
        return torch.tanh(self.far(torch.tanh(self.near(frames))))


class PatchReward:
    """Goes to the device to score, as every reward with weights does, and keeps what is there at that time."""

    card = Patches.card

    def __init__(self, seed, others=()):
        self.parts = {"tower": [Patches(seed)]}
        self.all = weakref.WeakSet([*self.parts["tower"], *(other.parts["tower"][0] for other in others)])
        self.present = []
        self.detached = False

    def __call__(self, batch):
        network = self.parts["tower"][0].to("device")
        self.present.append(sum(p.nbytes for n in self.all if n.place == "device" for p in n.parameters()))
        scores = network(batch.video.flatten(0, 1)).square().mean((1, 2, 3)).view(len(batch), -1).mean(1)
        return scores.detach() if self.detached else scores


class Box:
    """A tensor that a graph keeps, for as long as it does."""

    def __init__(self, tensor):
        self.tensor = tensor


def test_parked_rewards_give_the_same_scores_and_gradients_and_leave_the_device():
    """While one scores no other is there, and when they have scored none is; nothing is kept but the slopes."""
    video = torch.rand(3, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    weights = sum(p.nbytes for p in Patches(0).parameters())
    found = {}
    for park in (False, True):
        first = PatchReward(0)
        second = PatchReward(1, [first])
        terms = [Term("a", first), Term("b", second, 0.5, loss="distance", target=0.3)]
        reward, pixels, kept = WeightedReward(terms, park), video.clone().requires_grad_(), weakref.WeakSet()

        def keep(tensor, kept=kept):
            box = Box(tensor)
            kept.add(box)
            return box

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda box: box.tensor):
            scores = reward.scores(VideoBatch(pixels, 8.0, Request(("a", "b", "c"))))
        held = sum(box.tensor.nbytes for box in kept)
        loss = reward.objective(scores).square().sum()
        (gradient,) = torch.autograd.grad(loss, pixels, retain_graph=True)
        (again,) = torch.autograd.grad(loss, pixels)
        assert torch.equal(gradient, again)
        left = {n.place for n in second.all}
        found[park] = (scores, gradient, held, second.present, left)
    (plain, slope, held, present, left), (parked, other, slopes, one_by_one, nowhere) = found[False], found[True]
    assert all(torch.equal(plain[name], parked[name]) for name in plain)
    assert (slope - other).abs().max() <= EXACT * slope.abs().max()
    assert (present, left) == ([2 * weights], {"device"})
    assert (one_by_one, nowhere) == ([weights], {"cpu"})
    assert slopes == 2 * video.nbytes < 0.5 * held


@pytest.mark.parametrize("name", FAMILIES)
def test_encoders_are_on_the_device_only_while_they_encode(name, families):
    generator, moved = families(name), []
    for part, network in parts_of(generator).items():
        if part.startswith("encoders"):
            network.to = lambda device, part=part: moved.append((part, str(device)))
    encoders = sorted(part for part in parts_of(generator) if part.startswith("encoders"))
    asked = request_for(generator)
    generator.encode(asked)
    assert sorted(moved[: len(encoders)]) == [(part, str(generator.device)) for part in encoders]
    assert sorted(moved[-len(encoders) :]) == [(part, "cpu") for part in encoders]
    assert len(moved) >= 2 * len(encoders)
    before = len(moved)
    generator.encode(Request(asked.prompts[::-1], first_frames=asked.first_frames))
    pictures = 0 if asked.first_frames is None else 2 * len(encoders)  # texts are kept, pictures are not
    assert len(moved) - before == pictures


def test_parking_finds_networks_and_still_sees_a_lost_gradient():
    reward = PatchReward(0)
    assert networks_of(reward) == reward.parts["tower"]
    network, moved = reward.parts["tower"][0], []
    reward.parts["tower"][0].to = lambda place: (moved.append(place), network)[1]
    pixels = torch.rand(1, 2, 3, 16, 16).requires_grad_()
    batch = VideoBatch(pixels, 8.0, Request(("a",)))
    assert score_and_leave(reward, batch).requires_grad
    assert moved == ["device", "cpu"]
    with torch.no_grad():
        assert not score_and_leave(reward, batch).requires_grad
    assert moved == ["device", "cpu"] * 2
    reward.detached = True
    with pytest.raises(ContractError, match="its score is detached from the pixels"):
        WeightedReward([Term("a", reward)], park=True).scores(batch)


def test_a_run_file_turns_levers():
    generator = {"kind": "ltx", "model": "m", "memory": {"decode_tiling": 256, "quantise": "nf4"}}
    config = parse_config(
        {
            "output": "x", "generator": generator, "rewards": [{"name": "brightness_range"}],
            "training": {"park_rewards": True}, "reward_gradient": {"optimiser": "adamw8bit"},
        }
    )  # fmt: skip
    assert config.generator.memory.quantise == "nf4"
    assert config.training.park_rewards
    assert build_weighted_reward([{"name": "brightness_range"}], park=True).park
    with pytest.raises(ConfigError, match=r"decode_tilling.*did you mean .*decode_tiling"):
        parse_config({**config.model_dump(mode="json"), "generator": {**generator, "memory": {"decode_tilling": 1}}})


def test_levers_that_exclude_one_another_are_refused(families):
    for options, said in (
        ({"memory": {"offload": True}, "train_all": True}, "offload is for frozen weights"),
        ({"memory": {"quantise": "int8"}, "train_all": True}, "quantise is for frozen weights"),
        ({"memory": {"offload": True, "quantise": "int8"}}, "choose one"),
        ({"memory": {"offload": True}, "compile": True}, "set compile to false"),
        ({"memory": {"decode_tiling": 8}}, r"at least four latents, \d+ pixels for this model; got 8"),
    ):
        with pytest.raises(ConfigError, match=said):
            families("wan_2.1", **options)


@contextmanager
def missing(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)
        yield


def test_what_needs_bitsandbytes_says_so(families, monkeypatch):
    with missing(monkeypatch):
        for kind in ("int8", "nf4"):
            with pytest.raises(ConfigError, match=rf"quantise: {kind} needs bitsandbytes.*reelign\[bitsandbytes\]"):
                families("wan_2.1", memory={"quantise": kind})
        with pytest.raises(ConfigError, match="adamw8bit needs bitsandbytes, which is not installed: pip install"):
            Optimisation({"a": nn.Parameter(torch.zeros(2))}, 1e-3, optimiser="adamw8bit")


NEEDED = "8-bit AdamW and quantised weights need the extra reelign[bitsandbytes]"


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_quantised_weights_are_close(name, kind, families, plain):
    """Of networks 24 to 64 numbers wide; wider ones fare better."""
    pytest.importorskip("bitsandbytes", reason=NEEDED)
    generator = families(name, memory={"quantise": kind})
    assert generator.parameter_count() == families(name).parameter_count()
    after = Measured(generator)
    assert after.far(plain(name)) > 0
    assert abs(after.loss - plain(name).loss) <= {"int8": 0.05, "nf4": 0.15}[kind] * plain(name).loss
    assert after.cosine(plain(name)) > {"int8": 0.97, "nf4": 0.8}[kind]


def test_an_8_bit_optimiser_resumes_bit_for_bit(tmp_path):
    """Of a parameter large enough to have its moments in 8 bits, and of one that is not."""
    pytest.importorskip("bitsandbytes", reason=NEEDED)
    random = torch.Generator().manual_seed(0)
    first = {"large": torch.randn(64, 128, generator=random), "small": torch.randn(8, generator=random)}
    gradients = [{n: torch.randn(v.shape, generator=random) for n, v in first.items()} for _ in range(6)]

    def begin():
        return Optimisation(
            {n: nn.Parameter(v.clone()) for n, v in first.items()}, 1e-2, optimiser="adamw8bit", average=0.9
        )

    def go_on(optimisation, gradients):
        for step in gradients:
            for name, parameter in optimisation.parameters.items():
                parameter.grad = step[name].clone()
            optimisation.step()

    whole, half, resumed = begin(), begin(), begin()
    go_on(whole, gradients)
    go_on(half, gradients[:3])
    checkpoint.save(tmp_path / "step", {"a": half.state()})
    resumed.restore(checkpoint.load(tmp_path / "step")["a"])
    go_on(resumed, gradients[3:])
    for name, parameter in whole.parameters.items():
        assert torch.equal(parameter, resumed.parameters[name])
        assert torch.equal(whole.average[name], resumed.average[name])
        assert not torch.equal(parameter.detach(), first[name])
    moments = whole.optimiser.state[whole.parameters["large"]]
    assert moments["state1"].dtype == torch.uint8


def test_all_levers_at_once_train(families):
    generator = families(
        "wan_2.2",
        memory={"offload": True, "decode_slicing": True},
        gradient_checkpointing=True,
        decode_checkpointing=True,
    )
    twin = families("wan_2.2")
    for model, park in ((generator, True), (twin, False)):
        reward = WeightedReward([Term("patches", PatchReward(0))], park)
        algorithm = RewardGradient(model, reward, Config(steps=2, lr=1e-3, kl_weight=0.1))
        for _ in range(2):
            assert algorithm.step(Request(tiny.PROMPTS))["gradient_norm"] > 0
    for one, other in zip(generator.trainable().values(), twin.trainable().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-5)  # of two updates of 1e-3; AdamW enlarges round-off
