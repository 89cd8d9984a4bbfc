r"""Judge network: a small video-text reward learned from people's choices, on frozen features, differentiable.

    r = (h(v, t) − μ)/s,      v = [mean VideoMAE token, mean CLIP feature of 8 frames],
                              t = [CLIP text feature, mean embedding of the prompt's tokens]

each of the four layer-normalised on its own, or the largest drowns the others. h is a small head that sees W_v·v, its
product with W_t·t, and the CLIP cosine; only the head is trained, with dropout on v and t, so that a few hundred
labelled pairs suffice. The mean token embedding is there because CLIP's text feature drops words that
frames do not show, motions for one. Loss: −log of what was chosen, by Bradley and Terry with the ties of Rao and Kupper
(1967), as in VideoAlign (Liu et al. 2025, arXiv 2501.13918, eq. 3), with tie factor k ≥ 1:

    P(a ≻ b) = e^a/(e^a + k·e^b),      P(tie) = (k² − 1)·e^a·e^b/((e^a + k·e^b)(e^b + k·e^a))

μ and s make the training takes have mean 0 and deviation 1, as VideoAlign's rewards are. ``selection.judge_clips``
trains one from a takes folder; ``fit`` is a single update, for loops that train generator and judge in turns.

Left out: fine-tuning the features, which needs more labels than a review session gives.

Run: ``reelign judge fit TAKES --labels labels.csv --model network --out judge/``, then in a run file
``{name: judge_network, options: {model: judge/}}``.
"""

from __future__ import annotations

import copy
import json
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import VideoMAEForVideoClassification

from reelign.contracts import RewardCard, VideoBatch
from reelign.errors import ContractError, ModelError, NonFiniteError
from reelign.rewards.card import read_golden, record_golden
from reelign.rewards.clip_tower import REMEMBERED_PROMPTS, load_tower
from reelign.rewards.preprocess import preprocess_for
from reelign.zoo.models import IMAGENET_MEAN, IMAGENET_STD, even_indices, load_whole, read_preprocessor
from reelign.zoo.skeletons import hollow

WEIGHTS, CARD = "network.safetensors", "network.json"
FORMAT = 1


class NetworkConfig(BaseModel):
    """The shape of a judge network and how its head is trained.

    Args:
        video: ``zoo:NAME``, a folder or a hub id with a ``VideoMAEForVideoClassification``.
        text: the same with a ``CLIPModel`` and its tokenizer.
        clip_frames: evenly spaced frames that CLIP sees.
        width: of the head.
        tie_factor: k; 1 is Bradley-Terry without ties, VideoAlign has 5.
        dropout: share of v and t set to 0 in training.
        lr: of AdamW.
        weight_decay: of AdamW.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: str = "zoo:tiny-videomae"
    text: str = "zoo:tiny-clip"
    clip_frames: int = Field(8, ge=1)
    width: int = Field(64, ge=1)
    tie_factor: float = Field(1.0, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    lr: float = Field(2e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)


def preference_loss(first: Tensor, second: Tensor, tied: Tensor, tie_factor: float) -> Tensor:
    r"""−log P of what was chosen, [B] (Rao and Kupper 1967; VideoAlign, eq. 3).

    With d = a − b and σ the logistic function: P(a ≻ b) = σ(d − log k), P(tie) = (k² − 1)·σ(d − log k)·σ(−d − log k).

    Args:
        first: scores a [B]; the preferred clip's where not tied.
        second: scores b [B].
        tied: [B] bool.
        tie_factor: k ≥ 1; above 1 where anything is tied.
    """
    if tie_factor <= 1 and bool(tied.any()):
        raise ContractError(f"ties have a probability only with a tie factor above 1; got {tie_factor}")
    difference, margin = first - second, math.log(tie_factor)
    win, loss = F.logsigmoid(difference - margin), F.logsigmoid(-difference - margin)
    tie = win + loss + (math.log(tie_factor**2 - 1) if tie_factor > 1 else 0.0)
    return -torch.where(tied, tie, win)


@dataclass(frozen=True)
class ClipFeatures:
    """Frozen features of B clips with their prompts, each part layer-normalised.

    Args:
        video: [B,V].
        text: [B,D].
        cosine: [B], mean CLIP cosine of the frames.
    """

    video: Tensor
    text: Tensor
    cosine: Tensor

    def __getitem__(self, rows: Tensor) -> ClipFeatures:
        return ClipFeatures(self.video[rows], self.text[rows], self.cosine[rows])

    def dropped(self, rate: float, random: torch.Generator) -> ClipFeatures:
        """The same with a share ``rate`` of ``video`` and ``text`` at 0 and the rest scaled up, drawn on the CPU."""

        def drop(values: Tensor) -> Tensor:
            kept = torch.rand(values.shape, generator=random) >= rate
            return values * kept.to(values) / (1 - rate)

        return ClipFeatures(drop(self.video), drop(self.text), self.cosine)


class Head(nn.Module):
    """h(v, t): the part that is trained."""

    def __init__(self, video: int, text: int, width: int) -> None:
        super().__init__()
        self.video = nn.Linear(video, width)
        self.text = nn.Linear(text, width)
        self.mix = nn.Linear(2 * width + 1, width)
        self.out = nn.Linear(width, 1)

    def forward(self, features: ClipFeatures) -> Tensor:
        """Scores [B] before they are centred and scaled."""
        seen, asked = self.video(features.video), self.text(features.text)
        mixed = F.gelu(self.mix(torch.cat([seen * asked, seen, features.cosine[:, None]], dim=-1)))
        scores: Tensor = self.out(mixed)[:, 0]
        return scores


class Backbones:
    """The frozen VideoMAE and CLIP behind the head.

    Args:
        config: which ones.
    """

    def __init__(self, config: NetworkConfig) -> None:
        self.tower = load_tower(config.text)
        self.videomae = load_whole(VideoMAEForVideoClassification, config.video)
        self.preprocess = preprocess_for(
            self.videomae.config.image_size, read_preprocessor(config.video), (IMAGENET_MEAN, IMAGENET_STD), None
        )
        self.clip_frames = config.clip_frames
        self._words: OrderedDict[str, Tensor] = OrderedDict()
        joint = self.tower.model.config.projection_dim
        self.video_width = int(self.videomae.config.hidden_size + joint)
        self.text_width = int(joint + self.tower.model.text_model.get_input_embeddings().weight.shape[1])

    def features(self, video: Tensor, prompts: Sequence[str]) -> ClipFeatures:
        """Features of clips [B,T,3,H,W] in [0,1]; gradient reaches the pixels where it is on."""
        if self.videomae.device != video.device:
            self.videomae.to(video.device)
        chosen = video[:, even_indices(video.shape[1], self.videomae.config.num_frames)]
        tokens = self.videomae.videomae(self.preprocess(chosen)).last_hidden_state
        frames = self.tower.image_features(video[:, even_indices(video.shape[1], self.clip_frames)])
        text = self.tower.text_features(prompts, video.device)
        cosine = torch.einsum("btd,bd->bt", frames, text).mean(1)
        words = torch.stack([self._mean_word(prompt) for prompt in prompts]).to(video.device)
        return ClipFeatures(_join(tokens.mean(1), frames.mean(1)), _join(text, words), cosine)

    @torch.no_grad()
    def _mean_word(self, prompt: str) -> Tensor:
        """Mean embedding [E] of the prompt's tokens, beginning and end included; from memory where asked before."""
        if prompt not in self._words:
            while len(self._words) >= REMEMBERED_PROMPTS:
                self._words.popitem(last=False)
            table = self.tower.model.text_model.get_input_embeddings()
            longest = self.tower.model.config.text_config.max_position_embeddings
            ids = self.tower.tokenizer(prompt, truncation=True, max_length=longest, return_tensors="pt")["input_ids"]
            self._words[prompt] = table(ids.to(table.weight.device))[0].mean(0).cpu()
        return self._words[prompt]


def _join(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in (first, second)], dim=-1)


class JudgeNetwork:
    """A learned preference for clips and their prompts; 0 and 1 are mean and deviation over the training takes.

    Args:
        model: a folder that ``reelign judge fit --model network`` wrote.
    """

    card = RewardCard(
        name="judge_network",
        summary="What reviewers prefer, by a small video-text network learned from their labels.",
        range=(-100.0, 100.0),
        needs_prompt=True,
        licence="that of your labels and of the feature networks",
        source="reelign judge fit --model network",
    )

    def __init__(self, model: str) -> None:
        config, weights, content = _read(Path(model).expanduser())
        self._build(config, 0, content["facts"])
        try:
            self.head.load_state_dict({name: weights[name] for name in self.head.state_dict()})
            self.centre, self.spread = float(weights["centre"]), float(weights["spread"])
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{Path(model) / WEIGHTS} does not fit its {CARD}: {reason}") from error
        self.card = replace(self.card, source=f"{model}", golden=read_golden(model))

    @classmethod
    def untrained(
        cls, config: NetworkConfig | None = None, seed: int = 0, backbones: Backbones | None = None
    ) -> JudgeNetwork:
        """A network with a random head, to be trained with ``fit``; ``backbones`` that are loaded may be shared."""
        made = cls.__new__(cls)
        made._build(config or NetworkConfig(), seed, {}, backbones)
        return made

    def _build(
        self, config: NetworkConfig, seed: int, facts: dict[str, Any], backbones: Backbones | None = None
    ) -> None:
        self.config = config
        self.backbones = backbones or Backbones(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = Head(self.backbones.video_width, self.backbones.text_width, config.width)
        self.random = torch.Generator().manual_seed(seed)
        self.centre, self.spread = 0.0, 1.0
        self.facts = facts
        self._optimiser: torch.optim.Optimizer | None = None
        self.card = replace(
            type(self).card,
            resolution=(self.backbones.preprocess.height, self.backbones.preprocess.width),
            source=f"{config.video} and {config.text}, head trained on labels",
        )

    def __call__(self, batch: VideoBatch) -> Tensor:
        """Scores [B]; gradient reaches the pixels, and the head while it is trained."""
        features = self.backbones.features(batch.video, batch.request.prompts)
        return (self._scores(features) - self.centre) / self.spread

    def fit(self, better: VideoBatch, worse: VideoBatch) -> dict[str, float]:
        """One update from clips that should score higher and clips that should score lower, pair by pair.

        Raises:
            ContractError: the two batches are of different length. NonFiniteError: the loss is not a number.
        """
        if len(better) != len(worse):
            raise ContractError(f"better and worse clips come in pairs; got {len(better)} and {len(worse)}")
        with torch.no_grad():
            first = self.backbones.features(better.video, better.request.prompts)
            second = self.backbones.features(worse.video, worse.request.prompts)
        return self.update(first, second, torch.zeros(len(better), dtype=torch.bool, device=better.video.device))

    def update(self, first: ClipFeatures, second: ClipFeatures, tied: Tensor) -> dict[str, float]:
        """One update of the head from features: ``first`` is preferred where not ``tied`` [B]."""
        rate = self.config.dropout
        a, b = (self._scores(side.dropped(rate, self.random)) for side in (first, second))
        loss = preference_loss(a, b, tied, self.config.tie_factor).mean()
        if not torch.isfinite(loss):
            raise NonFiniteError(f"the judge network's loss is {loss.item()}: lower its learning rate")
        optimiser = self._ready_optimiser()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        right = (a > b)[~tied].float().mean() if bool((~tied).any()) else torch.tensor(math.nan)
        return {"loss": loss.item(), "accuracy": right.item()}

    @torch.no_grad()
    def normalise(self, features: ClipFeatures) -> None:
        """Let the scores of these clips have mean 0 and deviation 1 from now on."""
        scores = self._scores(features)
        self.centre = float(scores.mean())
        self.spread = float(scores.std(correction=0).clamp_min(1e-6))

    def state(self) -> dict[str, Any]:
        """Named parts to save: head, optimiser, random state, centre and spread."""
        optimiser = None if self._optimiser is None else self._optimiser.state_dict()
        return {
            "head": {name: value.clone() for name, value in self.head.state_dict().items()},
            "optimiser": copy.deepcopy(optimiser),  # torch hands out the tensors that it goes on changing
            "random": self.random.get_state(),
            "centre": self.centre,
            "spread": self.spread,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what ``state`` gave, bit for bit."""
        self.head.load_state_dict(state["head"])
        self.random.set_state(state["random"])
        self.centre, self.spread = state["centre"], state["spread"]
        self._optimiser = None
        if state["optimiser"] is not None:
            self._ready_optimiser().load_state_dict(state["optimiser"])

    def save(self, folder: str | Path) -> Path:
        """Write head, card and golden score; ``JudgeNetwork(model=folder)`` reads them back.

        Raises:
            ModelError: the folder cannot be written.
        """
        place = Path(folder)
        numbers = {"centre": torch.tensor(self.centre), "spread": torch.tensor(self.spread)}
        content = {"format": FORMAT, "config": self.config.model_dump(mode="json"), "facts": self.facts}
        try:
            place.mkdir(parents=True, exist_ok=True)
            save_file(
                {name: v.cpu().contiguous() for name, v in self.head.state_dict().items()} | numbers, place / WEIGHTS
            )
            (place / CARD).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            record_golden(place, self)
        except OSError as error:
            raise ModelError(f"the judge network could not be written to {place}: {error.strerror or error}") from error
        return place

    def _scores(self, features: ClipFeatures) -> Tensor:
        device = features.video.device
        if self.head.out.weight.device != device:
            self.head.to(device)
        scores: Tensor = self.head(features)
        return scores

    def _ready_optimiser(self) -> torch.optim.Optimizer:
        if self._optimiser is None:
            self._optimiser = torch.optim.AdamW(
                self.head.parameters(), self.config.lr, weight_decay=self.config.weight_decay
            )
        return self._optimiser


def _read(folder: Path) -> tuple[NetworkConfig, dict[str, Tensor], dict[str, Any]]:
    """What ``save`` wrote; only tensors and JSON are read."""
    if hollow():
        raise ModelError(f"the weights in {folder} say themselves how large they are, and none are read")
    try:
        content = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ModelError(f"{folder / CARD} is of format {content['format']}; this version reads {FORMAT}")
        return NetworkConfig.model_validate(content["config"]), load_file(folder / WEIGHTS), content
    except OSError as error:
        raise ModelError(
            f"a judge network is a folder with {CARD} and {WEIGHTS}; {folder} has none: "
            "make one with 'reelign judge fit --model network'"
        ) from error
    except (ValueError, KeyError, TypeError, ValidationError, SafetensorError) as error:
        raise ModelError(f"the judge network in {folder} is broken: {' '.join(str(error).split())[:200]}") from error
