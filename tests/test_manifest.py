"""The manifest: every row is whole, and says nothing that only a hub can know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sora_cli.errors import UsageError, WeightsError
from sora_cli.models.specs import FAMILIES
from sora_cli.weights import manifest

ROWS = {row.name: row for row in manifest.rows()}
MODELS = [row for row in ROWS.values() if row.kind == "model"]
WAN = [row for row in MODELS if row.source == "hub"]


def test_names_are_short_unique_and_files() -> None:
    assert len(ROWS) == len(manifest.rows())
    for name in ROWS:
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]{2,30}", name)


def test_every_family_has_a_model() -> None:
    assert {row.family for row in MODELS} == set(FAMILIES)


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
def test_models_are_consistent(row: manifest.ManifestRow) -> None:
    spec = row.spec
    assert (spec.name, spec.description, spec.licence) == (row.name, row.description, row.licence)
    assert row.licence and row.memory and row.native[0] == (spec.width, spec.height)
    for width, height in row.native:
        assert width % spec.size_multiple == height % spec.size_multiple == 0
        assert spec.trained_sides[0] <= min(width, height)
        assert max(width, height) <= spec.trained_sides[1]
        assert spec.tokens(width, height, spec.num_frames) <= spec.max_tokens
    if spec.fixed_sigmas is not None:
        assert len(spec.fixed_sigmas) == spec.num_inference_steps
        assert list(spec.fixed_sigmas) == sorted(spec.fixed_sigmas, reverse=True)


@pytest.mark.parametrize("row", WAN, ids=lambda row: row.name)
def test_models_of_the_hub_bring_every_part_they_need(row: manifest.ManifestRow) -> None:
    parts = {part.name: part for part in row.parts}
    needed = {"transformer", "vae", "text_encoder", "tokenizer"}
    assert needed <= set(parts)
    assert ("transformer_2" in parts) == (row.spec.boundary is not None)
    assert ("image_encoder" in parts) == row.spec.image_encoder
    for part in row.parts:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", part.repository)
        assert not any(pattern.endswith((".bin", ".pt")) for pattern in part.patterns)


def test_only_what_is_needed_of_a_folder() -> None:
    (transformer,) = (p for p in ROWS["wan2.2-ti2v-5b-full"].parts if p.name == "transformer")
    assert transformer.wants("transformer/diffusion_pytorch_model-00001-of-00005.safetensors")
    assert transformer.wants("transformer/config.json")
    for file in (
        "README.md",
        "transformer/old/config.json",
        "transformer/model.bin",
        "config.json",
    ):
        assert not transformer.wants(file)
    (llm,) = ROWS["qwen3-4b-instruct"].parts
    assert llm.wants("model.safetensors") and not llm.wants("onnx/model.safetensors")


def test_shared_parts_are_the_same_and_known_sizes_add_up() -> None:
    row = ROWS["wan2.2-ti2v-5b"]
    assert row.size == 9_999_658_848 + 1_409_400_960 + 6_735_906_897
    assert ROWS["wan2.2-t2v-a14b"].size is None  # not known, so not said
    encoders = {
        part.path for row in WAN for part in row.parts if part.name == "text_encoder"
    }  # one in 16 bits, one in 8
    assert len(encoders) == 2


def test_loras_and_language_models() -> None:
    for row in ROWS.values():
        if row.kind == "lora":
            assert {part.name for part in row.parts} == {"high", "low"}
            for name in row.base:
                spec = row.put_on(ROWS[name].spec)
                assert spec.fixed_sigmas and len(spec.fixed_sigmas) == spec.num_inference_steps
                assert spec.guidance_scale == spec.guidance_scale_2 == 1
        if row.kind == "language_model":
            assert [part.name for part in row.parts] == ["language_model"]
    assert [row.name for row in ROWS.values() if row.sees] == ["qwen3-vl-4b-instruct"]


def test_nothing_in_it_is_a_hash_or_a_commit() -> None:
    assert not re.search(r"\b[0-9a-f]{40}", manifest.manifest_path().read_text(encoding="utf-8"))


def test_rows_start_from_their_family(tmp_path: Path) -> None:
    file = tmp_path / "manifest.toml"
    head = 'schema = 1\n[[model]]\nname = "x"\nsource = "folder"\n'
    file.write_text(head + 'family = "wan2.2-ti2v"\nfps = 12.0\ntrained_sides = [32, 64]\n')
    (row,) = manifest.read_manifest(file)
    assert (row.name, row.spec.fps, row.spec.trained_sides) == ("x", 12.0, (32, 64))
    assert row.spec.num_inference_steps == 50
    assert row.folder() is None


def test_a_manifest_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    file = tmp_path / "manifest.toml"
    head = 'schema = 1\n[[model]]\nname = "x"\n'
    for text, message in (
        (head + 'family = "none"', "unknown family 'none'"),
        (head + 'family = "tiny"\nspeed = 3', "unknown key 'speed'"),
        (head + 'kind = "lora"\nfamily = "tiny"', "x is a 'lora' of the family 'tiny'"),
        (head + 'kind = "model"', "x is a 'model' of the family None"),
        (head + 'family = "tiny"\nparts = { vae = "no" }', "unknown part 'no'"),
        (head + 'family = "tiny"\nparts = { vae = { sha = 1 } }', "unknown key 'sha' in vae"),
        (head + 'family = "tiny"\nparts = { vae = { path = "v" } }', "where its vae comes from"),
        ("schema = 2", "schema 2"),
        ("schema", "not valid TOML"),
    ):
        file.write_text(text)
        with pytest.raises(WeightsError, match=message):
            manifest.read_manifest(file)


def test_an_unknown_name_leads_to_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown model 'wan2.2-tiv2-5b'") as caught:
        manifest.find("wan2.2-tiv2-5b")
    assert str(caught.value.hint).startswith("did you mean wan2.2-ti2v-5b?")
