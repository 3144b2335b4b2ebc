"""Whether every link within a built site leads somewhere: `python docs/check_links.py FOLDER`."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Links(HTMLParser):
    """The links of a page, and the places in it that links may lead to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places = {"", "top"}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what a tag links to, and its name."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name in ("id", "name") and value:
                self.places.add(value)


def broken(folder: Path) -> list[str]:
    """Return the links of a folder's pages that lead to no file of it, or to no place on a page."""
    pages = {path.resolve(): Links(path) for path in sorted(folder.rglob("*.html"))}
    made = (folder / "_static").resolve()
    found = []
    for path, page in pages.items():
        if path.is_relative_to(made):
            continue
        for link in page.links:
            scheme, host, to, _, place = urlsplit(link)
            if scheme or host:
                continue
            target = (path.parent / unquote(to)).resolve() if to else path
            target = target / "index.html" if target.is_dir() else target
            known = pages.get(target)
            if not target.is_file() or (known and unquote(place) not in known.places):
                found.append(f"{path.relative_to(folder.resolve())}: {link}")
    return found


if __name__ == "__main__":
    lost = broken(Path(sys.argv[1]))
    print(*lost, sep="\n", end="\n" if lost else "")
    sys.exit(bool(lost))
