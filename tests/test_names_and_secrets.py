"""What others write into prompts and files, and what is secret: names, tokens, terminals."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sora_cli.cli.main import main
from sora_cli.cli.output import Output
from sora_cli.media import output
from tests.fuzz import seeds

Capture = pytest.CaptureFixture[str]

NUMBERED = (f"{device}{number}" for device in ("com", "lpt") for number in "0123456789¹²³")
RESERVED = {"con", "prn", "aux", "nul", *NUMBERED}
SIGNS = st.text('./\\:*?"<>|~$ \0\n', max_size=9)
TEXTS = st.text(max_size=300) | st.sampled_from(sorted(RESERVED)) | SIGNS


@given(prompt=TEXTS, seed=st.integers(0, 2**63 - 1))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_prompt_gives_a_name_that_every_system_takes(prompt: str, seed: int) -> None:
    """Linux, macOS and Windows: short, no separators, no devices, no dots or spaces at an end."""
    name = output.default_path(prompt, seed, folder="nowhere-at-all").name
    stem, suffix = os.path.splitext(name)
    assert suffix == ".mp4" and name == Path(name).name
    assert len(name.encode()) <= 160 and len(name.encode("utf-16-le")) // 2 <= 160
    assert not set(name) & set('<>:"/\\|?*\0') and all(ord(c) >= 32 for c in name)
    assert stem.split(".")[0].lower() not in RESERVED
    assert not stem.startswith((".", "-", " ")) and not stem.endswith((".", " "))
    assert all(c.isprintable() for c in name if ord(c) < 0x300)


SECRET = "hf_" + "aBcD1234" * 4


def test_no_token_in_recipes_logs_or_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """One from the environment, and one that an error of a library quotes."""
    from sora_cli.models.dit import DiT

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    words = ["generate", "a ball", "--size", "64x64", "--num-frames", "5", "--steps", "1"]
    words += ["--no-expand", "--seed", "1", "--progress", "plain"]
    assert main([*words, "-o", "a.mkv"]) == 0

    def fails(*_: object, **__: object) -> None:
        raise ValueError(f"401 for https://hub/?token={SECRET}\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(DiT, "forward", fails)
        assert main([*words, "-o", "b.mkv"]) == 1
    said = capsys.readouterr()
    assert "hf_…" in said.err and SECRET not in said.err + said.out
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "log.txt" for path in files)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


def test_what_a_file_says_cannot_steer_a_terminal(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({**seeds.RECIPE, "prompt": "\x1b]0;gone\x07\x1b[2J\u202ea\x9b1m"}))
    assert main(["info", str(path)]) == 0
    told = capsys.readouterr().out
    assert "\ufffd[2J\ufffda" in told and not set(told) & set("\x1b\x07\x9b\u202e")
    stream = io.StringIO()
    Output(stderr=stream).note("\x1b[31mred\ttab")
    assert stream.getvalue() == "note: \ufffd[31mred\ttab\n"
