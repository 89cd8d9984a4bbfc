r"""The networks whose features set metrics compare, each under the protocol it was published with.

    i3d         400 logits of I3D (Kinetics-400), the user's ``i3d_torchscript.pt``: FVD
    inception   2048 pooled features a frame, the user's ``inception-2015-12-05.pt``: FID
    videomae    what a VideoMAE's classifier sees; cd-fvd compares such features to notice motion (Ge et al. 2024)
    vjepa       V-JEPA 2: what its classifier's attentive pooler gives, else the mean of its tokens: JEDi
    clip        unit image features a frame: CMMD

FVD has two ways to 224×224 that give different numbers, so the way is part of the protocol. ``google``, the original
program: height and width stretched by the bilinear resize of TensorFlow 1, whose pixel i is read at i·in/out, without
half-pixel centres and without anti-aliasing. ``stylegan``: bilinear with half-pixel centres, short side to 224, centre
cropped. Both give the network [−1, 1] (its ``rescale`` and ``resize`` are off).

FID sees frames as clean-fid has them: each colour resized in float32 by Pillow's anti-aliased bicubic to 299×299,
neither rounded nor clipped, then (x − 128)/128. The network's own resize is not used, because it is not anti-aliased.

Published files are never fetched. TorchScript can hold any computation: load only files you trust.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    CLIPModel,
    VideoMAEForVideoClassification,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from reelign.errors import ConfigError, ModelError, UnknownNameError
from reelign.metrics.feature_sets import Extractor, FeatureProtocol, FrameChoice, Picture, content_hash
from reelign.metrics.frechet import Features
from reelign.rewards.preprocess import Preprocess, preprocess_for
from reelign.video_io import to_video
from reelign.zoo.models import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    load_whole,
    read_preprocessor,
    resolve_model,
)

I3D_SIDE, I3D_LENGTH, I3D_LEAST = 224, 400, 10  # pixels, features, and frames that its strides leave one of
INCEPTION_SIDE, INCEPTION_LENGTH = 299, 2048
Way = Literal["google", "stylegan"]


def tensorflow_resize(video: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resize of [T,3,H,W] as ``tf.compat.v1.image.resize_bilinear``: pixel i is read at i·in/out."""
    return _stretch(_stretch(video, height, 2), width, 3)


def _stretch(video: Tensor, size: int, axis: int) -> Tensor:
    length = video.shape[axis]
    place = torch.arange(size, dtype=torch.float64) * (length / size)
    low = place.floor().long()
    share = (place - low).to(video).view(-1, *[1] * (video.ndim - axis - 1))
    below = video.index_select(axis, low.to(video.device))
    above = video.index_select(axis, (low + 1).clamp(max=length - 1).to(video.device))
    return below + (above - below) * share


def i3d_input(video: Tensor, way: Way) -> Tensor:
    """Clips [T,3,H,W] in [0,1] to I3D's [3,T,224,224] in [−1,1], the ``google`` or the ``stylegan`` way."""
    if way == "google":
        frames = tensorflow_resize(video, I3D_SIDE, I3D_SIDE)
    else:
        short = min(video.shape[-2:])
        size = [math.ceil(side * I3D_SIDE / short) for side in video.shape[-2:]]
        frames = F.interpolate(video, size=size, mode="bilinear", align_corners=False)
        top, left = ((side - I3D_SIDE) // 2 for side in size)
        frames = frames[..., top : top + I3D_SIDE, left : left + I3D_SIDE]
    return (2 * frames - 1).transpose(0, 1)


def i3d_extractor(
    model: str, device: str = "cpu", way: Way = "google", frames: int = 16, fps: float | None = None
) -> Extractor:
    """I3D from a TorchScript file that is called as ``(x, rescale=, resize=, return_features=)``.

    Args:
        model: path of ``i3d_torchscript.pt``.
        device: where it runs.
        way: ``google`` or ``stylegan``.
        frames: the first so many of each clip, at least 10.
        fps: to thin clips to; their own where None.

    Raises:
        ConfigError: no such way, or too few frames.
        ModelError: the file cannot be loaded, or is not such a network.
    """
    choice = FrameChoice(frames, "first", fps)
    if way not in ("google", "stylegan"):
        raise ConfigError(f"frames reach I3D the 'google' or the 'stylegan' way; got {way!r}")
    if frames < I3D_LEAST:
        raise ConfigError(f"I3D needs at least {I3D_LEAST} frames; got {frames}")
    network, weights = load_script(model, device)

    def run(pictures: Sequence[Picture]) -> Features:
        x = i3d_input(to_video(pictures).to(device), way)[None]
        features = _call(model, lambda: network(x, rescale=False, resize=False, return_features=True))
        return _rows(features, 1, I3D_LENGTH, model)

    preprocessing = {
        "google": "stretched to 224×224, TensorFlow 1 bilinear, [−1,1]",
        "stylegan": "short side to 224, bilinear, centre crop, [−1,1]",
    }[way]
    protocol = FeatureProtocol("i3d", model, weights, "Kinetics-400 logits", preprocessing, (I3D_SIDE,) * 2, choice)
    return Extractor(protocol, run)


def clean_resize(picture: Picture) -> Features:
    """uint8 [H,W,3] to [3,299,299], each colour by Pillow's bicubic in float32, neither rounded nor clipped."""
    size = (INCEPTION_SIDE, INCEPTION_SIDE)
    planes = [
        np.asarray(Image.fromarray(picture[..., c].astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
        for c in range(3)
    ]
    return np.stack(planes)


def inception_extractor(model: str, device: str = "cpu", frames: int = 8) -> Extractor:
    """Inception of FID from the TorchScript file ``inception-2015-12-05.pt``, whose ``layers`` take (x − 128)/128.

    Raises:
        ModelError: the file cannot be loaded, or is not such a network.
    """
    network, weights = load_script(model, device)
    if not hasattr(network, "layers"):
        raise ModelError(f"{model} has no 'layers': FID takes NVIDIA's inception-2015-12-05.pt")

    def run(pictures: Sequence[Picture]) -> Features:
        x = torch.from_numpy(np.stack([clean_resize(picture) for picture in pictures])).float().to(device)
        features = _call(model, lambda: network.layers((x - 128) / 128))
        return _rows(features.flatten(1), len(pictures), INCEPTION_LENGTH, model)

    protocol = FeatureProtocol(
        "inception",
        model,
        weights,
        "pool3",
        "clean-fid: each colour by Pillow's bicubic in float32, stretched to 299×299, (x − 128)/128",
        (INCEPTION_SIDE,) * 2,
        FrameChoice(frames),
    )
    return Extractor(protocol, run)


def videomae_extractor(model: str = "zoo:tiny-videomae", device: str = "cpu") -> Extractor:
    """The input of a VideoMAE's classifier, from any transformers ``VideoMAEForVideoClassification``.

    Raises:
        ModelError: it cannot be loaded whole.
    """
    network = load_whole(VideoMAEForVideoClassification, model).to(device)
    config = network.config
    preprocess = preprocess_for(config.image_size, read_preprocessor(model), (IMAGENET_MEAN, IMAGENET_STD), None)
    network.classifier = torch.nn.Identity()

    def run(pictures: Sequence[Picture]) -> Features:
        x = preprocess(to_video(pictures).to(device)[None])
        return _rows(_call(model, lambda: network(pixel_values=x).logits), 1, config.hidden_size, model)

    return _extractor("videomae", model, network, "classifier input", preprocess, FrameChoice(config.num_frames), run)


def vjepa_extractor(model: str, device: str = "cpu", frames: int = 16) -> Extractor:
    """V-JEPA 2: its classifier's pooled feature where the checkpoint has one, else the mean of the encoder's tokens.

    Raises:
        ConfigError: ``frames`` is not a multiple of its tubelet.
        ModelError: it cannot be loaded whole.
    """
    choice = FrameChoice(frames)
    pooled = "VJEPA2ForVideoClassification" in (_config(model).architectures or [])
    network = load_whole(VJEPA2ForVideoClassification if pooled else VJEPA2Model, model).to(device)
    config = network.config
    if frames % config.tubelet_size:
        raise ConfigError(f"frames of {model} are a multiple of {config.tubelet_size}; got {frames}")
    preprocess = preprocess_for(config.crop_size, read_preprocessor(model), (IMAGENET_MEAN, IMAGENET_STD), None)

    def run(pictures: Sequence[Picture]) -> Features:
        x = preprocess(to_video(pictures).to(device)[None])
        if not pooled:
            tokens = _call(model, lambda: network(x, skip_predictor=True).last_hidden_state)
            return _rows(tokens.mean(1), 1, config.hidden_size, model)
        tokens = _call(model, lambda: network.vjepa2(x, skip_predictor=True).last_hidden_state)
        return _rows(_call(model, lambda: network.pooler(tokens)), 1, config.hidden_size, model)

    feature = "attentive pooler" if pooled else "mean of tokens"
    return _extractor("vjepa", model, network, feature, preprocess, choice, run)


def clip_extractor(model: str = "zoo:tiny-clip", device: str = "cpu", frames: int = 8) -> Extractor:
    """Unit image features of single frames, from any transformers ``CLIPModel``.

    Raises:
        ModelError: it cannot be loaded whole.
    """
    network = load_whole(CLIPModel, model).to(device)
    side = network.config.vision_config.image_size
    preprocess = preprocess_for(side, read_preprocessor(model), (CLIP_MEAN, CLIP_STD), None)

    def run(pictures: Sequence[Picture]) -> Features:
        x = preprocess(to_video(pictures).to(device)[None])[0]
        output = _call(model, lambda: network.get_image_features(x))
        features = output if isinstance(output, Tensor) else output.pooler_output
        return _rows(F.normalize(features, dim=-1), len(pictures), network.config.projection_dim, model)

    return _extractor("clip", model, network, "unit image features", preprocess, FrameChoice(frames), run)


# Family to: what makes its extractor, the model where none is named, and where to get the published one.
FAMILIES: dict[str, tuple[Callable[..., Extractor], str | None, str]] = {
    "i3d": (i3d_extractor, None, "i3d_torchscript.pt of StyleGAN-V"),
    "inception": (inception_extractor, None, "inception-2015-12-05.pt of StyleGAN2-ADA"),
    "videomae": (videomae_extractor, "zoo:tiny-videomae", "any VideoMAEForVideoClassification"),
    "vjepa": (vjepa_extractor, None, "facebook/vjepa2-vitl-fpc16-256-ssv2"),
    "clip": (clip_extractor, "zoo:tiny-clip", "openai/clip-vit-large-patch14-336"),
}


def build_extractor(family: str, model: str | None = None, device: str = "cpu", **options: Any) -> Extractor:
    """The extractor of a family by name.

    Args:
        family: a key of ``FAMILIES``.
        model: path, ``zoo:NAME`` or hub id; the family's own where None.
        device: where it runs.
        **options: of the family: ``frames``, and for I3D ``way`` and ``fps``; VideoMAE has none.

    Raises:
        UnknownNameError: no such family, or it has no such option.
        ConfigError: the family needs a model and none is named.
        ModelError: it cannot be loaded.
    """
    if family not in FAMILIES:
        raise UnknownNameError("feature family", family, FAMILIES)
    make, own, published = FAMILIES[family]
    if (chosen := model or own) is None:
        raise ConfigError(f"features of {family} need a model: name it with --model {family}=PATH ({published})")
    known = [name for name in inspect.signature(make).parameters if name not in ("model", "device")]
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of {family}", name, known)
    return make(chosen, device, **options)


def load_script(model: str, device: str) -> tuple[Any, str]:
    """A TorchScript network in evaluation mode, and the SHA-256 of its file.

    Raises:
        ModelError: there is no such file, or it is not TorchScript.
    """
    path = Path(model).expanduser()
    if not path.is_file():
        raise ModelError(f"there is no TorchScript file {model}: name the file that you downloaded")
    try:
        network: Any = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{model} is not TorchScript: {' '.join(str(error).split())[:200]}") from error
    return network, content_hash(path)


def weights_hash(network: torch.nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights; the same for the same network in any file format."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _extractor(
    family: str,
    model: str,
    network: torch.nn.Module,
    feature: str,
    preprocess: Preprocess,
    frames: FrameChoice,
    run: Callable[[Sequence[Picture]], Features],
) -> Extractor:
    size = (preprocess.height, preprocess.width)
    words = f"{preprocess.aspect} to {size[0]}×{size[1]}, bicubic, mean {preprocess.mean}, deviation {preprocess.std}"
    return Extractor(FeatureProtocol(family, model, weights_hash(network), feature, words, size, frames), run)


def _config(model: str) -> Any:
    try:
        return AutoConfig.from_pretrained(resolve_model(model))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load {model}: {' '.join(str(error).split())[:200]}") from error


@torch.no_grad()
def _call(model: str, network: Callable[[], Tensor]) -> Tensor:
    try:
        return network()
    except (RuntimeError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ModelError(f"{model} cannot be run as its family is: {reason[:200]}") from error


def _rows(features: Tensor, rows: int, length: int, model: str) -> Features:
    if features.shape != (rows, length):
        raise ModelError(
            f"features of {model} have shape {tuple(features.shape)}; its family gives {(rows, length)}: wrong file?"
        )
    return np.asarray(features.cpu().numpy(), np.float64)
