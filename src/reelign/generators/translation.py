r"""Translators of clips between two domains, x and y: recurrent networks, made here, small enough for a processor.

Four networks of one kind (``translation_layers.FrameNetwork``): G_Y takes clips of x to y, G_X back; P_X and P_Y
predict the next frame of their domain, and only training needs them. All are causal: a clip may come in pieces of any
length, with the state handed on, and its frames are those of the clip as a whole.

A translator begins as no change at all and learns a change to add. Adversarial training alone fixes a map only up to
whatever keeps the target's distribution; of all these maps the nearest to no change is meant, so it starts there.

Left out: weights from elsewhere; more than two domains.

Run: ``reelign train translation_shapes``, then ``reelign translate CLIPS --model RUN --to y``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reelign.errors import DataError, ModelError
from reelign.generators.translation_layers import SMALLEST, FrameNetwork, State, check_clips

Domain = Literal["x", "y"]
DOMAINS: tuple[Domain, Domain] = ("x", "y")
WEIGHTS, SETTINGS = "translation.safetensors", "translation.json"
SIZES = ("channels", "hidden")  # of networks
CLIPS = ("frames", "height", "width", "fps")  # of clips they were trained on


def other(domain: Domain) -> Domain:
    """The domain that is not ``domain``.

    Raises:
        DataError: it is neither x nor y.
    """
    if domain not in DOMAINS:
        raise DataError(f"clips are translated to 'x' or to 'y'; got {domain!r}")
    return "y" if domain == "x" else "x"


class TranslationOptions(BaseModel):
    """Which translator, and how large.

    Args:
        kind: of generator.
        model: a folder that ``save`` wrote, or a run; ``channels`` and ``hidden`` are then its own, and so are the
            sizes of clips that are not given. None is a new one.
        channels: of frames folded by two; 16 trains in minutes on a processor, 32 to 64 are for GPUs.
        hidden: channels of the memory.
        frames, height, width, fps: of clips to train on; translation takes any.
        to: the domain that ``sampling.generate`` translates to.
        device: None is a GPU where there is one.
        seed: of the first weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    kind: Literal["translation"] = "translation"
    model: str | None = None
    channels: int = Field(16, ge=4)
    hidden: int = Field(16, ge=4)
    frames: int = Field(16, ge=2)
    height: int = Field(64, ge=SMALLEST)
    width: int = Field(64, ge=SMALLEST)
    fps: float = Field(8.0, gt=0)
    to: Domain = "y"
    device: str | None = None
    seed: int = 0


class TranslationGenerator:
    """A ``contracts.Translator`` with networks of its own.

    Args:
        options: sizes; the folder of weights is ``load_translation``'s matter.

    Attributes:
        networks: ``to_x``, ``to_y``, ``next_x`` and ``next_y``: G_X, G_Y, P_X and P_Y.
        per_frame: no memory between frames, an ablation; saved with the weights.
    """

    def __init__(self, options: TranslationOptions) -> None:
        self.options = options
        self.fps = options.fps
        self.to = options.to
        self.per_frame = False
        self.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            names = ("to_x", "to_y", "next_x", "next_y")
            self.networks = nn.ModuleDict({n: FrameNetwork(options.channels, options.hidden) for n in names})
        self.networks.to(self.device)

    def translate(self, video: Tensor, to: Domain, state: State | None = None) -> tuple[Tensor, State]:
        """Clips of the other domain to ``to``, and the state with which the clip goes on.

        Args:
            video: [B,T,3,H,W] in [0,1]; at least 16 pixels a side, any length. Carries gradient where it is on.
            to: the domain of what comes back.
            state: after the frames before these; None where these are the first. It is not changed.

        Raises:
            DataError: no such domain or clip, or a state of clips of another size or count.
        """
        other(to)
        return self._run(f"to_{to}", video, state)

    def predict_next(self, video: Tensor, domain: Domain, state: State | None = None) -> tuple[Tensor, State]:
        """P(x_{1:t}) for each frame of clips [B,T,3,H,W] of ``domain``: what the next one will be; as ``translate``."""
        other(domain)
        return self._run(f"next_{domain}", video, state)

    def cycle(self, video: Tensor, domain: Domain) -> tuple[Tensor, Tensor]:
        """Clips [B,T,3,H,W] of ``domain`` in the other one, and brought back: twice [B,T,3,H,W]."""
        there, _ = self.translate(video, other(domain))
        return there, self.translate(there, domain)[0]

    def _run(self, name: str, video: Tensor, state: State | None) -> tuple[Tensor, State]:
        check_clips(video)
        video = video.to(self.device)
        if state is not None:
            rows, _, height, width = state[0].shape
            if (rows, height, width) != (len(video), -(-video.shape[3] // 4), -(-video.shape[4] // 4)):
                raise DataError(
                    "a clip goes on with the state of its own frames: this one is of "
                    f"{rows} clips of about {4 * height}×{4 * width}, the frames are {tuple(video.shape)}"
                )
        changed, state = self.networks[name](video, state, self.per_frame)
        return changed, state

    def keep_to_colours(self) -> None:
        """Drop the gradients by which translators would begin to change more than colours."""
        for name, parameter in self.networks.named_parameters():
            if name.startswith(("to_x.out.", "to_y.out.")):
                parameter.grad = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every weight, by name."""
        return dict(self.networks.named_parameters())

    def parameter_count(self) -> int:
        """Weights of all four networks."""
        return sum(p.numel() for p in self.networks.parameters())

    def frames(self) -> int:
        """Frames of the clips it is trained on."""
        return self.options.frames

    def picture_size(self) -> tuple[int, int]:
        """Height and width of the clips it is trained on."""
        return self.options.height, self.options.width

    def save(self, folder: str) -> None:
        """Write weights and sizes to ``folder``: ``translation.safetensors`` and ``translation.json``."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        settings = {name: getattr(self.options, name) for name in (*SIZES, *CLIPS)}
        save_file({n: v.contiguous() for n, v in self.networks.state_dict().items()}, path / WEIGHTS)
        (path / SETTINGS).write_text(json.dumps({**settings, "per_frame": self.per_frame}, indent=1) + "\n")

    def load(self, folder: str) -> None:
        """Read back what ``save`` wrote, bit for bit.

        Raises:
            ModelError: nothing was saved there, or for networks of other sizes.
        """
        settings, weights = read_settings(folder), load_file(Path(folder) / WEIGHTS)
        expected = self.networks.state_dict()
        if {n: v.shape for n, v in weights.items()} != {n: v.shape for n, v in expected.items()}:
            raise ModelError(
                f"the weights in {folder} are of channels {settings['channels']}, hidden {settings['hidden']}; "
                f"this translator has {self.options.channels}, {self.options.hidden}"
            )
        self.networks.load_state_dict(weights)
        self.per_frame = settings["per_frame"]


def read_settings(folder: str) -> dict[str, Any]:
    """The settings that ``TranslationGenerator.save`` wrote.

    Raises:
        ModelError: the folder holds no saved translator.
    """
    path = Path(folder) / SETTINGS
    if not path.is_file() or not path.with_name(WEIGHTS).is_file():
        raise ModelError(f"a saved translator is a folder with {WEIGHTS} and {SETTINGS}; {folder} has not both")
    try:
        settings: dict[str, Any] = json.loads(path.read_text())
        missing = {*SIZES, *CLIPS, "per_frame"} - set(settings)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path} is no JSON of settings: {error}") from error
    if missing:
        raise ModelError(f"{path} lacks {', '.join(sorted(missing))}")
    return settings


def load_translation(**options: Any) -> TranslationGenerator:
    """A translator, new or with saved weights and their sizes; takes ``TranslationOptions``.

    Args:
        options: ``model`` may also be a run folder, whose newest checkpoint is taken, or one of its checkpoints.

    Raises:
        ModelError: no saved translator there, or options that are none.
    """
    try:
        chosen = TranslationOptions(**options)
        if chosen.model is None:
            return TranslationGenerator(chosen)
        folder = find_weights(chosen.model)
        settings = read_settings(folder)
        ours = (*SIZES, *(name for name in CLIPS if name not in chosen.model_fields_set))
        sizes = {name: settings[name] for name in ours}
        generator = TranslationGenerator(chosen.model_copy(update=sizes))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ModelError(f"translation option {place}: {first['msg']}; got {first['input']!r}") from error
    generator.load(folder)
    return generator


def find_weights(model: str) -> str:
    """The folder of weights that ``model`` names: itself, a checkpoint with ``adapter`` in it, or a run's newest."""
    path = Path(model).expanduser()
    checkpoints = sorted(path.glob("checkpoints/step_*/adapter"), reverse=True)
    for folder in (path, path / "adapter", *checkpoints):
        if (folder / SETTINGS).is_file():
            return str(folder)
    raise ModelError(
        f"a translator is a folder with {WEIGHTS}, or a run with checkpoints of one; {str(path)!r} is neither"
    )
