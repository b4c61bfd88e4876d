"""What can go wrong between this machine and a hub, each in one line with the next command.

The errors of `huggingface_hub` and of its HTTP library are told apart by what they carry, not by
the library's name, which has changed. Their own words are not passed on: they hold addresses that
may be signed.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from urllib.parse import urlsplit

from sora_cli.errors import WeightsError

_TRANSIENT = (408, 429, 500, 502, 503, 504)
_NO_SPACE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def explain(
    error: BaseException, repository: str, file: str | None, *, again: str, cache: Path
) -> WeightsError:
    """Another library's error in our words.

    Args:
        repository, file: what was wanted.
        again: the command that goes on, for the hint.
        cache: the hub's cache folder.
    """
    from huggingface_hub import errors

    what = repository if file is None else f"{file} of {repository}"
    code = _status(error)
    if isinstance(error, WeightsError):
        return error
    if isinstance(error, errors.OfflineModeIsEnabled):
        return WeightsError(
            f"HF_HUB_OFFLINE is set, and {what} is not here",
            hint=f"with a network: HF_HUB_OFFLINE=0 {again}; "
            "for files you have: sora weights import PATH",
        )
    if isinstance(error, errors.GatedRepoError):
        return WeightsError(
            f"{repository} is gated ({code}): its publisher asks you to accept terms first",
            hint=f"accept them at {endpoint()}/{repository}, then: hf auth login (or set "
            f"HF_TOKEN), and {again}",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"there is no {repository} at {endpoint()} ({code}): renamed, removed or private",
            hint=f"for a private one: hf auth login (or set HF_TOKEN), and {again}; "
            "else: pip install --upgrade sora-cli",
        )
    if code in (401, 403):
        return WeightsError(
            f"{endpoint()} does not let this token read {repository} ({code})",
            hint=f"hf auth login, or another HF_TOKEN, then: {again}",
        )
    if code is not None:
        return _explain_status(code, what, again)
    return _explain_failure(error, what, again, cache)


def _explain_status(code: int, what: str, again: str) -> WeightsError:
    if code == 404:
        return missing(what)
    return WeightsError(f"{endpoint()} answers {code} for {what}", hint=f"later: {again}")


def missing(what: str) -> WeightsError:
    """A file or revision that the hub does not have, or has no more."""
    return WeightsError(
        f"there is no {what} at {endpoint()} (404): renamed or removed",
        hint="a newer version may know: pip install --upgrade sora-cli; for files you have: "
        "sora weights import PATH",
    )


def _explain_failure(error: BaseException, what: str, again: str, cache: Path) -> WeightsError:
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return WeightsError(
            f"no space left in {cache} for {what}",
            hint=f"free some, or set HF_HOME to a larger disk, then: {again}",
        )
    if isinstance(error, OSError) and error.filename is not None:
        return WeightsError(f"{error.filename}: {error.strerror}", hint=f"mend that, then: {again}")
    lines = str(error).splitlines() or [type(error).__name__]
    reason = re.sub(r"\S+://\S+", "…", lines[0])
    if not is_transient(error):
        return WeightsError(f"{what} cannot be pulled: {reason}", hint=f"later: {again}")
    return WeightsError(
        f"no connection to {endpoint()} for {what}: {reason}",
        hint=f"check the network, the proxy and HF_ENDPOINT, then: {again}",
    )


def endpoint() -> str:
    """The hub's address as people know it, without what may be secret in it."""
    from huggingface_hub.constants import ENDPOINT

    parts = urlsplit(ENDPOINT)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}"


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    code = _status(error)
    return code in _TRANSIENT if code is not None else _is_a(error, "TransportError")


def is_cut(error: BaseException) -> bool:
    """Whether the connection broke in the middle, or the hub has no more of a file."""
    return is_past_end(error) or _is_a(error, "RemoteProtocolError")


def is_past_end(error: BaseException | None) -> bool:
    """Whether bytes were asked for that come after those the hub has."""
    return error is not None and _status(error) == 416


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None


def _is_a(error: BaseException, name: str) -> bool:
    """By name: the library is httpx in some versions and httpx2 in others."""
    return any(kind.__name__ == name for kind in type(error).__mro__)
