"""`--help` of a command with a TASK argument, which also lists the parameters of a given task."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from jobs.specs.parameters import PARAMETERS
from jobs.specs.parameters.task_parameters import TaskParameters
from jobs.specs.tasks import find_task

_ARGUMENT = "task"


class TaskCommand(TyperCommand):
    """A command whose help lists the parameters of the task that its arguments name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. The task's name is read first, since `--help` ends the command."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        ctx.meta[_ARGUMENT] = given.get(_ARGUMENT)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the parameters of the task at the end of the help."""
        name = ctx.meta.get(_ARGUMENT)
        task = find_task(name) if isinstance(name, str) else None
        if task is None:
            return
        model = PARAMETERS[task.name]
        with formatter.section(f"Parameters of {task.name} (--param K=V)"):
            for parameter in model.names():
                formatter.write_text(f"{parameter}: {model.expected(parameter)}{_default(model, parameter)}")
                with formatter.indentation():
                    formatter.write_text(str(model.model_fields[parameter].description))
            if model.is_open():
                formatter.write_text("Also accepted: the parameters of its transformers pipeline and of its model.")
            elif not model.names():
                formatter.write_text("This task has no parameters.")


def _default(model: type[TaskParameters], parameter: str) -> str:
    """End of a parameter's line: its default, or an empty string."""
    default = model.model_fields[parameter].get_default(call_default_factory=True)
    if default is None or default in ([], {}):
        return ""
    shown = str(default).lower() if isinstance(default, bool) else repr(default)
    return f" [default: {shown}]"
