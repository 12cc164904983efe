"""Locks after fork(): a thread that held one is gone in the child, so the child needs new ones."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class HasLocks(Protocol):
    """An object that can make its locks anew."""

    def renew_locks(self) -> None:
        """Put unlocked locks in the place of all locks."""


_owners: weakref.WeakSet[HasLocks] = weakref.WeakSet()


def renew_after_fork(owner: HasLocks) -> None:
    """Have an object's locks made anew in every child process; it is held weakly."""
    _owners.add(owner)


def _renew_all() -> None:
    for owner in list(_owners):
        owner.renew_locks()


os.register_at_fork(after_in_child=_renew_all)
