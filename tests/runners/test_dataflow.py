"""The stream on Dataflow, up to what Dataflow and its bucket are sent: both are played on the loopback address."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import google_crc32c
import pytest
from apache_beam.io.gcp.pubsub import PubsubMessage
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.utils.timestamp import Timestamp
from google.cloud import dataflow, pubsub_v1

from meterline.runners.dataflow import jobs
from meterline.runners.dataflow.place import DataflowError, Place
from meterline.runners.dataflow.template import __main__ as template
from meterline.runners.demo import quickstart
from meterline.transforms import clickhouse
from meterline.transforms.messages import Message
from tests.command import Command, Said
from tests.pipelines.test_stream_state import GOLDEN, state_of

ROOT = Path(__file__).parent.parent.parent
PLACE = Place("my-project", "europe-west1", "gs://bucket/staging", "gs://bucket/temp")
SUBSCRIPTION = "projects/my-project/subscriptions/usage"
NAME = "meterline-usage"
IMAGE = "europe-west1-docker.pkg.dev/my-project/images/meterline:0.1.0"
WHERE = {
    "project": "my-project",
    "region": "europe-west1",
    "staging-location": "gs://bucket/staging",
    "temp-location": "gs://bucket/temp",
    "worker-image": IMAGE,
}


class Cloud:
    """Dataflow's REST API and a bucket's: `active` jobs to list, what was `created`, and the `objects` stored."""

    def __init__(self) -> None:
        self.active: list[dict[str, str]] = []
        self.created: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refuses = False
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                cloud.asked.append(self.path)
                path = urlsplit(self.path).path
                if cloud.refuses:
                    self._answer(403, {"error": {"code": 403, "message": "dataflow.jobs.list denied"}})
                elif path == "/v1b3/projects/my-project/locations/europe-west1/jobs":
                    self._answer(200, {"jobs": cloud.active})
                elif re.fullmatch(r"/storage/v1/b/\w+", path):
                    self._answer(200, {"name": path.rpartition("/")[2]})
                else:
                    self._answer(404, {})

            def do_POST(self) -> None:
                cloud.asked.append(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                address = urlsplit(self.path)
                if address.path.startswith("/upload/"):
                    name = parse_qs(address.query).get("name") or [json.loads(body)["name"]]
                    self._answer(200, {}, location=f"{cloud.url}/put/{name[0]}")
                else:
                    cloud.created.append(json.loads(body))
                    self._answer(200, {**cloud.created[-1], "id": "2026-11-01_1"})

            def do_PUT(self) -> None:
                name = urlsplit(self.path).path.removeprefix("/put/")
                data = cloud.objects[name] = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                checksum = base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
                self._answer(200, {"name": name, "crc32c": checksum})

            def _answer(self, status: int, body: dict[str, Any], **headers: str) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": len(data), "Content-Type": "application/json"}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://localhost:{self.server.server_port}"

    @property
    def beams(self) -> list[str]:
        return [f"dataflow_endpoint={self.url}", "no_auth"]

    @property
    def pipeline(self) -> Any:
        """The pipeline that was staged last."""
        staged = [data for name, data in self.objects.items() if name.endswith("pipeline.pb")]
        return beam_runner_api_pb2.Pipeline.FromString(staged[-1])


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    cloud = Cloud()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", cloud.url)
    serving = threading.Thread(target=cloud.server.serve_forever, args=(0.01,))
    serving.start()
    yield cloud
    cloud.server.shutdown()
    serving.join()
    cloud.server.server_close()


@pytest.fixture(autouse=True)
def loopback_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here leaves the machine."""
    connect = socket.socket.connect

    def checked(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            assert address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)


def rate(meterline: Command, url: str, *words: str, **other: str | None) -> Said:
    """`meterline rate --on dataflow`, with other options than usual."""
    where = {**WHERE, **{name.replace("_", "-"): value for name, value in other.items()}}
    given = [word for name, value in where.items() if value for word in (f"--{name}", value)]
    catalog = quickstart() / "catalog"
    start = ("rate", "--subscription", SUBSCRIPTION, "--on", "dataflow", "--catalog", catalog, "--clickhouse", url)
    return meterline(*start, *given, *words)


def on(cloud: Cloud, *more: str) -> list[str]:
    return [word for one in (*cloud.beams, *more) for word in ("--dataflow-option", one)]


def runs(url: str) -> list[str]:
    return clickhouse.query(url, "SELECT run_id FROM runs FINAL ORDER BY started_at")["run_id"].to_pylist()


def active(name: str = NAME, state: str = "JOB_STATE_RUNNING") -> dict[str, str]:
    return {"id": "2026-10-01_0", "name": name, "currentState": state}


# Submission.


def test_a_stream_is_started(meterline: Command, cloud: Cloud, server: str) -> None:
    assert ":secret@" in server
    cloud.active = [active("another"), active(state="JOB_STATE_QUEUED")]
    said = rate(meterline, server, "--json", *on(cloud, "no_use_public_ips", "max_num_workers=4"))
    assert said.code == 0, said.err
    assert json.loads(said.out)["job_id"] == "2026-11-01_1"
    (run,) = runs(server)
    assert f"starts without state, as run {run}" in said.err
    (job,) = cloud.created
    assert (job["name"], job["type"], "replaceJobId" in job) == (NAME, 2, False)
    (pool,) = job["environment"]["workerPools"]
    assert [one["containerImage"] for one in pool["sdkHarnessContainerImages"]] == [IMAGE]
    assert (pool["ipConfiguration"], pool["autoscalingSettings"]["maxNumWorkers"]) == (2, 4)
    assert {"enable_streaming_engine", "use_runner_v2"} <= set(job["environment"]["experiments"])
    # Who may see the job need not know the password; who may read the bucket does.
    assert "secret" not in json.dumps(job)


def test_dataflow_finds_the_state_again_by_what_the_golden_file_says(
    meterline: Command, cloud: Cloud, server: str
) -> None:
    """So a step of one release is that of the next, as on Flink."""
    assert rate(meterline, server, *on(cloud)).code == 0
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert {**state_of(cloud.pipeline), "rating keys": golden["rating keys"]} == golden


def test_messages_are_read_by_dataflow_itself(meterline: Command, cloud: Cloud, server: str) -> None:
    assert rate(meterline, server, *on(cloud)).code == 0
    (source,) = [
        one for one in cloud.pipeline.components.transforms.values() if one.spec.urn == "beam:transform:pubsub_read:v1"
    ]
    read = beam_runner_api_pb2.PubSubReadPayload.FromString(source.spec.payload)
    assert (read.subscription, read.with_attributes, read.id_attribute) == (SUBSCRIPTION, True, "")
    assert read.timestamp_attribute == ""  # Acceptance goes by when a message was published.


def test_a_message_of_dataflow_is_one_of_the_stream() -> None:
    published = datetime(2026, 11, 1, 12, 0, 0, 123456, UTC)
    sent = pubsub_v1.types.PubsubMessage(data=b"{}", attributes={"ce-id": "1"}, message_id="42", publish_time=published)
    element = PubsubMessage._from_proto_str(pubsub_v1.types.PubsubMessage.serialize(sent))
    micros = int(published.timestamp()) * 1_000_000 + 123456
    assert Message.of(element, Timestamp(0)) == Message(b"{}", {"ce-id": "1"}, "42", micros)


def test_an_update_keeps_the_run(meterline: Command, cloud: Cloud, server: str) -> None:
    assert rate(meterline, server, *on(cloud)).code == 0
    cloud.active = [active()]
    said = rate(meterline, server, "--update", *on(cloud, 'transform_name_mapping={"Rate/Old": "Rate/Rate"}'))
    assert said.code == 0, said.err
    (run,) = runs(server)
    assert f"takes over the state of the one that runs, as run {run}" in said.err
    assert cloud.created[-1]["replaceJobId"] == "2026-10-01_0"
    assert cloud.created[-1]["transformNameMapping"] == {"Rate/Old": "Rate/Rate"}


@pytest.mark.parametrize("state", ["JOB_STATE_RUNNING", "JOB_STATE_DRAINING", "JOB_STATE_PENDING"])
def test_a_start_beside_a_job_of_the_same_name_begins_no_run(
    meterline: Command, cloud: Cloud, server: str, state: str
) -> None:
    """A new run would end that of the job that is there."""
    cloud.active = [active(state=state)]
    said = rate(meterline, server, *on(cloud))
    assert said.code == 2
    assert f"is there already: 2026-10-01_0 is {state[10:].lower()}. Give --update" in said.err
    assert (runs(server), cloud.created) == ([], [])


@pytest.mark.parametrize(
    ("there", "told"),
    [
        pytest.param([], "there is none", id="no job"),
        pytest.param([active(state="JOB_STATE_DRAINING")], "2026-10-01_0 is draining", id="a job that drains"),
    ],
)
def test_an_update_of_no_job_that_runs_is_refused(
    meterline: Command, cloud: Cloud, server: str, there: list[dict[str, str]], told: str
) -> None:
    """A job without state must not go on with a run: it would recall none of what that run archived."""
    assert rate(meterline, server, *on(cloud)).code == 0
    cloud.active = there
    said = rate(meterline, server, "--update", *on(cloud))
    assert said.code == 2
    assert f"--update takes the place of a job that runs: of {NAME} in my-project, europe-west1 {told}" in said.err
    assert len(cloud.created) == 1


def test_a_dataflow_that_refuses_is_told(meterline: Command, cloud: Cloud, server: str) -> None:
    cloud.refuses = True
    said = rate(meterline, server, *on(cloud))
    assert said.code == 3
    assert "Dataflow in my-project, europe-west1 cannot be used" in said.err
    assert "dataflow.jobs.list denied" in said.err
    assert runs(server) == []


# What is refused before anything is asked.


@pytest.mark.parametrize(
    ("other", "told"),
    [
        pytest.param({"project": None}, "--project is missing", id="no project"),
        pytest.param({"region": None}, "--region is missing", id="no region"),
        pytest.param({"staging_location": None}, "--staging-location is missing", id="no bucket"),
        pytest.param({"project": "123456"}, "(not its number), got '123456'", id="a project's number"),
        pytest.param({"region": "europe"}, "expected a region, like europe-west1, got 'europe'", id="no region's name"),
        pytest.param({"temp_location": "/tmp/x"}, "expected a folder of a bucket", id="a folder of this machine"),
        pytest.param({"worker_image": None}, "give --worker-image", id="workers without Meterline"),
        pytest.param({"worker_package": "m.whl"}, "one of the two", id="image and package"),
        pytest.param({"worker_image": None, "worker_package": "m.whl"}, "m.whl: no such file", id="no such package"),
        pytest.param({"worker_image": None, "worker_package": "m.rpm"}, "expected .whl", id="no package"),
        pytest.param({"job_name": "Usage_1"}, "got 'Usage_1'", id="no job's name"),
        pytest.param({"clickhouse": "chdb://db"}, "on Dataflow several processes write", id="embedded database"),
        pytest.param({"subscription": "usage"}, "got 'usage'", id="no subscription"),
        pytest.param({"dataflow_option": "machin_type=x"}, "Beam has no such option", id="misspelt option"),
        pytest.param({"dataflow_option": "max_num_workers=x"}, "invalid int value", id="wrong option"),
        pytest.param({"dataflow_option": "project=other"}, "an option of its own", id="an option that Meterline has"),
        pytest.param({"dataflow_option": "update"}, "an option of its own", id="a switch that Meterline has"),
        pytest.param({"dataflow_option": 'transform_name_mapping={"a":"b"}'}, "is for --update", id="mapping, start"),
        pytest.param(
            {"dataflow_option": "dataflow_service_options=streaming_mode_at_least_once"},
            "billed as often",
            id="at least once",
        ),
        pytest.param({"dataflow_option": "create_from_snapshot=s"}, "is not in its state", id="a snapshot"),
        pytest.param({"resume": "file:/s"}, "--resume is for --subscription --on flink, not for", id="Flink's option"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    meterline: Command, cloud: Cloud, server: str, other: dict[str, str | None], told: str
) -> None:
    said = rate(meterline, server, *on(cloud), **other)
    assert said.code == 2, said
    assert told in " ".join(re.sub("[│╭─╮╰╯]", " ", said.err).split())
    assert (cloud.asked, runs(server)) == ([], [])


def test_dataflows_options_are_for_dataflow(meterline: Command, database: str) -> None:
    said = meterline("rate", "--subscription", SUBSCRIPTION, "--project", "my-project", "--clickhouse", database)
    assert (said.code, "--on dataflow" in said.err) == (2, True)


def test_workers_can_install_meterline_in_place_of_an_image(
    meterline: Command, cloud: Cloud, server: str, tmp_path: Path
) -> None:
    wheel = tmp_path / "meterline-0.1.0-cp311-cp311-linux_x86_64.whl"
    wheel.write_bytes(b"a wheel")
    assert rate(meterline, server, *on(cloud), worker_image=None, worker_package=str(wheel)).code == 0
    assert [data for name, data in cloud.objects.items() if name.endswith(".whl")] == [b"a wheel"]
    (pool,) = cloud.created[0]["environment"]["workerPools"]
    assert "beam_python3.11_sdk" in pool["workerHarnessContainerImage"]


@pytest.mark.parametrize(
    ("subscription", "name"),
    [
        ("projects/p/subscriptions/usage", "meterline-usage"),
        ("projects/p/subscriptions/Usage_of.2026~", "meterline-usage-of-2026"),
        ("projects/p/subscriptions/" + "u" * 52 + "-" + "u" * 99, "meterline-" + "u" * 52),
    ],
)
def test_a_jobs_name_says_its_subscription(subscription: str, name: str) -> None:
    assert jobs.default_name(subscription) == name
    jobs.options(PLACE, name, worker_image=IMAGE)


def test_a_bucket_alone_is_a_folder() -> None:
    assert Place("my-project", "europe-west1", "gs://bucket").temp_location == "gs://bucket/"


def test_without_credentials_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(DataflowError, match=r"no credentials for Google Cloud.*application-default login") as refused:
        jobs.pipeline(jobs.options(PLACE, NAME, worker_image=IMAGE))
    assert refused.value.code == 3


# The Flex Template.


METADATA = ROOT / "runners" / "dataflow" / "template" / "metadata.json"


def launch(cloud: Cloud, url: str, *words: str) -> int:
    """What Dataflow's launcher runs."""
    launchers = {
        "project": "my-project",
        "region": "europe-west1",
        "job_name": NAME,
        "staging_location": "gs://bucket/staging",
        "temp_location": "gs://bucket/temp",
        "template_location": "gs://bucket/launches/1/job_object",
    }
    own = {
        "subscription": SUBSCRIPTION,
        "catalog": str(quickstart() / "catalog"),
        "clickhouse": url,
        "sdk_container_image": IMAGE,
    }
    given = [f"--{name}={value}" for name, value in {**own, **launchers}.items()]
    return template.main([*given, *(f"--{one}" for one in cloud.beams), *words])


def test_the_template_writes_the_job_that_its_launcher_submits(
    cloud: Cloud, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cloud.active = [active(state="JOB_STATE_QUEUED")]  # Itself.
    assert launch(cloud, server) == 0, capsys.readouterr().err
    assert len(runs(server)) == 1
    assert cloud.created == []
    job = json.loads(cloud.objects["launches/1/job_object"])
    assert job["name"] == NAME
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert {**state_of(cloud.pipeline), "rating keys": golden["rating keys"]} == golden


def test_the_template_goes_on_with_a_run_where_its_job_runs(
    cloud: Cloud, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(cloud, server) == 0
    assert launch(cloud, server, "--resume=true") == 2
    assert "there is none" in capsys.readouterr().err
    cloud.active = [active(), active(state="JOB_STATE_QUEUED")]
    assert launch(cloud, server, "--resume=true") == 0
    assert launch(cloud, server, "--resume=false") == 2
    assert len(runs(server)) == 1


def test_a_templates_mistakes_are_sentences(
    cloud: Cloud, server: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert launch(cloud, server, f"--catalog={tmp_path}") == 2
    assert "expected a folder of YAML files" in capsys.readouterr().err
    (tmp_path / "catalog.yaml").write_text("meters: 1", encoding="utf-8")
    assert launch(cloud, server, f"--catalog={tmp_path}") == 2
    assert "catalog.yaml" in capsys.readouterr().err
    assert launch(cloud, "chdb://db") == 2
    assert "on Dataflow several processes write" in capsys.readouterr().err
    assert launch(cloud, server, "--dataflow_service_options=streaming_mode_at_least_once") == 2
    assert "billed as often" in capsys.readouterr().err
    assert (cloud.asked, runs(server)) == ([], [])


def test_the_metadata_fits_dataflows_schema_and_the_templates_parameters() -> None:
    # The schema is that of Dataflow's own client, which refuses names that it does not know.
    metadata = dataflow.TemplateMetadata.from_json(METADATA.read_text(encoding="utf-8"), ignore_unknown_fields=False)
    assert metadata.name
    assert metadata.streaming
    assert (metadata.supports_exactly_once, metadata.supports_at_least_once) == (True, False)
    taken = {action.dest: action for action in template.parameters()._actions if action.dest != "help"}
    assert sorted(one.name for one in metadata.parameters) == sorted(taken)
    for one in metadata.parameters:
        assert one.label
        assert one.help_text
        assert one.is_optional is not taken[one.name].required, one.name
        assert one.default_value == ("" if taken[one.name].required else str(taken[one.name].default)), one.name


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("subscription", [SUBSCRIPTION], ["usage", SUBSCRIPTION + "/x", SUBSCRIPTION + "\n"]),
        ("catalog", ["gs://bucket", "gs://bucket/a/b/"], ["/catalog", "gs://"]),
        (
            "clickhouse",
            ["https://u:p@h:8443/billing", "projects/p/secrets/clickhouse/versions/latest"],
            ["chdb://db", "projects/p/secrets/clickhouse"],
        ),
        ("max_age_days", ["35"], ["-1", "x", ""]),
        ("resume", ["true", "false"], ["yes", ""]),
        ("sdk_container_image", [IMAGE], [""]),
    ],
)
def test_a_parameters_form_is_checked_before_the_launch(name: str, right: list[str], wrong: list[str]) -> None:
    parameters = json.loads(METADATA.read_text(encoding="utf-8"))["parameters"]
    (one,) = [parameter for parameter in parameters if parameter["name"] == name]
    (form,) = one["regexes"]
    assert [value for value in right if not re.fullmatch(form, value)] == []
    assert [value for value in wrong if re.fullmatch(form, value)] == []


def test_the_image_holds_the_beam_that_jobs_are_submitted_with() -> None:
    text = (ROOT / "runners" / "flink" / "kubernetes" / "Dockerfile").read_text(encoding="utf-8")
    (locked,) = re.findall(r"^apache-beam==(\S+)$", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.M)
    assert re.findall(r"apache/beam_python3\.11_sdk:(\S+)", text) == [locked]
    (entry,) = re.findall(r"FLEX_TEMPLATE_PYTHON_PY_FILE=\S+/meterline/(\S+)", text)
    assert ROOT / entry == Path(template.__file__).resolve()
