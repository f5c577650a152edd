"""Data that a process makes once from what it is sent, and keeps for the tasks that follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Shared(Protocol):
    """Data sent to each worker once; its token tells it from others."""

    @property
    def token(self) -> str:
        """Text that tells shared data from others."""


S = TypeVar("S", bound=Shared)
T = TypeVar("T")


class Held(Generic[S, T]):
    """Cache in this process of one object made from shared data, until that of others is asked for.

    Parameters
    ----------
    make
        Function that makes the object; the one held before is freed first.
    """

    def __init__(self, make: Callable[[S], T]) -> None:
        self._make = make
        self._held: dict[str, T] = {}

    def __call__(self, shared: S) -> T:
        """The object made from ``shared``, now or before."""
        if shared.token not in self._held:
            self._held.clear()
            self._held[shared.token] = self._make(shared)
        return self._held[shared.token]

    def forget(self) -> None:
        """Free the object that is held."""
        self._held.clear()
