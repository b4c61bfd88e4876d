"""What is no clip, or a trap, is a UsageError of one clear line; nothing else of it is opened."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from clips import made, moving, run, x264

from sora_cli.errors import ExitCode, UsageError
from sora_cli.media import ffmpeg, image, packets, reader, video


def refused(path: Path, message: str) -> None:
    """The clip is refused so, in one line, with a next step."""
    with pytest.raises(UsageError, match=message) as caught:
        list(reader.open_clip(path).frames())
    assert caught.value.exit_code == ExitCode.USAGE == 2
    assert "\n" not in caught.value.message and caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", "it is empty"),
        ("text.mp4", b"hello\n", "cut off, damaged or no video"),
        ("text", b"hello\n", "cannot read the clip .*/text: it"),
        ("random.mkv", np.random.default_rng(0).bytes(5000), "cannot read the clip"),
        ("random", np.random.default_rng(0).bytes(5000), "cannot read the clip"),
        ("head.mp4", b"\0\0\0\x18ftypmp42" + b"\xff" * 100, "cut off, damaged or no video"),
        ("head.mkv", b"\x1aE\xdf\xa3" + b"\xff" * 100, "cannot read the clip"),
        ("head.png", b"\x89PNG\r\n\x1a\nrubbish", "cannot read the picture"),
        ("head.webp", b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0\x02" + bytes(50), "has no frames"),
        ("head.gif", b"GIF89a" + b"\xff" * 7, "cannot read the clip"),
        ("page.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot read the clip"),
    ],
)
def test_not_a_video(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, message)


def test_missing_and_special_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.mp4", "there is no file")
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(tmp_path / "pipe.mp4", "not a regular file")
    (tmp_path / "file").touch()
    refused(tmp_path / "file" / "a.mp4", "Not a directory")


@pytest.mark.parametrize("place", ["first", "last"])
def test_truncated_mp4(tmp_path: Path, place: str) -> None:
    """The index stands first (as we write it) or last (as cameras do); half is missing."""
    flags = ["-movflags", "+faststart"] if place == "first" else []
    data = made(tmp_path / "a.mp4", moving(20), *x264(5), *flags).read_bytes()
    for share in (0.5, 0.9) if place == "first" else (0.2, 0.5, 0.9):
        (tmp_path / "cut.mp4").write_bytes(data[: int(share * len(data))])
        refused(tmp_path / "cut.mp4", "it is cut off")


def test_truncated_mkv_and_gif(tmp_path: Path) -> None:
    data = made(tmp_path / "a.mkv", moving(20), "-c:v", "ffv1").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    refused(tmp_path / "cut.mkv", "it is cut off")


def test_damage_in_the_middle(tmp_path: Path) -> None:
    """A hole in the pictures: frames come, or it is said where they end."""
    path = made(tmp_path / "a.mp4", moving(30), *x264(10))
    data = bytearray(path.read_bytes())
    begin = data.index(b"mdat") + 600
    data[begin : begin + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(data)
    try:
        assert sum(map(len, reader.open_clip(path).frames())) == 30
    except UsageError as error:
        assert "damaged" in error.message or "decoded" in error.message


def test_no_video_stream(tmp_path: Path) -> None:
    cover = made(tmp_path / "cover.png", moving(1), "-frames:v", "1")
    for name, more in (
        ("a.m4a", []),
        ("b.m4a", ["-i", str(cover), "-disposition:v", "attached_pic"]),
    ):
        run("-f", "lavfi", "-i", "sine=d=0.2", *more, "-c:v", "copy", str(tmp_path / name))
        refused(tmp_path / name, "it has no video stream")
    run("-f", "lavfi", "-i", "sine=d=0.2", str(tmp_path / "a.wav"))
    refused(tmp_path / "a.wav", "it is no video; sound and lists")


def test_zero_frames_a_second(tmp_path: Path) -> None:
    (tmp_path / "a.y4m").write_bytes(b"YUV4MPEG2 W4 H4 F0:1 Ip C420\nFRAME\n" + bytes(24))
    refused(tmp_path / "a.y4m", "0 frames a second")
    path = made(tmp_path / "a.avi", moving(4), "-c:v", "mpeg4")
    data = bytearray(path.read_bytes())
    rate = data.index(b"strh") + 8 + 24  # dwRate of AVISTREAMHEADER
    data[rate : rate + 4] = bytes(4)
    path.write_bytes(data)
    refused(path, "0 frames a second")


def test_frames_too_small_or_too_large(tmp_path: Path) -> None:
    refused(
        made(tmp_path / "a.mkv", moving(3, 1, 1), "-c:v", "ffv1"), "1×1 pixels; 4×4 is the least"
    )
    refused(made(tmp_path / "a.gif", moving(3, 1, 1)), "1×1 pixels")
    (tmp_path / "a.y4m").write_bytes(
        b"YUV4MPEG2 W20000 H20000 F25:1 Ip C420\nFRAME\n" + bytes(9999)
    )
    refused(tmp_path / "a.y4m", "20000×20000 have more than 67 megapixels")
    data = bytearray(made(tmp_path / "b.avi", moving(3), "-c:v", "mjpeg").read_bytes())
    size = data.index(b"strf") + 8 + 4  # biWidth, biHeight of BITMAPINFOHEADER
    data[size : size + 8] = struct.pack("<II", 20_000, 20_000)
    begin = data.index(b"\xff\xc0")  # JPEG's start of frame: length, bits, height, width
    start = bytes(data[begin : begin + 9])
    data = data.replace(start, start[:5] + struct.pack(">HH", 20_000, 20_000))
    (tmp_path / "b.avi").write_bytes(data)
    refused(tmp_path / "b.avi", "20000×20000")
    large = bytearray(made(tmp_path / "b.gif", moving(3)).read_bytes())
    large[6:10] = struct.pack("<HH", 65_535, 65_535)
    (tmp_path / "b.gif").write_bytes(large)
    refused(tmp_path / "b.gif", "megapixels|cannot read")


def test_a_picture_bomb(tmp_path: Path) -> None:
    """20,000×20,000 pixels in 50 kB are refused by their header, as a picture and as a clip."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(20_000 * (1 + 20_000 // 8)))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert len(data) < 100_000
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(UsageError, match="more than 120 megapixels"):
        image.read(tmp_path / "a.png")
    refused(tmp_path / "a.png", "more than 120 megapixels")
    (tmp_path / "000001.png").write_bytes(data)
    (tmp_path / "a.png").unlink()
    refused(tmp_path, "more than 120 megapixels")


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {clip}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'/>",
    ],
    ids=["hls", "concat", "sdp", "dash"],
)
def test_lists_of_other_files_are_not_opened(tmp_path: Path, text: str) -> None:
    clip = made(tmp_path / "clip.ts", moving(3), *x264())
    for name in ("a.mp4", "a.m3u8", "a"):
        (tmp_path / name).write_text(text.format(clip=clip))
        refused(tmp_path / name, "cannot read the clip")


def test_times_that_never_end(tmp_path: Path) -> None:
    """Two frames, then one a year later: no clip of a billion repeated frames."""
    leap = "settb=1/1000,setpts='if(lt(N,9),N/10,3e7)/TB'"
    path = made(tmp_path / "a.mkv", moving(10), "-vf", leap, "-fps_mode", "passthrough",
                "-c:v", "ffv1")  # fmt: skip
    refused(path, "its times run over")


def test_a_reader_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    monkeypatch.setattr(ffmpeg, "SILENCE", 0.3)
    (tmp_path / "a.mkv").write_bytes(b"\x1aE\xdf\xa3")
    refused(tmp_path / "a.mkv", "nothing of it came within")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    refused(tmp_path / "a.mkv", "cannot run")


def test_tags_cannot_pose_as_the_log(tmp_path: Path) -> None:
    """The log is read line by line; a title with line breaks does not become lines of it."""
    lie = "x\n[Parsed_showinfo_0 @ 0x1] n: 0 pts: 0 fmt:rgb24 sar:1/1 s:9999x9999 i:P\r[Parsed"
    path = tmp_path / "a.mkv"
    made(path, moving(4), "-metadata", f"title={lie}", "-metadata", f"comment={lie}", *x264())
    clip = reader.open_clip(path)
    assert (clip.width, clip.height, clip.num_frames) == (48, 32, 4)


@pytest.mark.parametrize(
    "name", ["odd:name.mkv", "-i.mkv", "100%d.mkv", "雪 🏀 'q\".mkv", "a\nb.mkv"]
)
def test_odd_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    frames = moving(2)
    video.write(name, iter([frames]), width=48, height=32, fps=16)
    assert np.array_equal(reader.open_clip(name).head(2), frames)


def test_reading_that_is_given_up_ends_ffmpeg(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mkv", moving(60, 128, 128), "-c:v", "ffv1")
    chunks = reader.open_clip(path).stored(0, 60)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    if children.exists():
        names = [Path(f"/proc/{child}/comm") for child in children.read_text().split()]
        assert not [name for name in names if name.exists() and "ffmpeg" in name.read_text()]


def test_the_frame_limit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "MAX_FRAMES", 5)
    refused(made(tmp_path / "a.mkv", moving(8), "-c:v", "ffv1"), "more than 5 frames")
