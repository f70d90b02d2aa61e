"""The elements of a page, for tests of the report."""

from __future__ import annotations

from html.parser import HTMLParser


class Tags(HTMLParser):
    """Counts open tags, and remembers what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.classes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.fetched += [v or "" for k, v in attrs if k == "src" or (k == "href" and not (v or "").startswith("#"))]
        self.classes += [name for k, v in attrs if k == "class" for name in (v or "").split()]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
