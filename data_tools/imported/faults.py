"""What can be wrong with a published document, by the names under which it is counted."""


class Refused(Exception):
    """This document cannot be trained on. `reason` is counted in the report, `detail` is for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Repairs:
    """What was mended in one document: every kind counts once."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def note(self, name: str) -> None:
        self.names.add(name)
