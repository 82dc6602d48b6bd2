async def test_definitions_come_with_their_schemas(client):
    listed = (await client.get("/api/v1/workflows")).json()["workflows"]
    echo = (await client.get("/api/v1/workflows/echo")).json()

    assert [definition["name"] for definition in listed] == ["echo", "research"]
    assert listed[0] == echo
    assert (echo["version"], echo["description"]) == (2, "Says it again.")
    assert echo["input_schema"]["required"] == ["text"]
    assert echo["output_schema"]["properties"]["text"]["type"] == "string"


async def test_an_unknown_definition_is_not_found(client):
    response = await client.get("/api/v1/workflows/nothing")

    assert response.status_code == 404
    assert "echo, research" in response.json()["detail"]


async def test_submitting_at_a_definition_is_told_where_to_go(client):
    known = await client.post("/api/v1/workflows/echo", json={"text": "hi"})
    unknown = await client.post("/api/v1/workflows/nothing", json={})

    assert (known.status_code, unknown.status_code) == (404, 404)
    assert "POST /api/v1/runs" in known.json()["detail"]
    assert unknown.json()["detail"] == "there is no workflow 'nothing'; there are: echo, research"
