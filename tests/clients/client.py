"""A client generated with openapi-python-client, and the events as the public package `cloudevents` reads them."""

import json
import os
import urllib.request
import uuid

from cloudevents.core.bindings.http import HTTPMessage, from_structured
from cloudevents.core.formats.json import JSONFormat

from billing_client import AuthenticatedClient
from billing_client.api.credits_ import deduct_credits, get_credits
from billing_client.api.events import list_events
from billing_client.api.workspaces import put_workspace
from billing_client.models import (
    CreditConsumedEvent, CreditsAt, CreditsView, DeductByCredits, DeductByQuantity, DeductReceipt, DryRun, Metadata, Problem, ProblemCode,
    ProvisionReceipt, PutWorkspaceRequest, UsageLimitExceededEvent, WorkspaceProvisionedEvent,
)

BASE_URL, TOKEN = os.environ["BASE_URL"], os.environ["TOKEN"]
client = AuthenticatedClient(base_url=BASE_URL, token=TOKEN)
workspace_id = uuid.uuid4()


def key():
    return str(uuid.uuid4())


def deduct(body):
    return deduct_credits.sync(workspace_id, client=client, body=body, idempotency_key=key())


created = put_workspace.sync(workspace_id, client=client, body=PutWorkspaceRequest(name="Acme", plan_code="free"))
assert isinstance(created, ProvisionReceipt), created

metadata = Metadata.from_dict({"job": "render-881"})
deducted = deduct(DeductByQuantity(feature_code="video.render", quantity="3", metadata=metadata))
assert isinstance(deducted, DeductReceipt) and deducted.credits_ == "1.5", deducted

tried = deduct_credits.sync(
    workspace_id, client=client, body=DeductByCredits(feature_code="video.render", credits_="31"), dry_run=True,
    idempotency_key=key(),
)
assert isinstance(tried, DryRun) and tried.status == 403 and len(tried.events) == 1, tried

refused = deduct(DeductByCredits(feature_code="video.render", credits_="31"))
assert isinstance(refused, Problem) and refused.code is ProblemCode.LIMIT_EXCEEDED, refused

page = list_events.sync(client=client, workspace_id=workspace_id)
assert [type(event) for event in page.items] == [
    WorkspaceProvisionedEvent, CreditConsumedEvent, UsageLimitExceededEvent
], page
consumed = page.items[1]
assert consumed.data.credits_ == "1.5" and consumed.data.metadata.additional_properties == {"job": "render-881"}
balance = get_credits.sync(workspace_id, client=client)
assert isinstance(balance, CreditsView), balance
earlier = get_credits.sync(workspace_id, client=client, at=created.recorded_at)
assert isinstance(earlier, CreditsAt) and earlier.current_credits == "100", earlier
assert page.items[-1].data.current_credits == balance.current_credits == "98.5", balance

# The package checks the attributes and the names of extensions when it builds an event.
request = urllib.request.Request(f"{BASE_URL}/v1/events?workspace_id={workspace_id}")
request.add_header("Authorization", f"Bearer {TOKEN}")
with urllib.request.urlopen(request) as answer:
    texts = [json.dumps(event).encode() for event in json.load(answer)["items"]]
for number, text in enumerate(texts, start=1):
    headers = {"content-type": "application/cloudevents+json"}
    event = from_structured(HTTPMessage(headers=headers, body=text), JSONFormat())
    assert event.get_type() == json.loads(text)["type"] and event.get_source() == "urn:visionscope:billing"
    assert event.get_subject() == str(workspace_id) == event.get_extension("workspaceid")
    assert event.get_extension("workspaceseq") == f"{number:019}"
    assert event.get_time().microsecond is not None and event.get_datacontenttype() == "application/json"
    data = event.get_data()
    schema = event.get_dataschema().split(":")
    with urllib.request.urlopen(f"{BASE_URL}/schemas/events/{schema[3]}.v{schema[4]}.json") as answer:
        known = json.load(answer)
    assert known["$id"] == event.get_dataschema() and set(known["required"]) <= set(data) <= set(known["properties"])
print("python: ok")
