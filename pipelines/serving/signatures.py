"""Whether a file begins like an allowed video container."""

from __future__ import annotations

import re

from robometer.frames.video import VideoError

_SIGNATURES = re.compile(
    rb"....(ftyp|moov|mdat|free|skip|wide|pnot)"  # mp4, mov
    rb"|\x1a\x45\xdf\xa3"  # matroska, webm
    rb"|RIFF....AVI[ X\x19]"
    rb"|FLV\x01"
    rb"|OggS"
    rb"|GIF8[79]a"
    rb"|\x00\x00\x01[\xb3\xba]"  # mpeg: a sequence, a program stream
    rb"|\x47.{187}(\x47|$)"  # mpegts: a packet and the next one
    rb"|....\x47.{191}\x47",  # the same, with time codes
    re.DOTALL,
)


def check_signature(data: bytes) -> None:
    """Raise `VideoError` unless the bytes begin like an allowed container.

    ffmpeg itself looks further: after the lines of a playlist it would find the container that follows.
    """
    if not _SIGNATURES.match(data):
        raise VideoError("it is not a video: it does not begin like a known container")
