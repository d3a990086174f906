"""A page in Debian's Chromium, without a window."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def browser() -> Iterator[Any]:
    """A driver of Chromium; no page may log an error."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs Debian's packages chromium and chromium-driver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1600"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        yield driver
        log = driver.get_log("browser")
    finally:
        driver.quit()
    assert log == []


@contextmanager
def browsed(file: Path, num_charts: int) -> Iterator[Any]:
    """A driver that shows the page with this number of charts; the page must load nothing and log no error."""
    from selenium.webdriver.support.ui import WebDriverWait

    with browser() as driver:
        driver.get(file.as_uri())
        WebDriverWait(driver, 20).until(lambda _: len(driver.find_elements("css selector", "svg.marks")) == num_charts)
        yield driver
        assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0


def wait_until(is_true: Callable[[], bool]) -> None:
    """Charts are drawn a moment after an event."""
    end = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


def prefer(browser: Any, scheme: str) -> None:
    """Switch between `light` and `dark`."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


@contextmanager
def on_phone(browser: Any) -> Iterator[None]:
    """Inside, the page is 420 pixels wide."""
    metrics = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    yield
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
