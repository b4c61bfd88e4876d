"""The pictures of the README and the guides: `python -m sora_cli.eval.pictures SHEETS FOLDER`.

SHEETS is where the report card's contact sheets lie (its `--work`): their first rows are taken.
The README's own sheet is made by the installed command, as its reader would make it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from sora_cli.errors import OutputError, UsageError
from sora_cli.eval.program import ended
from sora_cli.eval.sheet import MARGIN, PAPER, contact_sheet

INKS = 256  # colours of a picture: small files
SHEET = "sheet.png"
PROMPTS = (  # the first two are the README's commands
    "a red ball bounces on the snow at sunset",
    "a blue car drives to the left on the sand by day",
    "a red ball and a blue cube",
    "a purple cube spins on the tiles at night",
    "a rocket takes off",
    "a yellow ball rolls behind a brown wall and comes out again",
    "a green cone breaks into four pieces",
    "an orange house and a white snowman on the grass, the camera pans right",
)
TAKEN = {  # a picture: the report card's sheet, and how many of its clips
    "animate.png": ("animate-final.png", 3),
    "connect.png": ("connect-final.png", 3),
    "edit.png": ("edit-0.7-final.png", 3),
    "extend.png": ("extend-forward-final.png", 5),
    "failures.png": ("failures-final.png", 6),
    "loop.png": ("loop-final.png", 3),
}


def small(picture: Image.Image, path: Path) -> None:
    """Write a picture with few colours.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        picture.convert("RGB").quantize(INKS, kmeans=4).save(path, optimize=True)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error}", hint="a folder to write to") from error


def first_rows(sheet: Image.Image, count: int) -> Image.Image:
    """The first clips of a contact sheet, with their words."""
    strip = np.asarray(sheet.convert("RGB"))[:, MARGIN : MARGIN + 16]
    inside = (strip != np.array(PAPER)).any(2).all(1)  # a line of pixels of a clip's first frame
    starts = np.flatnonzero(inside[1:] & ~inside[:-1]) + 1
    bottom = int(starts[count]) if len(starts) > count else sheet.height
    return sheet.crop((0, 0, sheet.width, bottom))


def generated(prompts: tuple[str, ...], path: Path) -> None:
    """A sheet of what `sora generate PROMPT --seed 1` makes of each prompt."""
    videos = []
    with tempfile.TemporaryDirectory(prefix="sora-pictures-") as name:
        for number, prompt in enumerate(prompts):
            folder = Path(name) / str(number)
            words = ["generate", prompt, "--seed", "1", "-q", "-o", f"{folder}/"]
            if subprocess.run([sys.executable, "-m", "sora_cli", *words], check=False).returncode:
                raise UsageError(f"sora generate {prompt!r} failed", hint="see the error above")
            frames = [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]
            videos.append(np.stack(frames))
        file = Path(name) / SHEET
        contact_sheet(videos, prompts, file)
        small(Image.open(file), path)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sora_cli.eval.pictures", description=__doc__)
    parser.add_argument("sheets", type=Path, help="the report card's --work")
    parser.add_argument("folder", type=Path, help="where the pictures go: docs/pictures")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace) -> None:
    """All of them."""
    missing = [n for n, _ in TAKEN.values() if not (arguments.sheets / n).is_file()]
    if missing:
        raise UsageError(
            f"{arguments.sheets} has no {', '.join(missing)}",
            hint="python -m sora_cli.eval --work SHEETS makes them",
        )
    for name, (source, count) in TAKEN.items():
        path = arguments.folder / name
        small(first_rows(Image.open(arguments.sheets / source), count), path)
        sys.stdout.write(f"{path}\n")
    generated(PROMPTS, arguments.folder / SHEET)
    sys.stdout.write(f"{arguments.folder / SHEET}\n")


def main(argv: list[str] | None = None) -> int:
    """The exit code of the program."""
    return ended(lambda: run(parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
