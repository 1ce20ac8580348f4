"""What can be wrong with a published document, by the names under which it is counted."""

# The kinds of repairs in one document.
Repairs = set[str]


class Refused(Exception):
    """This document cannot be trained on. `reason` is counted in the report, `detail` is for people."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
