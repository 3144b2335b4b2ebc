"""The README of the built package: its links lead to the files of the repository, at the version's tag."""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r'(\]\(|\bsrc=")(?!https?://|#|mailto:)([^)"]+)')


def absolute(text: str, address: str, version: str) -> str:
    """Return the text with its relative links made absolute; pictures are shown, pages are opened."""

    def linked(match: re.Match[str]) -> str:
        view = "blob" if match[1] == "](" and not match[2].endswith((".png", ".jpg")) else "raw"
        return f"{match[1]}{address}/{view}/v{version}/{match[2]}"

    return LINK.sub(linked, text)


class ReadmeHook(MetadataHookInterface):
    """Fills in `readme` and, where the repository's address is known, `urls`."""

    def update(self, metadata: dict) -> None:
        """Take the address from the workflow that builds a release; elsewhere links stay relative."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        if repository := os.environ.get("GITHUB_REPOSITORY"):
            address = f"{os.environ.get('GITHUB_SERVER_URL', 'https://github.com')}/{repository}"
            text = absolute(text, address, metadata["version"])
            metadata["urls"] = {"Source": address, "Changelog": f"{address}/blob/main/CHANGELOG.md"}
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
