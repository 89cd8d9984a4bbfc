"""Chains of the families that diffusers does not have, through their real generators, against the original programs."""

from __future__ import annotations

import tiny_own
import torch
from torch import nn

from reelign.contracts import Condition
from reelign.generators.family_generator import FamilyGenerator
from reelign.generators.opensora import OpenSora, OpenSoraOptions
from reelign.generators.opensora_network import STDiT3, STDiT3Config
from reelign.generators.opensora_vae import OpenSoraVAE
from reelign.generators.videocrafter import VideoCrafter, VideoCrafterOptions
from reelign.generators.videocrafter_network import VideoCrafterUNet, read_sizes
from reelign.sampling import ChainOptions, chain
from reelign.zoo.published import fill


def part(tensors, prefix):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def distance(computed, reference):
    return ((computed.detach() - reference).abs().max() / reference.abs().max()).item()


def videocrafter2_network(tensors):
    weights = {name: value.float() for name, value in part(tensors, "weights/").items()}
    network = VideoCrafterUNet(read_sizes(weights, "golden"))
    fill(network, weights, "golden")
    return network


def opensora_network(tensors, config):
    made = STDiT3(STDiT3Config.from_published(config))
    made.load_state_dict(part(tensors, "weights/"))
    return made.eval().requires_grad_(False)


def listened(generator):
    """Calls of the network: the latent of the first branch, the times, the output."""
    calls, inner = [], generator.family.predict

    def predict(x, t, features):
        output = inner(x, t, features)
        calls.append((x[: len(x) // 2].detach(), t, output.detach()))
        return output

    generator.family.predict = predict
    return calls


def differentiated(network, names):
    weights = dict(network.named_parameters())
    return {name: weights[name].requires_grad_() for name in names}


def check_videocrafter2(golden):
    """Five steps of DDIM at guidance 12, without and with fresh noise, and the last step's gradient."""
    tensors, described = golden("videocrafter2_ddim")
    network, noise, fps = videocrafter2_network(tensors), tensors["inputs/x_T"], tensors["inputs/fps"]
    parts = {"unet": network, "vae": tiny_own.videocrafter2_parts()["vae"], "text": nn.Identity(), "tokenizer": None}
    _, _, frames, height, width = noise.shape
    size = {"frames": frames, "height": 2 * height, "width": 2 * width}
    options = VideoCrafterOptions(model="golden", **size, lora=None, device="cpu")
    generator = FamilyGenerator(VideoCrafter(parts, options), options)
    condition = Condition(
        {"text": tensors["inputs/context"], "fps": fps}, {"text": tensors["inputs/uncond_context"], "fps": fps}
    )
    schedule = generator.path.schedule(5)
    assert schedule.t.tolist() == tensors["outputs/timesteps"].tolist()
    assert distance(generator.path.scale, tensors["outputs/scale_arr"]) < 1e-6
    assert distance(generator.path.alphas_cumprod, tensors["outputs/alphas_cumprod"]) < 1e-6
    assert distance(schedule.sigma[:-1].flip(0), tensors["outputs/ddim_sqrt_one_minus_alphas"]) < 1e-6
    assert distance(schedule.ancestral.flip(0), tensors["outputs/eta1/ddim_sigmas"]) < 1e-6
    calls, chosen = listened(generator), differentiated(network, described["chosen_weights"])
    for eta in (0, 1):
        calls.clear()
        fresh = iter(tensors["inputs/noise"])
        final = chain(
            generator, noise, condition, schedule, ChainOptions(12.0, eta, [4]), lambda shape, fresh=fresh: next(fresh)
        )
        expected = tensors[f"outputs/eta{eta}/latents"]
        for ours, theirs in zip([*(x for x, _, _ in calls[1:]), final], expected, strict=True):
            assert distance(ours, theirs) < 5e-5
        loss = (final * tensors["inputs/probe"]).sum()
        assert distance(loss, tensors[f"outputs/eta{eta}/loss"]) < 5e-4
        for name, gradient in zip(chosen, torch.autograd.grad(loss, list(chosen.values())), strict=True):
            assert distance(gradient, tensors[f"outputs/eta{eta}/grad/{name}"]) < 2e-4


def check_opensora(golden):
    """Five Euler steps at guidance 7 away from the null caption, each call of the network, the last step's gradient."""
    tensors, described = golden("opensora_rflow")
    given, outputs, tolerance = part(tensors, "inputs/"), part(tensors, "outputs/"), described["tolerance"]
    named = {"height": "height", "width": "width", "frames": "num_frames", "fps": "fps"}
    options = OpenSoraOptions(**{n: int(given[key][0]) for n, key in named.items()}, lora=None, device="cpu")
    network = opensora_network(tensors, described["config"]["model"])
    family = OpenSora(network, OpenSoraVAE(tiny_own.OPENSORA_VAE), nn.Identity(), None, options)
    family.latent_shape = lambda: tuple(given["z"].shape[1:])  # smaller than what the network is told
    generator = FamilyGenerator(family, options)
    positive = {"text": given["y"][:, 0], "mask": given["mask"].bool()}
    condition = Condition(positive, family.negative(positive))
    calls, chosen = listened(generator), differentiated(network, described["chosen_weights"])
    scale = ChainOptions(described["config"]["scheduler"]["cfg_scale"], gradient_steps=[4])
    final = chain(generator, given["z"], condition, generator.path.schedule(5), scale)
    for i, (x, t, output) in enumerate(calls):
        assert distance(t[:2], outputs["timesteps"][i]) < tolerance["overrides"]["outputs/timesteps"]
        assert i == 0 or distance(x, outputs["latents"][i - 1]) < tolerance["default"]
        negative, positive = output.chunk(2)
        assert distance(-positive, outputs["pred_cond"][i, :, :4]) < tolerance["default"]
        assert distance(-negative, outputs["pred_uncond"][i, :, :4]) < tolerance["default"]
    assert distance(final, outputs["final"]) < tolerance["default"]
    loss = (final * given["probe"]).sum()
    assert distance(loss, outputs["loss"]) < tolerance["overrides"]["outputs/loss"]
    for name, gradient in zip(chosen, torch.autograd.grad(loss, list(chosen.values())), strict=True):
        assert distance(gradient, outputs[f"grad/{name}"]) < tolerance["overrides"]["outputs/grad/"]


GOLDEN = {"videocrafter2": check_videocrafter2, "opensora": check_opensora}
