"""Every kind of picture has one written outcome: accepted, converted (and said), or refused (with a reason in our words)."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ddpm.data import DataSettings, open_data
from ddpm.data import decode as policy
from ddpm.errors import DataError

WHITE = (255, 255, 255)
RGB8, GREY8, GREY16 = (3, "uint8"), (1, "uint8"), (1, "uint16")


def noise(mode: str = "RGB", size: tuple[int, int] = (12, 10), seed: int = 0) -> Image.Image:
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return (
        Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode="CMYK")
        if mode == "CMYK"
        else Image.frombytes(mode, size, pixels.tobytes())
    )


def ramp16() -> Image.Image:
    return Image.fromarray((np.arange(65536, dtype=np.uint32) % 65536).astype(np.uint16).reshape(256, 256))


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, extra: bytes = b"", body: bytes = b"") -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + extra
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(noise("RGB", (8, 6)), "JPEG", exif=exif)


def rgb16() -> bytes:
    rows = b"".join(b"\0" + bytes(range(36)) for _ in range(4))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0))
    return head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def frames(kind: str) -> bytes:
    return saved(noise("RGB", seed=1), kind, save_all=True, append_images=[noise("RGB", seed=2), noise("RGB", seed=3)])


def clear_palette() -> bytes:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    return saved(image, "PNG", transparency=0)


def part(data: bytes, share: float = 0.5) -> bytes:
    return data[: int(len(data) * share)]


def broken_crc() -> bytes:
    data = bytearray(saved(noise(), "PNG"))
    data[data.index(b"IDAT") + 20] ^= 0xFF
    return bytes(data)


# name: (maker, (channels, type) and notes) or (maker, reason)
CORPUS: dict[str, tuple[Callable[[], bytes], Any]] = {
    "grey.png": (lambda: saved(noise("L"), "PNG"), (GREY8, ())),
    "rgb.png": (lambda: saved(noise(), "PNG"), (RGB8, ())),
    "interlaced.jpg": (lambda: saved(noise(), "JPEG", progressive=True), (RGB8, ())),
    "rgb.jpg": (lambda: saved(noise(), "JPEG"), (RGB8, ())),
    "grey.jpg": (lambda: saved(noise("L"), "JPEG"), (GREY8, ())),
    "jpeg_called.png": (lambda: saved(noise(), "JPEG"), (RGB8, ())),
    "lossy.webp": (lambda: saved(noise(), "WEBP"), (RGB8, ())),
    "lossless.webp": (lambda: saved(noise(), "WEBP", lossless=True), (RGB8, ())),
    "rgb.bmp": (lambda: saved(noise(), "BMP"), (RGB8, ())),
    "rgb.tif": (lambda: saved(noise(), "TIFF"), (RGB8, ())),
    "packed.tif": (lambda: saved(noise(), "TIFF", compression="tiff_lzw"), (RGB8, ())),
    "rgb.ppm": (lambda: saved(noise(), "PPM"), (RGB8, ())),
    "grey.pgm": (lambda: saved(noise("L"), "PPM"), (GREY8, ())),
    "one_pixel.png": (lambda: saved(noise(size=(1, 1)), "PNG"), (RGB8, ())),
    "thin.png": (lambda: saved(noise(size=(1, 10_000)), "PNG"), (RGB8, ())),
    "long.png": (lambda: saved(noise(size=(10_000, 1)), "PNG"), (RGB8, ())),
    "opaque.png": (lambda: saved(noise().convert("RGBA"), "PNG"), (RGB8, ())),
    "deep_grey.png": (lambda: saved(ramp16(), "PNG"), (GREY16, ())),
    "deep_grey.tif": (lambda: saved(ramp16(), "TIFF"), (GREY16, ())),
    "deep_grey.pgm": (lambda: saved(ramp16(), "PPM"), (GREY16, ())),
    "deep_colour.png": (rgb16, (RGB8, (policy.DEEP,))),
    "cmyk.jpg": (lambda: saved(noise("CMYK"), "JPEG"), (RGB8, (policy.CMYK,))),
    "cmyk.tif": (lambda: saved(noise("CMYK"), "TIFF"), (RGB8, (policy.CMYK,))),
    "palette.png": (lambda: saved(noise().quantize(16), "PNG"), (RGB8, (policy.PALETTE,))),
    "palette_clear.png": (clear_palette, (RGB8, (policy.PALETTE, policy.TRANSPARENT))),
    "rgba.png": (lambda: saved(noise("RGBA"), "PNG"), (RGB8, (policy.TRANSPARENT,))),
    "rgba.webp": (lambda: saved(noise("RGBA"), "WEBP", lossless=True), (RGB8, (policy.TRANSPARENT,))),
    "grey_alpha.png": (lambda: saved(noise("LA"), "PNG"), (GREY8, (policy.TRANSPARENT,))),
    "clear_colour.png": (lambda: saved(Image.new("RGB", (4, 4), "red"), "PNG", transparency=(255, 0, 0)), (RGB8, (policy.TRANSPARENT,))),
    "one_bit.png": (lambda: saved(noise("L").convert("1"), "PNG"), (GREY8, (policy.BILEVEL,))),
    "one_bit.tif": (lambda: saved(noise("L").convert("1"), "TIFF", compression="group4"), (GREY8, (policy.BILEVEL,))),
    "still.gif": (lambda: saved(noise(), "GIF"), (RGB8, (policy.PALETTE,))),
    "moving.gif": (lambda: frames("GIF"), (RGB8, (policy.PALETTE, policy.ANIMATED))),
    "moving.png": (lambda: frames("PNG"), (RGB8, (policy.ANIMATED,))),
    "moving.webp": (lambda: frames("WEBP"), (RGB8, (policy.ANIMATED,))),
    "pages.tif": (lambda: frames("TIFF"), (RGB8, (policy.ANIMATED,))),
    "rotated.jpg": (rotated, (RGB8, (policy.ROTATED,))),
    "float.tif": (lambda: saved(Image.new("F", (4, 4), 0.5), "TIFF"), "float picture; save such data as a .npy"),
    "whole32.tif": (lambda: saved(Image.new("I", (4, 4), 70_000), "TIFF"), "32-bit picture; save such data as a .npy"),
    "lab.tif": (lambda: saved(Image.new("LAB", (4, 4)), "TIFF"), "colour space LAB"),
    "empty.png": (lambda: b"", "empty file"),
    "half.jpg": (lambda: part(saved(noise(size=(64, 64)), "JPEG")), "damaged or cut short"),
    "half.png": (lambda: part(saved(noise(size=(64, 64)), "PNG")), "damaged or cut short"),
    "half.webp": (lambda: part(saved(noise(size=(64, 64)), "WEBP")), "damaged or cut short"),
    "half.gif": (lambda: part(saved(noise(size=(64, 64)), "GIF"), 0.8), "damaged or cut short"),
    "half.bmp": (lambda: part(saved(noise(size=(64, 64)), "BMP")), "damaged or cut short"),
    "half.tif": (lambda: part(saved(noise(size=(64, 64)), "TIFF")), "damaged or cut short"),
    "header.png": (lambda: saved(noise(), "PNG")[:20], "damaged or cut short"),
    "flipped_bit.png": (broken_crc, "damaged or cut short"),
    "page.jpg": (lambda: b"<!DOCTYPE html><html><body>404</body></html>", "HTML or XML"),
    "random.png": (lambda: bytes(range(256)), "not a PNG, JPEG"),
    "drawing.eps": (lambda: saved(noise(), "EPS"), "EPS/PostScript"),
    "drawing.png": (lambda: saved(noise(), "EPS"), "EPS/PostScript"),
    "icon.ico": (lambda: saved(noise("RGBA", (16, 16)), "ICO"), "not a PNG, JPEG"),
    "photo.heic": (lambda: b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC/AVIF"),
    "drawing.svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "HTML or XML"),
}


def read(data: bytes, background: tuple[int, int, int] = WHITE) -> policy.Picture:
    with policy.strict_pillow():
        return policy.decode(data, len(data), max_pixels=64_000_000, background=background)


def pixels_at(picture: policy.Picture, x: int, y: int) -> tuple[int, ...]:
    return tuple(int(v) for v in np.atleast_1d(picture.pixels[y, x]))


@pytest.mark.parametrize("name", CORPUS)
def test_each_kind_has_its_outcome(name: str) -> None:
    make, expected = CORPUS[name]
    if isinstance(expected, str):
        with pytest.raises(policy.Unreadable, match=expected) as caught:
            read(make())
        assert "0x" not in str(caught.value) and "object at" not in str(caught.value)
        return
    picture = read(make())
    channels = 1 if picture.pixels.ndim == 2 else picture.pixels.shape[2]
    assert ((channels, picture.pixels.dtype.name), picture.notes) == expected


def test_the_corpus_is_as_large_as_promised_and_a_folder_of_it_lists_every_bad_file(tmp_path: Path) -> None:
    assert len(CORPUS) >= 40
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, (make, _) in CORPUS.items():
        (folder / name).write_bytes(make())
    bad = {name for name, (_, expected) in CORPUS.items() if isinstance(expected, str)}
    with pytest.raises(DataError, match=f"{len(bad)} unreadable images of {len(CORPUS)}, list in ") as caught:
        open_data(DataSettings(data=str(folder)), bad_files=tmp_path / "bad_files.txt")
    assert {line.split(":")[0] for line in (tmp_path / "bad_files.txt").read_text().splitlines()} == bad
    assert sum(f"\n  {name}: " in str(caught.value) for name in bad) == min(len(bad), 20)
    for name in bad:
        (folder / name).unlink()
    card = open_data(DataSettings(data=str(folder), size=(8,), crop="centre")).card
    assert (card.shape, card.dtype, card.count) == ((3, 8, 8), "uint8", len(CORPUS) - len(bad))
    assert "3 pictures of 16 bits reduced to 8, as the others are" in card.notices
    assert f"4 pictures: {policy.ANIMATED}" in card.notices


def test_sixteen_bit_grey_keeps_its_levels_alone_and_among_eight_bit_pictures(tmp_path: Path) -> None:
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("pgm", "PPM")):
        assert np.array_equal(read(saved(ramp16(), kind)).pixels, np.asarray(ramp16())), suffix
    for i in range(4):
        ramp16().rotate(90 * i).save(tmp_path / f"{i}.png")
    alone = open_data(DataSettings(data=str(tmp_path)))
    assert (alone.card.dtype, alone.card.bins, len(np.unique(alone.samples[:1]))) == ("uint16", (0, 65535), 65536)
    noise("L", (256, 256)).save(tmp_path / "other.png")
    mixed = open_data(DataSettings(data=str(tmp_path)))
    assert mixed.card.dtype == "uint8" and len(np.unique(mixed.samples[:1])) >= 250
    assert np.array_equal(mixed.samples[0, 0], np.round(np.asarray(ramp16()) / 257))


def test_hidden_colours_never_show() -> None:
    clear_red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert pixels_at(read(saved(clear_red, "PNG")), 0, 0) == WHITE
    assert pixels_at(read(saved(clear_red, "WEBP", lossless=True, exact=True)), 0, 0) == WHITE
    assert pixels_at(read(saved(clear_red, "PNG"), background=(0, 0, 128)), 0, 0) == (0, 0, 128)
    assert pixels_at(read(clear_palette()), 0, 0) == WHITE and pixels_at(read(clear_palette()), 1, 1) == (0, 0, 255)
    half = Image.new("LA", (2, 2), (0, 128))
    assert abs(pixels_at(read(saved(half, "PNG")), 0, 0)[0] - 127) <= 1
    assert read(saved(half, "PNG"), background=(255, 0, 0)).pixels.shape == (2, 2, 3)  # grey over red has colour
    keyed = Image.fromarray(np.full((2, 2), 7, dtype=np.uint16))
    assert pixels_at(read(saved(keyed, "PNG", transparency=7)), 0, 0) == (65535,)


def test_photographs_come_upright() -> None:
    upright = Image.new("L", (6, 4), 0)
    upright.paste(255, (0, 0, 6, 1))  # a white line at the top
    turns = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    for orientation, stored in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("PNG", "TIFF", "WEBP"):
            options = {"lossless": True} if kind == "WEBP" else {}
            picture = read(saved(upright.transpose(stored), kind, exif=exif, **options))
            grey = picture.pixels if picture.pixels.ndim == 2 else picture.pixels[..., 0]
            assert grey.shape == (4, 6) and (grey[0] > 250).all() and (grey[1:] < 5).all(), (kind, orientation)


BOMBS = {
    "gigantic.png": "60000x60000, 3.6 Gpx over the limit of 64 Mpx (--max-pixels)",
    "large.png": "13000x13000, 169 Mpx over the limit of 64 Mpx (--max-pixels)",
    "frames.gif": "first frame",
    "text.png": "210 MB of comments or metadata, over 17 MB",
    "packed_text.png": "damaged or cut short",
    "comment.gif": "MB of comments or metadata, over 1 MB",
}


def make_bombs(folder: Path) -> None:
    (folder / "gigantic.png").write_bytes(png(60_000, 60_000, body=b"\0" * 900))
    (folder / "large.png").write_bytes(png(13_000, 13_000, body=zlib.compress(bytes(13_001 * 13))))
    frame = b",\0\0\0\0\1\0\1\0\0\2\2D\1\0"
    (folder / "frames.gif").write_bytes(b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff" + frame * 100_000 + b";")
    with (folder / "text.png").open("wb") as file:  # a hole: 210 MB that take no space
        file.write(png(4, 4)[:33] + struct.pack(">I", 210_000_000) + b"tEXt")
        file.seek(210_000_000, 1)
        file.write(b"\0\0\0\0" + png(4, 4)[33:])
    packed = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(200_000_000)))
    (folder / "packed_text.png").write_bytes(png(4, 4, extra=packed))
    (folder / "comment.gif").write_bytes(b"GIF89a\1\0\1\0\0\0\0!\xfe" + (b"\xff" + b"a" * 255) * 80_000 + b"\0" + frame + b";")


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read with the resource module, which Windows lacks")
def test_bombs_are_refused_at_once_and_cheaply(tmp_path: Path) -> None:
    make_bombs(tmp_path)
    # a fresh process, so that its peak memory is the decoder's
    code = """
import resource, sys, time
from pathlib import Path
from ddpm.data.decode import Unreadable, decode, strict_pillow
from PIL import Image
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with strict_pillow():
    Image.init()
    for path in sorted(Path(sys.argv[1]).iterdir()):
        before, start = peak(), time.process_time()
        with path.open("rb") as file:
            try:
                said = "; ".join(decode(file, path.stat().st_size, max_pixels=64_000_000, background=(255, 255, 255)).notes)
            except Unreadable as error:
                said = str(error)
        print(path.name, peak() - before, time.process_time() - start, said, sep="|")
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120)
    lines = [line.split("|") for line in done.stdout.splitlines()]
    assert {line[0] for line in lines} == set(BOMBS)
    unit = 1 if sys.platform == "darwin" else 1024
    for name, memory, seconds, said in lines:
        assert BOMBS[name] in said, name
        assert float(seconds) < 0.2, (name, seconds)
        assert int(memory) * unit < 50e6, (name, memory)


def test_one_bad_file_in_a_thousand(tmp_path: Path) -> None:
    good = saved(noise("L", (4, 4)), "PNG")
    for i in range(999):
        (tmp_path / f"{i}.png").write_bytes(good)
    whole = saved(noise("L", (64, 64)), "JPEG")
    (tmp_path / "bad.jpg").write_bytes(part(whole))
    with pytest.raises(DataError, match="1 unreadable images of 1,000; mend or remove") as caught:
        open_data(DataSettings(data=str(tmp_path)))
    assert caught.value.exit_code == 3 and "bad.jpg: damaged or cut short" in str(caught.value)
    card = open_data(DataSettings(data=str(tmp_path), on_bad_image="skip")).card
    assert card.count == 999 and card.unreadable == ("bad.jpg: damaged or cut short",)
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match="11 unreadable images of 1,000; more than the 1% that may be skipped"):
        open_data(DataSettings(data=str(tmp_path), on_bad_image="skip"))


def test_pillow_is_left_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(policy.Unreadable):
        read(b"")
    assert before == Image.MAX_IMAGE_PIXELS is not None
