"""The clerk: knows the rates, and says what a letter costs."""

from posthouse.agents.spec import AgentSpec

clerk = AgentSpec(
    name="clerk",
    description="Says what it costs to send a letter.",
    prompt="clerk.v1",
    tools=("postage",),
    max_iterations=4,
)
