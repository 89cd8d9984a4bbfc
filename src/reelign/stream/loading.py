"""From what a user types to a generator that can stream without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reelign.build import build_generator
from reelign.errors import ConfigError
from reelign.generators.causal_wan import CausalWanGenerator, CausalWanOptions
from reelign.generators.lora import adapter_options
from reelign.stream.session import keep_window


def load_streamer(
    model: str, adapter: Path | None = None, window: int | None = None, sink: int = 0, **options: Any
) -> CausalWanGenerator:
    """A causal generator with a window.

    Args:
        adapter: folder of a saved adapter.
        window, sink: see ``keep_window``.
        options: further ``CausalWanOptions``.

    Raises:
        ModelError: no such model or adapter.
        ConfigError: an option is none, or the window is smaller than sink and block.
    """
    lora = adapter_options(adapter) if adapter else None
    place = str(adapter) if adapter else None
    chosen = {"kind": "causal_wan", "model": model, "lora": lora, "adapter": place, **options}
    try:
        CausalWanOptions.model_validate(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{name}: {first['msg']}; got {first['input']!r}") from error
    generator: CausalWanGenerator = build_generator(chosen)
    keep_window(generator, window, sink)
    return generator
