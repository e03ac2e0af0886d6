"""What the supervisor of a box that works alone does not load."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys
from landreeve_agent import lean
lean.import_without("sqlite_utils", "pandas", "numpy")
import landreeve_agent.app
loaded = {name.partition(".")[0] for name in sys.modules}
import numpy
print(json.dumps([sorted(loaded), float(numpy.arange(3).sum())]))
"""
ON_FIRST_USE = {
    "numpy",
    "pandas",
    "tuf",
    "securesystemslib",
    "cryptography",
    "jinja2",
    "httpx2",
    "safetensors",
    "websockets",
    "zstandard",
}


def test_what_only_a_member_or_a_model_needs_is_loaded_on_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    loaded, total = json.loads(done.stdout)
    assert ON_FIRST_USE & set(loaded) == set()
    assert total == 3.0, "numpy can still be used afterwards"


ROUTES = """
import sys
from landreeve_agent import lean
lean.do_without("pydantic.v1")
from fastapi import FastAPI
from pydantic import BaseModel

class Asked(BaseModel):
    rows: int

app = FastAPI()

@app.post("/ask")
def ask(asked: Asked) -> Asked:
    return asked

print(sorted(app.openapi()["paths"]), "pydantic.v1.main" in sys.modules)
"""


def test_routes_are_made_without_pydantics_first_version() -> None:
    done = subprocess.run([sys.executable, "-c", ROUTES], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "['/ask'] False\n"
