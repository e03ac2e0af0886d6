"""What the numbers of a metric mean is said once, at birth: a set, once in the field, means the same for ever."""

from landreeve_agent.telemetry.reporter import METRIC_NAMES, METRIC_SET

# A change of the columns is a new number here and there, never another line under an old one.
SETS = {
    1: (
        "predictions errors p50_ms p95_ms worker_rss_mb supervisor_rss_mb cpu_percent memory_percent disk_percent "
        "outbox samples labels worker_restarts"
    ),
}


def test_columns_of_a_set_never_change() -> None:
    assert SETS[METRIC_SET] == " ".join(METRIC_NAMES)
