"""The page in headless Chromium, of a system of real processes that are really killed."""

import contextlib
import re
import shutil
import signal

import numpy as np
import pytest

from agentlace.config import BrokerURL
from agentlace.transport.connection import Broker
from tests.services.support import wait_until

from .support import ADMIN
from .system import System

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
    pytest.mark.timeout(180),
]

DEADLINE_MS = 30_000
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
DESKTOP = {"viewport": {"width": 1440, "height": 900}}
RATE = re.compile(r"^[1-9][\d.]*k?/s$")


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        api.expect.set_options(timeout=DEADLINE_MS)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def system():
    with System() as system:
        yield system


@pytest.fixture
def opened(browser):
    """Open pages; none may log an error, or be refused what it asks for."""
    with contextlib.ExitStack() as stack:
        troubles = []

        def opened(url, **kwargs):
            context = stack.enter_context(contextlib.closing(browser.new_context(**kwargs)))
            context.set_default_timeout(DEADLINE_MS)
            page = context.new_page()
            page.on("pageerror", lambda error: troubles.append(str(error)))
            page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
            page.goto(url)
            return page

        opened.troubles = troubles
        yield opened
    assert troubles == []


def expect(locator):
    return api.expect(locator)


def is_within(page):
    """Whether nothing sticks out to the right."""
    width, inner = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return width <= inner


def rows(page):
    return page.locator("#rows tr")


def row(page, name):
    return rows(page).filter(has_text=name)


def test_the_page_shows_the_system(system, opened):
    page = opened(system.url, **DESKTOP)
    expect(page.locator("#broker")).to_contain_text(f"redis://127.0.0.1:{system.port}")
    expect(rows(page)).to_have_count(7)
    names = set(page.locator("#rows .node").all_inner_texts())
    assert {"robot-00", "robot-01", "trainer:5555", "action:5556", "inference:5600"} < names
    # Edges: what the actors send, what the trainer takes and publishes, requests.
    rates = page.locator(".lane").first.locator(".rate")
    expect(rates).to_have_count(4)
    for number in range(4):
        expect(rates.nth(number)).to_have_text(RATE)
    expect(page.locator(".lane")).to_have_count(3)
    assert page.locator(".edge.live").count() >= 6
    # Plots: drawn, with a value for each series.
    for title in ("Transitions", "Not yet taken", "Policy age", "Requests answered"):
        head = page.get_by_role("heading", name=re.compile(f"^{title}"))
        expect(head).to_be_visible()
    for name in ("episode_return", "critic_loss"):
        card = page.locator(".chart").filter(has_text=name)
        expect(card.locator("canvas")).to_be_visible()
        expect(card.locator(".series li").first).to_contain_text(re.compile(r"-?\d"))
    # Policy age of an actor, in the table.
    expect(row(page, "robot-00").locator("td").nth(5)).to_have_text(re.compile(r"^[\d.]+ (s|ms)$"))
    assert is_within(page)


def test_cameras_move(system, opened):
    pytest.importorskip("cv2")
    page = opened(system.url, **DESKTOP)
    page.locator("#cameras").scroll_into_view_if_needed()
    images = page.locator("#frames img")
    expect(images).to_have_count(2)
    assert [images.nth(i).evaluate("image => image.naturalWidth") for i in (0, 1)] == [320, 320]
    first = images.first.get_attribute("src")
    page.wait_for_function(
        "first => document.querySelector('#frames img').src !== first", arg=first
    )
    expect(page.locator("figcaption").first).to_contain_text("image/wrist")


def test_a_viewer_sees_no_buttons_and_an_admin_pauses_and_saves(system, opened):
    page = opened(system.url, **DESKTOP)
    expect(page.locator("#role")).to_have_text("viewer")
    expect(rows(page)).not_to_have_count(0)
    assert page.locator("#controls").is_hidden()
    page.get_by_role("link", name="Log in as admin").click()
    page.get_by_label("Password").fill(ADMIN)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#role")).to_have_text("admin")
    told = page.locator("#controls output")
    page.get_by_role("button", name="Pause actors").click()
    expect(told).to_have_text("all actors paused")
    expect(row(page, "robot-00").locator(".state")).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(told).to_have_text("resumed")
    expect(row(page, "robot-00").locator(".state")).to_have_text("at work")
    page.get_by_role("button", name="Save checkpoint").click()
    expect(told).to_contain_text("checkpoint saved in")
    assert (system.path / "checkpoint").is_dir()
    kinds = page.locator("#log .kind")
    expect(kinds.filter(has_text="paused").first).to_be_visible()
    expect(kinds.filter(has_text="command").first).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    expect(page.locator("#role")).to_have_text("viewer")


def test_names_from_the_network_stay_text(system, opened):
    """Whatever a node calls itself, the page runs and shows none of it as markup."""
    hostile = "<img src=x onerror=document.title='owned'><b id=owned>"
    broker = Broker(BrokerURL.parse(f"redis://127.0.0.1:{system.port}"))
    told = (
        f'{{"role": "client", "name": "{hostile}", "host": "{hostile}", "pid": 1, "token": "t",'
        f' "does": "actor", "waits": ["{hostile}"], "told": 1, "events": [[1, "{hostile}", "x"]],'
        f' "samples": [["reported", {{"name": "{hostile}"}}, 1.5]], "progress_ms": %d}}'
    )
    page = opened(system.url, **DESKTOP)
    with contextlib.closing(broker.channel()) as channel:
        value = (told % broker.now_ms()).encode()
        channel.call("SET", "al:{default:trainer:5555}:client:hostile", value, "PX", 8000)
        expect(row(page, "<b id=owned>")).to_be_visible()
        expect(page.locator(".chart").filter(has_text="<b id=owned>")).to_be_visible()
        expect(page.locator("#problems")).to_contain_text("<b id=owned>")
        assert page.locator("#owned").count() == 0
        assert page.locator("#rows img, #log img, #problems img, #graph img").count() == 0
        assert "owned" not in page.title()
        channel.call("DEL", "al:{default:trainer:5555}:client:hostile")


def test_a_killed_actor_is_a_problem_and_then_lost(system, opened):
    page = opened(system.url, **PHONE)
    expect(row(page, "robot-01")).to_be_visible()
    system.kill("actor 1")
    problem = page.locator("#problems .bad").filter(has_text="robot-01")
    expect(problem).to_contain_text("stopped, stuck or cut off")
    lost = page.locator("#log li").filter(has_text="lost").filter(has_text="robot-01")
    expect(lost.first).to_contain_text("without a goodbye")
    expect(row(page, "robot-01")).to_have_count(0)
    expect(problem).to_have_count(0)


def _actors(system):
    return [node["name"] for node in system.state()["nodes"] if node["does"] == "actor"]


def test_64_actors_on_desktop_and_phone(system, opened):
    system.start("many", "actors", 100, 32)
    system.start("more", "actors", 132, 32)
    system.ready("many", "more")
    wait_until(lambda: sum(name.startswith("robot-1") for name in _actors(system)) == 64)
    count = len(_actors(system))
    for kind in (DESKTOP, {**PHONE, "color_scheme": "dark"}):
        page = opened(system.url, **kind)
        expect(page.locator(".box").filter(has_text=f"{count} actors")).to_be_visible()
        expect(page.locator(".dots .dot")).to_have_count(count)
        expect(rows(page)).to_have_count(count + 5)
        page.get_by_label("Filter the nodes").fill("robot-15 actor")
        expect(rows(page)).to_have_count(10)
        page.get_by_label("Filter the nodes").fill("")
        page.get_by_role("button", name="Node", exact=True).click()
        assert page.locator("#rows .node").first.inner_text() != "robot-163"
        page.get_by_role("button", name="Node", exact=True).click()
        expect(page.locator("#columns th").first).to_have_attribute("aria-sort", "descending")
        card = page.locator(".chart").filter(has_text="Policy age")
        for label in ("largest", "median", "smallest"):
            expect(card.locator(".series .name").filter(has_text=label)).to_be_visible()
        assert is_within(page)
        # Nothing jumps while values change: the page is as high as before, on the whole.
        height = page.evaluate("document.documentElement.scrollHeight")
        tick = page.locator("#taken").inner_text()
        expect(page.locator("#taken")).not_to_have_text(tick)
        assert abs(page.evaluate("document.documentElement.scrollHeight") - height) < 30
    for name in ("many", "more"):
        system.nodes[name].send_signal(signal.SIGTERM)


def test_the_broker_away_and_back(system, opened):
    page = opened(system.url, **DESKTOP)
    banner = page.locator("#banner")
    expect(rows(page)).not_to_have_count(0)
    assert banner.is_hidden()
    points = len(system.state()["nodes"])
    system.kill_broker()
    expect(banner).to_contain_text("The broker is away")
    expect(banner).to_contain_text(f"redis://127.0.0.1:{system.port}")
    assert rows(page).count() >= min(points, 5)
    late = opened(system.url, **PHONE)
    expect(late.locator("#banner")).to_contain_text("The broker is away")
    assert is_within(late)
    system.restart_broker()
    for each in (page, late):
        expect(each.locator("#banner")).to_be_hidden()
        expect(each.locator("#log .what").filter(has_text="it is back").first).to_be_visible()
        expect(row(each, "robot-00").locator(".state")).to_have_text("at work")
    opened.troubles.clear()  # a frame may have been asked for while nobody could answer


def test_the_dashboard_away_and_gone(system, opened):
    page = opened(system.url, **DESKTOP)
    expect(rows(page)).not_to_have_count(0)
    system.nodes["dashboard"].send_signal(signal.SIGINT)
    assert system.nodes["dashboard"].wait(5) == 0
    expect(page.locator("#banner")).to_contain_text("No answer from the dashboard")
    opened.troubles.clear()  # that the stream ended is said in the console
    page.close()
    assert np.all([node.poll() is None for n, node in system.nodes.items() if n == "trainer"])
