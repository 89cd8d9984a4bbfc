"""Random checkpoints of the families that diffusers does not have, in the layouts in which they were published."""

from __future__ import annotations

import json

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from reelign.generators.opensora_network import STDiT3, STDiT3Config
from reelign.generators.opensora_vae import OpenSoraVAE, VAESizes
from reelign.generators.videocrafter_network import Sizes, VideoCrafterUNet

SIZES = Sizes(channels=(32, 64), attention=(True, False), blocks=1, head=8, text=32)
WORDS = ["!", *"abcdefgot", *(f"{c}</w>" for c in "agt"), "<|startoftext|>", "<|endoftext|>"]
LENGTH, WIDTH, LAYERS = 20, 32, 3
OPENSORA_VAE = VAESizes((32, 32, 32, 32), 1, 32, (1, 2, 2, 4), 1)
OPENSORA_WORDS = (
    "<pad>",
    "</s>",
    "<unk>",
    *["a", "cat", "dog", "sings", "aesthetic", "score", ":", ".", "6", "5", "7"],
)
OPENSORA_LENGTH = 12


def random_text(random):
    """Weights of a text tower under open_clip's names."""

    def draw(*shape):
        return 0.2 * torch.randn(*shape, generator=random)

    weights = {
        "positional_embedding": draw(LENGTH, WIDTH),
        "text_projection": draw(WIDTH, 8),
        "logit_scale": torch.tensor(2.0),
        "token_embedding.weight": draw(len(WORDS), WIDTH),
        "ln_final.weight": 1 + draw(WIDTH),
        "ln_final.bias": draw(WIDTH),
    }
    for layer in range(LAYERS):
        shapes = {
            "ln_1.weight": (WIDTH,), "ln_1.bias": (WIDTH,), "ln_2.weight": (WIDTH,), "ln_2.bias": (WIDTH,),
            "attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,),
            "attn.out_proj.weight": (WIDTH, WIDTH), "attn.out_proj.bias": (WIDTH,),
            "mlp.c_fc.weight": (4 * WIDTH, WIDTH), "mlp.c_fc.bias": (4 * WIDTH,),
            "mlp.c_proj.weight": (WIDTH, 4 * WIDTH), "mlp.c_proj.bias": (WIDTH,),
        }  # fmt: skip
        weights |= {f"transformer.resblocks.{layer}.{name}": draw(*shape) for name, shape in shapes.items()}
    return weights


def in_latent_diffusions_names(vae):
    """Diffusers' names of an autoencoder of two levels to those of latent diffusion."""
    renamed = {}
    for name, value in vae.state_dict().items():
        side = name.partition(".")[0]
        for old, new in {
            "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
            "down_blocks.": "down.", "up_blocks.0.": "up.1.", "up_blocks.1.": "up.0.",
            "resnets.": "block.", "downsamplers.0": "downsample", "upsamplers.0": "upsample",
            "mid_block.block.0": "mid.block_1", "mid_block.block.1": "mid.block_2",
            "mid_block.attentions.0": "mid.attn_1", "group_norm": "norm",
            "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
        }.items():  # fmt: skip
            name = name.replace(old, new) if side in ("encoder", "decoder") else name
        convolved = any(f"attn_1.{part}.weight" in name for part in ("q", "k", "v", "proj_out"))
        renamed[name] = value[:, :, None, None] if convolved else value
    return renamed


def videocrafter2_parts():
    """The U-Net, the autoencoder and the text tower's weights."""
    torch.manual_seed(0)
    unet = VideoCrafterUNet(SIZES)
    vae = AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=32,
    ).eval()  # fmt: skip
    return {"unet": unet, "vae": vae, "text": random_text(torch.Generator().manual_seed(1))}


def published(parts):
    weights = {f"model.diffusion_model.{name}": value for name, value in parts["unet"].state_dict().items()}
    weights |= {f"first_stage_model.{name}": v for name, v in in_latent_diffusions_names(parts["vae"]).items()}
    weights |= {f"cond_stage_model.model.{name}": value for name, value in parts["text"].items()}
    return weights | {"cond_stage_model.model.attn_mask": torch.zeros(LENGTH, LENGTH), "betas": torch.zeros(1000)}


def videocrafter2(folder, parts=None):
    """``model.ckpt``, and CLIP's tokenizer beside it."""
    torch.save({"state_dict": published(parts or videocrafter2_parts()), "epoch": 3}, folder / "model.ckpt")
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder / "tokenizer")


def opensora(folder):
    """Three folders: the transformer, the autoencoder, T5 with its tokenizer."""
    config = STDiT3Config(hidden_size=32, depth=1, num_heads=4, caption_channels=16, model_max_length=OPENSORA_LENGTH)
    STDiT3(config).save_pretrained(folder / "stdit")
    (folder / "vae").mkdir()
    weights = {name: value.contiguous() for name, value in OpenSoraVAE(OPENSORA_VAE).state_dict().items()}
    save_file(weights, folder / "vae" / "model.safetensors")
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    T5EncoderModel(T5Config(vocab_size=len(OPENSORA_WORDS), **sizes)).save_pretrained(folder / "t5")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(OPENSORA_WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder / "t5")
