"""Pictures as phones, drives and other people leave them: orientation, formats, limits, what is no picture at all."""

import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from kdcache.cli import cli
from kdcache.datasets import load, read
from kdcache.datasets.check import check
from kdcache.datasets.decoding import NOT_DECODED, suffixes
from kdcache.datasets.pack import pack
from kdcache.datasets.pictures import Crops, read_image
from kdcache.errors import first_line
from tests.samples import jpeg, noise, refusal

SIZE = 32

UPRIGHT = np.zeros((64, 48, 3), np.uint8)
UPRIGHT[:20], UPRIGHT[:, :10] = 255, (200, 30, 90)

STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How the upright picture is stored, by its EXIF orientation."""


def save_turned(path: Path, orientation: int, format: str, **options: object) -> None:
    exif, turn = Image.Exif(), STORED[orientation]
    exif[0x0112] = orientation
    picture = Image.fromarray(UPRIGHT)
    stored = picture if turn is None else picture.transpose(turn)
    stored.save(path, format=format, exif=exif.tobytes(), **options)


# Orientation


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "HEIF"])
def test_a_picture_is_turned_as_exif_says(format: str, tmp_path: Path) -> None:
    if format == "HEIF":
        pytest.importorskip("pillow_heif")
        assert ".heic" in suffixes()
    Image.fromarray(UPRIGHT).save(tmp_path / "up.png")
    upright = read_image(tmp_path / "up.png", SIZE).float()
    for orientation in STORED:
        save_turned(tmp_path / "turned", orientation, format, **({"lossless": True} if format == "WEBP" else {}))
        assert (read_image(tmp_path / "turned", SIZE) - upright).abs().mean() < 1.5, orientation


def test_damaged_exif_data_count_as_none(tmp_path: Path) -> None:
    for number, exif in enumerate((b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"x")):
        Image.fromarray(UPRIGHT).save(tmp_path / f"{number}.png", exif=exif)
        found = read_image(tmp_path / f"{number}.png", 48, 48)
        assert found.permute(1, 2, 0).equal(torch.from_numpy(UPRIGHT[8:56]))


def write_turned(root: Path, turned: bool) -> Path:
    """Write a dataset in which every picture is the upright one, some of them stored on their side."""
    for part in ("train", "val"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for orientation in STORED:
                save_turned(root / part / name / f"{orientation}.png", orientation if turned else 1, "PNG")
    return root


def test_every_view_of_a_dataset_is_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_turned(tmp_path / "up", turned=False)
    write_turned(tmp_path / "phone", turned=True)
    up, phone = (read(f"folder:{tmp_path / name}", image_size=SIZE, crop="padded") for name in ("up", "phone"))
    pack(phone, tmp_path / "x.h5")
    samples = torch.arange(16)
    assert len(up.train.take(samples).flatten(1).unique(dim=0)) == 1
    for data in (phone, read(f"hdf5:{tmp_path}/x.h5")):
        assert data.train.take(samples).equal(up.train.take(samples))
        assert data.train.pictures is not None
        assert {data.train.pictures.dimensions(sample) for sample in range(16)} == {(48, 64)}
        crops = [
            split.render(samples, [None], Crops(np.zeros(16, np.uint64), lambda draw, width, height: (0, 0, width, 20)))
            for split in (data.train, up.train)
        ]
        assert crops[0][0].equal(crops[1][0])
    before = phone.train.fingerprint
    monkeypatch.setattr("kdcache.datasets.split.DECODING", "as stored")
    assert read(phone.card.name, image_size=SIZE).train.fingerprint != before


# Formats


def write_pair(root: Path) -> Path:
    """Write the smallest dataset: two pictures for each of two classes."""
    for part in ("train", "val"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for number in (1, 2):
                Image.fromarray(noise(40, 40, 3)).save(root / part / name / f"{number}.png")
    return root


def test_every_suffix_of_pillow_is_taken(tmp_path: Path) -> None:
    root = write_pair(tmp_path)
    known = {suffix: name for suffix, name in Image.registered_extensions().items() if name in Image.SAVE}
    written = 0
    for suffix, format in known.items():
        if suffix not in suffixes():
            assert format in NOT_DECODED | {"PALM", "PDF"}
            continue
        for mode in ("RGB", "L", "P", "1", "F"):
            try:
                Image.fromarray(noise(32, 32, 3)).convert(mode).save(root / "train" / "a" / f"x{suffix}", format)
            except (OSError, ValueError, KeyError):
                continue  # not in this mode
            if mode != "F":
                written += 1
                assert read_image(root / "train" / "a" / f"x{suffix}", SIZE).shape == (3, SIZE, SIZE)
            break
    assert written > 30
    found = read(f"folder:{root}").train.pictures.source.kinds()  # type: ignore[union-attr]
    assert {".jfif", ".jpe", ".gif", ".tga", ".mpo", ".apng"} <= found.keys()
    assert (".avif" in found) == features.check("avif")  # Pillow 11.3 or newer


def test_what_is_not_taken_is_counted_by_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pair(tmp_path)
    folder = root / "train" / "a"
    for name in ("notes.txt", "more.TXT", "Thumbs.db", "README", "x.svg", "._1.png", ".DS_Store"):
        (folder / name).write_text("no picture")
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX"):
        for parent in (folder, root / "train", root):
            (parent / name).mkdir()
            (parent / name / "1.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "IMG_1.CR2").touch()
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (root / "train" / "labels.csv").touch()
    data = load(f"folder:{root}", crop="padded")
    assert data.class_names == ("a", "b")
    assert len(data.train) == len(data.test) == 4
    expected = {"hidden": 8, ".txt": 2, ".db": 1, "without a suffix": 1, ".svg": 1, ".cr2": 1}
    expected |= {"links that lead nowhere": 1, "outside the class folders (labels.csv)": 1}
    assert data.train.pictures is not None
    assert data.train.pictures.source.others == expected
    for command in ("info", "check"):
        cli.main(["data", command, f"folder:{root}"], standalone_mode=False)
        line = next(line for line in capsys.readouterr().out.splitlines() if "not taken" in line)
        assert line.startswith(f"not taken as images in {root / 'train'}: 8 hidden, 2 .txt, ")


def test_heic_names_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcache.datasets.listing.suffixes", lambda: frozenset([".png"]))
    root = write_pair(tmp_path)
    for name in ("a", "b"):
        (root / "val" / name / "1.png").rename(root / "val" / name / "1.HEIC")
        (root / "val" / name / "2.png").rename(root / "val" / name / "2.HEIC")
    message = refusal(lambda: read(f"folder:{root}"))
    assert "without an image: got a, b, beside 4 .heic (HEIC needs: pip install 'kdcache[heic]')" in message


def test_heic_under_another_suffix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdcache.datasets.decoding.formats", lambda: ("JPEG", "PNG"))
    (tmp_path / "IMG_1.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    assert "This is HEIC, which needs: pip install" in refusal(lambda: read_image(tmp_path / "IMG_1.jpg", SIZE))


def test_a_bad_picture_is_tried_again_by_another_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_pair(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("kdcache.datasets.decoding.formats", lambda: ("PNG",))
        (root / "train" / "a" / "3.png").write_bytes(jpeg(40, 40))
        assert load(f"folder:{root}", on_bad_image="skip").skipped == 1
    assert load(f"folder:{root}", on_bad_image="skip").skipped == 1
    monkeypatch.setattr("kdcache.datasets.manifest.decoder", lambda: "a newer one")
    assert load(f"folder:{root}", on_bad_image="skip").skipped == 0


# What is no picture


def make_unreadable(folder: Path) -> set[str]:
    """Fill a folder with what cannot be read as a picture, and return the names."""
    os.mkfifo(folder / "fifo.jpg")
    listener = socket.socket(socket.AF_UNIX)
    where = os.getcwd()
    os.chdir(folder)  # the name of a socket is short
    listener.bind("socket.png")
    os.chdir(where)
    listener.close()
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    with (folder / "huge.tif").open("wb") as file:
        file.truncate(2**40)
    Image.new("1", (10_000, 8_000)).save(folder / "bomb.png")
    Image.new("RGB", (1, 100_000)).save(folder / "tall.png")
    Image.new("RGB", (100_000, 1)).save(folder / "wide.png")
    return {path.name for path in folder.iterdir() if path.stem not in "12"}


def test_what_cannot_be_read_is_a_bad_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_pair(tmp_path)
    bad = make_unreadable(root / "train" / "b")
    assert len(bad) == 9
    name = f"folder:{root}"
    data = load(name, on_bad_image="skip", image_size=SIZE)
    assert (len(data.train), data.skipped) == (4, 9)
    problems = check(name).problems
    assert {Path(line.split(":")[0].split()[-1]).name for line in problems} == bad
    assert all("\n" not in line and " at 0x" not in line for line in problems)
    cli.main(["data", "info", name], standalone_mode=False)
    assert "fingerprint: none, could not read" in capsys.readouterr().out
    for path in sorted((root / "train" / "b").iterdir()):
        if path.name in bad:
            assert path.name in refusal(lambda path=path: read_image(path, SIZE))  # type: ignore[misc]


@pytest.mark.parametrize("bad", ["fifo.jpg", "gone.png", "wide.png", "huge.tif"])
def test_a_training_names_what_cannot_be_read(bad: str, tmp_path: Path) -> None:
    root = write_pair(tmp_path)
    for other in make_unreadable(root / "val" / "a") - {bad}:
        (root / "val" / "a" / other).unlink()
    assert f"val/a/{bad}" in refusal(lambda: load(f"folder:{root}", crop="padded", image_size=SIZE))


def test_a_link_in_place_of_a_class_folder_is_not_ignored(tmp_path: Path) -> None:
    root = write_pair(tmp_path)
    for part in ("train", "val"):
        (root / part / "c").symlink_to(tmp_path / "nowhere")
    assert "train/c is a link that leads nowhere" in refusal(lambda: read(f"folder:{root}"))


# The limit on pixels


def skipped(root: Path, max_pixels: int) -> int:
    return load(f"folder:{root}", crop="padded", image_size=SIZE, on_bad_image="skip", max_pixels=max_pixels).skipped


def test_the_limit_on_pixels_may_change_between_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_pair(tmp_path)
    Image.new("RGB", (100, 100)).save(root / "train" / "a" / "3.png")
    Image.new("RGB", (800, 2)).save(root / "train" / "a" / "4.png")  # 12800 x 32 when it is resized
    (root / "train" / "a" / "5.png").write_bytes(b"")
    assert [skipped(root, limit) for limit in (5000, 20_000, 500_000, 20_000, 5000)] == [3, 2, 1, 2, 3]
    message = refusal(lambda: load(f"folder:{root}", crop="padded", image_size=SIZE, max_pixels=5000))
    assert "a/3.png: expected at most 5000 pixels" in message
    assert "got 100 x 100 pixels. --max-pixels changes the limit." in message
    decoded: list[str] = []
    monkeypatch.setattr("kdcache.datasets.manifest._try_to_decode", lambda *_: decoded.append("") or (1, 1, 1))
    assert skipped(root, 5000) == 3
    assert decoded == []  # their sizes are known


def test_the_limit_may_exceed_that_of_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    root = write_pair(tmp_path)
    Image.new("RGB", (100, 100)).save(root / "train" / "a" / "3.png")
    with warnings.catch_warnings(action="ignore"):
        assert skipped(root, 2000) == 1
        assert "more than 4000 pixels" in refusal(lambda: read_image(root / "train/a/3.png", SIZE, max_pixels=2000))
        assert skipped(root, 20_000) == 0


# Messages


def test_libraries_print_nothing(tmp_path: Path) -> None:
    script = """if True:
        import io, sys
        import numpy as np
        from PIL import Image
        from kdcache.datasets.decoding import decode
        from kdcache.errors import UsageError
        pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
        palette = pixels.convert("P", palette=Image.ADAPTIVE, colors=16)
        for image, options in ((palette, {"format": "PNG", "transparency": bytes([0, 128, 255] * 5)}),
                               (pixels, {"format": "TIFF", "compression": "jpeg"}),
                               (pixels, {"format": "TIFF", "compression": "tiff_lzw"})):
            image.save(file := io.BytesIO(), **options)
            content = file.getvalue()
            for place in range(0, len(content), 40):
                for data in (content[:place], content[:place] + bytes([content[place] ^ 90]) + content[place + 1 :]):
                    try:
                        decode(data, "x", 10**6, 32)
                    except UsageError as error:
                        assert "0x" not in str(error), error
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_messages_have_no_addresses_of_objects() -> None:
    error = OSError("cannot identify image file <_io.BytesIO object at 0x7f2a5c1b3d80>")
    assert first_line(error) == "cannot identify image file"
    assert first_line(ValueError("<a.B object at 0x1F> is odd")) == "is odd"
