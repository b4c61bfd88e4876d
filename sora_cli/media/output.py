"""Where results go: names, checks before any work, and files that are whole or not there.

Everything is written beside its target under a temporary name, synced, and moved into place in
one step; whatever interrupts the writing (an error, Ctrl-C, SIGTERM) leaves nothing behind.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from sora_cli.errors import OutputError, SoraError, UsageError
from sora_cli.runtime import locks
from sora_cli.runtime.disk import sync, sync_folder

FOLDER = ""  # the "suffix" of a folder of PNGs
VIDEO_SUFFIXES = (".mp4", ".webm", ".gif", ".webp", ".mkv", FOLDER)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_NAME_BYTES = 96  # of a name made from a prompt; file systems allow 255
UNFINISHED = re.compile(r"\.sora-\w{8,12}\.part")  # what is not whole yet, beside its place
OURS = re.compile(r"\d+\.png|recipe\.json")  # what a folder of frames holds

# The last thing done to a file: it gets the finished one, an empty one to write, and the suffix.
Seal = Callable[[Path, Path, str], None]


def suffix_of(path: str | Path, suffixes: tuple[str, ...]) -> str:
    """The suffix that chooses the format, in lower case; FOLDER for a folder of PNGs.

    A folder is a path that ends in a separator (give a str: Path drops it), has no suffix, or is
    one already. Raises UsageError when `suffixes` does not have it.
    """
    text = os.fspath(path)
    suffix = FOLDER if is_folder(text) else Path(text).suffix.lower()
    if suffix in suffixes:
        return suffix
    known = ", ".join(filter(None, suffixes))
    known += ", or a folder (a path ending in /)" if FOLDER in suffixes else ""
    what = f"the suffix {suffix} of {text} is unknown" if suffix else f"{text} has no suffix"
    better = Path(text).with_suffix(suffixes[0]) if Path(text).name else f"out{suffixes[0]}"
    raise UsageError(f"{what}; known are {known}", hint=f"try -o {better}")


def is_folder(text: str) -> bool:
    """Whether a path names a folder: it is one, or ends in a separator."""
    separators = tuple(filter(None, (os.sep, os.altsep)))
    return text.endswith(separators) or os.path.isdir(text)


def numbered(path: str | Path, seed: int) -> str | Path:
    """The name of one of several outputs: `clip.mp4` → `clip-7.mp4`, `frames/` → `frames-7/`."""
    text, name = os.fspath(path), Path(path)
    if name.name in ("", ".."):
        raise UsageError(f"{text} is no name for several outputs", hint="-o clip.mp4")
    if is_folder(text):
        return f"{name.with_name(f'{name.name}-{seed}')}{os.sep}"
    return name.with_name(f"{name.stem}-{seed}{name.suffix}")


def check_output(path: str | Path, *, suffixes: tuple[str, ...], force: bool = False) -> str:
    """Raise before any work what would make writing `path` fail after it; returns the suffix.

    UsageError: unknown suffix, existing output without `force`, no such folder.
    OutputError: the folder cannot be written to.
    """
    suffix = suffix_of(path, suffixes)
    target = _target(path)
    with writing(path):
        try:
            mode = os.lstat(target).st_mode
        except (FileNotFoundError, NotADirectoryError):
            pass
        else:
            _check_existing(path, target, mode, suffix, force)
    with writing(path):
        _check_folder(path, target)
    sweep(target.parent)
    probe = _temporary(target.parent)
    with writing(path):
        probe.touch(exist_ok=False)
        probe.unlink(missing_ok=True)
    return suffix


def _check_folder(path: str | Path, target: Path) -> None:
    there = next(folder for folder in target.parents if folder.exists())
    if not there.is_dir():
        raise UsageError(
            f"cannot write {path}: {there} is a file, not a folder",
            hint=f"try -o {there.with_name(target.name)}",
        )
    if there != target.parent:
        raise UsageError(
            f"cannot write {path}: there is no folder {target.parent}",
            hint=f"mkdir -p {target.parent}",
        )


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left half-made in a folder; nobody holds it any more.

    What another process works on is marked as in use, and stays.
    """
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if UNFINISHED.fullmatch(entry.name):
                with locks.abandoned(Path(entry.path)) as free:
                    if free:
                        _remove(Path(entry.path))


def _check_existing(path: str | Path, target: Path, mode: int, suffix: str, force: bool) -> None:
    another = "choose another name with -o, or add --force to replace it"
    if stat.S_ISDIR(mode):
        names = os.listdir(target)
        if not names:
            return
        if not all(OURS.fullmatch(name) for name in names):  # --force -o ~/ must not empty a home
            raise UsageError(
                f"the folder {path} holds other files than frames of sora",
                hint=f"use a new folder: -o {target / 'frames'}{os.sep}",
            )
    elif not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a regular file", hint="to stream, use -o -")
    elif suffix == FOLDER:
        raise UsageError(f"{path} is a file, not a folder", hint=f"try -o {target}.mp4")
    if not force:
        raise UsageError(f"{path} already exists", hint=another)


def default_path(prompt: str, seed: int, suffix: str = ".mp4", *, folder: str | Path = ".") -> Path:
    """A name from the prompt and the seed that no file has yet: `a-red-ball-7.mp4`, `…-7-2.mp4`."""
    base = f"{slug(prompt) or 'sora'}-{seed}"
    names = (f"{base}-{i}" if i > 1 else base for i in itertools.count(1))
    return next(p for name in names if not os.path.lexists(p := Path(folder) / (name + suffix)))


def slug(prompt: str) -> str:
    """Letters, digits and marks of any script, other runs as one hyphen; ≤ MAX_NAME_BYTES."""
    text = unicodedata.normalize("NFKC", prompt[:1000]).lower()
    kept = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in text)
    name = ""
    for word in kept.split():
        if all(unicodedata.category(c)[0] == "M" for c in word):
            continue  # what an emoji left behind
        longer = f"{name}-{word}" if name else word
        if len(longer.encode()) > MAX_NAME_BYTES:
            # a first word as long as the name (or a script without spaces) is cut, others dropped
            return name or longer.encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore")
        name = longer
    return name


# ---------------------------------------------------------------- whole or not there


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn an OSError into an OutputError that names the output and the next command.

    A reader that went away (BrokenPipeError) is not a failure to write: the caller ends quietly.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise failed(path, error.strerror or str(error)) from error


def failed(path: object, reason: str) -> SoraError:
    """The one message for an output that could not be written."""
    return OutputError(
        f"could not write {path}: {reason}",
        hint="`sora doctor` shows the space left and the ffmpeg in use; or write elsewhere with -o",
    )


@contextmanager
def new_file(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Give an empty temporary file beside `path`; on success it becomes `path`, else it goes.

    When without `force` another program made `path` meanwhile, the result is kept under a free
    name beside it and OutputError says where.
    """
    target = _target(path)
    with _hidden(path, _temporary(target.parent), partial(Path.touch, exist_ok=False)) as temporary:
        yield temporary
        with writing(path):
            sync(temporary)
            _place(temporary, target, force)
            sync_folder(target.parent)


@contextmanager
def new_folder(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """As `new_file`, for a folder; an existing one is replaced whole (empty, or with `force`)."""
    target = _target(path)
    with _hidden(path, _temporary(target.parent), Path.mkdir) as temporary:
        yield temporary
        with writing(path):
            for file in temporary.iterdir():
                sync(file)
            sync_folder(temporary)
            _place_folder(temporary, target, force)


@contextmanager
def scratch(path: object) -> Iterator[Path]:
    """A folder in the system's temporary place, for what must not lie beside `path`."""
    with writing(path):
        place = Path(tempfile.gettempdir())
        sweep(place)
    with _hidden(path, _temporary(place), partial(Path.mkdir, mode=0o700)) as folder:
        yield folder


@contextmanager
def beside(path: str | Path) -> Iterator[Path]:
    """A hidden folder beside `path`, on its disk, for what is large and only needed meanwhile."""
    with _hidden(path, _temporary(_target(path).parent), Path.mkdir) as folder:
        yield folder


@contextmanager
def _hidden(path: object, temporary: Path, make: Callable[[Path], None]) -> Iterator[Path]:
    """What `make` puts at a temporary place for the output `path`; marked as in use, gone after.

    It is made again where another process swept it away before it was marked.
    """
    ours = False
    while not ours:
        try:
            with writing(path):
                make(temporary)
            with locks.in_use(temporary) as ours:
                if ours:
                    yield temporary
        finally:
            _remove(temporary)


def write_bytes(path: str | Path, data: bytes, *, force: bool = False) -> None:
    """Write a small file whole."""
    with new_file(path, force=force) as temporary, writing(path):
        temporary.write_bytes(data)


def _target(path: str | Path) -> Path:
    return Path(os.path.realpath(path))  # through a symbolic link: the file, not the link


def _temporary(folder: Path) -> Path:
    return folder / f".sora-{secrets.token_hex(6)}.part"


def _remove(path: Path) -> None:
    """A file or a folder, if it is there and can be removed."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _place(temporary: Path, target: Path, force: bool) -> None:
    if not force:
        try:
            os.link(temporary, target)  # unlike a rename, it never replaces
            return
        except FileExistsError:
            _keep_aside(temporary, target)
        except OSError:  # a file system without hard links
            if os.path.lexists(target):
                _keep_aside(temporary, target)
    os.replace(temporary, target)


def _place_folder(temporary: Path, target: Path, force: bool) -> None:
    old = _temporary(target.parent)
    with locks.in_use(target):  # also while it is called `old`
        try:
            if os.path.lexists(target) and (force or not os.listdir(target)):
                os.replace(target, old)
            if os.path.lexists(target):
                _keep_aside(temporary, target)
            os.replace(temporary, target)
            sync_folder(target.parent)
        finally:
            if os.path.lexists(old) and not os.path.lexists(target):
                os.replace(old, target)
            _remove(old)


def _keep_aside(temporary: Path, target: Path) -> None:
    names = (f"{target.stem}-{i}{target.suffix}" for i in itertools.count(2))
    aside = next(p for name in names if not os.path.lexists(p := target.with_name(name)))
    os.replace(temporary, aside)
    raise OutputError(
        f"{target} appeared while it was being made; the result is in {aside}",
        hint=f"to put it there all the same: mv {aside} {target}",
    )
