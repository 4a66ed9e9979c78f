"""What `potstill doctor` says, on machines that have things and on machines that lack them."""

import http.server
import json
import socket
import threading

import pytest
import torch

from potstill.adjoint import engine
from potstill.cli import doctor
from potstill.data import hub
from tests.cli.test_main import call

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(hub, "unreached", lambda seconds: "not asked in a test")


def test_one_table_and_exit_code_0(capsys):
    code, printed, _ = call(capsys, "doctor")
    assert code == 0
    for word in ("PyTorch", torch.__version__.split("+")[0], "device", "bfloat16 units", "C++ compiler", "threads",
                 "memory", "disk", "cache", "Hugging Face", "tensorboard"):  # fmt: skip
        assert word in printed


def test_as_json(capsys):
    code, printed, _ = call(capsys, "doctor", "--json")
    found = json.loads(printed)
    assert (code, found["Hugging Face"]["lacking"]) == (0, True)
    assert found["PyTorch"]["here"] == torch.__version__
    assert set(doctor.PACKAGES) <= found.keys()


def test_what_is_missing_is_named_with_its_use(monkeypatch, capsys):
    monkeypatch.setattr(engine, "cpp_compiler", lambda: None)
    monkeypatch.setattr(engine, "has_bfloat16_units", lambda device: False)
    monkeypatch.setattr(doctor, "memory", lambda: (2_000_000_000, 1_000_000_000))
    monkeypatch.setitem(doctor.PACKAGES, "no-such-package", "what it would be for")
    code, printed, _ = call(capsys, "doctor")
    assert code == 0
    for words in ("install g++ or clang++", "all is computed in float32", "1.0 GB free of 2.0 GB",
                  "lower --micro-batch", "what it would be for", "pip install"):  # fmt: skip
        assert words in " ".join(printed.split())
    lacking = {item.name for item in doctor.examine() if item.lacking}
    assert lacking >= {"C++ compiler", "bfloat16 units", "memory", "Hugging Face", "no-such-package"}


def test_a_cache_that_cannot_be_written_is_said(monkeypatch):
    monkeypatch.setenv("POTSTILL_CACHE", "/proc/nowhere")
    found = doctor._cache()
    assert (found.lacking, "POTSTILL_CACHE" in found.remark) == (True, True)


def test_memory_is_that_of_the_container_where_it_has_less(monkeypatch):
    total, free = doctor.memory()
    assert total is not None
    assert free is None or 0 < free <= total
    monkeypatch.setattr(doctor, "_limit_of_the_container", lambda: 10**9)
    assert doctor.memory()[0] == 10**9


def test_the_speed_is_that_of_a_product(monkeypatch):
    monkeypatch.setattr(doctor.machine, "timed", lambda action, device: (action(), 1.0)[1])
    monkeypatch.setitem(doctor.SIZE, "cpu", 1000)
    assert doctor._multiplying(CPU).here == "float32 2, bfloat16 2 Gflop/s"


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(404)  # it is there all the same

    def log_message(self, *_):
        pass


def test_whether_the_hub_answers(monkeypatch):
    monkeypatch.undo()
    server = http.server.HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert hub.unreached(5.0) is None
    finally:
        server.shutdown()
        server.server_close()
    assert "refused" in (hub.unreached(5.0) or "").lower()
    monkeypatch.setattr(hub._library().constants, "HF_HUB_OFFLINE", True)
    assert hub.unreached(5.0) == "HF_HUB_OFFLINE is set"


def test_a_hub_that_keeps_silent_is_not_waited_for(monkeypatch):
    monkeypatch.undo()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert hub.unreached(0.2) is not None
