"""Calls of verbs as data: into JSON and back, and nothing but verbs can be called."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sora_cli.jobs.job import Target
from sora_cli.pipeline.request import Request
from sora_cli.runs import calls

REQUESTS = st.builds(
    Request,
    prompt=st.text(),
    model=st.none() | st.just("tiny"),
    width=st.none() | st.integers(1, 999),
    guidance_scale=st.none() | st.floats(allow_nan=False),
    loras=st.lists(st.text(min_size=1), max_size=2).map(tuple),
    vae=st.none() | st.just(Path("/a/vae.pth")),
    expand=st.none() | st.booleans(),
)


@given(request=REQUESTS, extra=st.none() | st.floats(allow_nan=False) | st.text())
@settings(max_examples=60, deadline=None)
def test_a_call_survives_json(request: Request, extra: Any) -> None:
    arguments = {"request": request, "clip": Path("/a/b"), "between": (1.0, 2.0), "by": extra}
    call = calls.Call(verb="edit", arguments=arguments)
    assert calls.Call.from_json(json.loads(json.dumps(call.to_json()))) == call


@pytest.mark.parametrize(
    "content",
    [
        {"verb": "os.system", "arguments": {"request": {"request": {}}}},
        {"verb": "info", "arguments": {"request": {"request": {}}}},
        {"verb": "generate", "arguments": {"request": {"request": {}}, "evil": 1}},
    ],
)
def test_only_verbs_can_be_called(content: Any) -> None:
    with pytest.raises(ValueError, match="no verb|other arguments"):
        calls.Call.from_json(content).start(target=Target())


def test_paths_of_a_call_mean_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "style.safetensors").touch()
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    request = Request(
        model="model", loras=("high:style.safetensors=0.5", "name"), vae=Path("vae.pth")
    )
    found = calls.absolute(request)
    assert found.loras == (f"high:{tmp_path}/style.safetensors=0.5", "name")
    assert (found.model, found.vae) == (str(tmp_path / "model"), tmp_path / "vae.pth")
    assert calls.absolute(Request(model="tiny")).model == "tiny"
    assert calls.absolute(Path("a")) == Path(os.path.abspath("a"))
