"""The causal student of the zoo: made by ordinary runs, written in the zoo's layout, and as good as its card says."""

import json

import pytest
import torch

from reelign import distillation
from reelign.build import build_generator
from reelign.contracts import CausalGenerator, Request
from reelign.distillation import card, newest_weights, train_student
from reelign.errors import RunFolderError
from reelign.sampling import generate
from reelign.zoo.models import inventory, packaged_folder

SHORT = ("training.batch=1", "prompts.held_out=2", "ode_init.teacher_steps=4", "ode_init.seeds=1", "guard.action=off")


class Silent:
    def stepped(self, step, total, values): ...
    def evaluating(self, step, done, total): ...
    def warned(self, text): ...


def test_a_student_is_trained_written_and_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(distillation, "HELD_OUT", 2)
    folder = tmp_path / "student"
    train_student(folder, tmp_path / "work", Silent(), scale=0.001, overrides=SHORT)
    assert json.loads((folder / "reelign.json").read_text())["base"] == "zoo:tiny-wan"
    assert "_name_or_path" not in (folder / "transformer/config.json").read_text()
    assert "| asked colour |" in (folder / "README.md").read_text()
    options = {"kind": "causal_wan", "lora": None, "device": "cpu"}
    student = build_generator({**options, "model": str(folder)})
    weights = str(newest_weights(tmp_path / "work/ode_init"))
    trained = build_generator({**options, "model": "zoo:tiny-wan", "frames_per_block": 1, "transformer": weights})
    request = Request(("a red circle moving left",))
    clips = [generate(g, request, [3], 4, 1.0).video for g in (student, trained)]
    assert (clips[0] - clips[1]).abs().mean() < 2e-3  # but for half precision
    base = build_generator({**options, "model": "zoo:tiny-wan", "frames_per_block": 1})
    assert not torch.equal(base.network.proj_out.weight, trained.network.proj_out.weight)
    with pytest.raises(RunFolderError, match="whole transformer"):
        newest_weights(tmp_path)


def test_the_shipped_student_is_what_its_card_says():
    folder = packaged_folder("tiny-causal-wan")
    measured = json.loads((folder / "measured.json").read_text())
    assert (folder / "README.md").read_text().split("| measure")[1] == card(measured).split("| measure")[1]
    assert measured["motion"] >= 0.9 * measured["teacher_motion"]
    entry = next(entry for entry in inventory() if entry.name == "tiny-causal-wan")
    assert 5 < entry.megabytes <= 10
    student = build_generator({"kind": "causal_wan", "lora": None, "device": "cpu"})
    assert isinstance(student, CausalGenerator)
    assert (student.default_steps, student.default_guidance_scale, student.fresh_noise) == (4, 1.0, True)
    found, _ = distillation._examined(student, 4, 1.0)
    for name, value in found.items():
        assert value == pytest.approx(measured[name], abs=0.05), name
