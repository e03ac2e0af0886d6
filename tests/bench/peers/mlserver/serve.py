"""MLServer on 127.0.0.1 with every ``FOLDER/*.onnx``, in this process (no parallel workers).

python serve.py --port N --models FOLDER --work FOLDER --threads N --streams N
"""

import argparse
import json
import sys
from pathlib import Path

from mlserver.cli import main as mlserver


def write_settings(options: argparse.Namespace) -> None:
    """The settings files that ``mlserver start`` reads: the server's, and one for each model."""
    server = {
        "debug": False,  # no access log
        "host": "127.0.0.1",
        "http_port": options.port,
        "grpc_port": options.port + 1,
        "metrics_port": options.port + 2,
        "grpc_max_message_length": 16 * 1024 * 1024,
        "parallel_workers": 0,
    }
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "settings.json").write_text(json.dumps(server))
    for graph in sorted(options.models.glob("*.onnx")):
        extra = {"threads": options.threads, "streams": options.streams, "inline": graph.stem == "tabular"}
        parameters = {"uri": str(graph), "extra": extra}
        model = {"name": graph.stem, "implementation": "onnx_runtime.OnnxModel", "parameters": parameters}
        (options.work / graph.stem).mkdir(exist_ok=True)
        (options.work / graph.stem / "model-settings.json").write_text(json.dumps(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--streams", type=int, default=1)
    options = parser.parse_args()
    write_settings(options)
    sys.argv = ["mlserver", "start", str(options.work)]
    mlserver()


if __name__ == "__main__":
    main()
