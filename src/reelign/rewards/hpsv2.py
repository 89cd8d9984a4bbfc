r"""HPSv2: how much people prefer a frame for its prompt.

    r = (1/T) Σ_t w_t · cos(f_image(x_t), f_text(prompt))         (Wu et al. 2023, HPS v2, section 4)

f is a ViT-H/14 CLIP fine-tuned on human choices, published in open_clip's layout; scores are about 0.2 to 0.35, and
those of v2.0 and v2.1 cannot be compared. Frames are fitted into a square and padded with black, as the official
scorer does it (VADER squashes them: ``aspect: squash``).

Left out: the official package, which pins old libraries and omits its vocabulary; only the two weight files are needed.
"""

from __future__ import annotations

from torch import Tensor

from reelign.contracts import RewardCard, VideoBatch
from reelign.rewards.clip_tower import ClipTower, load_tokenizer
from reelign.rewards.frames import average
from reelign.rewards.preprocess import Aspect, Preprocess
from reelign.zoo.models import CLIP_MEAN, CLIP_STD
from reelign.zoo.open_clip import build
from reelign.zoo.published import read_weights


class HPSv2:
    """Mean HPSv2 score of the frames.

    Args:
        weights: a file, or ``xswu/HPSv2:HPS_v2.1_compressed.pt`` (or ``HPS_v2_compressed.pt``) on the hub, 2 GB.
        tokenizer: a folder or hub id with CLIP's tokenizer, for example ``openai/clip-vit-large-patch14``.
        aspect: ``pad``, ``crop`` or ``squash``.
        heads: of the image and of the text transformer; a weight file does not say.
    """

    card = RewardCard(
        name="hpsv2",
        summary="HPSv2: learned human preference between the prompt and each frame.",
        range=(-1.0, 1.0),
        resolution=(224, 224),
        needs_prompt=True,
        source="xswu/HPSv2; Wu et al. 2023, arXiv 2306.09341",
    )

    def __init__(self, weights: str, tokenizer: str, aspect: Aspect = "pad", heads: tuple[int, int] = (16, 16)) -> None:
        model = build(read_weights(weights), heads)
        size = model.config.vision_config.image_size
        self.tower = ClipTower(model, load_tokenizer(tokenizer), Preprocess(size, size, CLIP_MEAN, CLIP_STD, aspect))

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B] in (−1, 1)."""
        return average(self.tower.cosines(batch.video, batch.request.prompts), batch)
