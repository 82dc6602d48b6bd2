"""The planner: divides a goal into subtasks for other agents."""

from posthouse.agents.spec import AgentSpec

planner = AgentSpec(
    name="planner",
    description="Divides a goal into subtasks for other agents, and says which need the results of which.",
    prompt="planner.v1",
    tier="smart",
)
