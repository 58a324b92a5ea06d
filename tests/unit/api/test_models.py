"""/v1/models from outside: every refusal with its code; uploads as they come over the wire; promotion and removal."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import zipfile
from typing import Any

import pytest

from api.core import models
from api.core.jobs import attempts, requests
from api.core.lifecycle import Requested
from api.core.rows import db
from api.core.rows.ids import new_id
from api.core.rows.tables import DEFAULT_PROJECT
from api.http import pages
from fgd.detector_specs import FCOS
from fgd.recipe import Recipe

UPLOAD = {"name": "t", "detector": {"kind": "fcos", "fpn_channels": 64}, "classes": ["cat", "dog"]}
JSON = {"Content-Type": "application/octet-stream"}


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8)


def zipped(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in entries.items():
            archive.writestr("x/" + name.replace("__", "/").replace("_pkl", ".pkl"), data)
    return file.getvalue()


def begun(client: Any, **changes: Any) -> str:
    answer = client.post("/v1/models", json=UPLOAD | changes)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def put(client: Any, id: str, data: bytes, **headers: str) -> Any:
    return client.put(f"/v1/models/{id}/content", content=data, headers=JSON | headers)


def digest(data: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:"


def verified(given: Any, id: str, classes: tuple[str, ...] = ("cat", "dog"), step: int | None = None) -> None:
    """What a worker does for a good file; step: as a checkpoint tells it."""
    recipe = Recipe(detector=FCOS(fpn_channels=64), classes=classes, min_size=64, max_size=64)
    files = given.store.put_bytes(b"weights"), given.store.put_bytes(recipe.model_dump_json().encode())
    with db.transaction(given.engine) as s:
        claim = models.claim_import(s, "wrk_a", lease_s=20.0)
        assert claim is not None
        assert claim.id == id
        made = models.FinishedImport(*files, "d" * 64)
        models.finish_import(s, id, claim.attempt, recipe.model_dump(mode="json"), made, {"notes": [], "step": step})


# --- upload ---------------------------------------------------------------------------------------------------


def test_an_upload_is_begun_sent_verified_and_ready(client: Any, given: Any) -> None:
    made = client.post("/v1/models", json=UPLOAD)
    view = made.json()
    assert (made.status_code, view["state"]) == (201, "awaiting_upload")
    assert made.headers["location"] == f"/v1/models/{view['id']}"
    assert view["recipe"]["max_size"] == 1333

    sent = put(client, view["id"], GOOD, **{"Content-Digest": digest(GOOD)})

    assert (sent.status_code, sent.json()["state"]) == (202, "verifying"), sent.text
    assert sent.json()["upload_sha256"] == hashlib.sha256(GOOD).hexdigest()
    verified(given, view["id"])
    ready = client.get(f"/v1/models/{view['id']}").json()
    assert (ready["state"], ready["weights_digest"], ready["size"]) == ("ready", "d" * 64, len(b"weights"))
    assert ready["content_url"] is None
    assert list((given.store.root.parent / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "pointer", "code"),
    [
        ({"classes": []}, "/classes", "too_short"),
        ({"classes": ["a", "N/A", "a", "N/A"]}, "/classes", "value_error"),
        ({"classes": ["__background__"]}, "/classes", "value_error"),
        ({"take": "best"}, "/take", "literal_error"),
        ({"detector": {"kind": "yolo"}}, "/detector/kind", None),
        ({"detector": {"kind": "fcos", "backbone": "vgg"}}, "/detector/backbone", "literal_error"),
        ({"detector": {"kind": "fcos", "inherit": {"path": "/x"}}}, "/detector", "value_error"),
        ({"min_size": 900, "max_size": 800}, "", "value_error"),
        ({"image_std": [0, 1, 1]}, "/image_std", "value_error"),
        ({"anchor_sizes": [[32]] * 5}, "/anchor_sizes", "value_error"),
        ({"anchor_ratios": [1.0]}, "/anchor_ratios", "value_error"),
        ({"detector": {"kind": "retinanet"}, "anchor_sizes": [[32]] * 4}, "/anchor_sizes", "value_error"),
        ({"detector": {"kind": "retinanet"}, "anchor_sizes": [[1]] * 4 + [[1, 2]]}, "/anchor_sizes", "value_error"),
        ({"detector": {"kind": "retinanet"}, "anchor_sizes": [[0]] * 5}, "/anchor_sizes/0/0", "greater_than_equal"),
        ({"detector": {"kind": "retinanet"}, "anchor_ratios": [0]}, "/anchor_ratios/0", "greater_than"),
        ({"bogus": 1}, "/bogus", "extra_forbidden"),
        ({"name": ""}, "/name", "string_too_short"),
        ({"job": "job_1"}, "/job", "string_pattern_mismatch"),
    ],
)
def test_a_wrong_body_names_its_field(client: Any, change: dict[str, Any], pointer: str, code: str | None) -> None:
    answer = client.post("/v1/models", json=UPLOAD | change)

    assert answer.status_code == 422, answer.text
    errors = {error["pointer"]: error["code"] for error in answer.json()["errors"]}
    assert pointer in errors, errors
    assert code in (None, errors[pointer])


def test_anchors_of_a_network_that_was_trained_elsewhere_stand_in_its_recipe(client: Any) -> None:
    anchors = {"anchor_sizes": [[8], [16], [32], [64], [128]], "anchor_ratios": [0.5, 1]}

    made = client.post("/v1/models", json=UPLOAD | {"detector": {"kind": "faster_rcnn"}} | anchors)

    assert made.status_code == 201, made.text
    assert {key: made.json()["recipe"][key] for key in anchors} == anchors


def test_torchvisions_own_list_of_classes_is_taken_as_it_is(client: Any) -> None:
    from torchvision.models.detection import FCOS_ResNet50_FPN_Weights

    names = FCOS_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    made = client.post("/v1/models", json=UPLOAD | {"classes": names})

    assert (made.status_code, len(names)) == (201, 91), made.text
    assert made.json()["classes"] == names[1:], "the background is not named"


@pytest.mark.parametrize(("take", "source"), [("ema", {}), ("raw", {"take": "raw"})])
def test_which_weights_to_take_reaches_the_worker(client: Any, given: Any, take: str, source: dict[str, str]) -> None:
    id = begun(client, take=take)
    put(client, id, GOOD)

    assert client.get(f"/v1/models/{id}").json()["source"] == {"kind": "upload", **source}
    with db.transaction(given.engine) as s:
        claimed = models.claim_import(s, "wrk_a", lease_s=20.0)
    assert claimed is not None
    assert claimed.take == take


def test_frozen_layers_may_be_named_for_a_finished_network(client: Any) -> None:
    detector = {"kind": "fcos", "backbone": "resnet50", "norm": "frozen"}

    assert client.post("/v1/models", json=UPLOAD | {"detector": detector}).status_code == 201


TRAVERSAL = ["..%2f..%2fetc%2fpasswd", "mdl_%00", "%2e%2e", "mdl_" + "0" * 32]


@pytest.mark.parametrize("id", TRAVERSAL)
def test_an_unknown_model_is_a_404_for_every_verb(client: Any, id: str) -> None:
    for answer in (client.get(f"/v1/models/{id}"), client.delete(f"/v1/models/{id}"), put(client, id, GOOD)):
        assert answer.status_code == 404, answer.text


LIES = {
    "huge header": struct.pack("<Q", 2**62) + b'{"a"',
    "header longer than the file": struct.pack("<Q", 999) + b"{}",
    "not JSON": safetensors(b"{nonsense"),
    "duplicate keys": safetensors(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
                                  b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"0"),
    "overlap": safetensors({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
                            "b": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"000"),
    "gap": safetensors({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"00"),
    "tail": GOOD + b"0",
    "cut off": GOOD[:-1],
    "shape that does not make its bytes": safetensors(
        {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"\0" * 8),
    "negative": safetensors({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, -1]}}),
    "odd dtype": safetensors({"a": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 1]}}, b"0"),
    "too deep": safetensors(b'{"a":' + b"[" * 100_000),
    "half a zip": zipped(data_pkl=b"x" * 1000)[:500],
}  # fmt: skip


@pytest.mark.parametrize("what", LIES)
def test_a_file_that_lies_is_refused_at_once_and_not_kept(client: Any, given: Any, what: str) -> None:
    id = begun(client)

    answer = put(client, id, LIES[what])

    assert (answer.status_code, answer.json()["code"]) == (422, "weights_damaged"), answer.text
    assert client.get(f"/v1/models/{id}").json()["state"] == "awaiting_upload"
    assert put(client, id, GOOD).status_code == 202, "another try may go well"
    assert list((given.store.root.parent / "uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\x80\x02}q\x00.", "pickle"),
        (b"hello, this is text", "no file of weights"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 40, "no file of weights"),
        (zipped(code__m=b"", data_pkl=b"", constants_pkl=b""), "TorchScript"),
        (zipped(archive_format=b"pt2"), "PT2"),
        (zipped(photo=b"x"), "not written by torch.save"),
    ],
)
def test_what_is_no_weights_is_a_415_that_says_what_to_send(client: Any, data: bytes, word: str) -> None:
    answer = put(client, begun(client), data)

    assert (answer.status_code, answer.json()["code"]) == (415, "not_weights")
    assert word in answer.json()["detail"]


def test_the_same_key_makes_one_model(client: Any, given: Any) -> None:
    headers = {"Idempotency-Key": "once"}
    first, again = (client.post("/v1/models", json=UPLOAD, headers=headers) for _ in range(2))

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert client.post("/v1/models", json=UPLOAD | {"name": "u"}, headers=headers).status_code == 422
    assert len(client.get("/v1/models").json()["items"]) == 1


def test_a_list_leaves_reports_out(client: Any, given: Any) -> None:
    id = begun(client)
    with db.transaction(given.engine) as s:
        models.get(s, DEFAULT_PROJECT, id).report = {"missing": ["a"]}
    assert client.get(f"/v1/models/{id}").json()["report"] == {"missing": ["a"]}
    assert [model["report"] for model in client.get("/v1/models").json()["items"]] == [None]


def test_a_page_of_large_models_ends_early_and_the_next_one_goes_on(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "MAX_PAGE_BYTES", 1000)
    ids = [begun(client) for _ in range(45)]
    found, url, lengths = [], "/v1/models?limit=200", []
    while url:
        page = client.get(url)
        lengths.append(len(page.json()["items"]))
        found += [model["id"] for model in page.json()["items"]]
        assert (page.json()["next"] is None) == ("next" not in page.links)
        url = page.links["next"]["url"] if "next" in page.links else ""
    assert lengths == [20, 20, 5]
    assert found == ids[::-1]


def test_models_are_listed_in_pages_and_an_unchanged_one_answers_304(client: Any) -> None:
    ids = [begun(client) for _ in range(3)]

    first = client.get("/v1/models?limit=2")
    second = client.get(first.links["next"]["url"]).json()

    assert [model["id"] for model in first.json()["items"] + second["items"]] == ids[::-1]
    tag = client.get(f"/v1/models/{ids[0]}").headers["etag"]
    assert client.get(f"/v1/models/{ids[0]}", headers={"If-None-Match": tag}).status_code == 304


# --- promotion ------------------------------------------------------------------------------------------------


def test_a_finished_job_becomes_a_model_at_once_and_shares_its_files(client: Any, given: Any) -> None:
    job = given.succeeded()
    by_body = client.post("/v1/models", json={"name": "m", "job": job})
    by_route = client.post(f"/v1/jobs/{job}/checkpoints/last/promote")
    best = client.post(f"/v1/jobs/{job}/checkpoints/best/promote", json={"name": "the best"})

    artifacts = {each["name"]: each["sha256"] for each in client.get(f"/v1/jobs/{job}/artifacts").json()["items"]}
    for answer in (by_body, by_route, best):
        assert (answer.status_code, answer.json()["state"]) == (201, "ready"), answer.text
        assert answer.json()["sha256"] == artifacts["student.safetensors"]
        assert answer.json()["weights_digest"] == given.look(job).weights_digest
    assert by_route.json()["name"] == "a job (last)"
    assert best.json()["name"] == "the best"
    assert [each["id"] for each in client.get(f"/v1/jobs/{job}/checkpoints").json()["items"]] == ["last", "best"]


def test_the_best_weights_are_promoted_where_they_are_not_the_last(client: Any, given: Any) -> None:
    id = given.running()
    recipe = Recipe(detector=FCOS(), classes=("cat", "dog"), min_size=64, max_size=64).model_dump_json().encode()
    manifest = json.dumps({"steps": 90, "best": {"step": 60, "val_ap": 3.0}, "stopped_by_request": False}).encode()
    contents = {
        "student.safetensors": b"x",
        "best.safetensors": GOOD,
        "recipe.json": recipe,
        "manifest.json": manifest,
    }
    blobs = {name: given.store.put_bytes(data) for name, data in contents.items()}
    with db.transaction(given.engine) as s:
        attempts.finish(
            s, id, 1, [attempts.ArtifactIn(name, blob.digest, blob.size) for name, blob in blobs.items()], "e" * 64
        )

    model, last = (client.post(f"/v1/jobs/{id}/checkpoints/{which}/promote").json() for which in ("best", "last"))

    assert model["sha256"] == hashlib.sha256(GOOD).hexdigest()
    assert model["weights_digest"] not in (None, "e" * 64)
    assert model["source"] == {"kind": "job", "job": id, "which": "best", "step": 60}
    assert last["source"] == {"kind": "job", "job": id, "which": "last", "step": 90}
    items = client.get(f"/v1/jobs/{id}/checkpoints").json()["items"]
    assert {item["id"]: item["step"] for item in items} == {"last": 90, "best": 60}


def test_a_checkpoint_of_a_running_job_goes_to_a_worker(client: Any, given: Any, tmp_path: Any) -> None:
    id = given.running()
    nothing = client.post(f"/v1/jobs/{id}/checkpoints/last/promote")
    assert (nothing.status_code, nothing.json()["code"], nothing.json()["retryable"]) == (409, "no_checkpoint", True)
    (tmp_path / "c.pt").write_bytes(b"checkpoint")
    given.store.put_object("jobs/c.pt", tmp_path / "c.pt")
    with db.transaction(given.engine) as s:
        attempts.checkpoint(s, id, 1, 40, "jobs/c.pt", hashlib.sha256(b"checkpoint").hexdigest(), 10)
    (kept,) = client.get(f"/v1/jobs/{id}/checkpoints").json()["items"]

    for name, step in ((kept["id"], 40), ("best", None)):
        answer = client.post(f"/v1/jobs/{id}/checkpoints/{name}/promote")
        assert (answer.status_code, answer.json()["state"]) == (202, "verifying"), answer.text
        assert answer.json()["source"]["step"] == step, "the newest checkpoint is not where its best weights are from"

    blob = given.store.path(hashlib.sha256(b"checkpoint").hexdigest())
    assert blob.samefile(given.store.object_path("jobs/c.pt")), "the store's own bytes are not copied"
    with db.transaction(given.engine) as s:
        claims = [models.claim_import(s, "wrk_a", lease_s=20.0), models.claim_import(s, "wrk_a", lease_s=20.0)]
    assert sorted(claim.which or "" for claim in claims if claim) == ["best", "last"]
    unknown = client.post(f"/v1/jobs/{id}/checkpoints/{new_id('ckpt')}/promote")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "checkpoint_not_found")


def test_the_best_weights_of_a_running_job_are_of_the_step_that_their_checkpoint_tells(
    client: Any, given: Any, tmp_path: Any
) -> None:
    id = given.running()
    for step in (40, 80):
        content = b"checkpoint of step %d" % step
        (tmp_path / "c.pt").write_bytes(content)
        given.store.put_object(f"jobs/{step}.pt", tmp_path / "c.pt")
        with db.transaction(given.engine) as s:
            attempts.checkpoint(s, id, 1, step, f"jobs/{step}.pt", hashlib.sha256(content).hexdigest(), len(content))

    for which, step in (("best", 30), ("last", 80)):
        model = client.post(f"/v1/jobs/{id}/checkpoints/{which}/promote").json()["id"]
        verified(given, model, step=step)
        assert client.get(f"/v1/models/{model}").json()["source"]["step"] == step


def test_a_job_without_weights_cannot_be_promoted(client: Any, given: Any) -> None:
    running, cancelled = given.running(), given.job()
    with db.transaction(given.engine) as s:
        requests.request(s, DEFAULT_PROJECT, cancelled, Requested.cancel)

    def promoted(job: str) -> tuple[int, str, str]:
        answer = client.post("/v1/models", json={"name": "m", "job": job}).json()
        return answer["status"], answer["code"], "".join(error["pointer"] for error in answer["errors"])

    assert promoted(running) == (409, "job_not_ready", "/job")
    assert promoted(cancelled) == (422, "job_has_no_weights", "/job")
    assert promoted(new_id("job")) == (422, "job_not_found", "/job")
    assert client.post(f"/v1/jobs/{new_id('job')}/checkpoints/last/promote").status_code == 404
    gone = client.post(f"/v1/jobs/{cancelled}/checkpoints/last/promote")
    assert (gone.status_code, gone.json()["code"], gone.json()["retryable"]) == (409, "no_checkpoint", False)


# --- what jobs make of them -----------------------------------------------------------------------------------


def ready(client: Any, given: Any, classes: tuple[str, ...] = ("cat", "dog")) -> str:
    id = begun(client, classes=list(classes))
    assert put(client, id, GOOD).status_code == 202
    verified(given, id, classes)
    return id


def test_a_model_may_teach_be_inherited_from_and_be_begun_with(client: Any, given: Any) -> None:
    model = ready(client, given)
    student = {"inherit": {"model": model}, "weights": {"model": model}, "norm": "frozen", "fpn_channels": 64}
    body = given.body(teacher={"model": model, "allow_unfit": True}, methods=[{"kind": "fgd"}], student=student)

    answer = client.post("/v1/jobs", json=body)

    assert answer.status_code == 201, answer.text
    inputs = given.look(answer.json()["id"]).inputs
    assert inputs["teacher"] == inputs["inherit"] == inputs["weights"]
    assert given.store.path(inputs["teacher"]["student.safetensors"]).read_bytes() == b"weights"


def test_a_model_that_is_not_ready_is_told_by_its_state(client: Any, given: Any) -> None:
    def asked(model: str) -> tuple[int, str, bool]:
        student = {"weights": {"model": model}}
        answer = client.post("/v1/jobs", json=given.body(student=student)).json()
        return answer["status"], answer["code"], answer["retryable"]

    id = begun(client)
    assert asked(id) == (409, "weights_not_ready", False)
    put(client, id, GOOD)
    assert asked(id) == (409, "weights_not_ready", True)
    with db.transaction(given.engine) as s:
        models.claim_import(s, "wrk_a", lease_s=20.0)
        models.reject(s, id, 1, {"missing": ["a"]}, "it does not fit")
    assert asked(id) == (422, "weights_rejected", False)
    assert client.get(f"/v1/models/{id}").json()["report"] == {"missing": ["a"]}
    assert asked(new_id("mdl")) == (422, "weights_not_found", False)


def test_a_model_of_other_classes_may_teach_and_may_not_be_inherited_from(client: Any, given: Any) -> None:
    other = {"model": ready(client, given, ("cat", "cow"))}
    teaching = given.body(teacher=other, methods=[{"kind": "fgd"}])

    assert client.post("/v1/jobs", json=teaching).status_code == 201
    answer = client.post("/v1/jobs", json=given.body(student={"inherit": other}))
    assert [(e["pointer"], e["code"]) for e in answer.json()["errors"]] == [("/student/inherit", "classes_differ")]


def test_a_model_in_use_stays_and_its_users_are_named(client: Any, given: Any) -> None:
    model = ready(client, given)
    job = client.post("/v1/jobs", json=given.body(student={"weights": {"model": model}})).json()["id"]

    refused = client.delete(f"/v1/models/{model}")
    assert (refused.status_code, refused.json()["code"]) == (409, "model_in_use")
    assert job in refused.json()["detail"]

    client.post(f"/v1/jobs/{job}/cancel")
    assert client.delete(f"/v1/models/{model}").status_code == 204
    assert client.get(f"/v1/models/{model}").status_code == 404
    assert client.get(f"/v1/jobs/{job}").json()["state"] == "cancelled"


def test_an_import_that_expires_is_swept_and_given_up_in_the_end(client: Any, given: Any) -> None:
    id = begun(client)
    put(client, id, GOOD)
    for attempt in (1, 2, 3):
        with db.transaction(given.engine) as s:
            claim = models.claim_import(s, "wrk_a", lease_s=20.0)
        assert claim is not None
        assert claim.attempt == attempt
        given.later(60)
        given.sweep()

    view = client.get(f"/v1/models/{id}").json()
    assert view["state"] == "rejected"
    assert "given up after 3 tries" in view["error"]
