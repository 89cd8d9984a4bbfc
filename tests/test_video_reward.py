"""VideoReward and HPSv3 in their published key layouts, against transformers' own Qwen2-VL, PEFT and processors."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from reelign.contracts import Request, VideoBatch
from reelign.errors import ConfigError, DataError, ModelError
from reelign.rewards import qwen2_vl
from reelign.rewards.card import require_verified
from reelign.rewards.hpsv3 import HPSv3, build_head
from reelign.rewards.preprocess import resize
from reelign.rewards.video_reward import TOKENS, VideoReward, chosen_frames
from reelign.zoo.models import CLIP_MEAN, CLIP_STD
from reelign.zoo.words import name_tokenizer_for_every_version, vocabulary

CHAT = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
QUESTION = "a red {0} {text_prompt} left {1} circle {2} moving"  # not the published text
PROMPTS = ("a red circle moving left", "a white square growing")
NORM = {"VQ_mean": 0.3, "VQ_std": 2.0, "MQ_mean": -0.1, "MQ_std": 0.5, "TA_mean": 0.2, "TA_std": 1.5}
ALPHA, RANK = 8, 4
HIDDEN = 32


@dataclass
class Checkpoint:
    """A published folder and what it was made from."""

    folder: Path
    base: Path
    template: Path
    peft: Any
    tokenizer: Any

    def load(self, **options: Any) -> VideoReward:
        return VideoReward(str(self.folder), str(self.template), **options)


def clips(frames: int = 9, side: tuple[int, int] = (56, 84), fps: float = 8.0) -> VideoBatch:
    video = torch.rand(len(PROMPTS), frames, 3, *side, generator=torch.Generator().manual_seed(3))
    return VideoBatch(video, fps, Request(PROMPTS))


def save_base(folder: Path) -> Any:
    """A random Qwen2-VL of two small layers and a tokenizer of words; as published, the embedding has rows to spare."""
    words = [*vocabulary(), "system", "user", "assistant"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    tokenizer.add_tokens(list(CHAT), special_tokens=True)
    tokenizer.save_pretrained(folder)
    name_tokenizer_for_every_version(folder / "tokenizer_config.json")
    first = len(words)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 20, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "embed_dim": 32, "num_heads": 2, "hidden_size": HIDDEN},
        vision_start_token_id=first + 2, vision_end_token_id=first + 3, image_token_id=first + 4,
        video_token_id=first + 5, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(5)
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    return tokenizer


def old_name(name: str) -> str:
    """As transformers 4.45 called it."""
    for new, old in (("model.visual.", "visual."), ("model.language_model.", "model.")):
        name = name.replace(f"base_model.model.{new}", f"base_model.model.{old}")
    return name


def wrapped(base: Path, words: int, outputs: int) -> Any:
    """The base as VideoAlign wraps it: special tokens, a head, and PEFT on every linear layer of the language model."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(base)
    model.resize_token_embeddings(words, mean_resizing=False)
    model.rm_head = nn.Linear(HIDDEN, outputs, bias=False)
    targets = [
        name for name, part in model.named_modules() if isinstance(part, nn.Linear) and "language_model.layers" in name
    ]
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(6)
    peft = get_peft_model(model, lora).eval()
    with torch.no_grad():
        for parameter in model.model.visual.parameters():  # trained too, so that the base's will not do
            parameter.add_(0.05 * torch.randn(parameter.shape))
        model.get_input_embeddings().weight.normal_()
    return peft


def write_settings(folder: Path, base: Path, **changes: Any) -> None:
    settings = {
        "data_config": {
            "fps": 2.0, "num_frames": None, "max_frame_pixels": 200704, "sample_type": "uniform",
            "eval_dim": ["VQ", "MQ", "TA"], "prompt_template_type": "detailed_special",
        },
        "model_config": {
            "model_name_or_path": str(base), "output_dim": 1, "use_special_tokens": True, "reward_token": "special",
        },
        "peft_lora_config": {"lora_r": RANK, "lora_alpha": ALPHA, "use_rslora": False},
        "inference_config": NORM,
    }  # fmt: skip
    for part, values in changes.items():
        settings[part] |= values
    (folder / "model_config.json").write_text(json.dumps(settings))


def publish(folder: Path, outputs: int = 1) -> Checkpoint:
    base, model = folder / "base", folder / "VideoReward"
    tokenizer = save_base(base)
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    peft = wrapped(base, len(tokenizer), outputs)
    (model / "checkpoint-7").mkdir(parents=True)
    (model / "checkpoint-70").mkdir()
    state = {old_name(name): value for name, value in peft.state_dict().items()}
    torch.save(state, model / "checkpoint-70" / "model.pth")
    write_settings(model, base)
    (folder / "prompt_template.py").write_text(
        f'raise SystemExit("a template is never run")\nDETAILED_PROMPT_WITH_SPECIAL_TOKEN = """{question()}"""\n'
    )
    return Checkpoint(model, base, folder / "prompt_template.py", peft, tokenizer)


def question() -> str:
    return QUESTION.replace("{0}", TOKENS[0]).replace("{1}", TOKENS[1]).replace("{2}", TOKENS[2])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return publish(tmp_path_factory.mktemp("video_reward"))


@pytest.fixture(scope="module")
def reward(checkpoint: Checkpoint) -> VideoReward:
    return checkpoint.load()


def plain_patches(visual: Tensor) -> Tensor:
    """Patches of one prepared visual [T,3,H,W], block by block."""
    frames, _, height, width = visual.shape
    patches = [
        visual[t : t + 2, :, y : y + 14, x : x + 14].transpose(0, 1).flatten()
        for t in range(0, frames, 2)
        for top in range(0, height, 28)
        for left in range(0, width, 28)
        for y in (top, top + 14)
        for x in (left, left + 14)
    ]
    return torch.stack(patches)


def independent_logits(checkpoint: Checkpoint, video: Tensor, prompt: str) -> Tensor:
    """Raw scores of one clip [T,3,H,W] whose frames are all read, by PEFT's model and plain loops."""
    model, tokenizer = checkpoint.peft.base_model.model, checkpoint.tokenizer
    for part in model.modules():
        if hasattr(part, "inv_freq"):
            part.inv_freq = part.inv_freq.bfloat16().float()
    height, width = qwen2_vl.fitting_size(*video.shape[-2:], 128 * 784, 200704)
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    patches = plain_patches((resize(video, height, width) - mean) / std)
    text = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        + "<|video_pad|>" * (len(patches) // 4)
        + f"<|vision_end|>{question().format(text_prompt=prompt)}<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    hidden = model.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
        pixel_values_videos=patches,
        video_grid_thw=torch.tensor([[len(video) // 2, height // 14, width // 14]]),
    ).last_hidden_state
    logits = model.rm_head(hidden)[0]
    special = [tokenizer.convert_tokens_to_ids(token) for token in TOKENS]
    return torch.stack([logits[ids[0].tolist().index(token)] for token in special])


def pictures() -> Any:
    """The library's image processor that needs no torchvision."""
    return pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")


class TestSeeing:
    def test_patches_are_those_of_the_processor(self) -> None:
        pixels = (255 * torch.rand(3, 84, 56)).round()
        theirs = pictures().Qwen2VLImageProcessorPil()(pixels.numpy().astype(numpy.uint8), return_tensors="pt")
        visual = qwen2_vl.prepare(pixels[None, None] / 255, 56 * 56, 28 * 28 * 1280)
        ours, grid = qwen2_vl.patchify(visual)
        assert torch.allclose(ours, theirs["pixel_values"], atol=1e-3)
        assert torch.equal(grid, theirs["image_grid_thw"])

    def test_resized_pixels_are_close_to_the_processors(self) -> None:
        rows, columns = torch.meshgrid(torch.linspace(0, 6, 100), torch.linspace(0, 9, 170), indexing="ij")
        pixels = (127.5 + 110 * torch.stack([rows.sin(), columns.cos(), (rows + columns).sin()])).round()
        limits = {"shortest_edge": 128 * 784, "longest_edge": 200704}
        theirs = pictures().Qwen2VLImageProcessorPil(size=limits)(
            pixels.numpy().astype(numpy.uint8), return_tensors="pt"
        )
        ours, grid = qwen2_vl.patchify(qwen2_vl.prepare(pixels[None, None] / 255, 128 * 784, 200704))
        assert torch.equal(grid, theirs["image_grid_thw"])
        assert float((ours - theirs["pixel_values"]).abs().max()) < 0.02  # a grey level of 255 is 0.015

    def test_video_patches_are_those_of_the_processor(self) -> None:
        pytest.importorskip("torchvision")
        from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

        video = (255 * torch.rand(4, 3, 84, 56)).round()
        theirs = Qwen2VLVideoProcessor(do_resize=False)([video.to(torch.uint8)], return_tensors="pt")
        visual = qwen2_vl.prepare(video[None] / 255, 56 * 56, 28 * 28 * 1280)
        ours, grid = qwen2_vl.patchify(visual)
        assert torch.allclose(ours, theirs["pixel_values_videos"], atol=1e-3)
        assert torch.equal(grid, theirs["video_grid_thw"])

    def test_video_patches_go_by_block_and_frame(self) -> None:
        visuals = torch.rand(2, 4, 3, 56, 84)
        ours, grid = qwen2_vl.patchify(visuals)
        assert torch.equal(ours, torch.cat([plain_patches(visual) for visual in visuals]))
        assert grid.tolist() == [[2, 4, 6]] * 2

    @pytest.mark.parametrize(
        ("size", "fitted"),
        [((480, 832), (336, 588)), ((64, 64), (336, 336)), ((300, 400), (308, 392)), ((720, 1280), (336, 588))],
    )
    def test_sizes_by_hand(self, size: tuple[int, int], fitted: tuple[int, int]) -> None:
        assert qwen2_vl.fitting_size(*size, 128 * 784, 200704) == fitted

    @pytest.mark.parametrize("size", [(480, 832), (64, 64), (300, 400), (20, 900), (1080, 1920), (333, 77)])
    def test_sizes_are_those_of_the_library(self, size: tuple[int, int]) -> None:
        assert qwen2_vl.fitting_size(*size, 100352, 200704) == pictures().smart_resize(*size, 28, 100352, 200704)

    def test_frames_by_hand(self) -> None:
        assert chosen_frames(81, 16.0, 2.0) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]  # 5.06 s: 10.1 frames asked
        assert chosen_frames(17, 8.0, 2.0) == [0, 5, 11, 16]
        assert chosen_frames(5, 8.0, 2.0) == [0, 1, 3, 4]  # at least 4
        assert chosen_frames(3, 8.0, 2.0) == [0, 2]  # an even number of those there are
        assert chosen_frames(17, 8.0, 2.0, count=6) == [0, 3, 6, 10, 13, 16]
        with pytest.raises(DataError, match="in pairs"):
            chosen_frames(1, 8.0, 2.0)


class TestVideoReward:
    def test_logits_are_those_of_peft_and_the_library(self, checkpoint: Checkpoint, reward: VideoReward) -> None:
        batch = clips(frames=4)
        expected = [independent_logits(checkpoint, batch.video[i], PROMPTS[i])[:, 0] for i in range(2)]
        assert torch.allclose(reward.raw(batch), torch.stack(expected), atol=1e-4)
        assert torch.stack(expected).std(1).min() > 1e-2

    def test_scores_are_deviations_and_their_sum(self, checkpoint: Checkpoint, reward: VideoReward) -> None:
        batch = clips()
        raw = reward.raw(batch)
        z = torch.stack(
            [(raw[:, i] - NORM[f"{a}_mean"]) / NORM[f"{a}_std"] for i, a in enumerate(("VQ", "MQ", "TA"))], 1
        )
        assert torch.allclose(reward(batch), z.sum(1), atol=1e-5)
        assert torch.allclose(checkpoint.load(aspect="MQ")(batch), z[:, 1], atol=1e-5)

    def test_keeps_its_card(self, reward: VideoReward) -> None:
        require_verified(reward)

    def test_gradient_is_that_of_finite_differences(self, reward: VideoReward) -> None:
        batch = clips(frames=4)
        direction = torch.randn(batch.video.shape, generator=torch.Generator().manual_seed(0))

        def score(step: float) -> float:
            moved = VideoBatch((0.25 + batch.video / 2 + step * direction), batch.fps, batch.request)
            return float(reward(moved).double().sum())

        pixels = (0.25 + batch.video / 2).requires_grad_()
        (gradient,) = torch.autograd.grad(reward(VideoBatch(pixels, batch.fps, batch.request)).sum(), pixels)
        assert torch.isfinite(gradient).all()
        assert all(gradient[clip, frame].abs().max() > 0 for clip in range(2) for frame in range(4))
        slope = (score(0.01) - score(-0.01)) / 0.02
        assert math.isclose(float((gradient * direction).sum()), slope, rel_tol=0.05, abs_tol=1e-3)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_two_clips_together_score_as_apart(self, checkpoint: Checkpoint, dtype: Any) -> None:
        reward = checkpoint.load(dtype=dtype)
        batch = clips(frames=4)
        apart = [reward(VideoBatch(batch.video[i : i + 1], batch.fps, batch.request[i : i + 1])) for i in range(2)]
        assert torch.equal(reward(batch), torch.cat(apart))
        assert reward(batch).dtype == torch.float32

    def test_clips_of_any_rate_are_read_at_its_own(self, reward: VideoReward) -> None:
        slow = clips(frames=9)
        faster = VideoBatch(slow.video.repeat_interleave(2, 1), 16.0, slow.request)
        assert reward.card.fps is None
        assert torch.allclose(reward(slow), reward(faster), atol=1e-5)

    def test_frequencies_are_rounded_as_by_casting_the_model(self, checkpoint: Checkpoint, reward: VideoReward) -> None:
        cast = Qwen2VLForConditionalGeneration.from_pretrained(checkpoint.base).to(torch.bfloat16).model
        for part in ("visual.rotary_pos_emb", "language_model.rotary_emb"):
            ours = reward.reader.model.get_submodule(part).inv_freq
            assert torch.equal(ours, cast.get_submodule(part).inv_freq.float())

    def test_three_outputs_are_read_one_at_each_token(self, tmp_path: Path) -> None:
        checkpoint = publish(tmp_path, outputs=3)
        batch = clips(frames=4)
        expected = independent_logits(checkpoint, batch.video[0], PROMPTS[0]).diagonal()
        assert torch.allclose(checkpoint.load().raw(batch)[0], expected, atol=1e-4)


class TestLoading:
    def test_an_adapter_with_the_rest_is_the_whole_model(
        self, checkpoint: Checkpoint, reward: VideoReward, tmp_path: Path
    ) -> None:
        adapter, rest = self.parts(checkpoint)
        folder = self.published(checkpoint, tmp_path, adapter, rest)
        again = VideoReward(str(folder), str(checkpoint.template))
        ours, whole = again.reader.model.state_dict(), reward.reader.model.state_dict()
        assert all(torch.equal(ours[name], value) for name, value in whole.items())
        assert torch.equal(again(clips()), reward(clips()))

    def test_an_adapter_without_trained_tokens_is_refused(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        adapter, rest = self.parts(checkpoint)
        del rest["base_model.model.model.embed_tokens.weight"]
        with pytest.raises(ModelError, match="embeddings of"):
            VideoReward(str(self.published(checkpoint, tmp_path, adapter, rest)), str(checkpoint.template))

    @pytest.mark.parametrize("layout", ["old", "new", "no wrapper"])
    def test_names_of_any_version(self, checkpoint: Checkpoint, reward: VideoReward, layout: str) -> None:
        state = checkpoint.peft.state_dict()
        if layout == "old":
            state = {old_name(name): value for name, value in state.items()}
        elif layout == "no wrapper":
            state = {name.removeprefix("base_model.model."): value for name, value in state.items()}
        merged = qwen2_vl.merge_lora(qwen2_vl.rename(state), ALPHA / RANK)
        head = merged.pop("rm_head.weight")
        assert torch.equal(head, reward.reader.head.weight)
        assert all(torch.equal(merged[name], value) for name, value in reward.reader.model.state_dict().items())

    @pytest.mark.parametrize("rslora", [False, True])
    def test_the_merge_is_pefts(self, rslora: bool) -> None:
        layer = nn.Sequential(nn.Linear(6, 5))
        lora = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=False, use_rslora=rslora)
        peft = get_peft_model(layer, lora)
        names = {f"model.{name}": value.clone() for name, value in peft.base_model.model.state_dict().items()}
        ours = qwen2_vl.merge_lora(names, 6 / (4**0.5 if rslora else 4))
        theirs = peft.merge_and_unload().state_dict()
        assert torch.allclose(ours["model.0.weight"], theirs["0.weight"], atol=1e-6)
        assert torch.equal(ours["model.0.bias"], theirs["0.bias"])

    def test_a_wrapped_layer_without_its_adapter_is_refused(self) -> None:
        with pytest.raises(ModelError, match="a LoRA is"):
            qwen2_vl.merge_lora({"layer.base_layer.weight": torch.zeros(2, 2)}, 1.0)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("rm_head.weight", None, "rm_head"),
            ("visual.merger.ln_q.weight", None, "lacks 1"),
            ("visual.merger.ln_q.weight", "visual.merger.ln_k.weight", "has no place for 1"),
            ("visual.merger.ln_q.weight", "vizual.merger.ln_q.weight", "named visual"),
            ("model.layers.0.self_attn.q_proj.lora_B.default.weight", None, "a LoRA is"),
            (
                "model.layers.0.self_attn.q_proj.base_layer.weight",
                "model.layers.0.self_attn.q_prj.base_layer.weight",
                "a LoRA is",
            ),
        ],
    )
    def test_missing_and_misspelt_weights_are_refused(
        self, checkpoint: Checkpoint, tmp_path: Path, old: str, new: str | None, message: str
    ) -> None:
        state = torch.load(checkpoint.folder / "checkpoint-70" / "model.pth", weights_only=True)
        value = state.pop(f"base_model.model.{old}")
        if new is not None:
            state[f"base_model.model.{new}"] = value
        (tmp_path / "checkpoint-1").mkdir()
        torch.save(state, tmp_path / "checkpoint-1" / "model.pth")
        write_settings(tmp_path, checkpoint.base)
        with pytest.raises(ModelError, match=message) as error:
            VideoReward(str(tmp_path), str(checkpoint.template))
        assert "\n" not in str(error.value)

    def test_a_tokenizer_of_another_model_is_refused(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        save_base(tmp_path)
        checkpoint.tokenizer.save_pretrained(tmp_path)  # already holds the special tokens
        other = PreTrainedTokenizerFast.from_pretrained(tmp_path)
        other.add_tokens(["one", "more"])
        other.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="words with its special tokens"):
            checkpoint.load(base=str(tmp_path))

    def test_folders_without_what_is_needed_are_one_line(self, checkpoint: Checkpoint, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="no model folder"):
            VideoReward(str(tmp_path / "nowhere"), str(checkpoint.template))
        with pytest.raises(ModelError, match="cannot fetch nobody/nothing"):
            VideoReward("nobody/nothing", str(checkpoint.template))
        with pytest.raises(ModelError, match=r"model_config\.json"):
            VideoReward(str(tmp_path), str(checkpoint.template))
        write_settings(tmp_path, checkpoint.base)
        with pytest.raises(ModelError, match="checkpoint-N"):
            VideoReward(str(tmp_path), str(checkpoint.template))
        write_settings(tmp_path, checkpoint.base, data_config={"sample_type": "multi_pts"})
        with pytest.raises(ModelError, match="evenly"):
            VideoReward(str(tmp_path), str(checkpoint.template))
        (tmp_path / "model_config.json").write_text("{}")
        with pytest.raises(ModelError, match="data_config"):
            VideoReward(str(tmp_path), str(checkpoint.template))

    def parts(self, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The adapter, without PEFT's adapter name, and what else VideoAlign trains."""
        state = {old_name(name): value.clone() for name, value in checkpoint.peft.state_dict().items()}
        adapter = {name.replace(".default.", "."): value for name, value in state.items() if ".lora_" in name}
        trained = ("base_model.model.visual.", "base_model.model.rm_head.", "base_model.model.model.embed_tokens.")
        return adapter, {name: value for name, value in state.items() if name.startswith(trained)}

    def published(
        self, checkpoint: Checkpoint, folder: Path, adapter: dict[str, Tensor], rest: dict[str, Tensor]
    ) -> Path:
        (folder / "checkpoint-3").mkdir()
        save_file(adapter, folder / "checkpoint-3" / "adapter_model.safetensors")
        torch.save(rest, folder / "checkpoint-3" / "non_lora_state_dict.pth")
        write_settings(folder, checkpoint.base)
        return folder


class TestTemplate:
    def test_a_text_file_is_the_same_question(
        self, checkpoint: Checkpoint, reward: VideoReward, tmp_path: Path
    ) -> None:
        (tmp_path / "question.txt").write_text(question())
        assert VideoReward(str(checkpoint.folder), str(tmp_path / "question.txt")).template == reward.template

    def test_none_is_one_line_that_says_where_to_get_it(self, checkpoint: Checkpoint) -> None:
        with pytest.raises(ConfigError, match=r"prompt_template\.py from the VideoAlign"):
            VideoReward(str(checkpoint.folder))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("nowhere.txt", None),
            ("other.py", "NAME = 'text'"),
            ("broken.py", "NAME = ("),
            ("no_prompt.txt", " ".join(TOKENS)),
            ("no_token.txt", "{text_prompt}"),
            ("turned.txt", "{text_prompt}" + " ".join(TOKENS[::-1])),
            ("twice.txt", "{text_prompt}" + " ".join(TOKENS) * 2),
        ],
    )
    def test_others_are_refused(self, checkpoint: Checkpoint, tmp_path: Path, name: str, text: str | None) -> None:
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match="the template is a text with"):
            VideoReward(str(checkpoint.folder), str(tmp_path / name))

    def test_a_prompt_with_special_tokens_is_refused(self, reward: VideoReward) -> None:
        for trick in (TOKENS[0], "<|video_pad|>"):
            batch = VideoBatch(clips().video[:1], 8.0, Request((f"a {trick}",)))
            with pytest.raises(DataError, match="must not hold the special tokens"):
                reward(batch)

    def test_unknown_aspects_are_refused(self, checkpoint: Checkpoint) -> None:
        with pytest.raises(ConfigError, match="aspects overall, VQ"):
            checkpoint.load(aspect="VA")


class TestHPSv3:
    TEMPLATE = (
        "import nowhere\nINSTRUCTION = 'a red circle {text_prompt}\\n'\n"
        "prompt_with_special_token = 'left <|Reward|> white'\n"
    )

    def publish(self, folder: Path) -> tuple[dict[str, Tensor], Any, Any]:
        """The published file, unwrapped and in the old layout, and the model behind it."""
        tokenizer = save_base(folder / "base")
        tokenizer.add_tokens(["<|Reward|>"], special_tokens=True)
        torch.manual_seed(8)
        model = Qwen2VLForConditionalGeneration.from_pretrained(folder / "base").eval()
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.get_input_embeddings().weight.data.normal_()
        model.rm_head = build_head(HIDDEN).eval()
        state = {}
        for name, value in model.state_dict().items():
            old = old_name(f"base_model.model.{name}").removeprefix("base_model.model.")
            state[old] = value.clone()
        save_file(state, folder / "HPSv3.safetensors")
        (folder / "data_collator_qwen.py").write_text(self.TEMPLATE)
        return state, model, tokenizer

    def load(self, folder: Path) -> HPSv3:
        return HPSv3(
            str(folder / "HPSv3.safetensors"), str(folder / "data_collator_qwen.py"), base=str(folder / "base")
        )

    def test_mean_is_that_of_the_library(self, tmp_path: Path) -> None:
        _, model, tokenizer = self.publish(tmp_path)
        reward = self.load(tmp_path)
        require_verified(reward)
        batch = clips(frames=3)
        for part in model.modules():
            if hasattr(part, "inv_freq"):
                part.inv_freq = part.inv_freq.bfloat16().float()
        visual = qwen2_vl.prepare(batch.video[1:, 2:], 200704, 200704)[0]
        patches = plain_patches(visual.expand(2, -1, -1, -1))
        text = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
            + "<|image_pad|>" * (len(patches) // 4)
            + f"<|vision_end|>a red circle {PROMPTS[1]}\nleft <|Reward|> white<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        hidden = model.model(
            input_ids=ids,
            position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1),
            pixel_values=patches,
            image_grid_thw=torch.tensor([[1, visual.shape[-2] // 14, visual.shape[-1] // 14]]),
        ).last_hidden_state
        place = ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<|Reward|>"))
        expected = model.rm_head(hidden[0, place])[0]
        scores = reward.frame_scores(batch.video, PROMPTS)
        assert scores.shape == (2, 3)
        assert torch.allclose(scores[1, 2], expected, atol=1e-5)
        assert torch.allclose(reward(batch), scores.mean(1))

    @pytest.mark.parametrize(("name", "message"), [("rm_head.0.weight", "rm_head"), ("rm_head.3.bias", "lacks 1")])
    def test_refuses_a_file_without_the_head(self, tmp_path: Path, name: str, message: str) -> None:
        state, _, _ = self.publish(tmp_path)
        del state[name]
        save_file(state, tmp_path / "HPSv3.safetensors")
        with pytest.raises(ModelError, match=message):
            self.load(tmp_path)

    def test_needs_the_authors_question(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"data_collator_qwen\.py"):
            HPSv3("weights.safetensors")
