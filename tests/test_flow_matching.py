"""The denoising loss as a way to learn: captions decide what is sampled, adapters or all weights, and bad input."""

import pytest
import torch
from linear_generator import LinearGenerator

from reelign.algorithms.best_of_n import BestOfN
from reelign.algorithms.best_of_n import Config as BestOfNConfig
from reelign.algorithms.flow_matching import Config, FlowMatching
from reelign.contracts import Request
from reelign.errors import DataError
from reelign.generators.wan import load_wan
from reelign.paths import FlowPath
from reelign.sampling import generate

PROMPTS = ("a", "bbb")


def linear(seed: int = 1) -> LinearGenerator:
    random = torch.Generator().manual_seed(seed)
    w, u, v = (0.1 * torch.randn(*s, generator=random) for s in ((4, 4), (4,), (4, 5)))
    return LinearGenerator(FlowPath(1.0), w, u, v, shape=(4, 6, 3, 3))


def test_captions_decide_what_is_sampled():
    """Clips of 'a' are dark and those of 'bbb' bright; before training both are sampled alike."""
    clips = torch.stack([torch.full((6, 3, 3, 3), level) for level in (0.2, 0.8)])
    request = Request(PROMPTS, source_videos=clips).repeat(8)
    generator = linear()
    algorithm = FlowMatching(generator, Config(lr=0.03, caption_dropout=0.0))
    losses = [algorithm.step(request)["loss"] for _ in range(250)]
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])
    video = generate(generator, Request(PROMPTS), [1, 2], 20, 1.0).video
    assert video[0].mean() < 0.4
    assert video[1].mean() > 0.6


def test_winners_are_learnt_from_in_the_same_way():
    request = Request(PROMPTS, source_videos=torch.rand(2, 6, 3, 3, 3))
    plain, winners = FlowMatching(linear(), Config(), seed=4), BestOfN(linear(), BestOfNConfig(), seed=4)
    assert [plain.step(request) for _ in range(3)] == [winners.step(request) for _ in range(3)]


@pytest.mark.parametrize("all_weights", [False, True])
def test_an_adapter_or_all_weights(random_wan_folder, all_weights):
    torch.manual_seed(0)
    lora = None if all_weights else {"rank": 2, "alpha": 2}
    generator = load_wan(model=str(random_wan_folder), lora=lora, train_all=all_weights, device="cpu")
    before = {name: value.clone() for name, value in generator.experts()[0].state_dict().items()}
    algorithm = FlowMatching(generator, Config(lr=1e-2))
    request = Request(PROMPTS, source_videos=torch.rand(2, 17, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    for _ in range(2):
        algorithm.step(request)
    after = generator.experts()[0].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(before) if all_weights else changed == {name for name in before if "lora_" in name}


def test_a_request_without_clips_is_refused():
    with pytest.raises(DataError, match="name a folder of clips in 'clips'"):
        FlowMatching(linear(), Config()).step(Request(PROMPTS))
