"""A whole site with every door open: one row each by file, over MQTT, over gRPC and by the command line."""

import csv
import json
from pathlib import Path

import paho.mqtt.client as paho
import pytest
import tritonclient.grpc as triton

from tests.integration.test_agent_process import Site, wait_for, with_release
from tests.integration.test_doors_mqtt import ROW, SiteBroker, Till, heard_after_asking
from tests.integration.test_serving_grpc import inputs


def test_every_door_of_a_site_leads_to_the_same_model(tmp_path: Path) -> None:
    broker = SiteBroker(tmp_path)
    broker.start()
    site = Site(tmp_path / "state")
    batch = tmp_path / "batch"
    wanted = {
        "grpc.enabled": "true", "grpc.port": "0", "batch.folder": str(batch), "batch.settle_s": "0.2",
        "batch.poll_s": "0.2", "mqtt_inference.host": "127.0.0.1", "mqtt_inference.port": str(broker.port),
        "mqtt_inference.topic_prefix": "shop",
    }  # fmt: skip
    site.init(*(part for key, value in wanted.items() for part in ("--set", f"{key}={value}")))
    with_release(site.state)
    try:
        site.start()
        rows = tmp_path / "rows.csv"
        rows.write_text("id,hour,wind,carrier\ncli,9.5,4,UA\nbad,99,4,UA\n")
        done = site.cli("infer", "delay", str(rows), "-o", "json")
        assert done.returncode == 3, done.stderr
        assert (json.loads(done.stdout)["answered"], json.loads(done.stdout)["rejected"]) == (1, 1)
        with (tmp_path / "rows.result.csv").open(newline="") as file:
            (row,) = csv.DictReader(file)
        expected = pytest.approx(float(row["probability"]), abs=1e-6)

        till = Till(broker.port, paho.MQTTv5, "shop/delay/response/t")
        answer = wait_for(lambda: heard_after_asking(till, {"id": "mqtt", "row": ROW}), site)
        assert answer["outputs"]["probability"] == expected
        till.close()

        with triton.InferenceServerClient(f"127.0.0.1:{site.ports()['grpc']}") as client:
            assert client.infer("delay", inputs(), request_id="grpc").as_numpy("probability")[0] == expected

        (batch / "delay" / "in" / "day.csv").write_text("id,hour,wind,carrier\nfile,9.5,4,UA\n")
        out = batch / "delay" / "out" / "day.csv"
        wait_for(out.exists, site)
        with out.open(newline="") as file:
            assert [float(row["probability"]) for row in csv.DictReader(file)] == [expected]
        # One row each, though the machine asked many times with one id; the refused one is no prediction.
        wait_for(lambda: site.status()["predictions_total"] == 4, site)
        assert site.end() == 0
    finally:
        if site.process is not None and site.process.poll() is None:
            site.process.kill()
            site.process.wait()
        broker.stop()
