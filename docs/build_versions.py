"""All versions of the site in one folder: `python docs/build_versions.py FOLDER ADDRESS`.

The newest commit is built into `dev`, and each tag `v<version>` into `<version>`. `switcher.json` lists them
for the menu of versions, and `index.html` leads to the newest release.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def versions(tags: list[str]) -> dict[str, str]:
    """Return the names of the versions, the newest first, and what to check out for each."""
    released = [tag for tag in tags if re.fullmatch(r"v\d+(\.\d+)*", tag)]
    released.sort(key=lambda tag: [int(part) for part in tag[1:].split(".")], reverse=True)
    return {"dev": "HEAD"} | {tag[1:]: tag for tag in released}


def menu(names: list[str], address: str) -> list[dict[str, str | bool]]:
    """Return the entries of the menu; the newest release, if there is one, is the preferred version."""
    newest = next((name for name in names if name != "dev"), "dev")
    return [
        {"version": name, "name": f"{name} (newest release)" if name == newest != "dev" else name}
        | {"url": f"{address}/{name}/", "preferred": name == newest}
        for name in names
    ]


def build(folder: Path, address: str) -> None:
    """Build each version with its own packages; warnings are errors in the newest only."""
    tags = subprocess.run(["git", "tag"], capture_output=True, text=True, check=True).stdout.split()
    known = versions(tags)
    for name, ref in known.items():
        with tempfile.TemporaryDirectory() as copy:
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", copy, ref], check=True)
            # The notebooks are run; that on style takes the weights of the extra.
            command = ["uv", "run", "--directory", copy, "--group", "docs", "--extra", "style"]
            command += ["sphinx-build", "-q"]
            strict = ["-W", "--keep-going"] if name == "dev" else []
            site = os.environ | {"PL_LOSSES_SITE": address, "PL_LOSSES_SITE_VERSION": name}
            subprocess.run([*command, *strict, "docs", folder.resolve() / name], env=site, check=True)
            subprocess.run(["git", "worktree", "remove", "--force", copy], check=True)
    entries = menu(list(known), address)
    (folder / "switcher.json").write_text(json.dumps(entries, indent=2))
    first = next(entry["version"] for entry in entries if entry["preferred"])
    (folder / "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={first}/">\n')


if __name__ == "__main__":
    build(Path(sys.argv[1]), sys.argv[2].rstrip("/"))
