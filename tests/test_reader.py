"""Reading clips: the right frames, exactly, from anywhere; what is no clip is said in one line."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import made, moving, run, x264
from PIL import Image

from sora_cli.errors import UsageError
from sora_cli.media import decode, reader, video


def frames_of(clip: reader.Clip, start: int = 0, stop: int | None = None) -> np.ndarray:
    return np.concatenate(list(clip.frames(start, stop)))


# ---------------------------------------------------------------- exactly those frames


@pytest.mark.parametrize("size", [(16, 32), (33, 35)])
@pytest.mark.parametrize("name", ["a.mkv", "frames"])
def test_our_lossless_outputs_come_back_bit_for_bit(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, *size, 3), dtype=np.uint8)
    recipe = {"schema": 1, "fps": 12}
    video.write(
        tmp_path / name, iter([frames]), width=size[1], height=size[0], fps=12, recipe=recipe
    )
    clip = reader.open_clip(tmp_path / name)
    assert (clip.height, clip.width, clip.num_frames, clip.fps) == (*size, 9, 12)
    assert np.array_equal(frames_of(clip), frames)
    assert np.array_equal(frames_of(clip, 3, 5), frames[3:5])
    assert np.array_equal(clip.head(2), frames[:2]) and np.array_equal(clip.tail(4), frames[-4:])
    assert np.array_equal(clip.tail(99), frames) and list(clip.frames(4, 4)) == []
    assert clip.notes == () and not clip.has_audio and clip.duration == 0.75


# Key frames far apart, near, open groups (pictures that lead a key frame and need the group before
# it), transport streams without an index, hidden frames, and containers without timestamps.
SEEKS = {
    "long.mp4": x264(),
    "open.mp4": x264(6, "open-gop=1"),
    "open.ts": x264(6, "open-gop=1"),
    "near.mkv": x264(5),
    "vp9.webm": ["-c:v", "libvpx-vp9", "-g", "7", "-lag-in-frames", "8", "-auto-alt-ref", "1"],
    "no-times.avi": x264(6),
    "a.gif": [],
}
MORE_SEEKS = {
    "vp8.webm": ["-c:v", "libvpx", "-g", "7", "-lag-in-frames", "8", "-auto-alt-ref", "1"],
    "hevc.mp4": ["-c:v", "libx265", "-x265-params", "log-level=error:keyint=6:open-gop=1"],
    "mpeg2.ts": ["-c:v", "mpeg2video", "-g", "7", "-bf", "2"],
    "fragments.mp4": [*x264(6), "-movflags", "+frag_keyframe+empty_moov"],
    "refresh.mkv": x264(6, "intra-refresh=1"),
    "raw.h264": x264(6),
    "a.apng": [],
    "a.mov": ["-c:v", "prores_ks"],
}


def every_position(path: Path, options: list[str], count: int, fps: str) -> None:
    clip = reader.open_clip(made(path, moving(count), *options, fps=fps))
    raw = run(
        "-i", str(path), "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "gray", "-"
    )
    assert clip.num_frames == count == len(raw) // (32 * 48)
    assert clip.fps == int(fps)
    whole = frames_of(clip)
    assert len(whole) == count and (np.diff(whole.astype(int), axis=0) != 0).any((1, 2, 3)).all()
    for start in range(count):
        stop = min(start + 2, count)
        assert np.array_equal(frames_of(clip, start, stop), whole[start:stop]), start


@pytest.mark.parametrize("name", SEEKS)
def test_every_position_of_a_clip_can_be_read_alone(tmp_path: Path, name: str) -> None:
    every_position(tmp_path / name, SEEKS[name], 18, "25")


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE_SEEKS)
def test_every_position_in_more_formats(tmp_path: Path, name: str) -> None:
    every_position(tmp_path / name, MORE_SEEKS[name], 40, "25")


def test_a_long_clip_is_decoded_only_where_it_is_read(tmp_path: Path) -> None:
    """Reading the end of 6,000 frames starts at the last key frame: its group is all it decodes."""
    source = ["-f", "lavfi", "-i", "testsrc=s=16x16:r=25:d=240", "-preset", "ultrafast"]
    run(*source, *x264(250), str(tmp_path / "a.mp4"))
    clip = reader.open_clip(tmp_path / "a.mp4")
    assert clip.num_frames == 6_000
    facts = reader.probe(tmp_path / "a.mp4")
    at = decode.seek_to(facts, 5_995, 1)
    assert at is not None and 5_745 / 25 <= at <= 5_995 / 25
    whole = next(decode.stored(replace(facts, keys=facts.keys[:1]), 5_990, 10))
    assert np.array_equal(clip.tail(5), whole[-5:])


def test_a_seek_that_went_elsewhere_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that lies sends the seek past the frame; the clip is then read from its start."""
    clip = reader.open_clip(made(tmp_path / "a.mp4", moving(20), *x264(4)))
    whole = frames_of(clip)
    monkeypatch.setattr(decode, "seek_to", lambda facts, start, groups: groups and 1.6)
    assert np.array_equal(frames_of(clip, 5, 8), whole[5:8])


def test_a_cut_without_encoding_shows_only_what_was_kept(tmp_path: Path) -> None:
    """`ffmpeg -ss -c copy` keeps hidden frames before the cut; players do not show them."""
    made(tmp_path / "a.mp4", moving(30), *x264(30))
    run("-ss", "1.5", "-i", str(tmp_path / "a.mp4"), "-c", "copy", str(tmp_path / "b.mp4"))
    whole = frames_of(reader.open_clip(tmp_path / "a.mp4"))
    cut = reader.open_clip(tmp_path / "b.mp4")
    assert np.array_equal(frames_of(cut), whole[-cut.num_frames :]) and 14 <= cut.num_frames <= 16
    assert np.array_equal(cut.tail(3), whole[-3:])


def test_chunks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "CHUNK_BYTES", 4 * 32 * 48 * 3)
    clip = reader.open_clip(made(tmp_path / "a.mkv", moving(10), "-c:v", "ffv1"))
    assert [len(chunk) for chunk in clip.frames()] == [4, 4, 2]


# ---------------------------------------------------------------- rates


def test_variable_rates_become_constant(tmp_path: Path) -> None:
    """Ten frames a second with a pause of half a second: the pause stays a pause."""
    kept = "select=lt(n\\,8)+gt(n\\,12)"
    path = made(tmp_path / "a.mkv", moving(20), "-vf", kept, "-fps_mode", "vfr", "-c:v", "ffv1",
                "-pix_fmt", "bgr0")  # fmt: skip
    clip = reader.open_clip(path)
    expected = [n if n < 8 or n > 12 else 7 for n in range(20)]
    assert clip.variable_rate and clip.fps == 10 and clip.num_frames == 20
    assert clip.average_fps == Fraction(15, 2) and "variable frame rate" in clip.notes[0]
    assert np.array_equal(frames_of(clip), moving(20)[expected])
    assert np.array_equal(frames_of(clip, 9, 14), moving(20)[[7, 7, 7, 7, 13]])


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_broadcast_rates_are_exact(tmp_path: Path, suffix: str) -> None:
    """Matroska rounds times to milliseconds; 30000/1001 is still what it means."""
    path = made(tmp_path / f"a.{suffix}", moving(40), *x264(), fps="30000/1001")
    clip = reader.open_clip(path)
    assert (clip.fps, clip.num_frames, clip.variable_rate) == (Fraction(30000, 1001), 40, False)


def test_jitter_is_no_variable_rate(tmp_path: Path) -> None:
    """Phones write times that tremble; every frame stays, once."""
    tremble = "settb=1/1000,setpts='N*33.3+mod(N*7,11)'"
    path = made(tmp_path / "a.mkv", moving(30), "-vf", tremble, "-fps_mode", "passthrough",
                "-c:v", "ffv1", fps="30")  # fmt: skip
    clip = reader.open_clip(path)
    assert not clip.variable_rate and clip.num_frames == 30 and abs(float(clip.fps) - 30) < 1


def test_times_that_stand_still_are_moved_apart(tmp_path: Path) -> None:
    """Two frames of one moment: both are frames, and the rest keeps its times."""
    twice = "settb=1/1000,setpts='if(eq(N,4),300,N*100)'"
    path = made(tmp_path / "a.mkv", moving(12), "-vf", twice, "-fps_mode", "passthrough",
                "-c:v", "ffv1", "-pix_fmt", "bgr0")  # fmt: skip
    clip = reader.open_clip(path)
    assert clip.fps == 10 and clip.num_frames == 12
    assert np.array_equal(clip.tail(5), moving(12)[-5:])


def test_one_frame(tmp_path: Path) -> None:
    frames = moving(1)
    for name, options in (("a.mp4", x264()), ("a.mkv", ["-c:v", "ffv1"]), ("a.gif", [])):
        clip = reader.open_clip(made(tmp_path / name, frames, *options))
        assert clip.num_frames == 1 and clip.fps > 0 and clip.tail(3).shape == frames.shape


# ---------------------------------------------------------------- shapes and colours


def test_rotation_flags_are_applied(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mp4", moving(4), *x264())
    turned = tmp_path / "turned.mp4"
    run("-display_rotation", "90", "-i", str(path), "-c", "copy", str(turned))
    clip = reader.open_clip(turned)
    assert (clip.width, clip.height) == (32, 48) and "rotated by 90°" in clip.notes[0]
    upright = frames_of(reader.open_clip(path)).astype(int)
    assert np.abs(frames_of(clip) - np.rot90(upright, axes=(1, 2))).mean() < 2


def test_pixels_become_square(tmp_path: Path) -> None:
    path = made(tmp_path / "a.mkv", moving(2), "-vf", "setsar=4/3", "-c:v", "ffv1")
    clip = reader.open_clip(path)
    assert (clip.width, clip.height) == (64, 32) == clip.head(1).shape[2:0:-1]
    assert "not square" in clip.notes[0]


def test_a_size_that_changes_stays_the_first(tmp_path: Path) -> None:
    for name, size in (("a", (32, 48)), ("b", (64, 80))):
        made(tmp_path / f"{name}.ts", moving(4, *size), *x264())
    both = b"".join((tmp_path / f"{name}.ts").read_bytes() for name in "ab")
    (tmp_path / "both.ts").write_bytes(both)
    assert {frame.shape for frame in reader.open_clip(tmp_path / "both.ts").head(8)} == {
        (32, 48, 3)
    }


MATRICES = {
    "bt709": ("bt709", "tv", "bt709"),
    "bt601": ("smpte170m", "tv", "smpte170m"),
    "full": ("smpte170m", "pc", "smpte170m"),
    "bt2020": ("bt2020", "tv", "bt2020nc"),
}


@pytest.mark.parametrize("tagged", MATRICES)
def test_matrices_and_ranges_are_read_as_tagged(tmp_path: Path, tagged: str) -> None:
    matrix, span, tag = MATRICES[tagged]
    scale = f"scale=out_color_matrix={matrix}:out_range={span}:flags=accurate_rnd+full_chroma_int"
    chain = f"{scale},format=yuv444p,setparams=range={span}:colorspace={tag}"
    frames = moving(2)
    path = made(tmp_path / "a.mkv", frames, "-vf", chain, "-c:v", "ffv1")
    error = frames_of(reader.open_clip(path)).astype(int) - frames
    assert np.abs(error).max() <= 4 and np.abs(error.mean((0, 1, 2))).max() < 0.3


def test_our_mp4_comes_back_without_a_shift_of_colour(tmp_path: Path) -> None:
    frames = np.repeat(np.repeat(moving(6, 24, 32), 3, 1), 3, 2)
    video.write(tmp_path / "a.mp4", iter([frames]), width=96, height=72, fps=16, crf=4)
    error = frames_of(reader.open_clip(tmp_path / "a.mp4")).astype(float) - frames
    assert np.abs(error.mean((0, 1, 2))).max() < 0.25
    flat = np.stack(
        [np.broadcast_to(np.uint8(c), (32, 32, 3)) for c in (0, 128, 255, [180, 90, 30])]
    )
    video.write(tmp_path / "b.mp4", iter([flat]), width=32, height=32, fps=16, crf=1)
    assert np.abs(frames_of(reader.open_clip(tmp_path / "b.mp4")).astype(int) - flat).max() <= 2


@pytest.mark.parametrize("trc", ["smpte2084", "arib-std-b67"])
def test_hdr_is_tone_mapped(tmp_path: Path, trc: str) -> None:
    """A grey ramp stays grey, rises, spans black to white, and keeps detail above diffuse white."""
    ramp = np.broadcast_to((np.linspace(0, 65535, 64))[None, :, None], (16, 64, 3)).astype("<u2")
    raw = ["-f", "rawvideo", "-pixel_format", "rgb48le", "-video_size", "64x16", "-i", "pipe:0"]
    tags = f"setparams=range=tv:colorspace=bt2020nc:color_primaries=bt2020:color_trc={trc}"
    chain = (
        f"scale=out_color_matrix=bt2020:out_range=tv:flags=accurate_rnd,format=yuv444p10le,{tags}"
    )
    run(*raw, "-vf", chain, "-c:v", "ffv1", "-level", "3", str(tmp_path / "a.mkv"),
        given=ramp.tobytes())  # fmt: skip
    clip = reader.open_clip(tmp_path / "a.mkv")
    assert clip.is_hdr and clip.bit_depth == 10 and "tone-mapped" in clip.notes[0]
    row = clip.head(1)[0, 0].astype(int)
    assert np.ptp(row, axis=1).max() <= 1 and (np.diff(row[:, 1]) >= 0).all()
    assert row[0, 1] <= 1 and row[-1, 1] == 255
    assert 30 <= row[16, 1] < row[32, 1] < 200


def test_deep_colours_become_eight_bits(tmp_path: Path) -> None:
    frames = moving(2)
    path = made(tmp_path / "a.mkv", frames, "-pix_fmt", "gbrp12le", "-c:v", "ffv1", "-level", "3")
    clip = reader.open_clip(path)
    assert clip.bit_depth == 12 and clip.notes == ("12 bits a sample read as 8",)
    assert np.abs(frames_of(clip).astype(int) - frames).max() <= 1


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    half = np.zeros((2, 16, 16, 4), np.uint8)
    half[:, :, 8:] = [10, 20, 30, 255]
    half[:, 8:, :8] = [0, 0, 0, 128]
    raw = ["-f", "rawvideo", "-pixel_format", "rgba", "-video_size", "16x16", "-i", "pipe:0"]
    for name, options in (("a.mkv", ["-c:v", "ffv1", "-pix_fmt", "bgra"]), ("a.apng", [])):
        run(*raw, *options, str(tmp_path / name), given=half.tobytes())
        clip = reader.open_clip(tmp_path / name)
        shown = clip.head(2)[1]
        assert "over white" in clip.notes[-1]
        assert (shown[:, 8:] == [10, 20, 30]).all() and (shown[:8, :8] == 255).all()
        assert np.abs(shown[8:, :8].astype(int) - 127).max() <= 1


# ---------------------------------------------------------------- pictures as clips


def test_moving_pictures(tmp_path: Path) -> None:
    flat = [np.full((16, 24, 3), c, np.uint8) for c in ([255, 0, 0], [0, 0, 255], [0, 200, 0])]
    pictures = [Image.fromarray(frame) for frame in flat]
    for name, options in (("a.webp", {"lossless": True}), ("a.gif", {}), ("a.png", {})):
        pictures[0].save(
            tmp_path / name, save_all=True, append_images=pictures[1:], duration=[100, 300, 100],
            loop=0, **options,
        )  # fmt: skip
        clip = reader.open_clip(tmp_path / name)
        assert (clip.fps, clip.num_frames, clip.variable_rate) == (10, 5, True), name
        expected = np.stack([flat[i] for i in (0, 1, 1, 1, 2)])
        assert np.array_equal(frames_of(clip), expected), name
        assert np.array_equal(clip.tail(2), expected[-2:])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_still_picture_is_a_clip_of_one_frame(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (32, 16), (200, 30, 90)).save(tmp_path / f"a{suffix}", exif=exif)
    clip = reader.open_clip(tmp_path / f"a{suffix}")
    assert (clip.width, clip.height, clip.num_frames) == (16, 32, 1)
    assert np.abs(clip.tail(5)[0].astype(int) - [200, 30, 90]).max() <= 3


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no frames named 000001.png"):
        reader.open_clip(tmp_path)
    for number in (10, 9, 2):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    clip = reader.open_clip(tmp_path)
    assert clip.fps == 25 and "does not say its rate" in clip.notes[0]
    assert frames_of(clip)[:, 0, 0, 0].tolist() == [2, 9, 10]
    for fps in (0, -1, "x", float("1e-9")):
        (tmp_path / "recipe.json").write_text(f'{{"schema": 1, "fps": {fps!r}}}'.replace("'", '"'))
        with pytest.raises(UsageError, match="0 frames a second"):
            reader.open_clip(tmp_path)
    (tmp_path / "recipe.json").write_text('{"schema": 1, "fps": 23.976}')
    clip = reader.open_clip(tmp_path)
    assert clip.fps == Fraction(24000, 1001)
    Image.new("RGB", (9, 8)).save(tmp_path / "11.png")
    with pytest.raises(UsageError, match="11.png is 9×8, the first 8×8"):
        reader.open_clip(tmp_path).tail(1)
