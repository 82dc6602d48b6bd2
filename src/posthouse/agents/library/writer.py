"""The writer: makes one text of the results that it is given."""

from posthouse.agents.spec import AgentSpec

writer = AgentSpec(
    name="writer",
    description="Makes one clear text, with its citations, of results that it is given; searches for nothing itself.",
    prompt="writer.v1",
)
