"""What a process makes once of what it is sent, and keeps for the tasks that follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Shared(Protocol):
    """What is sent to each worker once; its token tells it from others."""

    @property
    def token(self) -> str:
        """Different for whatever is not the same."""


S = TypeVar("S", bound=Shared)
T = TypeVar("T")


class Held(Generic[S, T]):
    """Something made of what is shared, kept in this process until another one is asked for.

    Parameters
    ----------
    make
        Makes it; what was held before is freed first.
    """

    def __init__(self, make: Callable[[S], T]) -> None:
        self._make = make
        self._held: dict[str, T] = {}

    def __call__(self, shared: S) -> T:
        """What is made of ``shared``, now or before."""
        if shared.token not in self._held:
            self._held.clear()
            self._held[shared.token] = self._make(shared)
        return self._held[shared.token]

    def forget(self) -> None:
        """Free what is held."""
        self._held.clear()
