"""Frames of base64 JPEG and PNG images, for the process that decodes uploads (`pipelines.serving.decoder`)."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
from PIL import Image, ImageOps

from robometer.frames.video import VideoError, VideoTooLargeError

_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA"})


def read_images(items: list[bytes], max_pixels: int, max_bytes: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] RGB, upright, of images of one size. Checks headers before it decodes pixels.

    Args:
        items: images in base64.
        max_pixels: limit of one image.
        max_bytes: limit of all frames.

    Raises:
        VideoError: no images, different sizes, or images that are not plainly RGB.
        VideoTooLargeError: the images exceed the limits.
    """
    contents = [_decoded(item, i) for i, item in enumerate(items)]
    images = [_open(content, i) for i, content in enumerate(contents)]
    for i, image in enumerate(images):
        if image.width * image.height > max_pixels:
            raise VideoTooLargeError(f"image {i} has {image.width * image.height} pixels, more than {max_pixels}")
    size_bytes = sum(3 * image.width * image.height for image in images)
    if size_bytes > max_bytes:
        raise VideoTooLargeError(f"the images decode to {size_bytes} bytes, more than {max_bytes}")
    frames = [_pixels(image, content, i) for i, (image, content) in enumerate(zip(images, contents, strict=True))]
    shapes = sorted({frame.shape[1::-1] for frame in frames})
    if len(shapes) > 1:
        raise VideoError(f"the images are of different sizes: {_size(shapes[0])} and {_size(shapes[1])}")
    return np.stack(frames)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _decoded(item: bytes, position: int) -> bytes:
    try:
        return base64.b64decode(item, validate=True)
    except binascii.Error as error:
        raise VideoError(f"image {position} is not a base64 JPEG or PNG image") from error


def _open(content: bytes, position: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
    except Image.DecompressionBombError as error:
        raise VideoTooLargeError(f"image {position} has too many pixels") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises whatever a damaged header leads it to
        raise VideoError(f"image {position} is not a base64 JPEG or PNG image") from error


def _pixels(image: Image.Image, content: bytes, position: int) -> np.ndarray:
    problem = _problem(image)
    if problem:
        raise VideoError(f"image {position} {problem}")
    try:
        _open(content, position).verify()  # the checksums of a PNG, which decoding ignores
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            rgba = np.asarray(upright.convert("RGBA"))
            if rgba[..., 3].min() < 255:
                raise VideoError(f"image {position} has transparent pixels: send RGB")
            return rgba[..., :3]
        return np.asarray(upright.convert("RGB"))
    except (MemoryError, VideoError):
        raise
    except Exception as error:  # as above
        raise VideoError(f"image {position} is damaged and cannot be decoded") from error


def _problem(image: Image.Image) -> str:
    """Why an image has no definite RGB pixels; empty for most images."""
    if getattr(image, "n_frames", 1) > 1 and image.format == "PNG":
        return "is animated: send one image for each frame"
    if image.mode == "CMYK":
        return "is CMYK, whose colours depend on a printer: send RGB"
    if image.mode not in _EIGHT_BITS:
        return "has more than 8 bits a pixel, like a depth image: send RGB of 8 bits"
    return ""
