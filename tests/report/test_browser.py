"""The page in a real browser: nothing fails, nothing is loaded, tables sort.

Drives headless Chromium by its DevTools protocol over a pipe: JSON messages that end
with a zero byte, so that no driver has to be installed.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_cells

from metarl.evaluation.cell_records import (
    Video,
)
from metarl.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SQUARE = Path(__file__).parents[1] / "data" / "square.mp4"
HOSTILE = "<script>alert(1)</script>"


class Browser:
    """One tab."""

    def __init__(self, program: str, profile: Path) -> None:
        to_browser, our_end = os.pipe()
        self._in, from_browser = os.pipe()
        self._out, self._ids = our_end, itertools.count(1)
        self._unread, self.events = b"", []
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "-"),
                program,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--remote-debugging-pipe",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session: str | None = None
        (target,) = (
            t
            for t in self.call("Target.getTargets")["targetInfos"]
            if t["type"] == "page"
        )
        self._session = self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Call a method and wait for its answer; events on the way are kept."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path) -> None:
        """Open a file and wait until it is loaded."""
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive())

    def run(self, expression: str) -> Any:
        """Return what an expression is, promises waited for."""
        found = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def methods(self, name: str) -> list[dict[str, Any]]:
        """Return the parameters of the events of a name."""
        return [e["params"] for e in self.events if e.get("method") == name]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], 1)
            assert time.monotonic() < deadline, "the browser does not answer"
            assert self._process.poll() is None, "the browser is gone"
            if ready:
                self._unread += os.read(self._in, 1 << 16)
        line, _, self._unread = self._unread.partition(b"\0")
        return json.loads(line)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    tab = Browser(program, tmp_path_factory.mktemp("profile"))
    yield tab
    tab.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    (folder / "videos").mkdir()
    shutil.copy(SQUARE, folder / "videos" / "final.mp4")
    report_cells.store_all(
        folder,
        {
            ("actor_critic", "Catch-v0"): [0.1, 0.2],
            ("random", "Catch-v0"): [-0.9, -0.8],
        },
    )
    for seed, final in enumerate([0.9, 1.0], start=1):
        cell = report_cells.make_cell(HOSTILE, "Catch-v0", seed)
        videos = [Video("final", "videos/final.mp4", final, 1000)]
        report_cells.store(folder, cell, final, videos=videos)
    written, _ = write_report([folder])
    return written


def test_the_page_works_alone(browser, page):
    browser.open(page)
    assert browser.run("document.title").startswith(HOSTILE)
    assert browser.run("document.querySelectorAll('main script').length") == 0
    sizes = browser.run(
        "Promise.all([...document.images].map(async (x) => {"
        "await x.decode(); return Math.min(x.naturalWidth, x.naturalHeight)}))"
    )
    assert len(sizes) == 5  # four of the aggregates, one of the game
    assert min(sizes) > 300
    clips = browser.run(
        "Promise.all([...document.querySelectorAll('video')].map((x) => new Promise("
        "(done) => {const say = () => done([x.videoWidth, x.videoHeight]);"
        "x.readyState ? say() : x.addEventListener('loadedmetadata', say);"
        "x.addEventListener('error', () => done(x.error.message))})))"
    )
    assert clips == [[32, 32]]
    assert browser.methods("Runtime.exceptionThrown") == []
    assert browser.methods("Log.entryAdded") == []
    assert browser.methods("Runtime.consoleAPICalled") == []
    requests = {
        r["request"]["url"].partition(":")[0]
        for r in browser.methods("Network.requestWillBeSent")
    }
    assert requests == {"file", "data"}


def test_on_paper_videos_are_pictures_and_short_lists_are_open(browser, page):
    browser.open(page)
    controls = "document.querySelector('video').controls"
    opened = "document.querySelector('#origin details').open"
    assert (browser.run(controls), browser.run(opened)) == (True, False)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert (browser.run(controls), browser.run(opened)) == (False, True)
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run(controls) is True


def column(browser: Browser, index: int) -> list[str]:
    return browser.run(
        "[...document.querySelectorAll('#table-scores tbody tr')]"
        f".map((row) => row.cells[{index}].textContent)"
    )


def test_tables_sort_by_their_headings(browser, page):
    browser.open(page)
    head = "document.querySelectorAll('#table-scores th')"
    names = browser.run(f"[...{head}].map((x) => x.textContent)")
    at = names.index("return")
    sort = f"{head}[{at}].getAttribute('aria-sort')"
    assert browser.run(sort) == "none"
    # By the keyboard: the heading is a button.
    browser.run(f"{head}[{at}].querySelector('button').focus()")
    for key in ("keyDown", "keyUp"):
        browser.call(
            "Input.dispatchKeyEvent",
            type=key,
            key="Enter",
            code="Enter",
            text="\r",
            windowsVirtualKeyCode=13,
        )
    assert browser.run(sort) == "ascending"
    rules = column(browser, names.index("rule"))
    assert rules == ["random", "actor_critic", HOSTILE]
    browser.run(f"{head}[{at}].querySelector('button').click()")
    assert browser.run(sort) == "descending"
    assert column(browser, names.index("rule")) == rules[::-1]
    # What is missing (the baseline's own) is last either way.
    better = names.index("P(better than baseline)")
    for _ in range(2):
        browser.run(f"{head}[{better}].querySelector('button').click()")
        assert column(browser, better)[-1] == "–"
    assert browser.run(sort) == "none"


def test_nothing_is_wider_than_a_phone(browser, page):
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=740,
        deviceScaleFactor=2,
        mobile=True,
    )
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") == 360
    narrow = browser.run(
        "[...document.images].every((x) => x.getBoundingClientRect().width > 300)"
    )
    assert narrow
    # A table of 15 columns scrolls, says so, and keeps its first column in sight.
    hints = "[...document.querySelectorAll('#scores .hint')].map((x) => x.offsetHeight)"
    assert min(browser.run(hints)) > 0
    place = (
        "document.querySelector('#table-scores tbody th').getBoundingClientRect().left"
    )
    before = browser.run(place)
    browser.run("document.querySelector('#scores .wide').scrollLeft = 300")
    assert browser.run(place) == before
    browser.call("Emulation.clearDeviceMetricsOverride")
