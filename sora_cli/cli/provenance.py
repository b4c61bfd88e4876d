"""`sora provenance`: what files are signed with; `sora verify`: what a file says of its origin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sora_cli.cli import options
from sora_cli.errors import SoraError

if TYPE_CHECKING:
    from sora_cli.cli.output import Output
    from sora_cli.media.provenance_keys import Signer

app = typer.Typer(
    help="Make and show what files are signed with.",
    rich_markup_mode=None,
    no_args_is_help=True,
)


@app.command("init")
def init_keys(
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="TEXT", help="Who signs, as readers elsewhere show it."),
    ] = None,
    days: Annotated[
        int | None, typer.Option("--days", help="How long the certificate lasts. [default: 3650]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the key that there is with a new one.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Make a key, a certificate and an authority of your own to sign with, on this machine.

    Programs elsewhere do not know that authority, and show what it signs as untrusted.
    """
    from sora_cli.media import provenance_keys as keys

    out = options.output_of(context)
    out.configure(as_json=as_json)
    made = keys.init(
        name=keys.NAME if name is None else name,
        days=keys.DAYS if days is None else days,
        force=force,
    )
    out.note("only you know this authority: programs elsewhere show its signatures as untrusted")
    _show(out, made, keys.folder() / keys.CERTIFICATE)


@app.command("show")
def show_keys(context: typer.Context, as_json: options.AsJson = False) -> None:
    """Show the certificate that --sign uses."""
    from sora_cli.media import provenance_keys as keys
    from sora_cli.runtime.preferences import preferred_path

    out = options.output_of(context)
    out.configure(as_json=as_json)
    certificate = preferred_path("sign_certificate")
    found = keys.load(certificate, preferred_path("sign_key"))
    _show(out, found, certificate or keys.folder() / keys.CERTIFICATE)


def _show(out: Output, signer: Signer, path: Path) -> None:
    facts: dict[str, Any] = {
        "name": signer.name,
        "certificate": str(path),
        "algorithm": signer.algorithm,
        "valid_until": f"{signer.until:%Y-%m-%d}",
    }
    out.facts(facts)


def verify(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A video, a picture, a folder.")],
    trust: Annotated[
        Path | None,
        typer.Option(
            "--trust", metavar="PEM",
            help="Certificates of authorities that you trust. [default: SORA_TRUST, config.toml]",
        ),
    ] = None,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Fail where there is no signature.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Say what a file tells of its origin, and what holds.

    Recipe, signature and trust are three things: what was written, that it is unchanged, by whom.
    Exit code 1 where the signature is broken: the file was changed after it was signed.
    """
    from sora_cli import app as verbs
    from sora_cli.runtime.preferences import preferred_path

    out = options.output_of(context)
    out.configure(as_json=as_json)
    listed = preferred_path("trust") if trust is None else trust.expanduser()
    found = verbs.verify(file.expanduser(), listed)
    out.result("\n".join(found.say()), found.to_json())
    if found.signature == "broken":
        raise SoraError(
            f"the signature of {file} is broken", hint="get the file from where it was made"
        )
    if require_signature and found.signature == "none":
        raise SoraError(
            f"{file} has no signature", hint="with one it is made by: sora generate PROMPT --sign"
        )
