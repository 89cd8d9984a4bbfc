"""Every name a user may type, and the object behind it.

Three sources, in this order: the literal table below, entry points of installed packages (groups ``reelign.reward``,
``reelign.generator``, …), and ``module:object`` for code that is merely importable. The table holds strings only and
nothing is imported before it is asked for, so ``--help`` never loads torch.
"""

from __future__ import annotations

import importlib
from importlib import metadata
from typing import Any

from reelign.errors import ConfigError, UnknownNameError

TABLE: dict[str, dict[str, str]] = {
    "reward": {
        "clip": "reelign.rewards.clip_similarity:ClipSimilarity",
        "clip_score": "reelign.rewards.clip_similarity:ClipScore",
        "pick_score": "reelign.rewards.clip_similarity:PickScore",
        "hpsv2": "reelign.rewards.hpsv2:HPSv2",
        "laion_aesthetic": "reelign.rewards.laion_aesthetic:LaionAesthetic",
        "image_reward": "reelign.rewards.image_reward:ImageReward",
        "hpsv3": "reelign.rewards.hpsv3:HPSv3",
        "video_reward": "reelign.rewards.video_reward:VideoReward",
        "object_presence": "reelign.rewards.object_presence:ObjectPresence",
        "video_action": "reelign.rewards.video_action:VideoAction",
        "jepa_predictability": "reelign.rewards.jepa_predictability:JepaPredictability",
        "temporal_smoothness": "reelign.rewards.temporal_smoothness:TemporalSmoothness",
        "brightness_range": "reelign.rewards.brightness_range:BrightnessRange",
        "colour_coverage": "reelign.rewards.colour_coverage:ColourCoverage",
        "compressibility": "reelign.rewards.compressibility:Compressibility",
        "judge_network": "reelign.rewards.judge_network:JudgeNetwork",
    },
    "generator": {
        "wan": "reelign.generators.wan:load_wan",
        "causal_wan": "reelign.generators.causal_wan:load_causal_wan",
        "wan_image": "reelign.generators.wan_image:load_wan_image",
        "cogvideox": "reelign.generators.cogvideox:load_cogvideox",
        "ltx": "reelign.generators.ltx:load_ltx",
        "hunyuan_video": "reelign.generators.hunyuan_video:load_hunyuan_video",
        "stable_video_diffusion": "reelign.generators.stable_video_diffusion:load_stable_video_diffusion",
        "modelscope": "reelign.generators.modelscope:load_modelscope",
        "opensora": "reelign.generators.opensora:load_opensora",
        "videocrafter2": "reelign.generators.videocrafter:load_videocrafter",
        "translation": "reelign.generators.translation:load_translation",
    },
    "algorithm": {
        "reward_gradient": "reelign.algorithms.reward_gradient:RewardGradient",
        "partial_chain": "reelign.algorithms.partial_chain:PartialChain",
        "best_of_n": "reelign.algorithms.best_of_n:BestOfN",
        "flow_matching": "reelign.algorithms.flow_matching:FlowMatching",
        "causal_finetuning": "reelign.algorithms.causal_finetuning:CausalFinetuning",
        "ode_init": "reelign.algorithms.ode_init:OdeInit",
        "self_forcing": "reelign.algorithms.self_forcing:SelfForcing",
        "video_translation": "reelign.algorithms.video_translation:VideoTranslation",
    },
    "metric": {
        "facts": "reelign.metrics.integrity:Facts",
        "temporal_flickering": "reelign.metrics.flicker:TemporalFlickering",
        "motion_compensated_flicker": "reelign.metrics.flicker:MotionCompensatedFlicker",
        "motion_smoothness": "reelign.metrics.smoothness:MotionSmoothness",
        "dynamic_degree": "reelign.metrics.dynamics:DynamicDegree",
        "histogram_consistency": "reelign.metrics.consistency:HistogramConsistency",
        "sharpness": "reelign.metrics.picture_quality:Sharpness",
        "blur": "reelign.metrics.picture_quality:Blur",
        "blockiness": "reelign.metrics.picture_quality:Blockiness",
        "exposure": "reelign.metrics.picture_quality:Exposure",
        "clipping": "reelign.metrics.picture_quality:Clipping",
        "colourfulness": "reelign.metrics.picture_quality:Colourfulness",
        "colour_steadiness": "reelign.metrics.drift:ColourSteadiness",
        "freezes": "reelign.metrics.integrity:Freezes",
        "cuts": "reelign.metrics.integrity:Cuts",
        "camera_obedience": "reelign.metrics.camera_obedience:CameraObedience",
    },
    # Metrics too, but of models that the user names: their classes bring in transformers.
    "model_metric": {
        "subject_consistency": "reelign.metrics.consistency_models:SubjectConsistency",
        "background_consistency": "reelign.metrics.consistency_models:BackgroundConsistency",
        "clip_score": "reelign.metrics.clip_score:ClipScoreMetric",
        "aesthetic_quality": "reelign.metrics.aesthetic:AestheticQuality",
        "imaging_quality": "reelign.metrics.imaging_quality:ImagingQuality",
        "lpips_consecutive": "reelign.metrics.lpips:LpipsConsecutive",
        "action": "reelign.metrics.action:Action",
    },
    "measure": {
        "shapes": "reelign.metrics.shapes_instrument:shapes_measure",
        "motion_energy": "reelign.metrics.motion_energy:motion_energy",
    },
}


def names(kind: str) -> list[str]:
    """Every name of a kind, built in or installed, in alphabetical order.

    Args:
        kind: ``reward``, ``metric`` (``model_metric`` among them), ``generator``, ``algorithm`` or ``measure``.
    """
    return sorted(_targets(kind))


def resolve(kind: str, name: str) -> Any:
    """The object behind a name of the catalogue or behind ``module:object``.

    Raises:
        UnknownNameError: no such kind or name, or a module without such an object; the nearest name is suggested.
        ConfigError: ``module:object`` names a module that cannot be found.
    """
    targets = _targets(kind)
    if name in targets:
        return _import(kind, targets[name])
    if ":" in name:
        return _import(kind, name)
    raise UnknownNameError(kind, name, targets)


def _targets(kind: str) -> dict[str, str]:
    """Name to ``module:object``; a built-in name wins over an installed one."""
    if kind not in TABLE:
        raise UnknownNameError("kind of name", kind, TABLE)
    installed = {point.name: point.value for point in metadata.entry_points(group=f"reelign.{kind}")}
    return installed | TABLE[kind] | (TABLE["model_metric"] if kind == "metric" else {})


def _import(kind: str, target: str) -> Any:
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise ConfigError(f"a {kind} outside the catalogue is written module:object; got {target!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there and imports something that is not: keep the traceback
        raise ConfigError(
            f"{kind} {target!r}: there is no module {error.name!r}; install it or mend the name"
        ) from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            public = [known for known in vars(found) if not known.startswith("_")]
            raise UnknownNameError(f"object of {module_name}", attribute, public)
        found = getattr(found, attribute)
    return found
