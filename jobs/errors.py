"""The tree of errors. Each class has a code, an HTTP status, and whether a retry can help."""

from __future__ import annotations

from jobs.messages import short, short_message


class StokerError(Exception):
    """Stoker failed because of a bug or an unexpected error."""

    code: str = "internal_error"
    http_status: int = 500
    retryable: bool = False

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        """
        Args:
            message: One clear sentence; the first line of the class's docstring when absent. Long quotations are cut.
            param: The dotted name of the invalid field of the spec or request (`input.path`), if there is one.
        """
        self.message = short_message(message or (type(self).__doc__ or "").strip().splitlines()[0])
        self.param = None if param is None else short(param)
        super().__init__(self.message)


# -- errors of the user, which are never retried -------------------------------------------------------------------


class UserError(StokerError):
    """The request is not valid."""

    code = "invalid_request"
    http_status = 400


class InvalidSpec(UserError):
    """The job's spec is not valid."""

    code = "invalid_spec"


class InvalidInput(UserError):
    """The job's input cannot be read as rows."""

    code = "invalid_input"


class TooManyRows(InvalidInput):
    """The input has more rows than the project's queue can hold. Split it."""

    code = "too_many_rows"


class InvalidModel(UserError):
    """The model cannot be used for this task."""

    code = "invalid_model"


class InvalidOutput(UserError):
    """The job's output cannot be written to its path."""

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
    """The requested object does not exist."""

    code = "not_found"
    http_status = 404


class UnknownModel(NotFound):
    """There is no model of this name."""

    code = "model_not_found"


class RequestTimeout(UserError):
    """The client stopped sending in the middle of its request."""

    code = "request_timeout"
    http_status = 408
    retryable = True


class Conflict(UserError):
    """The current state of the object does not allow this action."""

    code = "conflict"
    http_status = 409


class PromiseRefused(UserError):
    """The job cannot be promised to be done by that time."""

    code = "promise_refused"
    http_status = 409


class TooLarge(UserError):
    """The upload, line or row is larger than the limit."""

    code = "too_large"
    http_status = 413


class LossNotFinite(UserError):
    """The loss is not a finite number."""

    code = "loss_not_finite"


class ModuleFailed(UserError):
    """The training's module raised an error."""

    code = "module_failed"


class ModelTooLarge(UserError):
    """The training does not fit in the device's memory."""

    code = "training_too_large"


# -- temporary rejections of valid requests, which succeed once there is room ---------------------------------------


class TooManyRequests(UserError):
    """The project has reached its limit of requests. Try again later."""

    code = "rate_limit_exceeded"
    http_status = 429
    retryable = True

    def __init__(self, message: str | None = None, *, retry_after_seconds: int, param: str | None = None) -> None:
        """
        Args:
            message: See `StokerError`.
            retry_after_seconds: Time after which the client should send the request again.
            param: See `StokerError`.
        """
        super().__init__(message, param=param)
        self.retry_after_seconds = retry_after_seconds


class QueueFull(TooManyRequests):
    """The project's queue is full. Try again when some rows are done."""

    code = "queued_rows_exceeded"


class StorageFull(TooManyRequests):
    """The project's upload storage is full. Delete uploads, or wait until they expire."""

    code = "upload_bytes_exceeded"


# -- errors of machines and services, which are retried ------------------------------------------------------------


class MachineError(StokerError):
    """A machine, process or service failed."""

    code = "machine_error"
    http_status = 503
    retryable = True


class LostLease(MachineError):
    """The lease has ended, so nothing more can be recorded under it."""

    code = "lost_lease"
    http_status = 409


class RunnerDied(MachineError):
    """The runner process ended before its work was done."""

    code = "runner_died"


class RunnerStalled(MachineError):
    """The runner made no progress for too long and was killed."""

    code = "runner_stalled"


class DeviceOutOfMemory(MachineError):
    """The device has too little memory for this work."""

    code = "out_of_memory"


class NotKept(MachineError):
    """A checkpoint or the model of a training could not be stored."""

    code = "not_kept"


class StoreUnwritable(MachineError):
    """The artifact store does not accept checkpoints now. The training waits until it does."""

    code = "store_unwritable"


class ServiceUnavailable(MachineError):
    """The database, Redis or the artifact store cannot be reached."""

    code = "service_unavailable"


class DeadlineExceeded(StokerError):
    """The job reached its time limit before it was done."""

    code = "time_limit"
    http_status = 409


class DependencyFailed(StokerError):
    """A job that this one comes after did not complete."""

    code = "dependency_failed"
    http_status = 409


class ChildrenFailed(StokerError):
    """Some children of the array did not complete."""

    code = "children_failed"
    http_status = 409


class TooManyRowErrors(StokerError):
    """More rows failed than the job allows (max_row_errors)."""

    code = "too_many_row_errors"
    http_status = 409
