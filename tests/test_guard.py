"""The guard: canaries by hand, what counts as hacking, and runs that are stopped, rolled back, resumed."""

from __future__ import annotations

import json
import math
import signal
import sys

import pytest
import torch
from test_loop import Quiet, equal, settings

from reelign import checkpoint
from reelign.config import parse_config
from reelign.contracts import Request, VideoBatch
from reelign.guard import canaries
from reelign.guard.canaries import ALARM, CANARIES, diversity, sing
from reelign.guard.watch import Guard, GuardOptions, canary_change, judge_change, spread_within
from reelign.loop import Run


def grey(level: float, frames: int = 3, clips: int = 1) -> torch.Tensor:
    return torch.full((clips, frames, 3, 16, 16), level)


class TestCanaries:
    def test_flat_clips_by_hand(self):
        half = grey(0.5)
        assert canaries.luma(half).item() == pytest.approx(0.5)
        assert canaries.clipping(half).item() == 0
        for name in ("saturation", "edges", "grid_energy", "colour_entropy", "temporal_difference", "flow"):
            assert CANARIES[name](half).item() == pytest.approx(0, abs=1e-6), name
        assert canaries.clipping(grey(1.0)).item() == 1
        assert canaries.clipping(grey(0.0)).item() == 1

    def test_saturation_of_pure_red_is_one(self):
        red = torch.zeros(1, 2, 3, 4, 4)
        red[:, :, 0] = 1
        assert canaries.saturation(red).item() == 1
        assert canaries.luma(red).item() == pytest.approx(0.299)

    def test_entropy_of_two_equal_halves_is_one_bit(self):
        clip = grey(0.1)
        clip[..., 8:] = 0.9
        assert canaries.colour_entropy(clip).item() == pytest.approx(1)

    def test_edges_of_stripes(self):
        clip = grey(0.0)
        clip[..., ::2] = 1  # every horizontal step is 1, every vertical one 0
        assert canaries.edges(clip).item() == pytest.approx(0.5)

    def test_a_pattern_on_the_decoders_grid_is_seen_and_noise_is_not(self):
        clip = grey(0.5)
        clip[..., ::8, ::8] += 0.3
        assert canaries.grid_energy(clip).item() == pytest.approx(1, abs=1e-4)
        noise = torch.rand(1, 3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        assert canaries.grid_energy(noise).item() == pytest.approx(63 / 4095, rel=0.5)

    def test_motion_of_a_moving_square(self):
        y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
        frames = [torch.exp(-((x - 20 - 2 * t) ** 2 + (y - 32) ** 2) / 50.0) for t in range(6)]
        moving = torch.stack(frames)[None, :, None].expand(1, 6, 3, 64, 64)
        still = moving[:, :1].expand(1, 6, 3, 64, 64)
        assert canaries.flow(still).item() == 0
        assert canaries.flow(moving).item() > 0.05
        assert canaries.temporal_difference(moving) > canaries.temporal_difference(still)
        assert canaries.temporal_difference(moving[:, :1]).item() == 0

    def test_diversity_is_the_distance_to_the_others(self):
        clips = torch.cat([grey(0.0), grey(0.5), grey(0.2), grey(0.2)])
        assert diversity(clips, 2).tolist() == pytest.approx([0.5, 0.5, 0, 0])

    def test_all_of_them_have_an_alarm(self):
        batch = VideoBatch(grey(0.3, clips=2), 8.0, Request(("a", "a")))
        values = sing(batch, 2)
        assert set(values) == set(ALARM)
        assert all(value.shape == (2,) for value in values.values())


class TestWatch:
    def test_spread_is_pooled_within_prompts(self):
        values = torch.tensor([0.0, 2.0, 10.0, 14.0])  # variances 2 and 8
        assert spread_within(values, 2) == pytest.approx(math.sqrt(5))

    def test_a_canary_sounds_beyond_two_spreads_in_its_direction(self):
        base = torch.tensor([0.0, 2.0, 10.0, 14.0])
        assert canary_change("flow", base, base - 4.0, 2).level == "safe"
        assert canary_change("flow", base, base - 5.0, 2).level == "warning"
        assert canary_change("flow", base, base + 9.0, 2).level == "safe"
        assert canary_change("clipping", base, base + 5.0, 2).level == "warning"
        assert canary_change("luma", base, base - 2.5, 2).size == pytest.approx(2.5 / math.sqrt(5))
        pairs = torch.tensor([1.0, 1.0, 3.0, 3.0])  # distances within pairs: no spread within, some between prompts
        assert canary_change("diversity", pairs, pairs - 1, 2).size == pytest.approx(1 / float(pairs.std()))

    def test_a_judge_is_held_against_what_reseeding_explains(self):
        base = torch.tensor([0.0, 1.0] * 8)  # within 0.707, 16 clips: deviation of the difference 0.25
        levels = [judge_change("motion", base, base - drop, 2).level for drop in (0.0, 0.24, 0.4, 0.6, 0.8)]
        assert levels == ["safe", "safe", "watch", "warning", "alarm"]
        assert judge_change("motion", base, base + 0.8, 2).level == "safe"

    def test_one_clip_is_no_alarm_where_seeds_change_nothing(self):
        base = torch.ones(48)
        fallen = [torch.cat([torch.zeros(count), torch.ones(48 - count)]) for count in (0, 1, 2, 3)]
        levels = [judge_change("motion", base, now, 2).level for now in fallen]
        assert levels == ["safe", "watch", "warning", "alarm"]

    def looks(self, guard: Guard, *numbers: tuple[float, float]) -> list[str]:
        """Decisions for looks at (reward, judge's drop)."""
        base, actions = torch.tensor([0.0, 1.0] * 8), []
        for step, (reward, drop) in enumerate(numbers):
            guard.is_best(guard.look(step, reward, {"flow": base}, {"motion": base - drop}))
            actions.append(guard.decide().action)
        return actions

    def test_an_alarm_rolls_back_and_the_second_one_stops(self):
        guard = Guard(GuardOptions())
        assert self.looks(guard, (0, 0), (1, 0.1), (2, 0.9)) == ["go on", "go on", "roll back"]
        assert guard.best == 1
        guard.forget_after_rollback()
        assert self.looks(guard, (2, 0.9)) == ["stop"]

    def test_one_warning_is_let_pass_and_two_in_a_row_are_not(self):
        assert self.looks(Guard(GuardOptions()), (0, 0), (1, 0.6), (1, 0.0), (1, 0.6)) == ["go on"] * 4
        assert self.looks(Guard(GuardOptions()), (0, 0), (1, 0.6), (1, 0.6))[-1] == "roll back"

    def test_actions(self):
        assert self.looks(Guard(GuardOptions(action="stop")), (0, 0), (1, 0.9))[-1] == "stop"
        assert self.looks(Guard(GuardOptions(action="warn")), (0, 0), (1, 0.9))[-1] == "go on"

    def test_the_best_is_the_highest_reward_among_the_safe(self):
        guard = Guard(GuardOptions())
        self.looks(guard, (0, 0), (3, 0.1), (2, 0.1), (9, 0.4))
        assert guard.best == 1

    def test_state_goes_through_a_checkpoint(self):
        guard, other = Guard(GuardOptions()), Guard(GuardOptions())
        self.looks(guard, (0, 0), (1, 0.4))
        other.restore(guard.state())
        assert other.looks == guard.looks
        assert self.looks(guard, (2, 0.9)) == self.looks(other, (2, 0.9))


class Falling:
    """A judge that counts how often it was asked: good for the base, then bad."""

    calls = 0

    @classmethod
    def judge(cls, batch):
        cls.calls += 1
        drop = 5.0 if cls.calls > cls.good else 0.0
        return {"falling": torch.arange(len(batch)).float() % 2 - drop}


@pytest.fixture
def falling(monkeypatch):
    module = type(sys)("falling_judge")
    module.judge = Falling.judge
    monkeypatch.setitem(sys.modules, "falling_judge", module)
    Falling.calls = 0
    return Falling


def guarded(folder, output, **options):
    config = settings(folder, output, steps=6)
    config["guard"] = {
        "every": 2,
        "prompts": 2,
        "seeds": 2,
        "judges": ["falling_judge:judge"],
        "action": "slow",
        **options,
    }
    config["evaluation"]["batch"] = 4
    return config


def train(config, resume=False):
    listener = Quiet()
    run = Run(parse_config(config), resume)
    return run, run.train(listener), [text for text in listener.values if isinstance(text, str)]


def test_a_hacked_run_stops_and_exports_the_best_safe_weights(random_wan_folder, tmp_path, falling):
    falling.good = 2  # the base, and step 2
    run, finished, said = train(guarded(random_wan_folder, tmp_path / "run", action="stop"))
    assert finished
    assert run.step == 4
    assert "falling" in said[0]
    record = json.loads((tmp_path / "run" / "guard.json").read_text())
    assert [look["step"] for look in record["looks"]] == [0, 2, 4]
    assert record["decisions"][0]["action"] == "stop"
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert "falling" in status["stopped"]
    best = record["best"]
    safe = checkpoint.load(tmp_path / "run" / "guard" / f"step_{best:06d}")
    final = checkpoint.load(tmp_path / "run" / "checkpoints" / "step_000004")
    assert equal(final["algorithm"]["weights"], safe["algorithm"]["weights"])
    assert (tmp_path / "run" / "samples" / "step_000004" / "scores.csv").exists()


def test_the_record_names_the_best_look_even_if_it_is_the_last(random_wan_folder, tmp_path, falling):
    falling.good = 100
    config = guarded(random_wan_folder, tmp_path / "run")
    config["reward_gradient"]["lr"] = 1e-3  # at 1e-2 luck decides whether diversity is to be watched
    run, _, said = train(config)
    record = json.loads((tmp_path / "run" / "guard.json").read_text())
    assert not said
    assert record["best"] == run.guard.guard.best
    assert record["best"] == max(record["looks"], key=lambda look: look["reward"])["step"]


def test_a_rollback_lowers_the_rate_and_goes_on(random_wan_folder, tmp_path, falling):
    falling.good = 1
    run, finished, _ = train(guarded(random_wan_folder, tmp_path / "run"))
    assert finished
    record = json.loads((tmp_path / "run" / "guard.json").read_text())
    assert [decision["action"] for decision in record["decisions"]] == ["roll back", "stop"]
    rate = run.algorithm.optimisation.optimiser.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-2)  # the second rollback restored the base


def test_off_and_warn_change_nothing(random_wan_folder, tmp_path, falling):
    falling.good = 0
    off, _, said = train(guarded(random_wan_folder, tmp_path / "off", action="off"))
    assert not said
    assert not (tmp_path / "off" / "guard.json").exists()
    falling.good = 1
    warn, _, said = train(guarded(random_wan_folder, tmp_path / "warn", action="warn"))
    assert said
    assert warn.step == 6
    assert equal(off.algorithm.state()["weights"], warn.algorithm.state()["weights"])


def test_a_guarded_run_resumes_bit_for_bit(random_wan_folder, tmp_path, falling):
    falling.good = 100
    straight, _, _ = train(guarded(random_wan_folder, tmp_path / "a"))
    run = Run(parse_config(guarded(random_wan_folder, tmp_path / "b")))

    class Interrupts(Quiet):
        def stepped(self, step, total, values):
            if step == 3:
                run._stop_signal = signal.SIGTERM

    assert not run.train(Interrupts())
    resumed, finished, _ = train(guarded(random_wan_folder, tmp_path / "b"), resume=True)
    assert finished
    assert equal(straight.algorithm.state()["weights"], resumed.algorithm.state()["weights"])
    assert resumed.guard.guard.looks == straight.guard.guard.looks
    assert (tmp_path / "a" / "guard.json").read_text() == (tmp_path / "b" / "guard.json").read_text()
