"""Judge one ONNX graph in a process of its own: ``python -m landreeve_hub.registry.inspect SIGNATURE < model.onnx``.

Protobuf is native code reading a stranger's bytes, so it runs under limits of memory and CPU time, away from the
hub. ``SIGNATURE`` is the release's, as JSON, without its columns. Exit code 0 accepts; 1 refuses, with the reason on
standard output.
"""

import resource
import sys

MAX_MEMORY_BYTES = 4 * 1024**3
MAX_CPU_S = 60


def main(arguments: list[str]) -> int:
    """Limit this process, then let the policy read standard input."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CPU_S, MAX_CPU_S))
    import msgspec
    from landreeve.release.manifest import BadReleaseError, Signature
    from landreeve_models.onnx_policy import check

    signature = msgspec.json.decode(arguments[0], type=Signature)
    try:
        check(sys.stdin.buffer.read(), signature=signature)
    except BadReleaseError as error:
        sys.stdout.write(str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
