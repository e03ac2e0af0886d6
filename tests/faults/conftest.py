"""The hub, the sites and the table of the fault suite."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.table import Row, Table
from tests.faults.yard import Site, Yard

TABLE = Table()
LEFT_OUT: set[str] = set()


@pytest.fixture(scope="session")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    made = Yard(tmp_path_factory.mktemp("yard"))
    try:
        yield made
    finally:
        made.close()


class Shared:
    """Sites that rows share which leave them whole, one with a launcher and one without; another one takes the place of
    one that a row has not left whole."""

    def __init__(self, yard: Yard, folders: pytest.TempPathFactory) -> None:
        self._yard, self._folders = yard, folders
        self._sites: dict[bool, Site] = {}

    @contextlib.contextmanager
    def lend(self, session: pytest.Session, *, launched: bool) -> Iterator[Site]:
        if launched not in self._sites:
            self._sites[launched] = Site(self._yard, self._folders.mktemp("sites"), launched=launched).open()
        site, failed = self._sites[launched], session.testsfailed
        site.mark()
        yield site
        site.disarm()
        if session.testsfailed != failed:
            self._yard.abort_all()
            self._sites.pop(launched).close()

    def close(self) -> None:
        for site in self._sites.values():
            site.close()


@pytest.fixture(scope="session")
def _shared(yard: Yard, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    shared = Shared(yard, tmp_path_factory)
    yield shared
    shared.close()


@pytest.fixture
def site(_shared: Shared, request: pytest.FixtureRequest) -> Iterator[Site]:
    with _shared.lend(request.session, launched=False) as site:
        yield site


@pytest.fixture
def launched(_shared: Shared, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site whose agent a launcher keeps."""
    with _shared.lend(request.session, launched=True) as site:
        yield site


@pytest.fixture
def new_site(yard: Yard, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites of a row's own."""
    sites: list[Site] = []

    def make(*settings: str, state: Path | None = None) -> Site:
        sites.append(Site(yard, tmp_path, *settings, state=state))
        sites[-1].mark()
        return sites[-1]

    yield make
    for site in sites:
        site.disarm()
    yard.abort_all()
    for site in sites:
        site.close()


@pytest.fixture
def table() -> Table:
    return TABLE


def row_of(item: pytest.Item) -> str:
    """The fault that a test is about, as its marker says."""
    marker = item.get_closest_marker("fault")
    return str(marker.args[0]) if marker else ""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A row that was skipped says why; one whose test failed before it was judged says so as well."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    fault = row_of(item)
    if not fault or report.passed:
        return
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        TABLE.add(Row(fault, reason=reason.removeprefix("Skipped: ")))
    elif fault not in TABLE.rows:
        said = str(call.excinfo.value).splitlines()[0][:120] if call.excinfo else "failed"
        TABLE.add(Row(fault, runs=1, ended=said, expected="an end"))


def pytest_deselected(items: list[pytest.Item]) -> None:
    LEFT_OUT.update(row_of(item) for item in items)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TABLE.rows:
        terminalreporter.write_line("")
        terminalreporter.write_line(TABLE.text())
        TABLE.write(frozenset(LEFT_OUT - {""}))
