"""What a page and the server say to each other over the WebSocket.

The page sends JSON: ``start``, ``change``, ``stop``, ``seen``. The server sends JSON (``hello``, ``waiting``,
``started``, ``prompt``, ``numbers``, ``refused``, ``ended``) and frames: a header of 12 bytes, then a JPEG.

    index    uint32, little-endian     of the frame in the stream
    block    uint32                    it was made in
    seconds  float32                   from asking for the stream to having this frame
"""

from __future__ import annotations

import io
import struct
from typing import Annotated, Literal

from numpy import uint8
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from reelign.errors import DataError
from reelign.stream.session import StreamOptions

HEADER = struct.Struct("<IIf")
QUALITY = 92
LONGEST_PROMPT = 4000  # letters; the model itself takes fewer


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Start(_Message):
    """Ask for a stream.

    Args:
        prompt: what to begin with.
        options: where they differ from the server's.
    """

    type: Literal["start"]
    prompt: str = Field(max_length=LONGEST_PROMPT)
    options: StreamOptions = StreamOptions()


class Change(_Message):
    """Go on under another prompt."""

    type: Literal["change"]
    prompt: str = Field(max_length=LONGEST_PROMPT)


class Stop(_Message):
    """End the stream, or leave the line."""

    type: Literal["stop"]


class Seen(_Message):
    """The page has shown this frame and all before it."""

    type: Literal["seen"]
    index: int = Field(ge=0)


Message = Start | Change | Stop | Seen
_READER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


def read_message(text: str | None) -> Message:
    """A message of the page.

    Raises:
        DataError: it is none; one line says why.
    """
    if text is None:
        raise DataError("a page sends text; got bytes")
    try:
        return _READER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        if first["type"] == "extra_forbidden":
            raise DataError(f"there is no option {place[:80]!r}") from error
        said = first["msg"].replace("\n", " ")
        raise DataError(f"{place or 'message'}: {said}; got {str(first['input'])[:80]!r}") from error


def pack_frame(picture: NDArray[uint8], index: int, block: int, seconds: float) -> bytes:
    """A frame as it is sent."""
    out = io.BytesIO()
    out.write(HEADER.pack(index, block, seconds))
    Image.fromarray(picture).save(out, "JPEG", quality=QUALITY, subsampling=0)
    return out.getvalue()


def unpack_frame(data: bytes) -> tuple[int, int, float, Image.Image]:
    """Index, block, seconds and picture of a frame as it was sent."""
    return *HEADER.unpack_from(data), Image.open(io.BytesIO(data[HEADER.size :]))
