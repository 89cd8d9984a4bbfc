"""Detection rewards on tiny random detectors in the layout of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
)

from reelign.contracts import Request, VideoBatch
from reelign.errors import ConfigError, DataError, ModelError
from reelign.rewards.card import require_verified
from reelign.rewards.object_presence import ObjectPresence, any_box, mean_detected
from reelign.zoo.words import name_tokenizer_for_every_version, word_tokenizer


def clips(prompts: tuple[str, ...] = ("a book", "a cup")) -> VideoBatch:
    video = torch.rand(len(prompts), 2, 3, 32, 48, generator=torch.Generator().manual_seed(3))
    return VideoBatch(video, 8.0, Request(prompts))


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=[64, 96],
        patch_size=16, num_detection_tokens=5, id2label={0: "book", 1: "cup", 2: "cell phone"}, label2id={},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("yolos")
    YolosForObjectDetection(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(16)
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, patch_size=4,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ),
        d_model=32, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, num_queries=6, max_text_len=16, num_feature_levels=4,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("dino")
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    name_tokenizer_for_every_version(folder / "tokenizer_config.json")
    return str(folder)


def test_any_box_is_one_minus_the_product() -> None:
    assert any_box(torch.tensor([[0.5, 0.5, 0.0]])).item() == pytest.approx(0.75)
    assert any_box(torch.tensor([[1.0, 0.3]])).item() == pytest.approx(1.0, abs=1e-5)


def test_mean_detected_is_vaders() -> None:
    p = torch.tensor([[0.6, 0.4, 0.9, 0.1], [0.1, 0.1, 0.1, 0.1]])
    best = torch.tensor([[True, True, False, True], [True] * 4])
    assert mean_detected(p, best, 0.2).tolist() == pytest.approx([0.5, 0.0])


def test_yolos_keeps_its_card_and_matches_its_softmax(yolos: str) -> None:
    reward = ObjectPresence(yolos, height=64)
    require_verified(reward)
    batch = clips()
    p = reward.model(pixel_values=_pixels(reward, batch)).logits.softmax(-1)
    expected = 1 - (1 - p[2:, :, 1]).prod(-1)
    assert reward(batch)[1].item() == pytest.approx(expected.mean().item(), rel=1e-4)


def test_absent_is_one_minus_present(yolos: str) -> None:
    batch = clips()
    present, absent = ObjectPresence(yolos, "cup", height=64), ObjectPresence(yolos, "cup", absent=True, height=64)
    assert torch.allclose(present(batch) + absent(batch), torch.ones(2))
    assert not present.card.needs_prompt


def test_vaders_form_has_no_gradient_where_nothing_is_detected(yolos: str) -> None:
    reward = ObjectPresence(yolos, "cell phone", form="mean_detected", height=64)
    assert reward(clips()).tolist() == [0.0, 0.0]


def test_a_prompt_without_a_known_object_is_refused(yolos: str) -> None:
    with pytest.raises(DataError, match="names none"):
        ObjectPresence(yolos, height=64)(clips(("a zebra", "a cup")))


def test_grounding_dino_keeps_its_card(dino: str) -> None:
    reward = ObjectPresence(dino, "red circle", height=64)
    assert reward.words.tolist() == [0, 1]  # "red", "circle"; not the full stop nor the end
    require_verified(reward)
    with pytest.raises(ConfigError, match="needs the option 'target'"):
        ObjectPresence(dino)


def test_another_model_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a bert"):
        ObjectPresence(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="no detector"):
        ObjectPresence(str(tmp_path / "empty"))


def _pixels(reward: ObjectPresence, batch: VideoBatch) -> torch.Tensor:
    from reelign.rewards.preprocess import resize
    from reelign.zoo.models import IMAGENET_MEAN, IMAGENET_STD, normalise

    return normalise(resize(batch.video.flatten(0, 1), 64, 96), IMAGENET_MEAN, IMAGENET_STD)
