"""A run is one YAML file: strict in, whole out.

Each section is a frozen pydantic model that lives next to the code it configures. An unknown key is refused with the
nearest one that exists; ``--set reward_gradient.lr=1e-4`` changes one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from reelign.algorithms.best_of_n import Config as BestOfNConfig
from reelign.algorithms.causal_finetuning import Config as CausalFinetuningConfig
from reelign.algorithms.flow_matching import Config as FlowMatchingConfig
from reelign.algorithms.ode_init import Config as OdeInitConfig
from reelign.algorithms.partial_chain import Config as PartialChainConfig
from reelign.algorithms.reward_gradient import Config as RewardGradientConfig
from reelign.algorithms.self_forcing import Config as SelfForcingConfig
from reelign.algorithms.video_translation import Config as VideoTranslationConfig
from reelign.datasets.translation import DomainOptions
from reelign.errors import ConfigError, UnknownNameError
from reelign.generators.causal_wan import CausalWanOptions
from reelign.generators.cogvideox import CogVideoXOptions
from reelign.generators.hunyuan_video import HunyuanVideoOptions
from reelign.generators.ltx import LtxOptions
from reelign.generators.modelscope import ModelScopeOptions
from reelign.generators.opensora import OpenSoraOptions
from reelign.generators.stable_video_diffusion import StableVideoDiffusionOptions
from reelign.generators.translation import TranslationOptions
from reelign.generators.videocrafter import VideoCrafterOptions
from reelign.generators.wan import WanOptions
from reelign.generators.wan_image import WanImageOptions
from reelign.guard.watch import GuardOptions

Model = TypeVar("Model", bound=BaseModel)


class _Yaml(yaml.SafeLoader):
    """YAML with the booleans of version 1.2: ``off`` is a word, as in ``guard: {action: off}``."""


_Yaml.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:bool" or letter in "tTfF"]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(text: str) -> Any:
    """A value from YAML text."""
    return yaml.load(text, Loader=_Yaml)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptOptions(_Section):
    """Where prompts come from.

    Args:
        source: ``shapes``, ``animals``, a text file, or a list of prompts.
        held_out: how many are set aside for the proof and never trained on.
        seed: of the split.
    """

    source: str | tuple[str, ...] = "shapes"
    held_out: int = Field(96, ge=2)
    seed: int = 0


class ClipOptions(_Section):
    """Captioned clips that ``partial_chain`` begins from and others learn from.

    Args:
        source: a ``videofolder`` folder, a ``.csv`` or ``.jsonl`` table, a list of ``path|||caption`` lines, or
            ``shapes`` (``shapes:500``), which are drawn when they are asked for.
    """

    source: str


class RewardOptions(_Section):
    """One reward of the sum that is maximised.

    Args:
        name: of the catalogue, or ``module:object``.
        weight: w.
        loss: ``maximise`` R, ``distance`` to ``target``, or ``cross_entropy`` −log R.
        target: for ``distance``.
        normalise: divide by the running deviation of the scores.
        keep_within: makes it a constraint: keep the score within this much of the base's.
        multiplier_rate: how fast a constraint's multiplier moves.
        options: what the reward itself takes, for example ``model``.
    """

    name: str
    weight: float = 1.0
    loss: Literal["maximise", "distance", "cross_entropy"] = "maximise"
    target: float | None = None
    normalise: bool = False
    keep_within: float | None = None
    multiplier_rate: float = Field(0.5, gt=0)
    options: dict[str, Any] = Field(default_factory=dict)


class TrainingOptions(_Section):
    """The outer loop.

    Args:
        steps: updates.
        batch: prompts an update.
        checkpoint_every: steps between checkpoints; the last step always has one.
        keep: how many checkpoints stay on disk; 0 keeps all.
        park_rewards: rewards take turns on the device, and leave it when they have scored.
    """

    steps: int = Field(100, ge=1)
    batch: int = Field(8, ge=1)
    checkpoint_every: int = Field(25, ge=1)
    keep: int = Field(2, ge=0)
    park_rewards: bool = False


TRAINED_ON = "trained_on"
FROM_CLIPS = ("partial_chain", "best_of_n", "flow_matching", "causal_finetuning")

Settings = (
    RewardGradientConfig
    | PartialChainConfig
    | BestOfNConfig
    | FlowMatchingConfig
    | CausalFinetuningConfig
    | OdeInitConfig
    | SelfForcingConfig
)
PromptedOptions = (
    WanOptions
    | ModelScopeOptions
    | CausalWanOptions
    | OpenSoraOptions
    | WanImageOptions
    | CogVideoXOptions
    | LtxOptions
    | HunyuanVideoOptions
    | StableVideoDiffusionOptions
    | ModelScopeOptions
    | VideoCrafterOptions
)
GeneratorOptions = PromptedOptions | TranslationOptions


class PromptSetOptions(_Section):
    """Further prompts that the run is examined on, before and after.

    Args:
        source: as in ``PromptOptions``, or ``trained_on``: prompts, or captions of clips, that the run trains on.
        count: how many, drawn at random.
    """

    source: str | tuple[str, ...]
    count: int = Field(32, ge=2)


class EvaluationOptions(_Section):
    """The proof: the same held-out prompts and seeds before and after.

    Args:
        measures: held-out measures, which nothing trains on; see ``catalogue``.
        per_prompt: clips of each held-out prompt, each with a seed of its own. Intervals are over prompts, and more
            clips of each make them narrower.
        every: steps between evaluations on the way; 0 is only before and after.
        batch: clips at a time.
        clips: of a translator, how many are translated in each direction.
        save_clips: how many clips of each evaluation are written as mp4.
        seed: of the noise.
        sets: further prompt sets by name, examined before and after; the verdict is that of the held-out prompts alone.
    """

    measures: tuple[str, ...] = ("motion_energy",)
    per_prompt: int = Field(1, ge=1)
    every: int = Field(0, ge=0)
    batch: int = Field(16, ge=1)
    clips: int = Field(32, ge=4)
    save_clips: int = Field(24, ge=0)
    seed: int = 1_000
    sets: dict[str, PromptSetOptions] = Field(default_factory=dict)

    @field_validator("sets")
    @classmethod
    def _names_are_folders(cls, value: dict[str, PromptSetOptions]) -> dict[str, PromptSetOptions]:
        if bad := [name for name in value if not name.isidentifier()]:
            raise ConfigError(f"the name of a prompt set is letters, digits and _; got {bad[0]!r}")
        return value


class RunConfig(_Section):
    """Everything a run is made of.

    Args:
        output: the run folder.
        seed: of data order and noise.
        prompts: to train on and to hold out; with ``clips``, only the held-out ones are used.
        clips: what ``partial_chain`` edits, or what is learnt from: by ``best_of_n``, ``flow_matching``,
            ``causal_finetuning``, and ``self_forcing`` with the objective ``gan``.
        domains: what ``video_translation`` learns from, which takes neither prompts, rewards nor a guard.
        algorithm: which section below is used.
        guard: against reward hacking; on unless told otherwise.
        trackers: of Accelerate: ``tensorboard``, ``trackio``, ``wandb``.
    """

    output: str
    seed: int = 0
    generator: GeneratorOptions = Field(WanOptions(), discriminator="kind")
    prompts: PromptOptions = PromptOptions()
    clips: ClipOptions | None = None
    domains: DomainOptions | None = None
    rewards: tuple[RewardOptions, ...] = ()
    algorithm: Literal[
        "reward_gradient",
        "partial_chain",
        "best_of_n",
        "flow_matching",
        "causal_finetuning",
        "ode_init",
        "self_forcing",
        "video_translation",
    ] = "reward_gradient"
    reward_gradient: RewardGradientConfig = RewardGradientConfig()
    partial_chain: PartialChainConfig = PartialChainConfig()
    best_of_n: BestOfNConfig = BestOfNConfig()
    flow_matching: FlowMatchingConfig = FlowMatchingConfig()
    causal_finetuning: CausalFinetuningConfig = CausalFinetuningConfig()
    ode_init: OdeInitConfig = OdeInitConfig()
    self_forcing: SelfForcingConfig = SelfForcingConfig()
    video_translation: VideoTranslationConfig = VideoTranslationConfig()
    training: TrainingOptions = TrainingOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    guard: GuardOptions = GuardOptions()
    trackers: tuple[str, ...] = ()

    @field_validator("generator", mode="before")
    @classmethod
    def _wan_unless_told(cls, value: Any) -> Any:
        return {"kind": "wan", **value} if isinstance(value, dict) else value

    @property
    def settings(self) -> Settings:
        """The section of the chosen algorithm, where that answers prompts."""
        chosen: Settings = getattr(self, self.algorithm)
        return chosen

    @model_validator(mode="after")
    def _translation_goes_by_domains(self) -> RunConfig:
        translates = self.algorithm == "video_translation"
        if translates != (self.domains is not None) or translates != isinstance(self.generator, TranslationOptions):
            raise ConfigError(
                "the algorithm video_translation, a generator of kind translation and 'domains' go together; this "
                f"run has {self.algorithm}, {self.generator.kind} and {'no' if self.domains is None else 'two'} domains"
            )
        if translates == bool(self.rewards):
            wrong = "takes none" if translates else "needs at least one"
            raise ConfigError(f"config key rewards: {self.algorithm} {wrong}; got {len(self.rewards)}")
        return self

    @model_validator(mode="after")
    def _clips_go_with_some_algorithms(self) -> RunConfig:
        adversarial = self.algorithm == "self_forcing" and self.self_forcing.objective == "gan"
        if (self.clips is not None) != (adversarial or self.algorithm in FROM_CLIPS):
            raise ConfigError(
                f"'clips' go with {', '.join(FROM_CLIPS)} and the objective gan of self_forcing, which cannot do "
                f"without, and with no other; this run is {self.algorithm}"
            )
        return self


def recipe(name: str) -> Path:
    """The file of a recipe that ships with the package.

    Raises:
        UnknownNameError: there is no such recipe.
    """
    folder = Path(__file__).parent / "recipes"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        raise UnknownNameError("recipe", name, [p.stem for p in folder.glob("*.yaml")])
    return path


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file and apply ``section.key=value`` overrides.

    Args:
        path: a YAML file, or the bare name of a recipe that ships with the package.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value its rule forbids.
    """
    return parse_config(read_run_file(path, overrides))


def read_run_file(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file or recipe, with overrides, not yet checked; raises as ``load_config``."""
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise ConfigError(f"there is no run file {str(path)!r}")
        path = recipe(path.name)
    try:
        data = read_yaml(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"a run file is a mapping of sections; {path} is {type(data).__name__}")
    for override in overrides:
        _apply(data, override)
    return data


def parse_config(data: dict[str, Any]) -> RunConfig:
    """Check a mapping against ``RunConfig``; raises ConfigError with one clear line."""
    return validated(RunConfig, data)


def validated(model: type[Model], data: dict[str, Any]) -> Model:
    """Check a mapping against a model; raises ConfigError with one clear line."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _one_line(model, error) from error


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Options written ``key=value``, values in YAML, as a mapping."""
    options: dict[str, Any] = {}
    for pair in pairs:
        _apply(options, pair)
    return options


def dump_config(config: RunConfig) -> str:
    """The whole config as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one value of nested mappings and lists from ``a.b.0.c=value``."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"an override reads section.key=value; got {override!r}")
    *parents, last = path.strip().split(".")
    place: Any = data
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        if not isinstance(place, (dict, list)):
            raise ConfigError(f"{part!r} in the override {override!r} is a value, not a section")
    place[int(last) if isinstance(place, list) else last] = read_yaml(text)


def _one_line(model: type[BaseModel], error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    path, known = _typed(model, first["loc"])
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        return UnknownNameError("config key", where, [".".join((*path[:-1], name)) for name in known])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return cause
    return ConfigError(f"config key {where}: {first['msg'][0].lower()}{first['msg'][1:]}; got {first['input']!r}")


def _typed(model: Any, place: Sequence[int | str]) -> tuple[list[str], list[str]]:
    """A place of the config as people type it, and the keys that exist beside its last part.

    Pydantic names the kind of a generator as a step of the way; people do not.
    """
    path: list[str] = []
    models, beside = [model], [model]
    for part in place:
        chosen = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == part]
        if chosen:
            models = chosen
            continue
        path.append(str(part))
        if isinstance(part, int):
            continue
        beside = models
        field = models[0].model_fields.get(part) if models else None
        options = () if field is None else (field.annotation, *getattr(field.annotation, "__args__", ()))
        models = [option for option in options if hasattr(option, "model_fields")]
    return path, list(beside[0].model_fields) if beside else []
