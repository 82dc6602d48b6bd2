"""The analyst: compares and weighs the results that it is given."""

from posthouse.agents.spec import AgentSpec

analyst = AgentSpec(
    name="analyst",
    description="Compares, weighs and draws conclusions from results that it is given; searches for nothing itself.",
    prompt="analyst.v1",
)
