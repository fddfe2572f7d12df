"""One thing that the server answers, and the description of all of them as OpenAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from moecli import __version__
from moecli.serve.http import Body

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A path, who answers it, and what its body is, if it has one."""

    method: str
    path: str
    handler: Handler
    body: type[Body] | None = None

    def mounted(self) -> StarletteRoute:
        """As the server takes it."""

        async def endpoint(request: Request) -> Response:
            return await self.handler(request)

        return StarletteRoute(self.path, endpoint, methods=[self.method])


def described(routes: Iterable[Route]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    routes = list(routes)
    bodies = list(dict.fromkeys(each.body for each in routes if each.body))
    named, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for each in routes:
        path = each.path.replace(":path}", "}")
        operation: dict[str, Any] = {"responses": {"default": {"description": "An answer, or an error in words"}}}
        if "{" in path:
            operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        if each.body:
            schema = named[each.body, "validation"]
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths.setdefault(path, {})[each.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "moecli", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas.get("$defs", {})},
    }
