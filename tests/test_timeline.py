"""Timelines: how spans are cut into canvases, and whole videos played on the embedded model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from short_canvases import CANVAS, SIDE, clip, short_networks, short_settings

from sora_cli.errors import OutputError
from sora_cli.models.specs import FAMILIES
from sora_cli.pipeline import sidecar
from sora_cli.pipeline.generate import (
    decode_frames,
    lay_canvas,
    make_video_latents,
    read_texts,
)
from sora_cli.pipeline.networks import Networks
from sora_cli.pipeline.pieces import Reach, least_tail, plan, reach_of
from sora_cli.pipeline.request import Settings
from sora_cli.pipeline.ring import decode_ring, make_ring, ring_frames
from sora_cli.pipeline.sampler import SamplerState
from sora_cli.pipeline.seams import Journal
from sora_cli.pipeline.spans import canvas_seed
from sora_cli.pipeline.stitch import Output
from sora_cli.pipeline.timeline import Kept, Ring, Segment, Span, play, video_frames

REACH = Reach(head=3, tail=3, canvas=25)
STILL = Reach(head=1, tail=1, canvas=25, still=True)

# ---------------------------------------------------------------------- canvases


@example_settings(max_examples=300, deadline=None)
@given(
    num_frames=st.integers(1, 400),
    head=st.integers(0, 30),
    tail=st.one_of(st.just(0), st.integers(7, 30)),
    reach=st.sampled_from([REACH, STILL, replace(REACH, canvas=13, head=1, tail=1)]),
)
def test_pieces_make_every_frame_once(num_frames: int, head: int, tail: int, reach: Reach) -> None:
    """Every canvas is legal, within the limit, and given nothing that is not there by then."""
    pieces = plan(num_frames, head, tail, reach)
    assert sum(piece.new for piece in pieces) == num_frames
    known = head
    for number, piece in enumerate(pieces):
        assert piece.num_frames <= reach.canvas and piece.num_frames % 4 == 1
        assert min(piece.new, piece.lead + 1, piece.surplus + 1) >= 1
        if tail and not head:  # made backward: each is given what follows it
            after = tail + sum(later.new for later in pieces[number + 1 :])
            assert 0 < piece.tail <= after and piece.head == piece.surplus == 0
        else:
            assert piece.head <= known and piece.lead == 0
            assert piece.head > 0 or known == 0
            last = number == len(pieces) - 1
            assert (piece.tail > 0) == bool(tail and last), "the last piece closes onto the tail"
            assert piece.tail == 0 or piece.surplus + piece.tail <= tail
        assert piece.head == 0 or (piece.head - 1) % 4 == 0
        assert piece.tail in (0, 1) or piece.tail % 4 == 0
        known += piece.new


@given(canvases=st.integers(1, 100))
def test_work_is_linear_in_length(canvases: int) -> None:
    """A canvas of 25 frames, then 16 new frames for each further one."""
    assert len(plan(25 + 16 * (canvases - 1), 0, 0, REACH)) == canvases


def test_two_seconds_between_two_clips_are_one_canvas() -> None:
    (piece,) = plan(16, 16, 16, REACH)
    assert (piece.head, piece.new, piece.tail, piece.num_frames) == (5, 16, 4, 25)


@pytest.mark.parametrize("spec", FAMILIES.values(), ids=FAMILIES.keys())
def test_every_family_reaches_within_its_canvas(spec) -> None:  # type: ignore[no-untyped-def]
    reach = reach_of(spec, spec.width, spec.height, spec.num_frames)
    assert reach.canvas == spec.num_frames
    if "given" in spec.abilities:
        assert plan(8, 16, least_tail(reach), reach)
    else:
        assert reach.still, "a family that takes pictures is given single frames"


def test_seeds_of_canvases_differ_and_the_first_is_the_videos() -> None:
    seeds = [canvas_seed(7, number) for number in range(50)]
    assert seeds[0] == 7 and len(set(seeds)) == 50
    assert canvas_seed(8, 1) != seeds[1] and max(seeds) < 2**63


# ---------------------------------------------------------------------- playing


@pytest.fixture(scope="module")
def networks() -> Iterator[Networks]:
    with short_networks() as networks:
        yield networks


@pytest.fixture
def settings(networks: Networks) -> Settings:
    return short_settings(networks)


def kept(frames: np.ndarray) -> Kept:
    return Kept(num_frames=len(frames), frames=lambda start, stop: iter([frames[start:stop]]))


def watched(
    networks: Networks, settings: Settings, segments: list[Segment], **options: object
) -> tuple[np.ndarray, Journal]:
    journal = Journal(window=4)
    chunks = list(play(networks, settings, segments, journal=journal, **options))  # type: ignore[arg-type]
    assert all(chunk.dtype == np.uint8 for chunk in chunks)
    return np.concatenate(chunks), journal


def kinds(journal: Journal) -> list[tuple[int, str]]:
    return [(seam.frame, seam.kind) for seam in journal.seams]


def test_one_canvas_is_the_plain_path(networks: Networks, settings: Settings) -> None:
    texts = read_texts(networks, settings.prompt, settings)
    latents = make_video_latents(networks, texts, lay_canvas(networks, settings), settings, 3)
    plain = np.concatenate(list(decode_frames(networks, latents)))
    played, journal = watched(networks, settings, [Span(num_frames=CANVAS, prompt=settings.prompt)])
    assert np.array_equal(played, plain)
    assert journal.seams == [] and journal.tail is not None and len(journal.tail) <= CANVAS


def test_a_long_video_begins_like_the_short_one(networks: Networks, settings: Settings) -> None:
    short, _ = watched(networks, settings, [Span(num_frames=CANVAS, prompt=settings.prompt)])
    long, journal = watched(networks, settings, [Span(num_frames=33, prompt=settings.prompt)])
    assert len(long) == 33 and np.array_equal(long[:CANVAS], short)
    assert [kind for _, kind in kinds(journal)] == ["made-made"] * len(journal.seams)
    assert kinds(journal)[0][0] == CANVAS and journal.drift is not None
    again, _ = watched(networks, settings, [Span(num_frames=33, prompt=settings.prompt)])
    assert np.array_equal(again, long), "the same seed makes the same video"


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_given_frames_come_back_untouched(
    networks: Networks, settings: Settings, direction: str
) -> None:
    """Bit for bit, whatever is made beside them; and what is made is as long as was asked."""
    given, prompt = clip(11), settings.prompt
    if direction == "forward":
        segments: list[Segment] = [kept(given), Span(num_frames=14, prompt=prompt, head=given)]
    else:
        segments = [Span(num_frames=14, prompt=prompt, tail=given), kept(given)]
    video, journal = watched(networks, settings, segments)
    assert len(video) == 25 == video_frames(segments, settings)
    where = slice(0, 11) if direction == "forward" else slice(14, 25)
    assert np.array_equal(video[where], given)
    at, kind = (11, "kept-made") if direction == "forward" else (14, "made-kept")
    assert (at, kind) in kinds(journal)
    assert {k for _, k in kinds(journal)} == {kind, "made-made"}, "14 frames are several canvases"


def test_between_two_clips(networks: Networks, settings: Settings) -> None:
    one, two = clip(9), clip(9, seed=5)
    way = Span(num_frames=6, prompt=settings.prompt, head=one, tail=two)
    video, journal = watched(networks, settings, [kept(one), way, kept(two)])
    assert np.array_equal(video[:9], one) and np.array_equal(video[15:], two)
    assert kinds(journal)[0] == (9, "kept-made") and kinds(journal)[-1] == (15, "made-kept")


def test_a_circle_has_a_seam_at_its_end(networks: Networks, settings: Settings) -> None:
    given = clip(9)
    back = Span(num_frames=4, prompt=settings.prompt, head=given, tail=given)
    video, journal = watched(networks, settings, [kept(given), back], closed=True)
    assert len(video) == 13 and kinds(journal) == [(9, "kept-made"), (13, "made-kept")]
    assert not np.array_equal(video[-1], given[0]), "no doubled frame"


def test_a_size_and_rate_of_its_own(networks: Networks, settings: Settings) -> None:
    """Kept frames of 100x50 at 20 fps; what is made beside them is brought to that."""

    def resize(frames: np.ndarray) -> np.ndarray:
        rows, columns = np.arange(50) * SIDE // 50, np.arange(100) * SIDE // 100
        return frames[:, rows][:, :, columns]

    output = Output(width=100, height=50, fps=20.0, resize=resize)
    small = clip(9)
    large = resize(small)
    segments = [kept(large), Span(num_frames=8, prompt=settings.prompt, head=small)]
    video, journal = watched(networks, settings, segments, output=output)
    assert video.shape == (29, 50, 100, 3), "8 frames at 8 fps are 20 frames at 20 fps"
    assert len(video) == video_frames(segments, settings, output)
    assert np.array_equal(video[:9], large) and kinds(journal)[0] == (9, "kept-made")


def test_a_picture_is_shown_as_decoded(networks: Networks, settings: Settings) -> None:
    """animate: the picture is the first frame, through the autoencoder, and part of the length."""
    picture, last = clip(1), clip(1, seed=9)
    segments = [
        Span(
            num_frames=CANVAS, prompt="", head=picture, tail=last, shows_head=True, shows_tail=True
        )
    ]
    video, journal = watched(networks, settings, segments)
    assert len(video) == CANVAS == video_frames(segments, settings) and journal.seams == []
    for ours, theirs in ((video[0], picture[0]), (video[-1], last[0])):
        error = np.abs(ours.astype(int) - theirs.astype(int)).mean()
        assert 0 < error < 12, "near the picture, but not pasted"


def test_storyboard_joins(networks: Networks, settings: Settings) -> None:
    """A new prompt goes on, a new shot cuts, a blend dissolves and shortens."""
    segments: list[Segment] = [
        Span(num_frames=6, prompt="a"),
        Span(num_frames=5, prompt="b", head="before"),
        Span(num_frames=5, prompt="c"),
        Span(num_frames=6, prompt="d", blend=2),
    ]
    video, journal = watched(networks, settings, segments)
    assert len(video) == 20 == video_frames(segments, settings)
    assert kinds(journal) == [(6, "made-made"), (11, "cut"), (14, "made-made")]


def test_edit_leaves_more_with_less_strength(networks: Networks, settings: Settings) -> None:
    """SDEdit over several canvases: the weaker, the nearer to the source, and none drifts off."""
    source = clip(21)
    errors = []
    for strength in (0.05, 0.2, 0.5, 0.95):
        span = Span(
            num_frames=21, prompt="snow", strength=strength,
            source=lambda start, stop: iter([source[start:stop]]),
        )  # fmt: skip
        sampling = replace(settings, num_inference_steps=6)  # whose last level above 0 is 0.38
        video, _ = watched(networks, sampling, [span])
        assert video.shape == source.shape
        errors.append(np.abs(video.astype(int) - source).mean(axis=(1, 2, 3)))
    means = [float(error.mean()) for error in errors]
    assert means == sorted(means) and means[0] < 6  # 3.6 is what the autoencoder alone costs
    assert means[1] < 0.6 * means[3]
    assert errors[1][-5:].mean() < 2.5 * errors[1][:5].mean() + 2


def test_a_mask_leaves_the_rest_alone(networks: Networks, settings: Settings) -> None:
    source = clip(CANVAS)
    mask = np.zeros((CANVAS, SIDE, SIDE), np.uint8)
    mask[:, :, 32:] = 1
    span = Span(
        num_frames=CANVAS, prompt="snow", source=lambda a, b: iter([source[a:b]]),
        mask=lambda a, b: iter([mask[a:b]]),
    )  # fmt: skip
    video, _ = watched(networks, settings, [span])
    assert np.array_equal(video[:, :, :32], source[:, :, :32])
    assert not np.array_equal(video[:, :, 48:], source[:, :, 48:])


def test_finished_canvases_are_not_made_again(networks: Networks, settings: Settings) -> None:
    """A run that is taken up again does only the steps that are missing."""

    class Memory:
        def __init__(self) -> None:
            self.states: dict[str, SamplerState] = {}
            self.steps = 0

        def recall(self, name: str) -> SamplerState | None:
            return self.states.get(name)

        def keep(self, name: str, state: SamplerState, total: int) -> None:
            self.states[name], self.steps = state, self.steps + 1

    memory, segments = Memory(), [Span(num_frames=21, prompt=settings.prompt)]
    first, _ = watched(networks, settings, segments, keeper=memory)
    steps = memory.steps
    assert steps == 2 * len(memory.states) > 2
    again, _ = watched(networks, settings, segments, keeper=memory)
    assert memory.steps == steps and np.array_equal(first, again)


def test_two_scenes_dissolve_and_do_not_jump(networks: Networks, settings: Settings) -> None:
    """Where the model finds no way from one scene to the other, none is cut to at its end."""
    day, night = clip(13), clip(13) // 4
    way = Span(num_frames=8, prompt="", head=day, tail=night, end_prompt="night")
    video, _ = watched(networks, settings, [kept(day), way, kept(night)])
    steps = np.abs(np.diff(video.astype(float), axis=0)).mean(axis=(1, 2, 3))[12:21]
    whole = np.abs(day[-1].astype(float) - night[0]).mean()
    assert steps.max() < whole / 2, "no step is most of the way"
    assert np.array_equal(video[:13], day) and np.array_equal(video[-13:], night)


# ---------------------------------------------------------------------- kept latents


def test_kept_latents_are_those_of_the_end(
    networks: Networks, settings: Settings, tmp_path: Path
) -> None:
    """An extension from the sidecar is the extension from the same frames, bit for bit; and it
    does start from the sidecar's latents, not from the frames."""
    given = clip(9)
    path = sidecar.beside(tmp_path / "clip.mp4")
    frames = sidecar.save(path, networks, settings, given, "abc")
    latents, said = sidecar.load(path, settings, given, "abc")
    assert latents is not None and frames == 4 * (latents.shape[1] - 1) + 1 and path.name in said
    plain = Span(num_frames=4, prompt="", head=given)
    kept_ones = replace(plain, head_latents=latents)
    one, _ = watched(networks, settings, [kept(given), plain])
    two, _ = watched(networks, settings, [kept(given), kept_ones])
    assert np.array_equal(one, two)
    other = replace(plain, head_latents=latents + 0.5)
    assert not np.array_equal(watched(networks, settings, [kept(given), other])[0], one)


def test_latents_of_something_else_are_not_used(
    networks: Networks, settings: Settings, tmp_path: Path
) -> None:
    given, path = clip(9), tmp_path / "clip.mp4.latents.safetensors"
    assert sidecar.load(path, settings, given, "abc") == (None, ""), "there is none"
    sidecar.save(path, networks, settings, given, "abc")
    for wrong, said in (
        ({"weights": "xyz"}, "another weights"),
        ({"settings": replace(settings, fps=9.0)}, "another fps"),
        ({"settings": replace(settings, width=96)}, "another size"),
        ({"head": 255 - given}, "another video"),
    ):
        asked = {"settings": settings, "head": given, "weights": "abc", **wrong}
        latents, told = sidecar.load(path, **asked)
        assert latents is None and said in told and "encoded again" in told
    path.write_bytes(path.read_bytes()[:50])
    latents, told = sidecar.load(path, settings, given, "abc")
    assert latents is None and "cannot be read" in told
    with pytest.raises(OutputError):
        sidecar.save(tmp_path / "no" / "x", networks, settings, given, "abc")


# ---------------------------------------------------------------------- loops from nothing


def test_a_ring_is_a_timeline(networks: Networks, settings: Settings) -> None:
    ring = Ring(num_frames=13, prompt=settings.prompt)
    video, journal = watched(networks, settings, [ring], closed=True)
    assert len(video) == 12 == video_frames([ring], settings)
    assert kinds(journal) == [(12, "made-made")]


def test_a_ring_closes(networks: Networks, settings: Settings) -> None:
    """Every frame is made once, and the step from last to first is like any other."""
    texts = read_texts(networks, settings.prompt, settings)
    sampling = replace(settings, num_inference_steps=6)
    latents = make_ring(networks, texts, sampling, 1, 16)
    assert latents.shape[2] == 4
    frames = np.concatenate(list(decode_ring(networks, latents))).astype(np.float32)
    assert len(frames) == 16
    changes = np.abs(np.diff(frames, axis=0, append=frames[:1])).mean(axis=(1, 2, 3))
    assert changes[-1] < 3 * max(np.median(changes), 1.0)
    turned = np.concatenate(list(decode_ring(networks, latents.roll(2, dims=2)))).astype(np.float32)
    assert np.abs(np.roll(turned, -8, axis=0) - frames).mean() < 2, "it has no beginning"


def test_a_ring_has_whole_latents() -> None:
    assert [ring_frames(n) for n in (1, 16, 17, 23)] == [12, 16, 16, 24]
