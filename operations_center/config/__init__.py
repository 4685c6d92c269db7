"""The configuration: found, read with its overrides, checked as a whole, shown, and written for a new user.

    find_config → load_config → Config

``sections`` is the list of what may be written. Everything that is wrong with a file is one ConfigError.
"""

from operations_center.config.discovery import FILE_NAME, VARIABLE, find_config, warning_of_named
from operations_center.config.hints import Hint, hints
from operations_center.config.http_job import HttpJobSettings
from operations_center.config.loading import load_config
from operations_center.config.overrides import overrides_in_force
from operations_center.config.sections import (
    Backend,
    Board,
    BoardStates,
    Center,
    CodePull,
    CommandSettings,
    Config,
    OnFailure,
    OnSuccess,
    RetryBackoff,
    Role,
    Watchdog,
    Web,
)
from operations_center.config.showing import merged
from operations_center.config.template import template_text, write_template
from operations_center.units import format_duration, format_size, parse_duration, parse_size

__all__ = [
    "FILE_NAME",
    "VARIABLE",
    "Backend",
    "Board",
    "BoardStates",
    "Center",
    "CodePull",
    "CommandSettings",
    "Config",
    "Hint",
    "HttpJobSettings",
    "OnFailure",
    "OnSuccess",
    "RetryBackoff",
    "Role",
    "Watchdog",
    "Web",
    "find_config",
    "format_duration",
    "format_size",
    "hints",
    "load_config",
    "merged",
    "overrides_in_force",
    "parse_duration",
    "parse_size",
    "template_text",
    "warning_of_named",
    "write_template",
]
