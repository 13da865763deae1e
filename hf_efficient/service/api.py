"""The HTTP API of an app.

``POST /api/answer`` takes a request of the app as JSON and gives its answer; the app may add more under ``/api``.
``GET /health`` and ``GET /metrics`` (Prometheus) are for whoever watches over it, ``/docs`` describes all of it.
Whatever is refused comes as ``{"error": "..."}``: 401 no token, 413 too much, 422 not what the app takes, 503 with
Retry-After where too many wait; 400 what is no text at all.
"""

import asyncio
import time
from contextlib import asynccontextmanager
from typing import Any

from hf_efficient.app import App
from hf_efficient.errors import BusyError, MissingDependencyError, RequestError
from hf_efficient.service.batching import Batcher
from hf_efficient.service.guards import BodyLimit, TokenGuard
from hf_efficient.service.metrics import Metrics

PATH = "/api"
BODY_BYTES = 256 * 1024
"""Most that a request may hold, unless the app allows more."""

RETRY_SECONDS = 1


def build_api(app: App, batcher: Batcher, metrics: Metrics, token: str | None = None) -> Any:
    """A `fastapi.FastAPI` that answers with ``app`` through ``batcher``, which it closes when it shuts down.

    Args:
        token: what every request must bring; None asks for none.

    Raises:
        MissingDependencyError: FastAPI is not installed.
    """
    try:
        from fastapi import APIRouter, FastAPI
        from fastapi.exceptions import RequestValidationError
        from fastapi.responses import JSONResponse, PlainTextResponse
        from starlette.exceptions import HTTPException
    except ImportError as error:
        raise MissingDependencyError("serving", "fastapi", "apps") from error

    @asynccontextmanager
    async def lifespan(api: Any) -> Any:
        yield
        await asyncio.to_thread(batcher.close)

    api = FastAPI(title=f"hf_efficient: {app.name}", lifespan=lifespan)
    router = APIRouter(prefix=PATH)

    def refused(status: int, said: str) -> Any:
        headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
        return JSONResponse({"error": said}, status, headers)

    async def answer(request: Any) -> Any:
        began = time.perf_counter()
        try:
            response = JSONResponse(await asyncio.wrap_future(batcher.submit(request)))
        except BusyError as error:
            response = refused(503, str(error))
        except RequestError as error:
            response = refused(422, str(error))
        metrics.answered(response.status_code, time.perf_counter() - began)
        return response

    answer.__annotations__["request"] = app.request_class
    router.post("/answer", summary=(app.__doc__ or "").strip().splitlines()[0], response_model=None)(answer)
    app.add_routes(router)
    api.include_router(router)

    @api.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "app": app.name, "runtime": app.predictor.runtime.name, "waiting": len(batcher)}

    @api.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> str:
        return metrics.text()

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Any, error: Any) -> Any:
        metrics.answered(422, 0)
        return refused(422, worded(error.errors()))

    @api.exception_handler(HTTPException)
    async def failed(request: Any, error: Any) -> Any:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    for kind, status in ((RequestError, 422), (BusyError, 503)):  # of the app's own endpoints
        api.add_exception_handler(kind, lambda request, error, status=status: refused(status, str(error)))
    api.add_middleware(BodyLimit, limit=app.body_bytes or BODY_BYTES, path=PATH)
    if token is not None:
        api.add_middleware(TokenGuard, token=token)
    return api


def worded(errors: Any) -> str:
    """Findings of pydantic in a sentence each."""
    said = []
    for error in errors:
        where = ".".join(str(part) for part in error["loc"] if part != "body")
        text = error["msg"].removeprefix("Value error, ")
        said.append(f"{where}: {text}" if where else f"the request is not what is taken: {text}")
    return "; ".join(said)
