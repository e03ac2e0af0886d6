"""``keys``: the fleet's signing keys. Works with the running hub, or on its state folder while it is stopped."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from landreeve.cli import Exit, Format, emit, fail, note

from landreeve_hub.commands.client import Hub, connect
from landreeve_hub.commands.options import Output, State, Token, Url
from landreeve_hub.commands.server import StateFolder

if TYPE_CHECKING:
    from landreeve_hub.signing.desk import KeyDesk

ROLE_COLUMNS = ("repository", "role", "version", "threshold", "keys", "expires", "days_left", "alarm")
CHANGE_COLUMNS = ("id", "subject", "state", "signatures", "missing")
STEP_COLUMNS = ("step", "ok", "seen", "to_do")
LOCAL = "operator"
Out = Annotated[Path | None, typer.Option("--out", help="Where to write it; standard output by default.")]
NewKey = Annotated[Path | None, typer.Option("--new-key", help="FILE.pub.json of a key made elsewhere (keys make).")]


def group() -> typer.Typer:
    """``keys init|status|rotate|renew|drill|export|sign|import|…``."""
    keys = typer.Typer(help="The fleet's signing keys.", no_args_is_help=True)
    _standing(keys)
    _changing(keys)
    _by_file(keys)
    _files(keys)
    _people(keys)
    return keys


def _standing(keys: typer.Typer) -> None:
    @keys.command("init")
    def init(*, state: StateFolder = Path("hub-state"), output: Output = Format.TABLE) -> None:
        """Make the keys of a new fleet: three root keys (two needed), the approvers', the director's."""
        from landreeve_hub.app import init as make

        made = make(state, {})
        report = _local(state, lambda desk: desk.status())
        emit(made | {"advice": report["advice"]}, output)

    @keys.command("status")
    def status(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """Every role: keys, threshold, where the private keys are, versions, expiry; and what to do."""
        report = _at(url, token, state, lambda hub: hub.get("keys"), lambda desk: desk.status())
        if output is not Format.TABLE:
            emit(report, output)
            return
        emit(report["roles"], output, ROLE_COLUMNS)
        for line in report["advice"]:
            note(f"! {line}")

    @keys.command("drill")
    def drill(*, state: StateFolder = Path("hub-state"), output: Output = Format.TABLE) -> None:
        """Rehearse replaced, stolen and lost keys on a copy; nothing real changes."""
        from landreeve_hub.signing.drill import drill as rehearse

        steps = _safely(lambda: rehearse(state, datetime.now(UTC)))
        emit(steps, output, STEP_COLUMNS)
        if not all(step.ok for step in steps):
            raise SystemExit(int(Exit.PROBLEMS))


def _changing(keys: typer.Typer) -> None:
    @keys.command("rotate")
    def rotate(
        name: str,
        *,
        new_key: NewKey = None,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Replace a key: root-1 to root-3, targets, director. Boxes follow by themselves."""
        text = _read(new_key).decode() if new_key else ""
        body = {"new_key": text}
        made = _at(
            url, token, state, lambda h: h.post(f"keys/rotate/{name}", body), lambda d: d.rotate(name, text, LOCAL)
        )
        _show(made, output)

    @keys.command("renew")
    def renew(
        role: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Sign root, targets or a role's list again, for a later expiry."""
        made = _at(url, token, state, lambda h: h.post(f"keys/renew/{role}"), lambda d: d.renew(role, LOCAL))
        _show(made, output)

    @keys.command("require")
    def require(
        role: str,
        paths: Annotated[list[str], typer.Argument(help="Names of targets, such as 'models/flight-*/*'.")],
        *,
        threshold: Annotated[int, typer.Option(help="How many people's signatures a release needs.")],
        approver: Annotated[list[str] | None, typer.Option(help="Whose keys; everyone admitted by default.")] = None,
        url: Url = "",
        token: Token = "",
        state: State = None,
        output: Output = Format.TABLE,
    ) -> None:
        """Let releases of some models be approved by several people's own keys."""
        people = tuple(approver or ())
        body = {"name": role, "paths": paths, "threshold": threshold, "people": people}
        made = _at(
            url,
            token,
            state,
            lambda h: h.post("keys/roles", body),
            lambda d: d.require(role, tuple(paths), threshold, people, LOCAL),
        )
        _show(made, output)


def _by_file(keys: typer.Typer) -> None:
    @keys.command("changes")
    def changes(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """What awaits signatures of keys that are kept elsewhere."""
        rows = _at(url, token, state, lambda h: h.get("keys/changes"), lambda d: d.changes())
        emit(rows, output, CHANGE_COLUMNS)

    @keys.command("export")
    def export(change: str, *, out: Out = None, url: Url = "", token: Token = "", state: State = None) -> None:
        """Write the signing request of a change, to be signed where the key is."""
        made = _at(url, token, state, lambda h: h.get(f"keys/changes/{change}"), lambda d: d.export(change))
        _write_request(made, out)

    keys.command("export-request", hidden=True)(export)

    @keys.command("sign")
    def sign(
        file: Path,
        *,
        key: Annotated[Path, typer.Option("--key", help="The private key, PEM.")],
        yes: Annotated[bool, typer.Option("--yes", help="Sign without being asked.")] = False,
    ) -> None:
        """Sign a request with a key of this machine; needs no hub. The file keeps the signatures it has."""
        from landreeve.blobs.durable import write_durably

        from landreeve_hub.signing import request as requests
        from landreeve_hub.signing.errors import SigningError

        try:
            asked = requests.parse(_read(file))
            for line in requests.summary(asked):
                note(f"  {line}")
            signer = _key(key)
            signed, where = requests.sign(asked, signer)
        except SigningError as error:
            fail(Exit.PROBLEMS, f"{file}: {error}")
        if not yes and not typer.confirm("Sign this?", err=True):
            fail(Exit.FAILURE, "nothing was signed")
        write_durably(file, requests.encode(signed))
        note(f"Signed for {', '.join(where)}. Bring the file back: landreeve-hub keys import {file}")

    @keys.command("import")
    def take(
        file: Path, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Take in a signed request; it comes into force when enough have signed."""
        data = _read(file)
        made = _at(url, token, state, lambda h: h.post_bytes("keys/changes", data), lambda d: d.take(data))
        _show(made, output)

    @keys.command("drop")
    def drop(
        change: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Call a change off."""
        emit(_at(url, token, state, lambda h: h.delete(f"keys/changes/{change}"), lambda d: d.drop(change)), output)


def _files(keys: typer.Typer) -> None:
    @keys.command("make")
    def make(
        file: Path,
        *,
        name: Annotated[str, typer.Option("--name", help="Whose or which key it is: your user name at the hub.")],
        plain: Annotated[bool, typer.Option("--plain", help="Without a passphrase.")] = False,
    ) -> None:
        """Make a key of one's own: FILE stays here, FILE.pub.json goes to the hub. Needs no hub."""
        import msgspec
        from landreeve.blobs.durable import write_durably

        from landreeve_hub.signing.approvers import public_half
        from landreeve_hub.signing.keyfolder import make_key

        if file.exists():
            fail(Exit.CONFLICT, f"{file}: exists; a key is never overwritten")
        signer = make_key(file, "" if plain else _new_passphrase())
        public = file.with_name(f"{file.name}.pub.json")
        write_durably(public, msgspec.json.encode(public_half(signer, name)))
        emit({"key": str(file), "public": str(public), "keyid": signer.public_key.keyid}, Format.TABLE)

    @keys.command("show")
    def show(file: Path, *, state: State = None, output: Output = Format.TABLE) -> None:
        """Which key a file holds, and, with --state, what it is to that fleet."""
        signer = _key(file)
        found: dict[str, Any] = {"file": str(file), "keyid": signer.public_key.keyid}
        if state is not None:
            found["names"] = _safely(lambda: _names(state, signer.public_key.keyid))
        emit(found, output)


def _people(keys: typer.Typer) -> None:
    @keys.command("approvers")
    def approvers(*, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE) -> None:
        """People with keys of their own."""
        emit(_at(url, token, state, lambda h: h.get("keys/approvers"), lambda d: d.approvers()), output)

    @keys.command("enrol")
    def enrol(
        public: Path, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Bring the public half of one's own key (FILE.pub.json); someone else admits it."""
        text = _read(public).decode()
        body = {"public": text}
        emit(_at(url, token, state, lambda h: h.post("keys/approvers", body), lambda d: d.bring(text, LOCAL)), output)

    @keys.command("admit")
    def admit(
        key: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Let a person's key be named in roles."""
        path = f"keys/approvers/{key}/admit"
        emit(_at(url, token, state, lambda h: h.post(path), lambda d: d.admit(key, LOCAL)), output)

    @keys.command("dismiss")
    def dismiss(
        key: str, *, url: Url = "", token: Token = "", state: State = None, output: Output = Format.TABLE
    ) -> None:
        """Take a person's key out of every role."""
        path = f"keys/approvers/{key}/dismiss"
        emit(_at(url, token, state, lambda h: h.post(path), lambda d: d.dismiss(key, LOCAL)), output)


# --- the hub, running or not ---


def _at(
    url: str, token: str, state: Path | None, remote: Callable[[Hub], Any], local: "Callable[[KeyDesk], Any]"
) -> Any:
    """The answer of the running hub, or of its state folder while it is stopped."""
    if url or token or state is None:
        return remote(connect(url, token, state))
    from landreeve_hub.errors import AlreadyRunningError

    try:
        return _local(state, local)
    except AlreadyRunningError:
        return remote(connect(url, token, state))


def _local(state: Path, call: "Callable[[KeyDesk], Any]") -> Any:
    from landreeve_hub.config import HubFolder
    from landreeve_hub.process import only_one
    from landreeve_hub.signing.desk import KeyDesk
    from landreeve_hub.signing.targets import TargetsRepository

    folder = HubFolder(state.absolute())
    if not (folder.root / "metadata").is_dir():
        fail(Exit.NOT_FOUND, f"{state}: no keys there; landreeve-hub keys init --state {state}")
    folder.prepare()
    with only_one(folder.run / "lock"):
        desk = KeyDesk(folder.root, TargetsRepository(folder.root), lambda: datetime.now(UTC))
        return _safely(lambda: call(desk))


def _safely(call: Callable[[], Any]) -> Any:
    from landreeve_hub.signing.errors import SigningError

    try:
        return call()
    except SigningError as error:
        fail(Exit.PROBLEMS, str(error))


def _names(state: Path, keyid: str) -> list[str]:
    from landreeve_hub.signing.keyfolder import ALL_KEYS, KeyFolder

    folder = KeyFolder(state)
    return [name for name in ALL_KEYS if (key := folder.public(name)) is not None and key.keyid == keyid]


def _key(file: Path) -> Any:
    from landreeve_hub.signing.errors import SigningError
    from landreeve_hub.signing.locked import from_pem, known_passphrase

    pem = _read(file)
    passphrase = known_passphrase()
    if b"ENCRYPTED" in pem and not passphrase:
        passphrase = str(typer.prompt(f"Passphrase of {file}", hide_input=True, err=True))
    try:
        return from_pem(pem, passphrase, str(file))
    except SigningError as error:
        fail(Exit.AUTH, str(error))


def _new_passphrase() -> str:
    from landreeve_hub.signing.locked import known_passphrase

    given = known_passphrase()
    return given or str(typer.prompt("Passphrase for the new key", hide_input=True, confirmation_prompt=True, err=True))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        fail(Exit.NOT_FOUND, f"{file}: {error.strerror}")


def _write_request(made: dict[str, Any], out: Path | None) -> None:
    import sys

    import msgspec

    data = msgspec.json.format(msgspec.json.encode(made), indent=1) + b"\n"
    if out is None:
        sys.stdout.write(data.decode())
        return
    out.write_bytes(data)
    note(f"{out}: {made['how']}")


def _show(made: dict[str, Any], output: Format) -> None:
    if output is not Format.TABLE:
        emit(made, output)
        return
    for line in made["what"]:
        note(f"  {line}")
    emit({name: made[name] for name in CHANGE_COLUMNS}, output)
    if made["how"]:
        note(made["how"])
