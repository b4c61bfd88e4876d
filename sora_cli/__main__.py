"""`python -m sora_cli` is `sora`."""

from __future__ import annotations

from sora_cli.cli.main import run

if __name__ == "__main__":
    run()
