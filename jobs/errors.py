"""One tree of errors: each class says its code, its HTTP status and whether trying again can help."""

from __future__ import annotations

from jobs.messages import short, short_message


class StokerError(Exception):
    """Something went wrong."""

    code: str = "internal_error"
    http_status: int = 500
    retryable: bool = False

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        """
        Args:
            message: one clear sentence; the class's docstring when absent. What it quotes of a client's is cut.
            param: the field of the spec or request that is at fault, dotted (`input.path`), if one is.
        """
        self.message = short_message(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.param = None if param is None else short(param)
        super().__init__(self.message)


# -- the user's errors: never retried, never blamed on the machine ------------------------------------------------


class UserError(StokerError):
    """The request cannot be carried out as it stands."""

    code = "invalid_request"
    http_status = 400


class InvalidSpec(UserError):
    """The job's spec is not valid."""

    code = "invalid_spec"


class InvalidInput(UserError):
    """The job's input cannot be read as rows."""

    code = "invalid_input"


class TooManyRows(InvalidInput):
    """The input has more rows than its project may have in the queue at all."""

    code = "too_many_rows"


class InvalidModel(UserError):
    """The model cannot be used for this task."""

    code = "invalid_model"


class InvalidOutput(UserError):
    """The job's output cannot be written where it was asked for."""

    code = "invalid_output"


class Unauthorized(UserError):
    """The API key is missing or not valid."""

    code = "invalid_api_key"
    http_status = 401


class Forbidden(UserError):
    """This path or action is not allowed here."""

    code = "forbidden"
    http_status = 403


class NotFound(UserError):
    """There is no such thing."""

    code = "not_found"
    http_status = 404


class UnknownModel(NotFound):
    """There is no model of this name."""

    code = "model_not_found"


class RequestTimeout(UserError):
    """The client sent nothing for too long in the middle of its request."""

    code = "request_timeout"
    http_status = 408
    retryable = True


class Conflict(UserError):
    """The thing is not in a state that allows this."""

    code = "conflict"
    http_status = 409


class TooLarge(UserError):
    """The upload, line or row is larger than the limit."""

    code = "too_large"
    http_status = 413


class LossNotFinite(UserError):
    """The loss is not a finite number."""

    code = "loss_not_finite"


class ModuleFailed(UserError):
    """The training's module failed."""

    code = "module_failed"


class ModelTooLarge(UserError):
    """The training does not fit into the device's memory."""

    code = "training_too_large"


# -- refusals for now: nothing is wrong with the request, and the same one is taken when there is room --------------


class TooManyRequests(UserError):
    """The project sends more requests than it may."""

    code = "rate_limit_exceeded"
    http_status = 429
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after_seconds: int, param: str | None = None) -> None:
        """
        Args:
            message: as for every error.
            retry_after_seconds: when a client should ask again.
            param: as for every error.
        """
        super().__init__(message, param=param)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(TooManyRequests):
    """The project has as many rows in the queue as it may."""

    code = "queued_rows_exceeded"


class StorageFull(TooManyRequests):
    """The project's uploads are as large as they may be."""

    code = "upload_bytes_exceeded"


# -- the machine's errors: retried, never blamed on the user -------------------------------------------------------


class MachineError(StokerError):
    """A machine, process or service failed."""

    code = "machine_error"
    http_status = 503
    retryable = True


class LostLease(MachineError):
    """The lease is no longer the live owner; whatever its holder wanted to record was refused."""

    code = "lost_lease"
    http_status = 409


class RunnerDied(MachineError):
    """The runner process ended before its work did."""

    code = "runner_died"


class RunnerStalled(MachineError):
    """The runner made no progress for too long and was ended."""

    code = "runner_stalled"


class DeviceOutOfMemory(MachineError):
    """The device has too little memory for this work."""

    code = "out_of_memory"


class NotKept(MachineError):
    """What a training computed could not be written down."""

    code = "not_kept"


class StoreUnwritable(MachineError):
    """The artifact store takes no checkpoint now, so nothing is computed until it does."""

    code = "store_unwritable"


class ServiceUnavailable(MachineError):
    """The database, Redis or the artifact store cannot be reached."""

    code = "service_unavailable"


class DeadlineExceeded(StokerError):
    """The job's time limit passed before it was done."""

    code = "time_limit"
    http_status = 409


class TooManyRowErrors(StokerError):
    """More rows failed than the job allows."""

    code = "too_many_row_errors"
    http_status = 409
