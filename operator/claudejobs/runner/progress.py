"""How far the agent is, read from its own task list."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TaskList:
    """The agent's tasks, as its calls of TaskCreate, TaskUpdate and TodoWrite tell them.

    The percentage is the share of completed tasks and never goes down, though tasks may be added.
    """

    percent: int = 0
    message: str = ""
    _tasks: dict[str, dict[str, str]] = field(default_factory=dict)
    _calls: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    def called(self, call_id: str, tool: str, tool_input: dict[str, Any]) -> None:
        """A tool call was seen; it counts when its result is."""
        if tool in ("TaskCreate", "TaskUpdate", "TodoWrite"):
            self._calls[call_id] = (tool, tool_input)

    def ended(self, call_id: str, is_error: bool, result: Any) -> bool:
        """A call's result was seen; ``result`` is the tool's structured one. True when the view changed."""
        call = self._calls.pop(call_id, None)
        if call is None or is_error:
            return False
        tool, tool_input = call
        if tool == "TodoWrite":
            self._tasks = {
                str(number): _strings(todo)
                for number, todo in enumerate(tool_input.get("todos") or [])
                if isinstance(todo, dict)
            }
        elif tool == "TaskCreate":
            made = result.get("task") if isinstance(result, dict) else None
            task_id = str(made["id"]) if isinstance(made, dict) and "id" in made else f"call-{call_id}"
            self._tasks[task_id] = _strings(tool_input) | {"status": "pending"}
        else:
            self._update(str(tool_input.get("taskId", "")), tool_input)
        return self._changed()

    def _update(self, task_id: str, tool_input: dict[str, Any]) -> None:
        if tool_input.get("status") == "deleted":
            self._tasks.pop(task_id, None)
        else:
            # A resumed session may update tasks that an earlier attempt made.
            self._tasks.setdefault(task_id, {}).update(_strings(tool_input))

    def _changed(self) -> bool:
        before = (self.percent, self.message)
        states = [task.get("status", "pending") for task in self._tasks.values()]
        if states:
            self.percent = max(self.percent, 100 * states.count("completed") // len(states))
        active = [task for task in self._tasks.values() if task.get("status") == "in_progress"]
        if active:
            self.message = next((active[0][k] for k in ("activeForm", "subject", "content") if k in active[0]), "")
        return (self.percent, self.message) != before


def _strings(values: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in values.items() if isinstance(value, str)}
