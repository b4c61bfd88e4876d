"""Sound is kept, in time with its pictures, padded with silence; or it is said that it is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from clips import moving, run

from sora_cli.errors import UsageError
from sora_cli.media import audio, reader, recipe, video

RATE = 48_000
SOURCES = {
    "mp4": ["-c:v", "libx264", "-c:a", "aac"],
    "ts": ["-c:v", "libx264", "-c:a", "aac"],
    "webm": ["-c:v", "libvpx-vp9", "-c:a", "libopus"],
    "mkv": ["-c:v", "ffv1", "-c:a", "pcm_s16le"],
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A second of pictures with a tone, in each container."""
    folder = tmp_path_factory.mktemp("sources")
    inputs = ["-f", "lavfi", "-i", "testsrc=s=48x32:r=10:d=1"]
    inputs += ["-f", "lavfi", "-i", "sine=f=440:d=1:r=44100"]
    for name, options in SOURCES.items():
        run(*inputs, *options, str(folder / f"a.{name}"))
    return {name: folder / f"a.{name}" for name in SOURCES}


def heard(path: Path) -> tuple[float, float, float]:
    """First and last second at which there is a tone, and the length of the sound."""
    zero = reader.open_clip(path).audio.zero  # type: ignore[union-attr]
    chain = f"asetpts=PTS-{zero}/TB,aresample={RATE}:async=1:first_pts=0"
    raw = run(
        "-copyts", "-i", str(path), "-map", "0:a:0", "-af", chain, "-ac", "1", "-f", "s16le", "-"
    )
    samples = np.frombuffer(raw, np.int16)
    loud = np.nonzero(np.abs(samples.astype(int)) > 600)[0]
    return loud[0] / RATE, loud[-1] / RATE, len(samples) / RATE


def written(path: Path, count: int, plan: audio.AudioPlan | None) -> tuple[str, ...]:
    return video.write(path, iter([moving(count)]), width=48, height=32, fps=10, audio=plan,
                       recipe={"schema": 1}, force=True)  # fmt: skip


# (frames, seconds before it, from its second): as long, longer, later, later from its middle
PLACES = [(10, 0.0, 0.0), (20, 0.0, 0.0), (20, 1.0, 0.0), (15, 0.5, 0.25)]


@pytest.mark.parametrize(
    ("source", "kind"),
    [("mp4", "mp4"), ("mp4", "webm"), ("mp4", "mkv"), ("ts", "mp4"), ("webm", "mkv")],
)
def test_sound_is_where_its_pictures_are(
    sources: dict[str, Path], source: str, kind: str, tmp_path: Path
) -> None:
    clip = reader.open_clip(sources[source])
    assert clip.has_audio and clip.audio is not None
    for count, at, start in PLACES:
        plan = audio.plan(audio.piece(clip, at=at, start=start))
        (note,) = written(tmp_path / f"a.{kind}", count, plan)
        made = reader.open_clip(tmp_path / f"a.{kind}")
        assert made.num_frames == count and made.audio is not None
        first, last, length = heard(tmp_path / f"a.{kind}")
        assert abs(first - at) < 0.02 and abs(last - (at + 1 - start)) < 0.03
        # a copied stream ends with its own last packet
        assert abs(length - count / 10) < (0.06 if "as it is" in note else 0.02)


def test_sound_is_copied_where_it_fits(sources: dict[str, Path], tmp_path: Path) -> None:
    def packets(path: Path) -> list[str]:
        shown = run("-i", str(path), "-map", "0:a:0", "-c", "copy", "-f", "framemd5", "-").decode()
        return [line.split(",")[-1] for line in shown.splitlines() if line[:1] == "0"]

    plan = audio.plan(audio.piece(reader.open_clip(sources["mp4"])))
    for name in ("a.mp4", "a.mkv"):
        assert "kept as it is" in written(tmp_path / name, 10, plan)[0]
        same = packets(tmp_path / name)
        source = packets(sources["mp4"])
        first = source.index(same[0])  # some versions leave the encoder's delay out
        assert same == source[first : first + len(same)] and len(same) >= 43
    assert "as Opus" in written(tmp_path / "a.webm", 10, plan)[0]
    assert "as AAC" in written(tmp_path / "a.mp4", 20, plan)[0]


def test_two_clips_sound_one_after_the_other(sources: dict[str, Path], tmp_path: Path) -> None:
    first, second = (reader.open_clip(sources[name]) for name in ("mp4", "ts"))
    plan = audio.plan(audio.piece(first, stop=0.5), audio.piece(second, at=2.0, start=0.5))
    written(tmp_path / "a.mkv", 30, plan)
    raw = run("-i", str(tmp_path / "a.mkv"), "-ac", "1", "-ar", str(RATE), "-f", "s16le", "-")
    loud = np.abs(np.frombuffer(raw, np.int16).astype(int)).reshape(30, -1).max(1) > 600
    assert loud.tolist() == [n < 5 or 20 <= n < 25 for n in range(30)]


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "frames"])
def test_what_carries_no_sound_says_so(sources: dict[str, Path], name: str, tmp_path: Path) -> None:
    plan = audio.plan(audio.piece(reader.open_clip(sources["mp4"])))
    (note,) = written(tmp_path / name, 4, plan)
    assert "carries no sound" in note and "is dropped" in note
    assert recipe.read(tmp_path / name) == {"schema": 1}
    assert written(tmp_path / name, 4, None) == ()


def test_a_clip_without_sound_plans_nothing(tmp_path: Path) -> None:
    written(tmp_path / "a.mkv", 3, None)
    assert audio.plan(audio.piece(reader.open_clip(tmp_path / "a.mkv")), None) is None


def test_streams_carry_sound_too(sources: dict[str, Path], tmp_path: Path) -> None:
    sink = io.BytesIO()
    plan = audio.plan(audio.piece(reader.open_clip(sources["mp4"]), at=0.5))
    video.write(sink, iter([moving(20)]), width=48, height=32, fps=10, audio=plan,
                recipe=lambda: {"schema": 1, "late": True})  # fmt: skip
    (tmp_path / "a.mp4").write_bytes(sink.getvalue())
    assert abs(heard(tmp_path / "a.mp4")[0] - 0.5) < 0.02
    assert recipe.read(tmp_path / "a.mp4") == {"schema": 1, "late": True}


def test_sound_that_cannot_be_read_does_not_cost_the_video(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    """The source went away while the pictures were made: they are kept, and it is said."""
    copy = tmp_path / "source.mp4"
    copy.write_bytes(sources["mp4"].read_bytes())
    plan = audio.plan(audio.piece(reader.open_clip(copy)))
    copy.unlink()
    (note,) = written(tmp_path / "a.mp4", 10, plan)
    assert "source.mp4 cannot be read and is dropped" in note
    made = reader.open_clip(tmp_path / "a.mp4")
    assert made.num_frames == 10 and not made.has_audio
    assert recipe.read(tmp_path / "a.mp4") == {"schema": 1}
    with pytest.raises(UsageError, match="there is no file"):
        reader.open_clip(copy)
