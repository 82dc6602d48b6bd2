"""A browser's own EventSource on both stream routes: live, cut, resumed, and stopped for good at the end."""

import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no browser here: install chromium to run the EventSource tests"
)

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

LISTEN = """([path, named]) => {
    window.seen = [];
    window.errors = 0;
    window.source = new EventSource(path);
    const keep = message => window.seen.push([Number(message.lastEventId), message.type, JSON.parse(message.data)]);
    for (const name of named) window.source.addEventListener(name, keep);
    window.source.onmessage = keep;
    window.source.onerror = () => { window.errors += 1; };
}"""


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield await browser.new_page()
        await browser.close()


async def seen(page: Page, count: int) -> list[Any]:
    await page.wait_for_function(f"window.seen.length >= {count}", timeout=15_000)
    return list(await page.evaluate("window.seen"))


async def closed_for_good(page: Page) -> None:
    await page.wait_for_function("window.source.readyState === EventSource.CLOSED", timeout=15_000)


async def test_the_native_stream_in_a_browser(api, scribe, page: Page) -> None:
    await page.goto(f"http://127.0.0.1:{api.port}/health/live")
    names = ["run.created", "run.started", "turn.completed", "message.completed", "run.completed"]
    await page.evaluate(LISTEN, [f"/api/v1/runs/{scribe.run_id}/stream", names])
    await seen(page, 2)
    await scribe.write("turn.completed", agent="researcher", step="researcher/turn:1")
    await seen(page, 3)
    await scribe.redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await scribe.write("message.completed", data='{"text":"hi","length":2}')
    await seen(page, 4)
    await scribe.end()
    events = await seen(page, 5)
    assert [number for number, _, _ in events] == [1, 2, 3, 4, 5]
    assert [kind for _, kind, _ in events] == names
    assert [data["seq"] for _, _, data in events] == [1, 2, 3, 4, 5]
    await closed_for_good(page)
    assert len(await page.evaluate("window.seen")) == 5


async def test_the_progress_stream_in_a_browser(api, scribe, page: Page) -> None:
    await page.goto(f"http://127.0.0.1:{api.port}/health/live")
    await page.evaluate(LISTEN, [f"/api/v1/workflows/{scribe.run_id}/stream", []])
    await seen(page, 1)
    await scribe.write("tool.completed", agent="researcher", step="researcher/turn:1/tool:a")
    await page.wait_for_function("window.seen.at(-1)[2].steps_count === 1", timeout=15_000)
    await scribe.end()
    await page.wait_for_function("window.seen.at(-1)[2].status === 'completed'", timeout=15_000)
    events = await page.evaluate("window.seen")
    assert {kind for _, kind, _ in events} == {"message"}
    assert events[-1][2]["workflow_id"] == scribe.run_id
    assert events[-1][2]["output"] == {"text": "hi"}
    numbers = [number for number, _, _ in events]
    assert numbers == sorted(set(numbers))
    await closed_for_good(page)
