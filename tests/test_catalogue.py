"""Names, suggestions, entry points, ``module:object``, and what ``build`` makes of them."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from reelign import catalogue
from reelign.build import build_reward, build_weighted_reward
from reelign.catalogue import TABLE, names, resolve
from reelign.contracts import Reward, VideoBatch
from reelign.errors import ConfigError, ContractError, UnknownNameError
from reelign.rewards.card import golden_clip
from reelign.rewards.compressibility import Compressibility
from reelign.rewards.temporal_smoothness import TemporalSmoothness

OWN_REWARD = """
from reelign.contracts import RewardCard

class Brightness:
    def __init__(self, gain=1.0):
        self.gain = gain
        self.card = RewardCard("own", "Mean.", (0.0, {high}))
    def __call__(self, batch):
        return self.gain * batch.video.flatten(1).mean(1)

def make(scale):
    return Brightness(scale)

def nothing():
    return {}

NUMBER = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_rewards.py").write_text(OWN_REWARD.replace("{high}", "1.0"))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_rewards", None)
    return "own_rewards"


def test_every_target_of_the_table_exists() -> None:
    for kind, entries in TABLE.items():
        for name in entries:
            assert callable(resolve(kind, name)), (kind, name)


def test_importing_the_catalogue_does_not_import_torch() -> None:
    code = "import sys, reelign.catalogue as c; c.names('reward'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_misspelt_name_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="unknown reward 'compresibility': did you mean 'compressibility'"):
        build_reward("compresibility")
    with pytest.raises(UnknownNameError, match="did you mean 'wan'"):
        resolve("generator", "wann")
    with pytest.raises(UnknownNameError, match="unknown kind of name 'rewards': did you mean 'reward'"):
        names("rewards")


def test_names_are_sorted_and_whole() -> None:
    assert names("reward") == sorted(names("reward"))
    assert {"brightness_range", "clip", "hpsv2", "image_reward", "video_action"} <= set(names("reward"))
    assert len(names("reward")) == 16


def test_module_and_object(own_module: str) -> None:
    reward = build_reward(f"{own_module}:Brightness", {"gain": 0.5})
    torch.testing.assert_close(reward(golden_clip()), 0.5 * golden_clip().video.flatten(1).mean(1))
    assert resolve("reward", "reelign.rewards.compressibility:Compressibility") is Compressibility
    with pytest.raises(UnknownNameError, match="object of own_rewards 'Brigtness': did you mean 'Brightness'"):
        resolve("reward", f"{own_module}:Brigtness")
    with pytest.raises(ConfigError, match="there is no module 'no_such_module'"):
        resolve("reward", "no_such_module:Thing")
    for half in (":Thing", "module:"):
        with pytest.raises(ConfigError, match="written module:object"):
            resolve("reward", half)


def test_a_module_that_fails_inside_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        resolve("reward", "needs_more:Thing")


def test_entry_points_add_names_and_never_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "reelign.rewards.temporal_smoothness:TemporalSmoothness"
    points = [metadata.EntryPoint(name, target, "reelign.reward") for name in ("installed", "compressibility")]
    asked: list[str] = []

    def entry_points(group: str) -> list[metadata.EntryPoint]:
        asked.append(group)
        return points

    monkeypatch.setattr(catalogue.metadata, "entry_points", entry_points)
    assert resolve("reward", "installed") is TemporalSmoothness
    assert resolve("reward", "compressibility") is Compressibility
    assert "installed" in names("reward")
    assert set(asked) == {"reelign.reward"}


def test_options_are_checked_by_name(own_module: str) -> None:
    reward = build_reward("compressibility", {"quality": 50})
    assert isinstance(reward, Compressibility)
    assert reward.quality == 50
    with pytest.raises(
        UnknownNameError, match="unknown option of reward 'compressibility' 'qualty': did you mean 'quality'"
    ):
        build_reward("compressibility", {"qualty": 50})
    with pytest.raises(ConfigError, match="needs the option scale"):
        build_reward(f"{own_module}:make")


def test_what_is_no_reward_is_refused(own_module: str) -> None:
    with pytest.raises(ContractError, match="must be a class or a function"):
        build_reward(f"{own_module}:NUMBER")
    with pytest.raises(ContractError, match="made a dict"):
        build_reward(f"{own_module}:nothing")
    with pytest.raises(ContractError, match="scores lie in the card's range"):
        build_reward(f"{own_module}:Brightness", {"gain": 100.0})


def test_weighted_reward_from_a_run_file() -> None:
    terms = [
        {"name": "compressibility", "weight": 0.5, "options": {"quality": 50}},
        {"name": "temporal_smoothness", "loss": "distance", "target": -0.1},
        {"name": "compressibility", "weight": 2.0},
    ]
    reward = build_weighted_reward(terms)
    assert isinstance(reward, Reward)
    batch: VideoBatch = golden_clip()
    scores = reward.scores(batch)
    assert list(scores) == ["compressibility", "temporal_smoothness", "compressibility#2"]
    by_hand = (
        0.5 * Compressibility(50)(batch)
        - (TemporalSmoothness()(batch) + 0.1).abs()
        + 2 * Compressibility()(batch)
    )  # fmt: skip
    torch.testing.assert_close(reward(batch), by_hand)
