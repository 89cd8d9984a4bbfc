"""One page that is open: what it asks for, and the stream that is made and sent for it.

Frames go out as fast as they are made, or at the model's frames per second, whichever is slower. A part is made while
no more than a block's frames are unseen, so neither a page that is slow nor one that is gone costs memory: making
waits. A page that closes ends its stream; what it made can still be saved.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from reelign.errors import DataError, ReelignError
from reelign.stream.line import Ticket
from reelign.stream.messages import Change, Start, Stop, read_message
from reelign.stream.session import checked_prompt
from reelign.stream.studio import Studio, Take

log = logging.getLogger("reelign")
REFUSALS = 50  # after so many the page is shut out: it is none of ours
OUR_FAULT = "the server made a mistake; its log says which"


class _PageGoneError(Exception):
    """Nobody is there to be told."""


class Visit:
    """A page, from opening to closing.

    Args:
        socket: of the page, not yet accepted.
        studio: what all pages share.
    """

    def __init__(self, socket: WebSocket, studio: Studio) -> None:
        self.socket, self.studio = socket, studio
        self.job: Job | None = None
        self._refusals, self._gone = 0, False

    async def run(self) -> None:
        """Talk until the page closes, then end its stream."""
        await self.socket.accept()
        try:
            with contextlib.suppress(_PageGoneError):
                await self.say("hello", **self._facts())
                await self._listen()
        finally:
            if self.job is not None:
                await self.job.end()
        if not self._gone:
            await self.socket.close(1008)

    async def _listen(self) -> None:
        while self._refusals < REFUSALS:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                self._gone = True
                return
            await self._take(message.get("text"))

    async def say(self, kind: str, **facts: Any) -> None:
        """Tell the page something."""
        await self.send(json.dumps({"type": kind, **facts}))

    async def send(self, data: str | bytes) -> None:
        """Send text, or a frame."""
        if self._gone:
            raise _PageGoneError
        send = self.socket.send_text if isinstance(data, str) else self.socket.send_bytes
        try:
            await send(data)  # type: ignore[arg-type]
        except (WebSocketDisconnect, RuntimeError) as error:  # while sending, or some time before
            self._gone = True
            raise _PageGoneError from error

    async def _take(self, text: str | None) -> None:
        try:
            message = read_message(text)
            if isinstance(message, Start):
                await self._start(message)
            elif isinstance(message, Change):
                await self._running().change(checked_prompt(message.prompt))
            elif isinstance(message, Stop):
                self._running().stop()
            elif self.job is not None:
                self.job.seen(message.index)
        except ReelignError as error:
            self._refusals += 1
            await self.say("refused", detail=str(error))

    async def _start(self, message: Start) -> None:
        prompt = checked_prompt(message.prompt)
        if self.job is not None:
            if not self.job.over:
                raise DataError("one page has one stream: stop it before starting another")
            await self.job.end()
        self.job = Job(self, prompt, message)

    def _running(self) -> Job:
        if self.job is None or self.job.over:
            raise DataError("no stream is running: start one first")
        return self.job

    def _facts(self) -> dict[str, Any]:
        generator, settings = self.studio.generator, self.studio.settings
        height, width = generator.picture_size()
        scale = settings.options.guidance_scale
        return {
            "model": settings.name,
            "fps": generator.fps,
            "height": height,
            "width": width,
            "steps": settings.options.steps or generator.default_steps,
            "guidance_scale": generator.default_guidance_scale if scale is None else scale,
            "seed": settings.options.seed,
            "longest_s": settings.longest_s,
        }


class Job:
    """One stream that a page asked for: it waits in the line, is made, and ends. For one event loop.

    Args:
        visit: of the page.
        prompt: what to begin with, checked.
        message: what was asked.

    Raises:
        DataError: the line is full.
    """

    def __init__(self, visit: Visit, prompt: str, message: Start) -> None:
        self.visit, self.studio = visit, visit.studio
        self.take: Take | None = None
        self.over = False
        self._prompt, self._options = prompt, self.studio.options_of(message.options)
        self._stopped, self._moved = asyncio.Event(), asyncio.Event()
        self._made, self._seen = 0, 0
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by ``_room``
        self._ticket = self.studio.line.join()
        self._task = asyncio.create_task(self._perform())
        self._task.add_done_callback(_tell)

    def stop(self) -> None:
        """End it: in the line at once, else before the next pass of the network."""
        self._stopped.set()
        self._moved.set()
        self._ticket.moved.set()
        if self.take is not None:
            self.take.session.stop()

    def seen(self, index: int) -> None:
        """The page has shown this frame."""
        self._seen = max(self._seen, min(index + 1, self._made))
        self._moved.set()

    async def change(self, prompt: str) -> None:
        """Go on under another prompt, and tell the page from which frame."""
        if self.take is None:
            raise DataError("the stream has not begun: wait until it does, or stop it")
        frame = await self.studio.run(self.take.change, prompt)
        await self.visit.say("prompt", prompt=prompt, frame=frame)

    async def end(self) -> None:
        """Stop, and wait until the place is free."""
        self.stop()
        await asyncio.wait({self._task})

    async def _perform(self) -> None:
        reason, detail = "failed", OUR_FAULT
        try:
            reason, detail = await self._outcome()
        finally:
            try:
                if self.take is not None:
                    await self.studio.run(self.take.end)
                self.take = None  # page and job know each other: neither goes at once, and this is what is large
            finally:
                self.studio.line.leave(self._ticket)
                self.over = True
                with contextlib.suppress(_PageGoneError):
                    await self.visit.say("ended", reason=reason, detail=detail, frames=self._made)

    async def _outcome(self) -> tuple[str, str]:
        """Wait, stream, and say why it ended, with what more there is to say."""
        try:
            await self._wait()
            return ("stopped" if self._stopped.is_set() else await self._stream()), ""
        except _PageGoneError:
            return "stopped", ""
        except (ReelignError, RuntimeError, OSError) as error:  # RuntimeError: torch, for want of memory among others
            if not isinstance(error, ReelignError):
                log.error("a stream failed", exc_info=error)
            return "failed", str(error).split("\n")[0] or type(error).__name__

    async def _wait(self) -> None:
        """Until it is this one's turn, telling the page its position."""
        ticket: Ticket = self._ticket
        while not self._stopped.is_set() and (before := self.studio.line.position(ticket)):
            await self.visit.say("waiting", before=before)
            await ticket.moved.wait()
            ticket.moved.clear()

    async def _stream(self) -> str:
        """Make and send frames; returns why it ended."""
        self.take = await self.studio.run(Take, self.studio, self._prompt, self._options)
        if self._stopped.is_set():
            return "stopped"
        await self.visit.say("started", stream=self.take.kept.id, prompt=self._prompt, seed=self._options.seed)
        await self.visit.say("prompt", prompt=self._prompt, frame=0)
        making = asyncio.create_task(self._make(self.take))
        try:
            await self._send()
        finally:
            if not making.done():  # the page is gone
                self.stop()
            reason = await making
        return reason

    async def _make(self, take: Take) -> str:
        """Fill the queue; returns why it ended."""
        try:
            while not self._stopped.is_set():
                if self._made >= self.studio.frames_at_most():
                    return "limit"
                if not await self._room(take):
                    return "nobody watches"
                frames = await self.studio.run(take.next_frames)
                for frame in frames:
                    self._frames.put_nowait(frame)
                self._made += len(frames)
                if frames:
                    await self.visit.say("numbers", **take.numbers())
            return "stopped"
        finally:
            self._frames.put_nowait(None)

    async def _room(self, take: Take) -> bool:
        """Wait until the page has seen enough, or is stopped; False where it takes none any more."""
        ahead = self.studio.frames_ahead()
        while self._made - self._seen > ahead and not self._stopped.is_set():
            self._moved.clear()
            if not await _happens(self._moved, self.studio.settings.patience_s):
                return False
        return True

    async def _send(self) -> None:
        """Empty the queue, no faster than the clip plays; at once where it was stopped."""
        clock = asyncio.get_running_loop().time
        due = 0.0
        while (frame := await self._frames.get()) is not None:
            if (early := due - clock()) > 0:
                await _happens(self._stopped, early)
            due = max(due, clock()) + 1 / self.studio.generator.fps
            await self.visit.send(frame)


def _tell(task: asyncio.Task[None]) -> None:
    """Log what nobody expected."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a stream ended by a mistake of the server", exc_info=error)


async def _happens(event: asyncio.Event, within_s: float) -> bool:
    """Whether an event is set within this time."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(event.wait(), within_s)
    return event.is_set()
