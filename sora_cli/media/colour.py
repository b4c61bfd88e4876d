"""The colours of a video as 8-bit sRGB: matrices and ranges as tagged, HDR tone-mapped.

The conversion is named in full to ffmpeg: its default rounds down (about one level of 255, in every
pass) and guesses BT.601 for what has no tag.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sora_cli.media.probe import Facts

HDR = ("smpte2084", "arib-std-b67")  # PQ and HLG: Rec. ITU-R BT.2100
LUT_NAME = "to-sdr.cube"
LUT_SIZE = 33
REFERENCE_WHITE = 203.0  # cd/m²: HDR's diffuse white (Report ITU-R BT.2408), our brightest
PEAK = 1000.0  # cd/m², of the display that HDR is taken to be made for
DISPLAY_GAMMA = 2.4  # Rec. ITU-R BT.1886, what SDR video is made for

FLAGS = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp:sws_dither=none"
_MATRICES = {
    "bt709": "bt709",
    "smpte170m": "smpte170m",
    "bt470bg": "smpte170m",  # the same numbers, by the name that every ffmpeg knows
    "fcc": "fcc",
    "smpte240m": "smpte240m",
    "bt2020nc": "bt2020",
    "bt2020c": "bt2020",
}
# CIE xy of red, green, blue; all with the white D65 (BT.2020, SMPTE EG 432-1, BT.709)
_PRIMARIES = {
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "smpte432": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "bt709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
}
_WHITE = (0.3127, 0.3290)


def is_hdr(facts: Facts) -> bool:
    """Whether the clip's brightness is coded for HDR displays (PQ or HLG)."""
    return facts.color_trc in HDR


def is_wide(facts: Facts) -> bool:
    """Whether the clip's primaries are wider than sRGB's."""
    return facts.color_primaries in ("bt2020", "smpte432")


def matrix(facts: Facts) -> str:
    """The name of the YUV matrix; untagged, as players guess: HD is BT.709, smaller is BT.601."""
    guess = "bt709" if facts.width >= 1280 or facts.height > 576 else "smpte170m"
    return _MATRICES.get(facts.color_space, guess)


def filters(facts: Facts) -> list[str]:
    """ffmpeg's filters from decoded frames to RGB (RGBA with transparency) of the clip's size.

    With `is_hdr` or `is_wide` they name LUT_NAME, a file that `write_lut` makes where ffmpeg runs.
    """
    full = facts.color_range == "pc" or facts.pixel_format.startswith("yuvj")
    size = f"scale={facts.width}:{facts.height}"
    ranges = f"in_range={'pc' if full else 'tv'}:out_range=pc"
    known = f"in_color_matrix={matrix(facts)}:{ranges}" if _is_yuv(facts.pixel_format) else ""
    scale = ":".join(filter(None, (size, known, FLAGS)))
    if is_hdr(facts) or is_wide(facts):
        lut = f"lut3d=file={LUT_NAME}:interp=tetrahedral"
        return [scale, "format=gbrp16le", lut, f"scale={FLAGS}", "format=rgb24"]
    return [scale, "format=rgba" if facts.has_alpha else "format=rgb24"]


def _is_yuv(pixel_format: str) -> bool:
    return not pixel_format.startswith(
        ("rgb", "bgr", "gbr", "argb", "abgr", "0rgb", "0bgr", "x2", "pal", "mono", "bayer")
    )


# ---------------------------------------------------------------- HDR and wide colours


def write_lut(folder: Path, facts: Facts) -> None:
    """Write the table from the clip's R'G'B' to sRGB's as a .cube file, for ffmpeg's lut3d."""
    axis = np.linspace(0.0, 1.0, LUT_SIZE)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # red varies fastest
    coded = np.stack([red, green, blue], -1).reshape(-1, 3)
    table = to_sdr(coded, facts.color_trc, facts.color_primaries)
    lines = [
        f"LUT_3D_SIZE {LUT_SIZE}",
        *(" ".join(f"{value:.6f}" for value in row) for row in table),
    ]
    (folder / LUT_NAME).write_text("\n".join(lines) + "\n", encoding="ascii")


def to_sdr(coded: np.ndarray, trc: str, primaries: str) -> np.ndarray:
    """R'G'B' in 0…1 [..., 3] of this transfer and these primaries, as SDR video has it."""
    if trc == "smpte2084":
        light = pq_to_light(coded) / REFERENCE_WHITE
    elif trc == "arib-std-b67":
        light = hlg_to_light(coded) / REFERENCE_WHITE
    else:
        light = coded**DISPLAY_GAMMA
    if trc in HDR:
        light = tone_map(light)
    light = light @ _to_bt709(primaries).T  # colours outside lose what stands over
    return np.clip(light, 0, 1) ** (1 / DISPLAY_GAMMA)


def pq_to_light(coded: np.ndarray) -> np.ndarray:
    """BT.2100 table 4: the PQ EOTF, 0…1 → cd/m²."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = np.clip(coded, 0, 1) ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def light_to_pq(light: np.ndarray) -> np.ndarray:
    """BT.2100 table 4: the inverse of the PQ EOTF, cd/m² → 0…1."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    power = (np.maximum(light, 0) / 10_000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg_to_light(coded: np.ndarray) -> np.ndarray:
    """BT.2100 table 5: the HLG EOTF for a display of PEAK, 0…1 [..., 3] → cd/m²."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return PEAK * scene * np.maximum(luminance, 1e-9)[..., None] ** 0.2  # system gamma 1.2


def tone_map(light: np.ndarray) -> np.ndarray:
    """Light in units of REFERENCE_WHITE [..., 3] into 0…1, by Report ITU-R BT.2390's EETF.

    The curve bends the brightest of the three channels and takes the others along, so hues stay.
    """
    brightest = light.max(-1, keepdims=True)
    peak = light_to_pq(np.array(PEAK))
    x = np.minimum(light_to_pq(brightest * REFERENCE_WHITE) / peak, 1.0)
    most = float(light_to_pq(np.array(REFERENCE_WHITE)) / peak)
    knee = 1.5 * most - 0.5
    t = np.clip((x - knee) / (1 - knee), 0, 1)
    bent = (2 * t**3 - 3 * t**2 + 1) * knee
    bent += (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
    mapped = pq_to_light(np.where(x < knee, x, bent) * peak) / REFERENCE_WHITE
    return light * (mapped / np.maximum(brightest, 1e-9))


def _to_bt709(primaries: str) -> np.ndarray:
    source = _PRIMARIES.get(primaries, _PRIMARIES["bt709"])
    return np.linalg.inv(_to_xyz(_PRIMARIES["bt709"])) @ _to_xyz(source)


def _to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """SMPTE RP 177: the matrix from linear RGB to CIE XYZ, [3, 3]."""
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in primaries]).T
    x, y = _WHITE
    return columns * np.linalg.solve(columns, np.array([x / y, 1.0, (1 - x - y) / y]))
