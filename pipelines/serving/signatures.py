"""Which container a file is by its first bytes: one that could pass for two of them is refused."""

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
    """Raise `VideoError` for bytes that do not begin as an allowed container does.

    ffmpeg looks further: after a playlist's lines it would find the container that follows them.
    """
    if not _SIGNATURES.match(data):
        raise VideoError("the file is not a video that can be decoded: it begins like none of the known containers")
