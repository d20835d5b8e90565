"""Which jobs wait for which."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def find_cycle(start: str, depends_on: Callable[[str], Iterable[str]]) -> list[str]:
    """A way from a job back to itself along ``depends_on``, both ends included; empty when there is none."""
    came_from: dict[str, str] = {}
    queue = [start]
    while queue:
        name = queue.pop()
        for wanted in depends_on(name):
            if wanted == start:
                path = [start, name]
                while path[-1] != start:
                    path.append(came_from[path[-1]])
                return path[::-1] if len(path) > 2 else [start, start]
            if wanted not in came_from:
                came_from[wanted] = name
                queue.append(wanted)
    return []
