"""A word-level tokenizer for the captions of moving shapes, in the format that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from reelign.datasets.moving_shapes import ALL_MOTIONS, COLOURS, SHAPES

SPECIAL = ("<pad>", "</s>", "<unk>")


def vocabulary() -> list[str]:
    """Special tokens, then every word of the grammar, in alphabetical order."""
    words = {word for phrase in (*COLOURS, *SHAPES, *ALL_MOTIONS, "a an") for word in phrase.split()}
    return [*SPECIAL, *sorted(words)]


def word_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """One token a word, lower-cased, ended by ``</s>``, padded to ``max_length`` with ``<pad>``."""
    vocab = {word: index for index, word in enumerate(vocabulary())}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=max_length
    )


def name_tokenizer_for_every_version(file: Path) -> None:
    """In a saved ``tokenizer_config.json``, name the class that transformers 4 and 5 both know."""
    config = json.loads(file.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
