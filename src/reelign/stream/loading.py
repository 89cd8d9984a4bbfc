"""From what a user types to a generator that can stream without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from reelign.build import build_generator
from reelign.errors import UnknownNameError
from reelign.generation import adapter_options
from reelign.generators.causal_wan import CausalWanGenerator, CausalWanOptions
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
        ModelError: no such model or adapter. ConfigError: the window does not fit the blocks.
    """
    dtypes = get_args(CausalWanOptions.model_fields["dtype"].annotation)
    if (dtype := options.get("dtype", dtypes[0])) not in dtypes:
        raise UnknownNameError("dtype", dtype, dtypes)
    lora = adapter_options(adapter) if adapter else None
    place = str(adapter) if adapter else None
    chosen = {"kind": "causal_wan", "model": model, "lora": lora, "adapter": place, **options}
    generator: CausalWanGenerator = build_generator(chosen)
    keep_window(generator, window, sink)
    return generator
