"""What all pages of a running stream server share, and the making of one stream in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from reelign.generators.causal_wan import CausalWanGenerator
from reelign.stream.clips import ClipShelf, KeptClip
from reelign.stream.line import Line
from reelign.stream.messages import pack_frame
from reelign.stream.session import StreamOptions, StreamSession
from reelign.video_io import to_pictures

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class StreamSettings:
    """How a server streams.

    Args:
        name: of the model, to show.
        options: of streams that do not say otherwise.
        longest_s: seconds of video after which a stream ends.
        patience_s: seconds after which a stream ends whose page takes no frames.
    """

    name: str
    options: StreamOptions = field(default_factory=StreamOptions)
    longest_s: float = 600.0
    patience_s: float = 60.0


@dataclass(frozen=True)
class Studio:
    """One generator, one thread that runs it, one line before it.

    Args:
        generator: with a window.
        settings: how it streams.
        shelf: where clips are kept.
    """

    generator: CausalWanGenerator
    settings: StreamSettings
    shelf: ClipShelf
    line: Line = field(default_factory=Line)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "stream"))

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something in the thread that runs the generator."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, lambda: call(*args, **kwargs))

    def close(self) -> None:
        """Let the thread go; what runs in it has been stopped."""
        self.pool.shutdown()

    def options_of(self, wanted: StreamOptions) -> StreamOptions:
        """The server's options with those that a page gave."""
        return self.settings.options.model_copy(update=wanted.model_dump(exclude_unset=True))

    def frames_ahead(self) -> int:
        """Frames that may be made and not yet seen when more are made: those of one block."""
        layout = self.generator.layout
        return layout.frames_per_block * self.generator.temporal_ratio()

    def frames_at_most(self) -> int:
        """Frames after which a stream ends."""
        return max(1, round(self.settings.longest_s * self.generator.fps))


class Take:
    """One stream while it is made: its session, and its clip on the shelf. Lives in the studio's thread.

    Args:
        studio: where.
        prompt: what to begin with.
        options: how.

    Raises:
        DataError: the prompt is empty or too long.
    """

    def __init__(self, studio: Studio, prompt: str, options: StreamOptions) -> None:
        self.studio = studio
        self.session = StreamSession(studio.generator, prompt, options)
        self._open = contextlib.ExitStack()
        self.kept: KeptClip = studio.shelf.begin(studio.generator.picture_size(), studio.generator.fps)
        self._open.enter_context(self.session)
        self.kept.prompts.append((0, prompt))

    def next_frames(self) -> list[bytes]:
        """The next frames as they are sent, and on disk; empty once the stream was stopped."""
        part = next(self.session, None)
        if part is None:
            return []
        pictures = to_pictures(part.video)
        for picture in pictures:
            self.kept.clip.add(picture)
        return [pack_frame(p, part.first + i, part.block, part.seconds) for i, p in enumerate(pictures)]

    def change(self, prompt: str) -> int:
        """Go on under another prompt; returns the frame at which it begins.

        Raises:
            DataError: the prompt is empty or too long.
        """
        frame = self.session.change(prompt)
        self.kept.prompts = [pair for pair in self.kept.prompts if pair[0] != frame] + [(frame, prompt)]
        return frame

    def numbers(self) -> dict[str, float]:
        """What the page shows beside the picture."""
        session = self.session
        return {
            "frames": session.frames,
            "seconds": round(session.frames / self.studio.generator.fps, 3),
            "first_frame_s": round(session.first_frame_s or 0.0, 3),
            "frames_per_s": round(session.frames_per_s, 2),
        }

    def end(self) -> None:
        """Give the generator back; the clip stays on the shelf."""
        self._open.close()
        self.studio.shelf.end(self.kept)
