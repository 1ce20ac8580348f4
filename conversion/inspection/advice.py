"""What would stand in the way. Found by taking the steps of the other commands, so that it says what they would say."""

from collections.abc import Callable
from typing import TypeVar

from nemo_longpo.errors import InputError

Result = TypeVar("Result")


class Advice(list[str]):
    def attempt(self, purpose: str, step: Callable[[], Result]) -> Result | None:
        """What `step` returns; None if the input does not allow it, which is then noted."""
        try:
            return step()
        except InputError as error:
            self.note(f"{purpose}: {error}")
            return None

    def note(self, line: str) -> None:
        """Once, even if several steps stumble over the same thing."""
        if line not in self:
            self.append(line)
