"""What `--profile` writes and says: a trace of every operation, and each phase's share of the time.

The trace is torch's own, in Chrome's format: https://ui.perfetto.dev and chrome://tracing open it.
It is written whole when the work has ended well; what fails or is stopped leaves none.
"""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli.errors import OutputError, UsageError
from sora_cli.jobs.job import Clock, Target
from sora_cli.pipeline.events import Event, Observer

if TYPE_CHECKING:
    from sora_cli.pipeline.request import Settings

SUFFIXES = (".json.gz", ".json")
VIEWER = "https://ui.perfetto.dev"


def trace_path(target: Target, settings: Settings, name: str) -> Path | None:
    """Where the trace goes, checked before any work; None where none is wanted.

    name: of an unnamed trace, where there is no prompt.

    Raises:
        UsageError: no name of a trace, or one that exists, without `force`; nothing will be made.
        OutputError: the folder cannot be written to.
    """
    from sora_cli.media import output

    if target.profile is None:
        return None
    if target.dry_run:
        raise UsageError("a dry run makes nothing to profile", hint="leave out --dry-run")
    if not target.profile:
        return output.default_path(settings.prompt or name, settings.seed, f".trace{SUFFIXES[0]}")
    path = Path(target.profile).expanduser()
    if not path.name.endswith(SUFFIXES):
        raise UsageError(
            f"a trace is a .json or a .json.gz, not {path}", hint=f"--profile trace{SUFFIXES[0]}"
        )
    if os.path.lexists(path) and not target.force:
        raise UsageError(
            f"{path} already exists",
            hint="name another file after --profile, or add --force to replace it",
        )
    output.check_output(path, suffixes=(".json", ".gz"), force=target.force)
    return path


class Profile:
    """The phases of a command, and the operations in them. Without a path it does nothing."""

    def __init__(self, path: Path | None, *, force: bool) -> None:
        self.path, self._force = path, force
        self._clock = Clock(observer=self._mark)
        self._marks, self._marked = ExitStack(), ""
        self._clock.enter("plan")

    def watched(self, observer: Observer) -> Observer:
        """The same observer; phases are noted on the way to it."""
        if self.path is None:
            return observer

        def heard(event: Event) -> None:
            self._clock(event)
            observer(event)

        return heard

    def facts(self) -> dict[str, Any]:
        """What a result's object says of it: the trace's path, and the phases so far."""
        return {} if self.path is None else {"profile": {"trace": str(self.path), **self._shares()}}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record every operation within; at its end the trace is written.

        Raises:
            OutputError: it could not be.
        """
        if self.path is None:
            yield
            return
        from torch._C._profiler import _ExperimentalConfig
        from torch.profiler import profile, supported_activities

        self._clock.enter(None)  # starting the recorder takes a second, which is no phase of ours
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would write to our stderr
        # Decoding and encoding may go on in threads of their own.
        everywhere = _ExperimentalConfig(profile_all_threads=True)
        with ExitStack() as stack:
            recorder = profile(activities=supported_activities(), experimental_config=everywhere)
            stack.enter_context(recorder)
            stack.callback(self._marks.close)
            yield
            self._clock.enter(None)
        self._write(recorder)

    def say(self) -> Iterator[str]:
        """Sentences for the user: a phase in each, and where the trace is."""
        if self.path is None:
            return
        told = self._shares()
        for phase, seconds in told["phases"].items():
            yield f"{phase:<8}{seconds:8.2f} s {told['shares'][phase]:6.1%}"
        yield f"{'in all':<8}{sum(told['phases'].values()):8.2f} s"
        yield f"every operation is in {self.path}; {VIEWER} shows it"

    def _shares(self) -> dict[str, dict[str, float]]:
        seconds = self._clock.timings()
        total = sum(seconds.values()) or 1.0
        return {
            "phases": seconds,
            "shares": {phase: round(part / total, 4) for phase, part in seconds.items()},
        }

    def _mark(self, event: Event) -> None:
        """A new phase: seen in the trace as one long operation."""
        if event.phase in ("note", self._marked):
            return
        from torch.profiler import record_function

        self._marked = event.phase
        self._marks.close()
        self._marks.enter_context(record_function(f"phase: {event.phase}"))

    def _write(self, recorder: Any) -> None:
        from sora_cli.media import output

        assert self.path is not None
        with (
            output.new_file(self.path, force=self._force) as temporary,
            output.beside(self.path) as folder,
            output.writing(self.path),
        ):
            plain = folder / "trace.json"
            recorder.export_chrome_trace(str(plain))
            # The exporter reports a full disk to nobody.
            if not plain.is_file() or not _ends(plain):
                raise OutputError(
                    f"could not write {self.path}: it is not whole", hint="sora doctor"
                )
            if self.path.suffix != ".gz":
                os.replace(plain, temporary)
                return
            with plain.open("rb") as source, gzip.open(temporary, "wb", compresslevel=6) as packed:
                shutil.copyfileobj(source, packed, 1 << 20)


def _ends(path: Path) -> bool:
    """Whether a JSON object in a file is closed."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 64))
        return file.read().rstrip().endswith(b"}")
