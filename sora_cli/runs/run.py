"""Runs: the unfinished work of every making command, kept so that nothing is lost.

A run is a folder in `state_dir()/runs`:

    recipe.json     the call: verb, arguments, inputs with their hashes, seed, weights, version
    status.json     how far it is, and how it ended
    log.txt         phases, notes and errors, with their times
    lock            locked while the work goes on; free as soon as its process is gone
    latents-<canvas>-<step>.safetensors    the two newest states of the canvas in work
    chunks/<canvas>.safetensors            the last state of every finished canvas

Keeping is never a reason to fail: where the folder cannot be written, a note says so and the work
goes on. `Run` is a `pipeline.generate.Keeper`. Nothing here imports torch before a state is kept.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from sora_cli.errors import SoraError, Terminated, UsageError
from sora_cli.pipeline.events import Event, Observer
from sora_cli.pipeline.sidecar import beside
from sora_cli.runs import checkpoints
from sora_cli.runs.calls import LORA, REFERENCE, absolute, fingerprint, to_json
from sora_cli.runs.folders import (
    LOCK,
    LOG,
    RECIPE,
    SCHEMA,
    STATUS,
    Stored,
    expire,
    new_folder,
    read_status,
    remove,
    runs_dir,
    stamp,
    without_secrets,
    write_json,
)
from sora_cli.runtime import locks

if TYPE_CHECKING:
    from sora_cli.jobs.job import Target
    from sora_cli.pipeline.sampler import SamplerState

# Of a target, what going on with it needs to know.
MARKS = ("sign", "sign_certificate", "sign_key", "label")
OPTIONS = ("crf", "force", "keep_run", "keep_latents", "metadata", *MARKS)
# What a run's bits depend on: without the first of these the same again, the others may do no harm.
BINDING = ("version", "weights", "torch")

KEEP_SECONDS = 10.0  # between two states of one canvas, at least
KEEP_SHARE = 0.02  # of the time, at most, goes into writing them


class Run:
    """One making command's work. Use as a context manager around it; then read `recall`, `keep`.

    `folder` is None where nothing can be kept. `recipe` is what recipe.json holds; `made` the
    outputs that are done, by seed. `accepts_changes`: the user knows that bits may differ.
    """

    def __init__(
        self, folder: Path | None, lock: locks.Lock | None, recipe: dict[str, Any], *,
        keep_after: bool = False,
    ) -> None:  # fmt: skip
        self.folder, self.recipe, self.keep_after = folder, recipe, keep_after
        self.accepts_changes = False
        self._lock = lock
        self._status: dict[str, Any] = {} if folder is None else read_status(folder)
        self._observer: Observer = lambda event: None
        self._last: tuple[str, SamplerState, int] | None = None  # the newest state, kept or not
        self._kept_at: tuple[str, int] | None = None
        self._next_keep = time.monotonic() + KEEP_SECONDS
        self._phase = ""

    @property
    def id(self) -> str | None:
        """Its name for `sora resume`."""
        return None if self.folder is None else self.folder.name

    @property
    def made(self) -> dict[int, str]:
        """Outputs that are done and still there: seed → absolute path."""
        made = self._status.get("made") or {}
        return {int(seed): path for seed, path in made.items() if os.path.lexists(path)}

    @property
    def outputs(self) -> list[str]:
        """Where its results go, one for each seed, as seen from here."""
        cwd, here = str(self.recipe.get("cwd", "")), os.getcwd()
        given = [str(path) for path in self.recipe.get("outputs", ())]
        return given if cwd == here else [p if p == "-" else os.path.join(cwd, p) for p in given]

    @property
    def marks(self) -> dict[str, Any]:
        """What a recipe says of the call, so that `replay` can make it again; no paths."""
        if not self.recipe:
            return {}
        options = self.recipe["options"]
        arguments = {k: v for k, v in self.recipe["arguments"].items() if k != "request"}
        inputs = {
            name: {"name": Path(known["path"]).name, "sha256": known["sha256"]}
            for name, known in self.recipe["inputs"].items()
        }
        arguments |= {name: inputs[name] for name in arguments.keys() & inputs.keys()}
        own = {k: v for k, v in inputs.items() if k.startswith((REFERENCE, LORA))}
        said = {"run": self.id, "item": options.get("item"), "crf": options.get("crf")}
        said |= {"verb": self.recipe["verb"], "arguments": arguments, "inputs": own}
        if not self._prompted:
            said["prompted"] = False
        return {name: value for name, value in said.items() if value not in (None, {})}

    @property
    def _prompted(self) -> bool:
        """Whether the call had a prompt; else one was found in what it works from."""
        try:
            return bool(self.recipe["arguments"]["request"]["request"].get("prompt"))
        except (KeyError, TypeError, AttributeError):
            return True

    @property
    def memory_plan(self) -> str | None:
        """The name of the way in which it shared the memory; another one may change bits."""
        return self.recipe.get("facts", {}).get("memory_plan")

    def changed_plan(self, name: str) -> None:
        """From here on memory is shared in another way."""
        self.recipe = {**self.recipe, "facts": {**self.recipe["facts"], "memory_plan": name}}
        if self.folder is not None:
            with self._best_effort():
                write_json(self.folder / RECIPE, self.recipe, lasting=True)

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Say what has changed since it began.

        Raises:
            UsageError: other weights or another version, and nobody said that this may be.
        """
        before = self.recipe.get("facts", {})
        changed = [key for key in facts if before.get(key, facts[key]) != facts[key]]
        said = {key: f"{key} ({_short(before[key])}, now {_short(facts[key])})" for key in changed}
        binding = [said[key] for key in changed if key in BINDING]
        if binding and not self.accepts_changes:
            raise UsageError(
                f"the run {self.id} was begun with another {' and another '.join(binding)}",
                hint=f"to go on all the same, with other bits: sora resume {self.id} --force",
            )
        for sentence in said.values():
            message = f"other than when the run began: {sentence}; the bits may differ"
            self._observer(Event(phase="note", message=message))

    # -------------------------------------------------------------- its beginning and its end

    def __enter__(self) -> Run:
        self._write_status(state="running", pid=os.getpid(), error=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        try:
            if error is None:
                self._done()
            else:
                self._ended(error)
        finally:
            self.release()

    def release(self) -> None:
        """Let others take it up."""
        if self._lock is not None:
            self._lock.release()

    def _done(self) -> None:
        if self.folder is None:
            return
        if self.keep_after:
            self._write_status(state="done")
        else:
            remove(self.folder)

    def _ended(self, error: BaseException) -> None:
        stopped = isinstance(error, KeyboardInterrupt | Terminated | GeneratorExit)
        # Even a device that has failed must not hide why: then the state kept before is the last.
        with suppress(Exception):
            if self._last is not None and self._kept_at != (self._last[0], self._last[1].step):
                self._save(*self._last)
        said = _said(error)
        self._log(f"{'stopped' if stopped else 'error'}: {said}")
        told = {"message": said, "hint": error.hint if isinstance(error, SoraError) else None}
        self._write_status(state="interrupted" if stopped else "failed", error=told)
        if self.folder is not None:
            kept = f"the work so far is kept; to finish it: sora resume {self.id}"
            with suppress(Exception, KeyboardInterrupt, Terminated):  # raised again with any news
                self._observer(Event(phase="note", message=kept))

    def finish(self, seed: int, path: str | Path) -> None:
        """One of its outputs is whole and in its place."""
        made = {str(key): value for key, value in self.made.items()}
        self._write_status(made={**made, str(seed): os.path.abspath(path)})
        self._log(f"made {path}")
        self._last = self._kept_at = None

    def miss_latents(self, path: str | Path) -> None:
        """Say so where an output is there, but not the latents that were to be kept beside it."""
        options = self.recipe["options"]
        if options.get("keep_latents") and not beside(Path(path)).exists():
            self._note(
                f"{path} is there, but its latents were not kept before the work was stopped"
            )

    # -------------------------------------------------------------- news

    def _note(self, message: str) -> None:
        self._log(message)
        self._observer(Event(phase="note", message=message))

    def watch(self, observer: Observer) -> Observer:
        """The same observer, and every phase and note goes into the log and the status."""
        self._observer = observer

        def heard(event: Event) -> None:
            if event.message is not None:
                self._log(event.message)
            elif event.phase != self._phase:
                self._phase = event.phase
                self._log(event.phase)
                self._write_status(phase=event.phase)
            observer(event)

        return heard

    def _log(self, message: str) -> None:
        if self.folder is None:
            return
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        line = f"{stamp} {without_secrets(message)}\n".encode("utf-8", "backslashreplace")
        with suppress(OSError), (self.folder / LOG).open("ab") as file:
            file.write(line)

    def _write_status(self, **changed: Any) -> None:
        self._status = {**self._status, **changed, "updated": time.time()}
        if self.folder is not None:
            with self._best_effort():
                write_json(self.folder / STATUS, self._status, lasting="state" in changed)

    @contextmanager
    def _best_effort(self) -> Iterator[None]:
        """What cannot be kept is said once, and is no reason to stop."""
        try:
            yield
        except OSError as error:
            if not self._status.get("unkept"):
                self._status["unkept"] = True
                self._observer(_unkept(error))

    # -------------------------------------------------------------- states (generate.Keeper)

    def recall(self, name: str) -> SamplerState | None:
        """The newest sound state kept under this name, on the CPU."""
        if self._last is not None and self._last[0] == name:
            return self._last[1].to("cpu")
        files = () if self.folder is None else checkpoints.States(self.folder).files(name)
        for path in files:
            state = checkpoints.load(path)
            if state is not None:
                self._last, self._kept_at = (name, state, 0), (name, state.step)
                return state
            self._note(
                f"{path.name} of the run {self.id} is damaged; what was kept before it is used"
            )
        return None

    def keep(self, name: str, state: SamplerState, total: int) -> None:
        """Called after every step: keeps one now and then, and always the last one."""
        self._last = (name, state, total)
        if state.step >= total or time.monotonic() >= self._next_keep:
            self._save(name, state, total)

    def _save(self, name: str, state: SamplerState, total: int) -> None:
        if self.folder is None:
            return
        began = time.monotonic()
        final = 0 < total <= state.step
        with self._best_effort():
            checkpoints.States(self.folder).keep(name, state, final=final)
            self._kept_at = (name, state.step)
            self._write_status(canvas=name, step=state.step, total=total)
        took = time.monotonic() - began
        self._next_keep = time.monotonic() + max(KEEP_SECONDS, took / KEEP_SHARE)


def begin_run(
    target: Target,
    *,
    seeds: Sequence[int],
    outputs: Sequence[str | Path],
    facts: Mapping[str, Any],
    observer: Observer,
) -> Run:
    """The run that a target goes on with, or a new one, locked.

    A call from inside (a target that knows of no call) and a folder that cannot be written keep
    nothing.

    Args:
        seeds, outputs: resolved; the first seed goes into the call.
        facts: what the bits depend on beside the call: version, weights, torch, device, threads …
    """
    if target.run is not None:
        target.run.watch(observer)
        target.run.compare(facts)
        return target.run
    if target.call is None:
        return Run(None, None, {})
    paths = {name: str(path) for name, path in target.call.inputs.items() if path.exists()}
    options = {name: to_json(absolute(getattr(target, name))) for name in OPTIONS}
    recipe = {
        "schema": SCHEMA,
        **target.call.asking(seed=seeds[0]).to_json(),
        "inputs": {name: {"path": p, "sha256": fingerprint(Path(p))} for name, p in paths.items()},
        "seeds": list(seeds),
        "outputs": [os.fspath(path) for path in outputs],
        "cwd": os.getcwd(),
        "options": {**options, "item": target.item},
        "facts": dict(facts),
    }
    try:
        expire()
        folder, lock = new_folder()
        with _or_removed(folder):
            write_json(folder / STATUS, {"state": "running", "created": stamp()}, lasting=False)
            write_json(folder / RECIPE, recipe, lasting=True)
    except OSError as error:
        observer(_unkept(error))
        return Run(None, None, recipe)
    return Run(folder, lock, recipe, keep_after=target.keep_run)


def _unkept(error: OSError) -> Event:
    reason = error.strerror or error
    said = f"unfinished work cannot be kept in {runs_dir()}: {reason}; the work goes on without"
    return Event(phase="note", message=said)


@contextmanager
def _or_removed(folder: Path) -> Iterator[None]:
    """A folder that could not be filled goes again."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def take_up(run: Stored) -> Run:
    """A stored run, locked, to go on with.

    Raises:
        UsageError: another process works on it, or it cannot be read.
    """
    if run.state == "unreadable":
        raise UsageError(f"the run {run.id} cannot be read", hint=f"sora runs clean {run.id}")
    try:
        lock = locks.lock(run.folder / LOCK)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cannot open the run {run.id}: {reason}", hint="sora runs list"
        ) from error
    if lock is None:
        pid = run.status.get("pid")
        raise UsageError(f"the run {run.id} is still at work (process {pid})", hint=f"kill {pid}")
    return Run(run.folder, lock, run.recipe)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:20]}…"


def _said(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt | GeneratorExit):
        return "interrupted"
    if isinstance(error, Terminated):
        return "terminated"
    if isinstance(error, SoraError):
        return without_secrets(error.message)
    lines = str(error).strip().splitlines()
    return without_secrets(f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}")
