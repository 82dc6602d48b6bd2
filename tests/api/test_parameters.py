"""A query parameter that a route does not know is refused and named, and never passed over."""

import pytest

RUNS = "/api/v1/runs"
RUN_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def test_a_filter_that_is_misspelt_is_refused(client):
    response = await client.get(f"{RUNS}?stauts=failed&limit=1")
    body = response.json()

    assert (response.status_code, body["code"]) == (400, "invalid_request")
    message = "there is no such parameter here; this route takes: cursor, limit, status, workflow"
    assert body["errors"] == [{"location": "query.stauts", "message": message}]
    assert body["detail"] == f"query.stauts: {message}"


async def test_no_route_of_the_api_takes_a_parameter_that_it_does_not_know(app, client):
    asked = [
        (method.upper(), path, {p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"})
        for path, operations in app.openapi()["paths"].items()
        for method, operation in operations.items()
        if path.startswith("/api/")
    ]  # fmt: skip
    assert len(asked) > 20
    for method, path, known in asked:
        place = path.replace("{", "").replace("}", "")
        response = await client.request(method, place, params={"stauts": "x"}, json={})
        assert response.status_code == 400, (method, path)
        [error] = [one for one in response.json()["errors"] if one["location"] == "query.stauts"]
        takes = f": {', '.join(sorted(known))}" if known else " none"
        assert error["message"] == f"there is no such parameter here; this route takes{takes}"


@pytest.mark.parametrize("query", ["x", "x=&y=1", "%C3%28=1", "x" * 5_000, "Limit=1", "limit =1"])
async def test_strange_names_are_named(client, query):
    body = (await client.get(f"{RUNS}/{RUN_ID}?{query}")).json()
    assert body["code"] == "invalid_request"
    assert len(body["errors"]) == query.count("&") + 1
    assert all(len(error["location"]) <= 200 for error in body["errors"])


async def test_without_a_parameter_nothing_is_refused(client):
    for query in ("", "?", "?&"):
        assert (await client.get(f"{RUNS}{query}")).status_code == 200
