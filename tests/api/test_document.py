async def test_the_document_says_what_an_error_looks_like(client):
    document = (await client.get("/openapi.json")).json()

    operations = [op for path in document["paths"].values() for op in path.values()]
    assert len(operations) == 32
    for operation in operations:
        for status in ("4XX", "5XX"):
            [(kind, content)] = operation["responses"][status]["content"].items()
            assert kind == "application/problem+json"
            assert content["schema"]["$ref"] == "#/components/schemas/Problem"
        assert "422" not in operation["responses"]
        assert operation["summary"]
    assert "run_id" in document["components"]["schemas"]["Problem"]["properties"]
    assert "HTTPValidationError" not in str(document)


async def test_there_is_a_page_to_try_it(client):
    assert (await client.get("/docs")).status_code == 200
