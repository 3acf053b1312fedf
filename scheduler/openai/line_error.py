"""The error of one invalid line of a batch."""

from __future__ import annotations

from jobs.messages import short, short_message


class LineError(Exception):
    """One line's body is invalid; other lines are not affected."""

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        """
        Args:
            message: One clear sentence.
            code: `missing_required_parameter`, `unknown_parameter`, `unsupported_parameter`, `invalid_value` or
                `url_not_allowed`.
            param: The invalid key of the body.
        """
        super().__init__(message)
        self.message, self.code, self.param = short_message(message), code, param and short(param)
