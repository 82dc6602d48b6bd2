"""Whether the process lives, whether it can take in runs, and what it measures."""

from fastapi import APIRouter, Response
from redis.asyncio import Redis

from api_app.service import Serving, json_response, promptly
from posthouse.errors import StorageUnavailable
from posthouse.storage.connect import available
from posthouse.telemetry import CONTENT_TYPE

router = APIRouter(tags=["health"])


@router.get("/health/live", summary="Does the process live?")
async def live() -> Response:
    """Always 200: a process that answers needs no restart."""
    return json_response({"status": "live"})


@router.get("/health/ready", summary="Can it take in runs?")
async def ready(service: Serving) -> Response:
    """200 when Redis takes writes, else 503."""
    async with promptly():
        await check_writable(service.redis)
    return json_response({"status": "ready"})


@router.get("/metrics", summary="Measurements for Prometheus", response_class=Response)
async def metrics(service: Serving) -> Response:
    """Prometheus' text format."""
    return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})


async def check_writable(redis: Redis) -> None:
    """Raises StorageUnavailable unless Redis answers, is no replica, and has memory left."""
    with available():
        pipe = redis.pipeline(transaction=False)
        pipe.execute_command("ROLE")
        pipe.info("memory")
        [role, *_], memory = await pipe.execute()
    if role not in (b"master", "master"):
        raise StorageUnavailable("Redis is a replica and takes no writes")
    if 0 < memory["maxmemory"] <= memory["used_memory"]:
        raise StorageUnavailable("Redis is full")
