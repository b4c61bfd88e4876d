"""`sora weights pull` against a hub on this machine: what is fetched, kept, refused and said."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sora_cli.cli.main import main
from sora_cli.weights import manifest
from tests import hub_server
from tests.hub_server import noise

NAME = "wan2.2-lightx2v-t2v"  # two files of one repository
HIGH, LOW = (part.path for part in manifest.find(NAME).parts)
REPOSITORY = manifest.find(NAME).parts[0].repository
SINGLE, FOLDER = "wan2.2-ti2v-5b", "wan2.2-ti2v-5b-full"
TOKEN = "hf_thisIsASecret"
AGAIN = f"sora weights pull {NAME}"


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    with hub_server.serving() as hub:
        files = {HIGH: noise(300_000, 1), LOW: noise(200_000, 2), "README.md": b"not needed"}
        hub.repositories[REPOSITORY] = files
        yield hub


@pytest.fixture
def sora(
    hub: hub_server.Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The command line, with this hub and folders of its own.

    A pull is a process of its own, because the hub's library reads its environment once; the other
    commands do not speak with a hub.
    """

    def run(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        if words[1] != "pull":
            code = main(words)
            return subprocess.CompletedProcess(words, code, *capsys.readouterr())
        process = start(hub, tmp_path, *words, **settings)
        out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    return run


def start(
    hub: hub_server.Hub, folder: Path, *words: str, limit: int | None = None, **environ: str
) -> subprocess.Popen[str]:
    """Start the command line; `limit` is the largest file it may write, as on a full disk."""
    settings = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf"), "HF_TOKEN": TOKEN}
    settings |= {"NO_PROXY": "*", "HF_HUB_OFFLINE": "0"}

    def bound() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "sora_cli", *words],
        env={**os.environ, **settings, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=bound,
    )


def blobs(folder: Path, repository: str = REPOSITORY) -> Path:
    return folder / "hf" / "hub" / f"models--{repository.replace('/', '--')}" / "blobs"


def blob(folder: Path, content: bytes) -> Path:
    return blobs(folder) / hashlib.sha256(content).hexdigest()


def record(folder: Path, name: str = NAME) -> dict[str, Any]:
    path = folder / "xdg" / "state" / "sora" / "weights" / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def serve_folder(hub: hub_server.Hub, name: str) -> dict[str, bytes]:
    files = hub_server.diffusers_repository()
    hub.repositories[manifest.find(name).parts[0].repository] = files
    return files


# ---------------------------------------------------------------- what is fetched and recorded


def test_pulls_what_is_needed_once_and_records_it(
    hub: hub_server.Hub, sora: Any, tmp_path: Path
) -> None:
    files = serve_folder(hub, FOLDER)
    hub.pause = 0.02
    done = sora("weights", "pull", FOLDER, "--progress", "json")
    assert done.returncode == 0, done.stderr
    (path,) = done.stdout.splitlines()
    assert (Path(path) / "transformer" / "model.safetensors.index.json").is_file()
    unneeded = {"README.md", "assets/picture.png", "transformer/pytorch_model.bin"}
    assert set(hub.served) == set(files) - unneeded
    assert hub.most_at_once > 1, "files come one after another"
    assert all(json.loads(line)["phase"] == "pull" for line in done.stderr.splitlines())
    (repository,) = hub.repositories.keys() - {REPOSITORY}
    for file in record(tmp_path, FOLDER)["files"]:
        content = files[file["file"]]
        assert Path(file["path"]).read_bytes() == content
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["commit"] == hub.commit(repository)
    reference = blobs(tmp_path, repository).parent / "refs" / "main"
    assert reference.read_text() == hub.commit(repository)  # for other programs

    hub.forget_traffic()
    again = sora("weights", "pull", FOLDER, "--json", "--quiet")
    assert (again.returncode, again.stderr, hub.served) == (0, "", {})
    content = json.loads(again.stdout)
    assert (content["name"], content["path"]) == (FOLDER, path)
    assert set(content["parts"]) >= {"transformer", "vae", "text_encoder", "tokenizer"}

    assert sora("weights", "path", FOLDER).stdout.strip() == path
    listed = json.loads(sora("weights", "list", "--json").stdout)["models"]
    (row,) = (row for row in listed if row["name"] == FOLDER)
    needed = sum(len(content) for file, content in files.items() if file not in unneeded)
    assert (row["installed"], row["path"], row["bytes"]) == (True, path, needed)


def test_the_token_goes_to_the_hub_alone_and_into_no_message(
    hub: hub_server.Hub, sora: Any
) -> None:
    done = sora("weights", "pull", NAME)
    assert done.returncode == 0
    assert any("/resolve/" in path for path in hub.tokens)
    assert not any(path.startswith("/cdn/") for path in hub.tokens)
    hub.gated[REPOSITORY] = 403
    assert sora("weights", "remove", NAME).returncode == 0
    done = sora("weights", "pull", NAME)
    assert done.returncode == 3 and TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_pull_that_was_ended_goes_on_where_it_stopped(
    hub: hub_server.Hub, sora: Any, tmp_path: Path, number: signal.Signals
) -> None:
    """Counted at the hub: nothing that had come is sent twice."""
    size = 6_000_000
    content = hub.repositories[REPOSITORY][HIGH] = noise(size, 8)
    hub.pause = 0.004
    process = start(hub, tmp_path, "weights", "pull", NAME, "--progress", "json")
    assert process.stderr is not None
    for line in process.stderr:
        event = json.loads(line)
        if event.get("step", 0) >= event.get("total", 99) / 2:
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    assert out == ""
    if number == signal.SIGINT:
        assert f"{AGAIN} goes on from it" in err and '"interrupted"' in err
    there = blob(tmp_path, content).with_suffix(".incomplete").stat().st_size
    assert size / 4 < there < size
    time.sleep(0.1)  # the hub may still be writing into a closed connection
    hub.pause = 0
    hub.forget_traffic()
    done = sora("weights", "pull", NAME)
    assert done.returncode == 0, done.stderr
    assert (HIGH, there) in hub.ranges
    assert hub.served == {HIGH: size - there}  # the small one was there already
    assert blob(tmp_path, content).read_bytes() == content
    assert not list(blobs(tmp_path).glob("*.incomplete"))


def test_broken_connections_and_a_bad_start_are_overcome(
    hub: hub_server.Hub, sora: Any, tmp_path: Path
) -> None:
    hub.dropped[HIGH] = 120_000  # three requests for 300,000 bytes
    content = hub.repositories[REPOSITORY][LOW]
    blobs(tmp_path).mkdir(parents=True)
    blob(tmp_path, content).with_suffix(".incomplete").write_bytes(bytes(1000))
    done = sora("weights", "pull", NAME)
    assert done.returncode == 0, done.stderr
    assert sorted(first for file, first in hub.ranges if file == HIGH) == [0, 120_000, 240_000]
    assert sorted(first for file, first in hub.ranges if file == LOW) == [0, 1000]
    assert blob(tmp_path, content).read_bytes() == content


def test_a_change_upstream_is_said(hub: hub_server.Hub, sora: Any, tmp_path: Path) -> None:
    assert sora("weights", "pull", NAME).returncode == 0
    first = hub.commit(REPOSITORY)
    hub.repositories[REPOSITORY]["README.md"] = b"another card"
    second = hub.commit(REPOSITORY)
    hub.forget_traffic()
    done = sora("weights", "pull", NAME)
    words = f"has changed since it was pulled: {first[:10]} is now {second[:10]}; 0 of the 2 files"
    assert words in done.stderr and done.returncode == 0
    assert hub.served == {}  # the same bytes under a new commit
    hub.repositories[REPOSITORY][HIGH] = noise(250_000, 9)
    done = sora("weights", "pull", NAME)
    assert "; 1 of the 2 files needed are other ones" in done.stderr
    assert set(hub.served) == {HIGH}
    assert {file["commit"] for file in record(tmp_path)["files"]} == {hub.commit(REPOSITORY)}


# ---------------------------------------------------------------- checked and removed


def test_a_flipped_byte_is_found_and_mended(hub: hub_server.Hub, sora: Any, tmp_path: Path) -> None:
    assert sora("weights", "pull", NAME).returncode == 0
    done = sora("weights", "verify", NAME)
    assert (done.returncode, done.stdout) == (0, "2 files are whole\n")
    path = blob(tmp_path, hub.repositories[REPOSITORY][HIGH])
    content = bytearray(path.read_bytes())
    content[1234] ^= 1
    path.write_bytes(content)
    for names in ([NAME], []):
        done = sora("weights", "verify", *names, "--progress", "none")
        assert (done.returncode, done.stdout) == (3, "")
        error, hint = done.stderr.splitlines()
        assert Path(HIGH).name in error and "is damaged" in error
        assert hint == f"hint: {AGAIN} fetches it again"
    assert f"{NAME} is gone or" in sora("weights", "path", NAME).stderr.replace("damaged", "gone")
    hub.forget_traffic()
    assert sora("weights", "pull", NAME).returncode == 0
    assert hub.served == {HIGH: 300_000}
    assert sora("weights", "verify").returncode == 0


def test_remove_keeps_what_another_name_needs(
    hub: hub_server.Hub, sora: Any, tmp_path: Path
) -> None:
    """Two models of single files share the text encoder, its tokenizer and the autoencoder."""
    names = ("wan2.2-t2v-a14b-fp8", "wan2.2-i2v-a14b-fp8")
    for seed, part in enumerate(p for name in names for p in manifest.find(name).parts):
        content = b'{"t": 1}' if part.name == "tokenizer" else noise(30_000 + seed, 20)
        file = "tokenizer/tokenizer.json" if part.name == "tokenizer" else part.path
        hub.repositories.setdefault(part.repository, {})[file] = content
    done = sora("weights", "pull", *names)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2
    done = sora("weights", "remove", names[0], "--json")
    own = [p for p in manifest.find(names[0]).parts if p.name.startswith("transformer")]
    freed = sum(len(hub.repositories[p.repository][p.path]) for p in own)
    assert json.loads(done.stdout) == {"name": names[0], "freed": freed}
    assert sora("weights", "verify", names[1]).returncode == 0
    assert sora("weights", "remove", names[1]).returncode == 0
    assert not [path for path in (tmp_path / "hf").rglob("*") if "blobs" in path.parts]
    assert sora("weights", "remove", names[1]).returncode == 2


# ---------------------------------------------------------------- what is refused, and how


def short(hub: hub_server.Hub) -> None:
    hub.short[HIGH] = 100_000


def wrong(hub: hub_server.Hub) -> None:
    hub.wrong.add(HIGH)


def gated(hub: hub_server.Hub) -> None:
    hub.gated[REPOSITORY] = 401


def not_accepted(hub: hub_server.Hub) -> None:
    hub.gated[REPOSITORY] = 403


def forbidden(hub: hub_server.Hub) -> None:
    hub.status[HIGH] = 403


def no_repository(hub: hub_server.Hub) -> None:
    hub.repositories.clear()


def renamed(hub: hub_server.Hub) -> None:
    files = hub.repositories[REPOSITORY]
    files["another.safetensors"] = files.pop(HIGH)


def gone_meanwhile(hub: hub_server.Hub) -> None:
    hub.status[LOW] = 404


def failing(hub: hub_server.Hub) -> None:
    hub.status[LOW] = 503


def huge(hub: hub_server.Hub) -> None:
    hub.claimed[HIGH] = 10**16


def nothing(hub: hub_server.Hub) -> None:
    pass


REFUSED: list[tuple[Callable[[hub_server.Hub], None], dict[str, Any], str, str]] = [
    (short, {}, f"{HIGH} of {REPOSITORY} is truncated: 100000 of 300000 bytes came", AGAIN),
    (wrong, {}, f"{HIGH} of {REPOSITORY} came with another hash than the hub announced", AGAIN),
    (gated, {}, f"{REPOSITORY} is gated (401)", "hf auth login"),
    (not_accepted, {}, f"{REPOSITORY} is gated (403)", AGAIN),
    (forbidden, {}, f"does not let this token read {REPOSITORY} (403)", "HF_TOKEN"),
    (no_repository, {}, f"there is no {REPOSITORY} at ", "pip install --upgrade"),
    (renamed, {}, f"there is no {HIGH} of {REPOSITORY} at ", "sora weights import"),
    (gone_meanwhile, {}, f"there is no {LOW} of {REPOSITORY} at ", "sora weights import"),
    (failing, {}, f"answers 503 for {LOW} of {REPOSITORY}", AGAIN),
    (huge, {}, "GiB are to come and ", "HF_HOME"),
    (nothing, {"limit": 150_000}, "no space left in ", AGAIN),
    (nothing, {"HF_ENDPOINT": "http://127.0.0.1:1"}, "no connection to http://127.0.0.1:1", AGAIN),
    (nothing, {"HF_HUB_OFFLINE": "1"}, f"HF_HUB_OFFLINE is set, and {REPOSITORY} is not", AGAIN),
]


@pytest.mark.parametrize(
    ("fault", "settings", "words", "hint"),
    REFUSED,
    ids=[fault.__name__ + "".join(settings) for fault, settings, _, _ in REFUSED],
)
def test_each_failure_is_one_line_and_the_next_command(
    fault: Callable[[hub_server.Hub], None],
    settings: dict[str, Any],
    words: str,
    hint: str,
    hub: hub_server.Hub,
    sora: Any,
    tmp_path: Path,
) -> None:
    fault(hub)
    done = sora("weights", "pull", NAME, "--progress", "none", **settings)
    assert (done.returncode, done.stdout) == (3, "")
    error, next_command = done.stderr.splitlines()
    assert error.startswith("error: ") and words in error
    assert next_command.startswith("hint: ") and hint in next_command
    assert TOKEN not in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "xdg" / "state" / "sora" / "weights").exists()


def test_a_full_disk_keeps_what_came(hub: hub_server.Hub, sora: Any, tmp_path: Path) -> None:
    assert sora("weights", "pull", NAME, limit=150_000).returncode == 3
    hub.forget_traffic()
    assert sora("weights", "pull", NAME).returncode == 0
    assert sum(hub.served.values()) < 400_000


def test_names_that_cannot_be_pulled(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "pull", "wan2.2-ti2v-5"]) == 2
    assert "did you mean wan2.2-ti2v-5b?" in capsys.readouterr().err
    assert main(["weights", "pull", "tiny"]) == 2
    assert "tiny is in the package" in capsys.readouterr().err
    assert main(["weights", "remove", "tiny"]) == 2


def test_a_copied_cache_serves_without_a_network(
    hub: hub_server.Hub, sora: Any, tmp_path: Path
) -> None:
    """As on a machine without a network: the cache came from another one, without our record."""
    serve_folder(hub, FOLDER)
    assert sora("weights", "pull", FOLDER).returncode == 0
    (tmp_path / "xdg" / "state" / "sora" / "weights" / f"{FOLDER}.json").unlink()
    done = sora("weights", "pull", FOLDER, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "could not be compared with the hub" in done.stderr
    path = Path(done.stdout.strip())
    (tmp_path / "xdg" / "state" / "sora" / "weights" / f"{FOLDER}.json").unlink()
    (path / "transformer" / "model-00001-of-00002.safetensors").unlink()
    done = sora("weights", "pull", FOLDER, HF_HUB_OFFLINE="1")
    assert done.returncode == 3 and "HF_HUB_OFFLINE is set" in done.stderr
