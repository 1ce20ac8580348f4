"""The log of a training run, for rooms that know no trainer: each trainer's room says where its lines go."""

import logging
from typing import Any

LOG = logging.Logger("nemo_longpo.run", logging.INFO)
"""None of the registry: trainers set levels and filters on all of those, Bridge a filter that drops warnings."""


class _PassedOn(logging.Handler):
    def __init__(self, receiver: Any):
        super().__init__()
        self.receiver = receiver

    def emit(self, record: logging.LogRecord) -> None:
        getattr(self.receiver, record.levelname.lower())(record.getMessage())


def send_to(receiver: Any) -> None:
    """Pass every line, from `info` on, to the method of `receiver` that has the name of its level."""
    LOG.handlers = [_PassedOn(receiver)]
