"""What a file says of where it comes from, and how much of that holds: recipe, signature, trust.

Three things that are not one another. A recipe is what a program wrote; a signature says that
nothing changed since; trust says whose signature it is. A certificate can be made by anybody, so a
sound signature of an unknown chain says nothing of who made a file. What a file holds is a
stranger's: it is shown on one line, without control characters, and nothing is fetched for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sora_cli.errors import UsageError
from sora_cli.media import provenance_keys, recipe
from sora_cli.media.provenance import OFFLINE

Signature = Literal["valid", "broken", "none"]
Trust = Literal["own", "list", "unknown", "expired", "none"]

# What a failure says of the certificate and not of the file (C2PA Technical Specification 2.1,
# 15.2.2). Each other failure means that the signature does not hold.
_UNTRUSTED = {"signingCredential.untrusted"}
_EXPIRED = {"signingCredential.expired", "claimSignature.outsideValidity"}
_BOUND = re.compile(r"assertion\.(dataHash|bmffHash|boxesHash)\.match")
_SHOWN = 80  # characters of a stranger's text
_ELSEWHERE = "it names one at another place, which is not fetched"


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What was found in a file.

    signer: as the certificate says it. sources: digital source types (the last part of their
    address), of the file itself. ingredients: (name, how it was used, how its own signature was
    when this file was signed: valid, broken, none). problems: why the signature is broken.
    stripped: the recipe says that the file was signed, and it is not.
    """

    path: str
    recipe: Mapping[str, Any] | None
    signature: Signature
    trust: Trust
    signer: str | None = None
    sources: tuple[str, ...] = ()
    ingredients: tuple[tuple[str, str, Signature], ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def stripped(self) -> bool:
        """Whether a signature that the recipe speaks of is not there."""
        known = self.recipe is not None and self.recipe.get("signed") is True
        return known and self.signature == "none" and not self.problems

    def say(self) -> list[str]:
        """One line each for recipe, signature and trust, then one for each ingredient."""
        return [
            f"recipe: {self._say_recipe()}",
            f"signature: {self._say_signature()}",
            f"trust: {self._say_trust()}",
            *(
                f"made from: {name} ({how}; its own signature: {state})"
                for name, how, state in self.ingredients
            ),
        ]

    def _say_recipe(self) -> str:
        if self.recipe is None:
            return "none"
        told = [f"schema {_line(self.recipe.get('schema'))}"]
        told += [f"sora {_line(self.recipe['version'])}"] if "version" in self.recipe else []
        told += [_line(self.recipe["verb"])] if "verb" in self.recipe else []
        said = {
            "valid": "intact: unchanged since it was signed",
            "broken": "the file was changed after it was signed, so perhaps this too",
            "none": "nothing protects it: anybody can write one or change it",
        }
        return f"present ({', '.join(told)}; {said[self.signature]})"

    def _say_signature(self) -> str:
        if self.signature == "broken":
            return f"broken ({', '.join(self.problems)})"
        if self.signature == "valid":
            made = f"; it says: {', '.join(self.sources)}" if self.sources else ""
            return f"valid (the file is as it was signed{made})"
        if self.problems:
            return f"none ({', '.join(self.problems)})"
        if self.stripped:
            return "none (the recipe says that there was one: it was removed)"
        return "none"

    def _say_trust(self) -> str:
        who = "" if self.signer is None else f" ({self.signer})"
        return {
            "own": f"your own CA{who}",
            "list": f"on your trust list{who}",
            "unknown": f"unknown chain{who}: anybody can make such a certificate",
            "expired": f"expired certificate{who}: it could have been signed since by anybody",
            "none": "none, because no signature holds",
        }[self.trust]

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        made = [
            {"name": name, "relation": how, "signature": state}
            for name, how, state in self.ingredients
        ]
        intact = {"valid": True, "broken": False, "none": None}[self.signature]
        known = self.recipe is not None
        return {
            "path": self.path,
            "recipe": {
                "present": known,
                "schema": self.recipe.get("schema") if self.recipe is not None else None,
                "intact": intact if known else None,
            },
            "signature": {
                "state": self.signature,
                "stripped": self.stripped,
                "problems": list(self.problems),
                "digital_source_types": list(self.sources),
                "ingredients": made,
            },
            "trust": {"state": self.trust, "signer": self.signer},
        }


def check(path: Path, trust: Path | None = None) -> Findings:
    """Look at a file's recipe, its signature, and whose that is.

    Args:
        trust: certificates (PEM) of authorities that the user trusts.

    Raises:
        UsageError: there is no such file, it cannot be read, or the extra is missing.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path} is not a regular file", hint="sora verify FILE")
    try:
        found: Mapping[str, Any] | None = recipe.read(path)
    except UsageError:
        if not path.is_dir() and not _readable(path):
            raise
        found = None
    nothing = Findings(path=str(path), recipe=found, signature="none", trust="none")
    if path.is_dir():
        return nothing
    provenance_keys.need()
    own = provenance_keys.authorities()
    lists = None if trust is None else provenance_keys.trust_list(trust)
    report, problem = _read(path, own)
    if problem is not None:
        elsewhere = problem.startswith("Remote")
        said = _ELSEWHERE if elsewhere else f"it cannot be read: {problem}"
        return replace(nothing, signature="none" if elsewhere else "broken", problems=(said,))
    if report is None:
        return nothing
    chain: Trust = _trust(report, "own")
    if chain == "unknown" and lists is not None:
        again, _ = _read(path, lists)
        chain = "unknown" if again is None else _trust(again, "list")
    return _findings(nothing, report, chain)


def _readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except OSError:
        return False


def _read(path: Path, anchors: bytes | None) -> tuple[dict[str, Any] | None, str | None]:
    """The SDK's report, or None where there is no manifest; or why there is none that is one."""
    import c2pa

    settings = dict(OFFLINE)
    if anchors is not None:
        settings["trust"] = {"user_anchors": anchors.decode("ascii", "replace")}
    try:
        with (
            c2pa.Context.from_dict(settings) as context,
            path.open("rb") as file,
            c2pa.Reader(None, file, context=context) as reader,
        ):
            return json.loads(reader.json()), None
    except (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported):
        return None, None
    except c2pa.C2paError as error:
        return None, _line(str(error).strip() or type(error).__name__)
    except ValueError:
        return None, "its report is no JSON"


def _codes(results: object, kind: str) -> list[str]:
    """Codes of the active manifest: of success, of failure."""
    active = results.get("activeManifest") if isinstance(results, dict) else None
    rows = active.get(kind) if isinstance(active, dict) else None
    return [str(row.get("code")) for row in rows or () if isinstance(row, dict)]


def _trust(report: Mapping[str, Any], known: Trust) -> Trust:
    results = report.get("validation_results")
    failed = set(_codes(results, "failure"))
    if failed & _EXPIRED:
        return "expired"
    trusted = "signingCredential.trusted" in _codes(results, "success")
    return known if trusted and not failed & _UNTRUSTED else "unknown"


def _state(results: object) -> tuple[Signature, tuple[str, ...]]:
    """Whether a signature holds: what must have been found was, and nothing failed."""
    failed = _codes(results, "failure")
    problems = [code for code in failed if code not in _UNTRUSTED | _EXPIRED]
    passed = _codes(results, "success")
    if "claimSignature.validated" not in passed and not problems:
        problems.append("no signature of the claim")
    if not any(_BOUND.fullmatch(code) for code in passed) and not problems:
        problems.append("nothing binds it to this file")
    return ("broken" if problems else "valid"), tuple(_line(code) for code in problems)


def _findings(nothing: Findings, report: Mapping[str, Any], chain: Trust) -> Findings:
    results = report.get("validation_results")
    state, problems = _state(results)
    manifests, active = report.get("manifests"), report.get("active_manifest")
    manifest = manifests.get(active) if isinstance(manifests, dict) else None
    manifest = manifest if isinstance(manifest, dict) else {}
    if report.get("validation_state") == "Invalid" and state == "valid" and chain != "expired":
        state, problems = "broken", ("one of its ingredients",)
    info = manifest.get("signature_info")
    named = [info.get(key) for key in ("common_name", "issuer")] if isinstance(info, dict) else []
    return replace(
        nothing,
        signature=state,
        trust="none" if state == "broken" else chain,
        signer=next((_line(name) for name in named if name), None),
        sources=tuple(dict.fromkeys(_sources(manifest))),
        ingredients=tuple(_ingredients(manifest)),
        problems=problems,
    )


def _sources(manifest: Mapping[str, Any]) -> Iterator[str]:
    for assertion in manifest.get("assertions") or ():
        data = assertion.get("data") if isinstance(assertion, dict) else None
        actions = data.get("actions") if isinstance(data, dict) else None
        for action in actions if isinstance(actions, list) else ():
            kind = action.get("digitalSourceType") if isinstance(action, dict) else None
            if isinstance(kind, str):
                yield _line(kind.rsplit("/", 1)[-1])


def _ingredients(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, Signature]]:
    for ingredient in manifest.get("ingredients") or ():
        if not isinstance(ingredient, dict):
            continue
        name, how = (_line(ingredient.get(key)) for key in ("title", "relationship"))
        signed = ingredient.get("active_manifest") is not None
        state = _state(ingredient.get("validation_results"))[0] if signed else "none"
        yield name, how, state


def _line(value: object) -> str:
    """A stranger's text on one short line that a terminal only shows."""
    text = "".join(c if c.isprintable() else "?" for c in str(value)[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
