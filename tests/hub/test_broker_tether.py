"""What the broker's process is given before it becomes the broker."""

import os
import resource
import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="limits are POSIX, the tether is Linux")
def test_broker_gets_as_many_open_files_as_the_system_allows() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    tether = f"exec {sys.executable} -m landreeve_hub.broker.tether {os.getpid()} /bin/sh -c 'ulimit -Sn'"
    said = subprocess.run(["/bin/sh", "-c", f"ulimit -Sn 64; {tether}"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == ("unlimited" if hard == resource.RLIM_INFINITY else str(hard))
