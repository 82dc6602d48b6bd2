async def test_the_front_page_names_places_that_are_there(client):
    page = (await client.get("/")).json()

    assert page.pop("service") == "posthouse"
    for place in (page["docs"], page["openapi"], page["api"] + "/workflows"):
        assert (await client.get(place)).status_code == 200, place
