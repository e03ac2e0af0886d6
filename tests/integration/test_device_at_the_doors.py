"""One device's certificate at the real hub's HTTPS: it renews itself there, and opens nothing that is people's."""

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from landreeve_agent.link.enrol import join
from landreeve_agent.link.identity import keys_folder

from tests.integration.hub_site import HubProcess, now

# Open to all; without a session there is none to end.
PUBLIC = {"/", "/login", "/api/v1/sessions", "/api/v1/health", "/api/v1/openapi.json", "/enrol/v1/ca", "/enrol/v1/crl"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    made = HubProcess(tmp_path / "hub", "https.name=127.0.0.1")
    made.start()
    yield made
    made.stop()


def visitor(url: str, box: Path, *, certified: bool) -> httpx2.Client:
    keys = keys_folder(box)
    context = ssl.create_default_context(cafile=str(keys / "ca.crt"))
    if certified:
        context.load_cert_chain(keys / "device.crt", keys / "device.key")
    return httpx2.Client(base_url=url, verify=context, timeout=30, follow_redirects=False)


def doors(hub: HubProcess) -> list[tuple[str, str]]:
    """Every route of the API by its own description, and of the registry and the console."""
    described = hub.get("openapi.json")["paths"]
    found = [(method.upper(), path) for path, methods in described.items() for method in methods]
    assert len(found) > 60
    pages = ("/", "/login", "/fleet", "/rollouts", "/incidents", "/v2/", "/v2/_catalog", "/v2/m/manifests/1")
    return [*found, *(("GET", page) for page in pages)]


def test_a_devices_certificate_opens_nothing_that_is_not_open_to_all(hub: HubProcess, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    identity = join(box, hub.token("shop"), now())
    url = identity.hub_url
    with visitor(url, box, certified=True) as device, visitor(url, box, certified=False) as stranger:
        for method, path in doors(hub):
            asked = re.sub(r"\{[^}]*\}", identity.device, path)
            with device.stream(method, asked, json={}) as one, stranger.stream(method, asked, json={}) as other:
                assert one.status_code == other.status_code, (method, path)
                open_to_all = one.status_code < 300 and path not in PUBLIC
                assert not open_to_all, (method, path)
        for forged in ({"X-Forwarded-User": "admin"}, {"Authorization": f"Bearer {identity.device}"}):
            assert device.get("/api/v1/fleet", headers=forged).status_code == 401
        mine = device.post("/enrol/v1/reenrol", json={"csr": "none"})
        assert mine.status_code == 422  # this is its own door: only the request is no request
        assert stranger.post("/enrol/v1/reenrol", json={"csr": "none"}).status_code == 401
