"""Random checkpoints of every family, a few thousand weights each, of the published classes in the published layout."""

from __future__ import annotations

import json
import string
from pathlib import Path

import diffusers
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

PROMPTS = ("a cat runs", "the blue dog sits")


def tokenizer(length):
    """One token a character, ended by ``</s>``."""
    vocab = {sign: i for i, sign in enumerate(["<pad>", "</s>", "<unk>", *string.ascii_letters, *string.punctuation])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def t5(kind=T5EncoderModel, config=T5Config):
    return kind(config(vocab_size=128, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0))


def clip_text(length):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=128, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=length, bos_token_id=0, eos_token_id=1, pad_token_id=0, projection_dim=8,
        )
    )  # fmt: skip


def clip_vision(kind):
    return kind(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=224,
            patch_size=112, projection_dim=16,
        )
    )  # fmt: skip


def image_processor():
    return CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})


def certain(convolution, channels):
    """Make a posterior's deviation next to nothing, so that the pipeline's draw from it is its mode."""
    with torch.no_grad():
        convolution.weight[-channels:] = 0
        convolution.bias[-channels:] = -30


def stable_video_diffusion(folder):
    unet = diffusers.UNetSpatioTemporalConditionModel(
        in_channels=8, out_channels=4, block_out_channels=(32, 32), layers_per_block=1, num_frames=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), cross_attention_dim=16,
        num_attention_heads=(2, 2), addition_time_embed_dim=8, projection_class_embeddings_input_dim=24,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    )
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        interpolation_type="linear", use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, steps_offset=1,
        timestep_spacing="leading", timestep_type="continuous",
    )  # fmt: skip
    diffusers.StableVideoDiffusionPipeline(
        vae, clip_vision(CLIPVisionModelWithProjection), unet, scheduler, image_processor()
    ).save_pretrained(folder)


def wan_transformer(**changed):
    return diffusers.WanTransformer3DModel(
        **{
            "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 32,
            "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32, **changed,
        }
    )  # fmt: skip


def wan_parts(experts, **changed):
    """What text-to-video and image-to-video share."""
    vae = diffusers.AutoencoderKLWan(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.0, 0.2], latents_std=[1.5, 0.7, 1.0, 2.0],
    )  # fmt: skip
    return {
        "tokenizer": tokenizer(512), "text_encoder": t5(UMT5EncoderModel, UMT5Config), "vae": vae,
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "transformer": wan_transformer(**changed),
        "transformer_2": wan_transformer(**changed) if experts == 2 else None,
        "boundary_ratio": 0.9 if experts == 2 else None,
    }  # fmt: skip


def wan(folder, experts=1, expand_timesteps=False):
    diffusers.WanPipeline(**wan_parts(experts), expand_timesteps=expand_timesteps).save_pretrained(folder)


def wan_image(folder, image_dim=None, experts=1, expand_timesteps=False):
    changed = {"in_channels": 4 if expand_timesteps else 12, "image_dim": image_dim}
    changed["added_kv_proj_dim"] = 24 if image_dim else None
    diffusers.WanImageToVideoPipeline(
        **wan_parts(experts, **changed), image_encoder=clip_vision(CLIPVisionModel) if image_dim else None,
        image_processor=image_processor() if image_dim else None, expand_timesteps=expand_timesteps,
    ).save_pretrained(folder)  # fmt: skip


def modelscope(folder):
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), layers_per_block=1, cross_attention_dim=16,
        attention_head_dim=8,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 16), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=8,
    )  # fmt: skip
    words = {
        w: i for i, w in enumerate(["<|startoftext|>", "<|endoftext|>", *"abcdefgot", *(f"{c}</w>" for c in "agt")])
    }
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    letters = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    )  # fmt: skip
    diffusers.TextToVideoSDPipeline(vae, text, letters, unet, scheduler).save_pretrained(folder)


def cogvideox(folder, image=False, later=False):
    network = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8 if image else 4, out_channels=4, time_embed_dim=8,
        text_embed_dim=32, num_layers=2, sample_width=4, sample_height=4, sample_frames=9, max_text_seq_length=24,
        use_rotary_positional_embeddings=image, patch_size=2, patch_size_t=2 if later else None,
        ofs_embed_dim=8 if later else None, patch_bias=not later,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), down_block_types=("CogVideoXDownBlock3D",) * 4, latent_channels=4,
        up_block_types=("CogVideoXUpBlock3D",) * 4, layers_per_block=1, norm_num_groups=2, scaling_factor=0.7,
        invert_scale_latents=later,
    )  # fmt: skip
    certain(vae.encoder.conv_out.conv, 4)
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=True,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0 if image else 3.0,
        timestep_spacing="trailing",
    )  # fmt: skip
    kind = diffusers.CogVideoXImageToVideoPipeline if image else diffusers.CogVideoXPipeline
    kind(tokenizer(24), t5(), vae, network, scheduler).save_pretrained(folder)


def ltx(folder):
    network = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1), patch_size=1, patch_size_t=1,
        spatio_temporal_scaling=(True, True, False, False), decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4,
    )  # fmt: skip
    vae.latents_mean.copy_(torch.linspace(-0.2, 0.2, 8))
    vae.latents_std.copy_(torch.linspace(0.5, 2.0, 8))
    certain(vae.encoder.conv_out.conv, 1)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, base_image_seq_len=16, max_image_seq_len=256,
        shift_terminal=0.1,
    )  # fmt: skip
    diffusers.LTXPipeline(scheduler, vae, t5(), tokenizer(64), network).save_pretrained(folder)


def hunyuan_video(folder):
    network = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=2, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=1024, pad_token_id=0,
        )
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    diffusers.HunyuanVideoPipeline(
        llama, words(), network, vae, scheduler, clip_text(77), tokenizer(77)
    ).save_pretrained(folder)


def words():
    """One token a word or sign, so that HunyuanVideo's template is about as long as it is in Llama's tokens."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE as TEMPLATE

    split = pre_tokenizers.Whitespace()
    known = {word for text in (TEMPLATE["template"], *PROMPTS) for word, _ in split.pre_tokenize_str(text)}
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<unk>", *sorted(known)])}, "<unk>"))
    backend.pre_tokenizer = split
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_max_length=1024, padding_side="right"
    )


def build(maker, folder: Path, **options):
    """Write a folder and make its parts' classes ones that every version of transformers knows."""
    torch.manual_seed(0)
    maker(folder, **options)
    for file in (*folder.glob("model_index.json"), *folder.glob("tokenizer*/tokenizer_config.json")):
        file.write_text(file.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    return folder
