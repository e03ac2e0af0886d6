"""A new environment beside the running one: the wheels of a release over what the box came with.

The release brings what changed; everything else is found in the box's own environment, which is never removed. So an
update costs the new wheels and not another copy of the runtimes. pip installs without any index: nothing comes from
anywhere but the verified release.
"""

import asyncio
import contextlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

_LAYER = "landreeve-layer.pth"
_WORDS = 400


class CannotBuildError(Exception):
    """The release gives no environment that works here; ``cause`` for machines, the text for people."""

    def __init__(self, cause: str, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause
        self.sentence = sentence


class Built(msgspec.Struct, frozen=True):
    """What the self-test of the new agent said: its version and what it looked at."""

    version: str
    looked_at: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environments:
    """Environments under ``folder``, each named after its release. ``base`` is the interpreter the box came with."""

    folder: Path
    base: str = sys.executable

    def python(self, release: str) -> Path:
        """The interpreter of that release's environment."""
        return self.folder / release[:12] / "bin" / "python"

    async def build(self, release: str, wheels: Sequence[Path], state: Path, deadline_s: float) -> Built:
        """Make it and let the new agent test itself against this box; `CannotBuildError`.

        Made beside and renamed, so an interrupted one is begun again.
        """
        place, beside = self.folder / release[:12], self.folder / f".{release[:12]}.new"
        try:
            async with asyncio.timeout(deadline_s):
                if not place.exists():
                    await self._make(beside, wheels)
                    beside.rename(place)
                return await self._test(self.python(release), state)
        except TimeoutError:
            raise CannotBuildError("hung", f"The new agent did not test itself within {deadline_s:.0f} s.") from None
        except CannotBuildError:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, beside, ignore_errors=True)

    def clean(self, keep: frozenset[str]) -> None:
        """Remove the environments of other releases."""
        kept = {release[:12] for release in keep}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in kept and path.is_dir():
                shutil.rmtree(path, ignore_errors=True)

    async def _make(self, place: Path, wheels: Sequence[Path]) -> None:
        if not wheels:
            raise CannotBuildError("bad_release", "The release holds no wheel.")
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        await _run("cannot_install", self.base, "-m", "venv", "--without-pip", str(place))
        code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
        under = (await _run("cannot_install", self.base, "-c", code)).strip()
        python = place / "bin" / "python"
        own = Path((await _run("cannot_install", str(python), "-c", code)).strip())
        # Through site, so that paths the base environment adds itself are found as well; after our own, so ours win.
        (own / _LAYER).write_text(f"import site; site.addsitedir({under!r})\n", encoding="utf-8")
        options = ["--no-index", "--no-deps", "--no-input", "--quiet", "--disable-pip-version-check", "--no-compile"]
        command = ["-m", "pip", "--python", str(python), "install", *options, *(str(wheel) for wheel in wheels)]
        await _run("cannot_install", self.base, *command)

    async def _test(self, python: Path, state: Path) -> Built:
        said = await _run("self_test", str(python), "-m", "landreeve_agent.launch.selftest", str(state))
        try:
            return msgspec.json.decode(said.splitlines()[-1].encode(), type=Built)
        except (msgspec.DecodeError, IndexError) as error:
            raise CannotBuildError("self_test", f"The new agent's self-test said nothing of use: {error}.") from error


async def _run(cause: str, *command: str) -> str:
    """What it printed; `CannotBuildError` with its last words when it failed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, words = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        last = " ".join(words.decode(errors="replace").split())[-_WORDS:]
        raise CannotBuildError(cause, f"{Path(command[0]).name} {command[2]} ended with {process.returncode}: {last}")
    return out.decode(errors="replace")
