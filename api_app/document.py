"""The OpenAPI document, with problem details on every error."""

from typing import Any

from fastapi import FastAPI

from api_app.problems import MEDIA_TYPE, Problem

REFERENCE = "#/components/schemas/{model}"


def add_problem_document(app: FastAPI) -> None:
    """From now on the document says what an error looks like."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _add_problems(generate())
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add_problems(document: dict[str, Any]) -> None:
    schema = Problem.model_json_schema(ref_template=REFERENCE)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas |= schema.pop("$defs", {}) | {"Problem": schema}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    content = {MEDIA_TYPE: {"schema": {"$ref": REFERENCE.format(model="Problem")}}}
    for path in document["paths"].values():
        for operation in path.values():
            responses = operation["responses"]
            responses.pop("422", None)
            responses["4XX"] = {"description": "The request cannot be served", "content": content}
            responses["5XX"] = {"description": "The service cannot answer", "content": content}
