"""W&B without a server, without a key, and with a server that does not answer: offline, and no waiting."""

import http.server
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from lit_adv import wandb_logger

pytest.importorskip("wandb", reason="wandb is not installed")

CODE = """
import sys, time
import pytorch_lightning as pl
from lit_adv.wandb_logger import PatientWandbLogger
began = time.monotonic()
logger = PatientWandbLogger(save_dir=sys.argv[1], project="p", wait=1.0)
logger.log_metrics({"loss": 1.5}, step=3)
print("offline" if logger.experiment.offline else "online")
logger.experiment.finish()
print("seconds", time.monotonic() - began)
"""


def log(folder, server):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"WANDB_BASE_URL": server, "HOME": str(folder), "WANDB_API_KEY": "0" * 40}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)],
        env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def silent():
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def closed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_logged_offline_with_one_line_that_says_so(tmp_path, silent):
    out = log(tmp_path, silent)
    assert "offline" in out.splitlines()
    (line,) = (line for line in out.splitlines() if line.startswith("W&B: "))
    assert f"{silent} does not answer" in line
    folder = Path(line.partition("wandb sync ")[2])
    assert folder.is_relative_to(tmp_path)
    assert list(folder.glob("*.wandb"))
    assert float(out.split("seconds ")[1]) < 30


@pytest.mark.long
def test_a_server_that_takes_no_run_is_no_reason_to_stop(tmp_path):
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        do_POST = do_GET

        def log_message(self, *given):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        out = log(tmp_path, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "offline" in out.splitlines()
    assert "logged offline, to be uploaded with: wandb sync" in out


def test_what_keeps_a_run_from_being_logged_online(tmp_path, monkeypatch, silent):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_API_KEY", "")
    for server in (closed(), silent):
        monkeypatch.setenv("WANDB_BASE_URL", server)
        assert wandb_logger._problem(0.2).startswith(f"there is no API key for {server}")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    for server in (closed(), silent):
        monkeypatch.setenv("WANDB_BASE_URL", server)
        assert wandb_logger._problem(0.2).startswith(f"{server} does not answer")
    with pytest.raises(ValueError, match="PatientWandbLogger: wait must be above 0 seconds, got 0"):
        wandb_logger.PatientWandbLogger(wait=0)


def test_the_config_names_it():
    config = yaml.safe_load((Path(__file__).parent.parent / "configs/loggers/wandb.yaml").read_text())
    assert config["trainer"]["logger"]["class_path"] == "lit_adv.wandb_logger.PatientWandbLogger"
