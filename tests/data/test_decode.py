"""Every kind of pixel comes out as 8-bit RGB or grey, the right way up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.pictures import smooth, truncate, write
from nearfar.data.decode import decode, to_channels, to_colour

RED, HALF = (200, 10, 30), (0, 0, 255, 128)


@pytest.mark.parametrize("extension", ["png", "bmp", "webp", "tif", "tiff", "ppm", "gif", "jpg", "jpeg"])
def test_formats(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"a.{extension}"
    Image.new("RGB", (7, 5), RED).save(path)
    image = decode(path)
    assert (image.shape, image.dtype) == ((3, 5, 7), np.uint8)
    tolerance = {"gif": 0, "webp": 4, "jpg": 3, "jpeg": 3}.get(extension, 0)
    assert np.abs(image.astype(int) - np.array(RED)[:, None, None]).max() <= tolerance


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = smooth(12, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise for display
    picture.save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(np.array(picture), k=-1).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode(tmp_path / "turned.png"), expected)


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), HALF).save(tmp_path / "rgba.png")
    assert decode(tmp_path / "rgba.png")[:, 0, 0].tolist() == [127, 127, 255]
    Image.new("LA", (2, 2), (0, 0)).save(tmp_path / "la.png")
    assert decode(tmp_path / "la.png", channels=1)[:, 0, 0].tolist() == [255]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    image = decode(tmp_path / "p.png")
    assert image[:, 0, 0].tolist() == [255, 255, 255]
    assert image[:, 0, 1].tolist() == [40, 50, 60]
    palette.save(tmp_path / "bytes.png", transparency=b"\x80\xff")
    assert decode(tmp_path / "bytes.png")[:, 0, 0].tolist() == [132, 137, 142]


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        assert decode(tmp_path / name)[:, 0].tolist() == [[0, 1, 128, 255]] * 3


def test_other_modes(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    assert decode(tmp_path / "cmyk.tif")[:, 0, 0].tolist() == [255, 0, 0]
    Image.new("1", (2, 2), 1).save(tmp_path / "bits.png")
    assert decode(tmp_path / "bits.png", channels=1).tolist() == [[[255, 255], [255, 255]]]
    Image.new("L", (2, 3), 77).save(tmp_path / "grey.png")
    assert decode(tmp_path / "grey.png").tolist() == [[[77, 77]] * 3] * 3


def test_unknown_ranges_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="floating-point pixels have no known range"):
        decode(tmp_path / "float.tif")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "int.tif")
    with pytest.raises(ValueError, match="32-bit pixels have no known range"):
        decode(tmp_path / "int.tif")
    with pytest.raises(ValueError, match="channels: expected 1 or 3, received 2"):
        to_colour(Image.new("L", (1, 1)), 2)


def test_truncated_and_foreign_files_raise(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        write(tmp_path / name, size=(64, 64))
        with pytest.raises(OSError, match=r"truncated|Truncated"):
            decode(truncate(tmp_path / name))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match="cannot identify image file"):
        decode(tmp_path / "text.png")
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(OSError, match="cannot identify image file"):
        decode(tmp_path / "empty.jpg")


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "bomb.png", size=(30, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    with pytest.raises(Image.DecompressionBombError, match="exceeds limit"):
        decode(path)


@pytest.mark.parametrize(("size", "expected"), [((90, 60), (20, 30)), ((60, 90), (30, 20)), ((20, 500), (500, 20))])
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_reduction_of_the_shorter_side(tmp_path: Path, extension: str, size: tuple[int, int], expected: object) -> None:
    path = write(tmp_path / f"a.{extension}", size=size)
    image = decode(path, shorter=20)
    assert image.shape[1:] == expected
    want = np.array(Image.open(path).resize((image.shape[2], image.shape[1]), Image.Resampling.BOX)).astype(float)
    assert np.abs(image.transpose(1, 2, 0) - want).mean() < 4


def test_smaller_images_are_left_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", size=(19, 40))
    np.testing.assert_array_equal(decode(path, shorter=20), decode(path))


def test_to_channels_agrees_with_pillow() -> None:
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    first = colour.transpose(2, 0, 1)
    np.testing.assert_array_equal(to_channels(first, 1)[0], np.array(Image.fromarray(colour).convert("L")))
    np.testing.assert_array_equal(to_channels(first[None, :1], 3)[0], np.stack([colour[..., 0]] * 3))
    assert to_channels(first, 0) is first
