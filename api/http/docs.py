"""/docs: Swagger UI from files that a wheel ships (fastapi-offline): the page asks no other host for anything.

Its addresses are relative, so that it works below the prefix of a proxy.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

ASSETS = "/docs/assets"

_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Detector distillation: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{ASSETS[1:]}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{ASSETS[1:]}/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = """const here = new URL(".", location.href);

// The document's paths begin at the service; a proxy may have put it below a prefix.
function below(request) {
  const asked = new URL(request.url, here);
  const apart = asked.origin === here.origin && !asked.pathname.startsWith(here.pathname);
  if (apart) request.url = here.href + asked.pathname.slice(1) + asked.search;
  return request;
}

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
  requestInterceptor: below,
});
"""
_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
def page() -> Response:
    return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _POLICY})


@router.get("/docs/start.js")
def start() -> Response:
    return Response(_START, media_type="text/javascript")


def install(app: FastAPI) -> None:
    app.include_router(router)
    app.mount(ASSETS, StaticFiles(directory=_assets()), name="docs-assets")


def _assets() -> Path:
    """The folder of the wheel's files; the package itself is not imported."""
    package = find_spec("fastapi_offline")
    assert package is not None, "fastapi-offline is a dependency"
    assert package.submodule_search_locations is not None, "and a package"
    return Path(next(iter(package.submodule_search_locations))) / "static"
