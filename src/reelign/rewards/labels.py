"""Which class of a model a prompt names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from reelign.errors import DataError, UnknownNameError


class Labels:
    """A model's classes by name and by further keywords.

    Args:
        labels: class index to name.
        classes: more ways to name a class: keyword to one of the labels.
        model: how messages call the model.

    Raises:
        UnknownNameError: a keyword is mapped to a label that the model has not.
    """

    def __init__(self, labels: Mapping[int, str], classes: Mapping[str, str], model: str) -> None:
        index = {name.lower(): i for i, name in labels.items()}
        for label in classes.values():
            if label.lower() not in index:
                raise UnknownNameError(f"class of {model}", label, labels.values())
        self.index = index | {keyword.lower(): index[label.lower()] for keyword, label in classes.items()}
        self.model = model

    def class_of(self, prompt: str) -> int:
        """Index of the class whose keyword, the longest found, stands in ``prompt`` as whole words in any case.

        Raises:
            DataError: the prompt names no class.
        """
        words = prompt.lower()
        found = [key for key in self.index if re.search(rf"(?<!\w){re.escape(key)}(?!\w)", words)]
        if not found:
            known = ", ".join(list(self.index)[:12]) + (", …" if len(self.index) > 12 else "")
            raise DataError(
                f"a prompt names one of the classes of {self.model} ({known}); {prompt!r} names none: "
                "change the prompt or map a keyword with the option 'classes'"
            )
        return self.index[max(found, key=len)]

    def golden_prompts(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Prompts to check a reward with: the captions where they name classes, else names of classes."""
        known = list(self.index)
        try:
            for caption in captions:
                self.class_of(caption)
        except DataError:
            return tuple(known[i % len(known)] for i in range(len(captions)))
        return tuple(captions)
