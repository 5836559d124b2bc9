"""The router of `fast`, which other systems have too: which of its revisions serves how many tokens."""

from __future__ import annotations

from collections.abc import Mapping

UP_TO = {2: 15, 16: 15, 128: 15}
"""By number of tokens, the revision of `fast` that brought the router of up to so many."""
BEYOND = 15
"""That of more tokens."""


def by_router(own: Mapping[int, int]) -> tuple[int, Mapping[int, int]]:
    """(`revision`, `revisions_up_to`) of a system with this router; own: its revision by that of `fast` which brought
    the router, so that a new one asks every system for a number."""
    revisions = {most: own[UP_TO[most]] for most in sorted(UP_TO)}
    beyond = dict(zip(revisions, [*list(revisions.values())[1:], own[BEYOND]]))
    return own[BEYOND], {most: revision for most, revision in revisions.items() if revision != beyond[most]}
