"""Rewards in their published key layouts, against the numbers of the original programs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel, VJEPA2Config, VJEPA2Model
from transformers.models.blip.modeling_blip_text import BlipTextModel

from reelign.contracts import Request, VideoBatch
from reelign.errors import ModelError
from reelign.rewards import laion_aesthetic
from reelign.rewards.card import require_verified
from reelign.rewards.clip_tower import as_tensor
from reelign.rewards.hpsv2 import HPSv2
from reelign.rewards.image_reward import ImageReward
from reelign.rewards.jepa_predictability import BLOCKS, JepaPredictability, draw_mask, first
from reelign.rewards.preprocess import resize_and_pad
from reelign.zoo import open_clip, tiny_clip
from reelign.zoo.words import name_tokenizer_for_every_version, vocabulary, word_tokenizer

MEASURED = dict.fromkeys(("colour", "colour_degraded", "colour_margin", "shape", "shape_degraded", "shape_margin"), 0.5)
GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


def golden(case: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    file = GOLDEN / case / "golden.safetensors"
    if not file.is_file():
        pytest.skip(f"the golden numbers are not here: {file}")
    tensors = load_file(file)
    weights, inputs, outputs = (
        {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)}
        for part in ("weights/", "inputs/", "outputs/")
    )
    return weights, inputs, outputs


def close(computed: Tensor, reference: Tensor, tolerance: float = 1e-5) -> bool:
    return float((computed.detach() - reference).abs().max()) <= tolerance * float(reference.abs().max())


class TestOpenClip:
    def test_features_score_and_gradient_are_hpsv2s(self) -> None:
        weights, inputs, outputs = golden("hpsv2_openclip")
        model = open_clip.build(weights, heads=(4, 4))
        image = inputs["image"].clone().requires_grad_()
        image_features = as_tensor(model.get_image_features(image))
        text_features = as_tensor(model.get_text_features(inputs["tokens"]))
        assert close(image_features, outputs["image_features_raw"])
        assert close(text_features, outputs["text_features_raw"])
        score = torch.nn.functional.cosine_similarity(image_features, text_features)
        assert close(score, outputs["score"])
        (gradient,) = torch.autograd.grad(score.sum(), image)
        assert close(gradient, outputs["grad_image"])

    def test_refuses_weights_that_would_leave_a_part_random(self) -> None:
        weights, _, _ = golden("hpsv2_openclip")
        del weights["visual.ln_post.bias"]
        with pytest.raises(ModelError, match="lacks 1"):
            open_clip.build(weights, heads=(4, 4))
        with pytest.raises(ModelError, match="another model"):
            open_clip.build({"layers.0.weight": torch.zeros(2, 2)})


class TestAestheticHead:
    def test_score_and_gradient_are_the_originals(self) -> None:
        weights, inputs, outputs = golden("laion_aesthetic_head")
        head = laion_aesthetic.load_head(weights, "golden")
        embedding = inputs["embedding"].clone().requires_grad_()
        score = head(torch.nn.functional.normalize(embedding, dim=-1))
        assert close(score, outputs["score"])
        loss = 0.1 * (score - 10).abs().mean()
        assert close(loss, outputs["loss"])
        (gradient,) = torch.autograd.grad(loss, embedding)
        assert close(gradient, outputs["grad_embedding"])

    def test_names_the_missing_layer(self) -> None:
        weights, _, _ = golden("laion_aesthetic_head")
        del weights["layers.6.weight"]
        with pytest.raises(ModelError, match=r"layers\.6"):
            laion_aesthetic.load_head(weights, "golden")


PROMPTS = ("a red circle moving left", "a white square growing")


def clips(frames: int = 5, side: int = 40, prompts: tuple[str, ...] = PROMPTS) -> VideoBatch:
    video = torch.rand(len(prompts), frames, 3, side, side, generator=torch.Generator().manual_seed(3))
    return VideoBatch(video, 8.0, Request(prompts))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    word_tokenizer(12).save_pretrained(folder)
    name_tokenizer_for_every_version(folder / "tokenizer_config.json")
    return str(folder)


class TestHPSv2:
    def test_loads_the_published_file_and_keeps_its_card(self, tmp_path: Path, tokenizer: str) -> None:
        weights, _, _ = golden("hpsv2_openclip")
        torch.save({"state_dict": {name: value.half() for name, value in weights.items()}}, tmp_path / "HPS_v2.1.pt")
        reward = HPSv2(str(tmp_path / "HPS_v2.1.pt"), tokenizer, heads=(4, 4))
        require_verified(reward)
        batch = clips()
        model = reward.tower.model
        padded = reward.tower.preprocess(batch.video)
        assert padded.shape[-2:] == (42, 42)
        one = as_tensor(model.get_image_features(padded[1, 2:3]))
        tokens = reward.tower.tokenizer(PROMPTS[1], return_tensors="pt")
        text = as_tensor(model.get_text_features(tokens["input_ids"]))
        expected = torch.nn.functional.cosine_similarity(one, text)
        assert torch.allclose(reward.tower.cosines(batch.video, PROMPTS)[1, 2], expected[0], atol=1e-5)

    def test_a_wide_frame_is_padded_above_and_below(self) -> None:
        frames = torch.ones(1, 3, 20, 40)
        padded = resize_and_pad(frames, 20, 20)
        assert padded[0, 0, :5].abs().max() == 0
        assert padded[0, 0, 5:15].min() > 0.99
        assert padded[0, 0, 15:].abs().max() == 0

    def test_a_file_that_is_not_there_is_one_line(self, tokenizer: str) -> None:
        with pytest.raises(ModelError, match="no weight file"):
            HPSv2("/nowhere/HPS_v2.1.pt", tokenizer)


class TestLaionAesthetic:
    def checkpoint(self, folder: Path) -> tuple[str, str]:
        torch.manual_seed(1)
        tiny_clip.save(folder / "clip", tiny_clip.build_clip(), word_tokenizer(tiny_clip.TEXT_LENGTH), MEASURED)
        width = tiny_clip.build_clip().config.projection_dim
        sizes = (width, 28, 12, 8, 6, 1)
        head = laion_aesthetic.AestheticHead(sizes)
        torch.save(head.state_dict(), folder / "linearMSE.pth")
        return str(folder / "linearMSE.pth"), str(folder / "clip")

    def test_is_affine_in_the_unit_feature(self, tmp_path: Path) -> None:
        head, clip = self.checkpoint(tmp_path)
        reward = laion_aesthetic.LaionAesthetic(head, clip)
        require_verified(reward)
        batch = clips(side=64)
        matrix, bias = torch.eye(reward.head.layers["0"].in_features), torch.zeros(1)
        for layer in reward.head.layers.values():
            matrix, bias = (
                matrix @ layer.weight.T,
                bias @ layer.weight.T + layer.bias if bias.numel() > 1 else layer.bias,
            )
        features = reward.tower.image_features(batch.video)
        expected = (features @ matrix + bias)[..., 0].mean(1)
        assert torch.allclose(reward(batch), expected, atol=1e-5)

    def test_sigmoid_heads_give_probabilities(self, tmp_path: Path) -> None:
        head, clip = self.checkpoint(tmp_path)
        plain, rain = (
            laion_aesthetic.LaionAesthetic(head, clip),
            laion_aesthetic.LaionAesthetic(head, clip, sigmoid=True),
        )
        one = clips(frames=1, side=64)
        assert torch.allclose(rain(one), torch.sigmoid(plain(one)))
        assert rain.card.range == (0.0, 1.0)


class TestImageReward:
    def checkpoint(self, folder: Path) -> tuple[str, BlipVisionModel, BlipTextModel]:
        """Random weights under the published names."""
        torch.manual_seed(2)
        vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32,
                patch_size=8, layer_norm_eps=1e-6,
            )
        ).eval()  # fmt: skip
        text = BlipTextModel(
            BlipTextConfig(
                vocab_size=len(vocabulary()), hidden_size=24, encoder_hidden_size=32, intermediate_size=48,
                num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=40, is_decoder=True,
                bos_token_id=0, sep_token_id=1, pad_token_id=0, eos_token_id=1,
            ),
            add_pooling_layer=False,
        ).eval()  # fmt: skip
        head = laion_aesthetic.AestheticHead((24, 20, 12, 8, 6, 1))
        published = {f"blip.text_encoder.{name}": value for name, value in text.state_dict().items()}
        published["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
        published |= {f"mlp.{name}": value for name, value in head.state_dict().items()}
        names = {
            "embeddings.class_embedding": "cls_token",
            "embeddings.position_embedding": "pos_embed",
            "embeddings.patch_embedding": "patch_embed.proj",
            "post_layernorm": "norm",
            "encoder.layers": "blocks",
            "layer_norm": "norm",
            "self_attn.qkv": "attn.qkv",
            "self_attn.projection": "attn.proj",
        }
        for name, value in vision.state_dict().items():
            for new, old in names.items():
                name = name.replace(new, old)
            published[f"blip.visual_encoder.{name}"] = value
        torch.save(published, folder / "ImageReward.pt")
        self.head = head
        return str(folder / "ImageReward.pt"), vision, text

    def test_loads_the_published_names_and_reads_the_class_token(self, tmp_path: Path, tokenizer: str) -> None:
        file, vision, text = self.checkpoint(tmp_path)
        reward = ImageReward(file, tokenizer, heads=(4, 4))
        require_verified(reward)
        batch = clips(frames=2, side=32)
        with torch.no_grad():
            seen = vision(reward.preprocess(batch.video)[1, 1:2]).last_hidden_state
            tokens = reward.tokenizer(PROMPTS[1], padding="max_length", max_length=35, return_tensors="pt")
            read = text(
                tokens["input_ids"], tokens["attention_mask"], encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(1, seen.shape[1]),
            ).last_hidden_state  # fmt: skip
            expected = (self.head(read[:, 0]) - 0.16717362830052426) / 1.0333394966054072
            assert torch.allclose(reward.frame_scores(batch.video, PROMPTS)[1, 1], expected[0], atol=1e-5)

    def test_refuses_a_file_without_the_head(self, tmp_path: Path, tokenizer: str) -> None:
        file, _, _ = self.checkpoint(tmp_path)
        weights = {name: value for name, value in torch.load(file).items() if not name.startswith("mlp.layers.7")}
        torch.save(weights, file)
        with pytest.raises(ModelError, match=r"layers\.7"):
            ImageReward(file, tokenizer, heads=(4, 4))


class TestJepa:
    def reward(self, folder: Path) -> JepaPredictability:
        torch.manual_seed(3)
        config = VJEPA2Config(
            patch_size=8, crop_size=32, frames_per_clip=8, tubelet_size=2, hidden_size=48, num_attention_heads=4,
            num_hidden_layers=2, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=2,
        )  # fmt: skip
        VJEPA2Model(config).save_pretrained(folder)
        return JepaPredictability(str(folder), frames=8)

    def test_keeps_its_card(self, tmp_path: Path) -> None:
        require_verified(self.reward(tmp_path))

    def test_the_prediction_does_not_see_what_it_predicts(self, tmp_path: Path) -> None:
        reward = self.reward(tmp_path)
        visible, hidden = reward.masks[0]
        tokens = torch.randn(1, 4 * 16, 48)
        changed = tokens.clone()
        changed[:, hidden] += 1
        seen, asked = visible[None], hidden[None]

        def predicted(tokens: Tensor) -> Tensor:
            context = tokens[:, visible]
            for layer in reward.model.encoder.layer:
                context = first(layer(context, seen))
            return reward._predict(reward.model.encoder.layernorm(context), seen, asked)

        assert torch.equal(predicted(tokens), predicted(changed))

    def test_the_predictor_is_that_of_the_library(self, tmp_path: Path) -> None:
        reward = self.reward(tmp_path)
        visible, hidden = (index[None] for index in reward.masks[0])
        everything = torch.randn(1, 4 * 16, 48)
        theirs = reward.model.predictor(everything, [visible], [hidden]).last_hidden_state
        ours = reward._predict(everything[:, visible[0]], visible, hidden)
        assert torch.allclose(ours, theirs, atol=1e-5)

    def test_masks_cover_all_frames_and_leave_something(self) -> None:
        random = torch.Generator().manual_seed(0)
        for blocks, share in BLOCKS:
            visible, hidden = draw_mask((4, 14, 14), blocks, share, random)
            assert sorted([*visible.tolist(), *hidden.tolist()]) == list(range(4 * 14 * 14))
            assert set((hidden % 196).tolist()) == set((hidden[hidden < 196]).tolist())
            assert 0.05 < len(visible) / 784 < 0.9
