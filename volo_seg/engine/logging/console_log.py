"""Which log messages reach the console beside the view; the log file keeps every one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

if TYPE_CHECKING:
    from volo_seg.engine.logging.console_screen import Screen

HOOK = 'ConsoleHook'
CHATTER = (
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'Advance dataloader',
    'Checkpoints will be saved to',
    'Config:',
    'Distributed training is not used',
    'Exp name:',
    'Hooks will be executed',
    'Iter(',
    'Epoch(',
    'Loads checkpoint by',
    'Reach the end of the dataloader',
    'Please make sure that the mlflow server',
    'The previous best checkpoint',
    'paramwise_options',
)
"""How messages of MMEngine begin that tell nothing while a run goes as it should; the view says the rest."""


def wants_console(config: Config | dict[str, Any]) -> bool:
    """Whether ``config`` asks for the view."""
    return any(isinstance(hook, dict) and hook.get('type') == HOOK for hook in config.get('custom_hooks') or ())


def take_over(logger: logging.Logger, screen: Screen, *, tables: bool = False) -> None:
    """Let what ``logger`` wrote to the terminal go to ``screen``, less the chatter. Its files stay as they are."""
    for index, handler in enumerate(logger.handlers):
        if type(handler) is logging.StreamHandler or isinstance(handler, ScreenHandler):
            replacement = ScreenHandler(screen, tables=tables)
            replacement.setLevel(handler.level)
            for old in handler.filters:
                replacement.addFilter(old)
            logger.handlers[index] = replacement


def is_worth_showing(record: logging.LogRecord, *, tables: bool) -> bool:
    """Warnings always, else single lines that are no chatter; with ``tables`` longer messages too."""
    message = record.getMessage()
    if message.lstrip().startswith(CHATTER):
        return False
    if record.levelno >= logging.WARNING:
        return True
    if 'System environment:' in message[:200] or not message.strip():
        return False
    return tables or '\n' not in message.strip()


class ScreenHandler(logging.Handler):
    """Prints log messages on a screen: those worth it, without date and name."""

    def __init__(self, screen: Screen, *, tables: bool) -> None:
        super().__init__()
        self.screen, self.tables = screen, tables

    @property
    def stream(self) -> Any:
        """Where it ends up; a tracker of MMEngine looks for it."""
        import sys

        return sys.stdout

    def emit(self, record: logging.LogRecord) -> None:
        """Print ``record`` if it is worth it."""
        try:
            if not is_worth_showing(record, tables=self.tables):
                return
            level = record.levelname.lower()
            if record.levelno >= logging.ERROR:
                self.screen.line(f'{level}: {self.format(record)}', style='red')
            elif record.levelno >= logging.WARNING:
                self.screen.line(f'{level}: {self.format(record)}', style='yellow')
            else:
                self.screen.line(self.format(record))
        except Exception:  # a message must never end a training
            self.handleError(record)
