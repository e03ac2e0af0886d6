"""Both consoles in a real Chromium: what people see, and what must never happen there."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_hub
import fake_records
import pytest

pytestmark = pytest.mark.browser

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
SITE_PAGES = ("/", "/models", "/models/flight-delay", "/data", "/training", "/updates", "/hardware", "/audit?verify=1")
HUB_PAGES = (
    "/",
    "/devices/d-000000000001",
    "/models",
    "/models/flight-delay",
    "/rollouts",
    "/rollouts/r-0001",
    "/rollouts/new",
    "/drift",
    "/incidents",
    "/audit?verify=1",
    "/keys",
)
LOOKS = [("en", "light", 1280), ("en", "dark", 390), ("ar", "light", 390), ("ar", "dark", 1280)]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]

Look = Callable[..., Any]


@pytest.mark.parametrize(("lang", "theme", "width"), LOOKS)
def test_local_pages_fit_and_pass_wcag(site: Any, look: Look, lang: str, theme: str, width: int) -> None:
    walk(look, site, SITE_PAGES, (lang, theme, width))


@pytest.mark.parametrize(("lang", "theme", "width"), LOOKS)
def test_fleet_pages_fit_and_pass_wcag(hub: Any, look: Look, lang: str, theme: str, width: int) -> None:
    walk(look, hub, HUB_PAGES, (lang, theme, width))


def walk(look: Look, served: Any, paths: tuple[str, ...], appearance: tuple[str, str, int]) -> None:
    lang, theme, width = appearance
    size = {"width": width, "height": 844}
    watched = look(served, paths[0], lang=lang, theme=theme, viewport=size, bypass_csp=True)
    found = []
    for path in paths:
        watched.go(path)
        assert watched.page.locator("html").get_attribute("dir") == ("rtl" if lang == "ar" else "ltr")
        wide = watched.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} px wide on a screen of {width}"
        found += [f"{path} {finding}" for finding in findings(watched.page)]
    assert found == []


def findings(page: Any) -> list[str]:
    page.evaluate(AXE.read_text("utf-8"))
    options = {"runOnly": {"type": "tag", "values": RULES}}
    result = page.evaluate("options => axe.run(document, options)", options)
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]} {v['nodes'][0]['failureSummary']}" for v in result["violations"]]


def test_sign_in_passes_wcag_in_both_languages(site: Any, hub: Any, look: Look) -> None:
    for served in (site, hub):
        for lang, theme in (("en", "dark"), ("ar", "light")):
            watched = look(served, "/login", lang=lang, theme=theme, bypass_csp=True)
            assert findings(watched.page) == []


def test_a_number_changes_without_a_reload(site: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(site, "/")
    figure = watched.page.locator("#live_strip dd").first
    expect(figure).to_have_text("10,034")
    watched.page.evaluate("window.stillHere = 1")
    site.fake.status["predictions_today"] = 10_035
    site.fake.status["verdict"] = {"level": "ok", "sentence": "Everything works.", "detail": "", "link": ""}
    expect(figure).to_have_text("10,035")
    expect(watched.page.locator(".verdict.ok h1")).to_have_text("Everything works.")
    assert watched.page.evaluate("window.stillHere") == 1


def test_the_chart_keeps_its_canvas_while_data_flows(site: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(site, "/")
    canvas = watched.page.locator(".chart canvas")
    expect(canvas).to_have_count(1)
    canvas.evaluate("node => { node.mark = 1 }")
    site.fake.status["series"]["p50"][-1] = 7.25
    expect(watched.page.locator('#legend [data-line="1"]')).to_contain_text("7.3")
    assert canvas.evaluate("node => node.mark") == 1


def test_one_stream_a_page_and_none_while_hidden(site: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(site, "/models")
    expect(watched.page.locator("[data-live-mark]")).to_have_attribute("data-state", "live")
    streams: list[str] = []
    watched.page.on("request", lambda request: streams.append(request.url) if "/live/" in request.url else None)
    hide = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    watched.page.evaluate(hide % "true" + "document.dispatchEvent(new Event('visibilitychange'))")
    watched.page.evaluate(hide % "false" + "document.dispatchEvent(new Event('visibilitychange'))")
    expect(watched.page.locator("[data-live-mark]")).to_have_attribute("data-state", "live")
    assert len(streams) == 1


def test_sign_in_with_the_one_time_code(site: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(site, "/models", signed_in=False)
    expect(watched.page).to_have_url(re.compile(r"/login\?next=/models$"))
    watched.page.get_by_label("One-time code").fill("WRONG")
    watched.page.get_by_role("button", name="Sign in").click()
    expect(watched.page.get_by_role("alert")).to_contain_text("not valid")
    watched.complaints.clear()  # the refused code is a 401, which the browser writes down
    watched.page.get_by_label("One-time code").fill("ABCD-1234")
    watched.page.get_by_role("button", name="Sign in").click()
    expect(watched.page.get_by_role("heading", level=1)).to_have_text("Models")


def test_trying_a_model_shows_its_answer(site: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(site, "/models/flight-delay")
    watched.page.get_by_label("wind_speed").fill("41")
    watched.page.route("**/try", lambda route: route.fulfill(json={"p": 0.2731}))
    with watched.page.expect_request("**/api/v1/models/flight-delay/try") as asked:
        watched.page.get_by_role("button", name="Ask the model").click()
    assert asked.value.post_data_json["row"]["wind_speed"] == 41
    assert asked.value.post_data_json["row"]["carrier"] == "UA"
    expect(watched.page.locator(".answer")).to_have_text("0.2731")


def test_rolling_back_asks_first(site: Any, look: Look) -> None:
    watched = look(site, "/models/flight-delay")
    watched.page.get_by_role("button", name="Roll back").click()
    watched.page.get_by_role("button", name="Cancel").click()
    assert site.fake.calls == []
    watched.page.get_by_role("button", name="Roll back").click()
    with watched.page.expect_response("**/rollback"):
        watched.page.locator("#confirm").get_by_role("button", name="Roll back").click()
    assert [path for path, _ in site.fake.calls] == ["models/flight-delay/rollback"]


def test_an_update_is_cancelled_where_it_is_shown(site: Any, look: Look) -> None:
    from playwright.sync_api import expect

    page = look(site, "/updates").page
    expect(page.locator("#live_under_way")).to_contain_text("v3 → v4")
    page.get_by_role("button", name="Cancel the update").click()
    with page.expect_response("**/rollback"):
        page.locator("#confirm .button.primary, #confirm .button.danger").click()


def test_hundreds_of_sites_with_long_names_fit_a_phone(hub: Any, look: Look) -> None:
    hub.fake.fleet = fake_hub.fleet(700)
    for row in hub.fake.fleet["devices"][:40]:
        row["site"] = f"{row['site']}-{'warehouse' * 5}-of-the-north"
    watched = look(hub, "/login", viewport={"width": 390, "height": 844})
    for path in ("/?filter=warehouse", "/rollouts/r-0001", "/rollouts/new"):
        watched.go(path)
        wide = watched.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{path} is {wide} px wide"
        pills = watched.page.locator("#main .pill").evaluate_all("all => all.map(pill => pill.offsetHeight)")
        assert max(pills, default=0) < 80, f"{path} breaks the words of a state"


def test_the_audit_log_is_searched_and_checked_without_scripts(hub: Any, look: Look) -> None:
    watched = look(hub, "/audit", java_script_enabled=False)
    watched.page.get_by_label("Who", exact=True).fill("mona")
    watched.page.get_by_role("button", name="Search").click()
    assert "actor=mona" in watched.page.url
    watched.page.get_by_role("button", name="Check the log").click()
    assert "The log is whole." in watched.page.locator(".verdict.ok").inner_text()


def test_a_signed_file_is_brought_back_as_it_is(hub: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(hub, "/keys")
    signed = {"name": "change-7.json", "mimeType": "application/json", "buffer": b'{"id": "change-7",  "items": []}'}
    watched.page.get_by_label("The signed file").set_input_files([signed])
    with watched.page.expect_request("**/api/v1/keys/changes") as asked:
        watched.page.get_by_role("button", name="Bring it back").click()
    assert asked.value.post_data == '{"id": "change-7",  "items": []}'
    expect(watched.page.locator(".toast")).to_have_text("The signatures were taken in")
    link = watched.page.get_by_role("link", name="Download to sign")
    assert link.get_attribute("download") == "change-7.json"


def test_every_button_of_the_keys_page_does_what_it_says(hub: Any, look: Look) -> None:
    page = look(hub, "/keys").page
    key = fake_records.HASH
    for name, path in (
        ("Sign anew", "keys/renew/root"),
        ("Call off", "keys/changes/change-7"),
        ("Admit", f"keys/approvers/{key}/admit"),
        ("Dismiss", f"keys/approvers/{key}/dismiss"),
        ("Replace", "keys/rotate/director"),
    ):
        page.locator("#main").get_by_role("button", name=name).first.click()
        with page.expect_response(f"**/api/v1/{path}"):
            page.locator("#confirm").get_by_role("button", name=name).click()
        assert hub.fake.calls[-1][0] == path
    public = {"name": "my.pem.pub.json", "mimeType": "application/json", "buffer": b'{"person": "mona"}'}
    page.locator("#public").set_input_files(public)
    with page.expect_response("**/keys/approvers"):
        page.get_by_role("button", name="Bring my key").click()
    page.get_by_text("Let several people sign releases").click()
    page.get_by_label("Name of the role").fill("flights")
    page.locator("#role-paths").fill("models/flight-*/*")
    with page.expect_response("**/keys/roles"):
        page.get_by_role("button", name="Make the role").click()
    role = {"name": "flights", "paths": ["models/flight-*/*"], "threshold": 2}
    assert hub.fake.calls[-2:] == [("keys/approvers", {"public": '{"person": "mona"}'}), ("keys/roles", role)]


def test_adding_a_site_shows_the_join_command(hub: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(hub, "/")
    watched.page.get_by_role("button", name="Add a site").click()
    watched.page.get_by_label("Site name").fill("BOS")
    watched.page.get_by_label("Region").fill("ne")
    watched.page.get_by_role("button", name="Make the command").click()
    expect(watched.page.locator("[data-out=token]")).to_contain_text("landreeve join lrt1.")
    assert hub.fake.calls == [("enrolment-tokens", {"site": "BOS", "labels": {"region": "ne"}})]


def test_the_wizard_starts_what_its_preview_showed(hub: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(hub, "/rollouts/new")
    watched.page.get_by_label("First site (canary)").select_option("JFK")
    expect(watched.page.locator(".step").first).to_contain_text("JFK")
    expect(watched.page.locator(".step").nth(1)).to_contain_text("EWR")
    with watched.page.expect_response("**/api/v1/rollouts"):
        watched.page.get_by_role("button", name="Propose the rollout").click()
    path, order = hub.fake.calls[0]
    assert (path, order["model"], order["version"]) == ("rollouts", "flight-delay", "4")
    assert order["plan"]["waves"] == [{"devices": ["JFK"], "name": "Canary"}, {"rest": True, "name": "Everyone"}]


def test_the_wizard_keeps_what_is_unfolded_and_focused_and_says_what_was_half_typed(hub: Any, look: Look) -> None:
    from playwright.sync_api import expect

    page = look(hub, "/rollouts/new").page
    page.get_by_text("More choices").click()
    page.get_by_label("Switch only from (site time)").fill("22:00")
    page.keyboard.press("Tab")
    expect(page.locator("#live_preview .cause")).to_contain_text("A window needs both times")
    expect(page.get_by_role("button", name="Propose the rollout")).to_have_count(0)
    expect(page.get_by_label("until")).to_be_visible()
    expect(page.get_by_label("Switch only from (site time)")).to_be_focused()  # on its minutes
    page.get_by_label("until").fill("04:00")
    page.get_by_label("Second wave by filter").fill("tag:nobody")
    page.get_by_label("How the new version takes over").select_option("canary")
    expect(page.locator("#live_preview")).to_contain_text("Wave 2 takes nobody: no device answers to 'tag:nobody' now.")
    with page.expect_response("**/api/v1/rollouts"):
        page.get_by_role("button", name="Propose the rollout").click()
    plan = hub.fake.calls[0][1]["plan"]
    assert plan["windows"] == {"activate": [{"start": "22:00", "end": "04:00"}]}
    assert plan["strategy"]["shares"] == [0.05, 0.25, 1.0]


def test_ending_a_rollout_here_asks_first_and_next_names_its_wave(hub: Any, look: Look) -> None:
    page = look(hub, "/rollouts/r-0001").page
    for name, path in (("Next wave now", "next"), ("End here", "abort")):
        page.get_by_role("button", name=name).click()
        with page.expect_response(f"**/{path}"):
            page.locator("#confirm .button").last.click()
    assert hub.fake.calls == [("rollouts/r-0001/next", {"wave": 3}), ("rollouts/r-0001/abort", {})]


def test_filtering_narrows_the_table_while_typing(hub: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(hub, "/")
    rows = watched.page.locator("#live_devices tbody tr")
    expect(rows).to_have_count(3)
    watched.page.get_by_label("Filter devices").fill("hw:npu")
    expect(rows).to_have_count(1)
    expect(watched.page.get_by_label("Filter devices")).to_be_focused()
    watched.page.get_by_label("Filter devices").fill("-hw:npu is:healthy")
    expect(rows).to_have_count(2)


def test_keyboard_reaches_everything_and_the_focus_is_seen(hub: Any, look: Look) -> None:
    watched = look(hub, "/")
    watched.page.keyboard.press("Tab")
    assert watched.page.evaluate("document.activeElement.className") == "skip"
    names = []
    for _ in range(16):
        watched.page.keyboard.press("Tab")
        names.append(watched.page.evaluate("document.activeElement.textContent.trim()"))
        outline = watched.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid", names
    assert "Add a site" in names


def test_dark_follows_the_device_until_someone_chooses(site: Any, look: Look) -> None:
    watched = look(site, "/", theme="auto", color_scheme="dark")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    assert watched.page.evaluate(paper) == "rgb(16, 22, 26)"
    watched.page.get_by_role("link", name="Light", exact=True).click()
    assert watched.page.evaluate(paper) == "rgb(246, 245, 241)"


def test_the_other_language_is_one_click_away(site: Any, look: Look) -> None:
    from playwright.sync_api import expect

    watched = look(site, "/models")
    watched.page.get_by_role("link", name="العربية").click()
    expect(watched.page.get_by_role("heading", level=1)).to_have_text("النماذج")
    expect(watched.page).to_have_url(re.compile(r"/models$"))


def test_arabic_words_come_in_plex_arabic(site: Any, look: Look) -> None:
    watched = look(site, "/", lang="ar")
    watched.page.evaluate("document.fonts.ready")
    assert watched.page.evaluate("document.fonts.check('15px \"Plex Arabic\"', 'نظرة')")


def test_empty_states_say_the_next_step(site: Any, hub: Any, look: Look) -> None:
    from playwright.sync_api import expect

    site.fake.status["models"] = []
    expect(look(site, "/models").page.locator(".empty pre")).to_contain_text("landreeve model add")
    hub.fake.fleet.update(devices=[], rollouts=[], counts=dict.fromkeys(hub.fake.fleet["counts"], 0))
    expect(look(hub, "/").page.locator("#live_cells .empty")).to_contain_text("Add a site")
    hub.fake.releases.clear()
    expect(look(hub, "/rollouts/new").page.locator(".empty")).to_contain_text("approved")


def test_approving_ones_own_proposal_asks_for_the_reason(hub: Any, look: Look) -> None:
    hub.fake.fleet["rollouts"][0]["state"] = "AWAITING_APPROVAL"
    watched = look(hub, "/rollouts/r-0001")
    watched.page.get_by_role("button", name="Approve").click()
    watched.page.get_by_label("You proposed this yourself").fill("night shift, nobody else is awake")
    with watched.page.expect_response("**/approve"):
        watched.page.locator("#confirm").get_by_role("button", name="Approve").click()
    assert hub.fake.calls == [("rollouts/r-0001/approve", {"emergency": "night shift, nobody else is awake"})]


def test_a_viewer_sees_no_buttons_that_the_api_would_refuse(hub: Any, look: Look) -> None:
    from playwright.sync_api import expect

    hub.fake.permissions = ["view"]
    watched = look(hub, "/rollouts/r-0001")
    expect(watched.page.get_by_role("heading", level=1)).to_contain_text("flight-delay")
    expect(watched.page.locator("#main button:not([data-copy])")).to_have_count(0)


def test_a_button_never_turns_into_another_one(hub: Any, look: Look) -> None:
    from playwright.sync_api import expect

    rollout = hub.fake.fleet["rollouts"][0]
    rollout.update(state="AWAITING_APPROVAL", created_by="omar")
    watched = look(hub, "/rollouts/r-0001")
    watched.page.get_by_role("button", name="Approve").evaluate("node => node.setAttribute('aria-busy', 'true')")
    rollout["state"] = "RUNNING"
    expect(watched.page.get_by_role("button", name="Pause")).to_be_visible()
    expect(watched.page.get_by_role("button", name="Approve")).to_have_count(0)
    expect(watched.page.locator("[aria-busy]")).to_have_count(0)
