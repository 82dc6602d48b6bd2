"""The researcher: searches, reads, checks and cites."""

from posthouse.agents.spec import AgentSpec

researcher = AgentSpec(
    name="researcher",
    description="Finds authoritative sources, reads them, checks them and cites.",
    prompt="researcher.v1",
    tools=("search_web", "extract_content"),
    tier="fast",
)
