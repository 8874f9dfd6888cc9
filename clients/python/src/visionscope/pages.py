"""Lists, which the server answers page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some items of a list."""

    items: list[T]
    next: str | None
    """The `cursor` of what follows. Events have it on the last page too, for what comes later."""
    has_more: bool


class Pages(Generic[T]):
    """A list. Loop over it for its items, which are fetched as they are needed, or over `pages()`."""

    def __init__(self, fetch: Callable[[str | None], Page[T]], cursor: str | None) -> None:
        self._fetch = fetch
        self._cursor = cursor

    def __iter__(self) -> Iterator[T]:
        for page in self.pages():
            yield from page.items

    def pages(self) -> Iterator[Page[T]]:
        """The pages, at least one. A page may be empty although more follow."""
        cursor = self._cursor
        while True:
            page = self._fetch(cursor)
            yield page
            if not page.has_more or page.next is None:
                return
            cursor = page.next
