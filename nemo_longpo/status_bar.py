"""A bar on the terminal that moves a status file too: one count for who started work and for who looks at it later."""

from typing import Any

from tqdm import tqdm

from nemo_longpo.live_status import StatusFile


class StatusBar(tqdm):
    """Its count, behind what was done `before` it, is that of `status`; so is its postfix. One decimal is shown."""

    def __init__(self, status: StatusFile | None, *, before: float = 0, **shown: Any):
        # Without `miniters` tqdm would adapt to quick requests, and then not show slow ones.
        super().__init__(**{"miniters": 0, **shown})
        self.status, self._before = status, before

    @property
    def format_dict(self) -> dict[str, Any]:
        shown = super().format_dict
        done = round(shown["n"], 1)
        return shown | {"n": int(done) if done == int(done) else done}

    def begin(self) -> None:
        """Time counts from here on: a model is loaded, say."""
        self.start_t = self.last_print_t = self._time()
        if self.status:
            self.status.begin()

    def update(self, n: float | None = 1) -> bool | None:
        shown: bool | None = super().update(n)
        if self.status:
            self.status.update(done=max(self._before + self.n, 0), said=self.postfix or "")
        return shown
