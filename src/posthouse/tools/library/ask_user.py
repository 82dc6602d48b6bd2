"""The tool `ask_user`: a person answers."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from posthouse.errors import ToolFailed
from posthouse.inputs.model import Kind, Request
from posthouse.tools.define import tool
from posthouse.tools.model import Effect

Choice = Annotated[str, Field(min_length=1, max_length=200)]


@tool(effect=Effect.READ)
async def ask_user(
    question: Annotated[str, Field(min_length=1, max_length=2000)],
    choices: Annotated[list[Choice], Field(max_length=20)] | None = None,
) -> str:
    """Ask the person you work for, when you cannot go on without their answer. It may take long.

    Args:
        question: What you need to know, in one or two sentences that can be understood without your task.
        choices: What they may choose from; leave it out when any answer will do.
    """
    raise ToolFailed("nobody can be asked here", kind="unavailable")


def _question(arguments: Mapping[str, Any]) -> Request:
    choices = arguments.get("choices")
    form = {"type": "string", "enum": choices} if choices else None
    return Request(kind=Kind.QUESTION, question=arguments["question"], form=form, tool="ask_user")


ask_user = replace(ask_user, question=_question)
