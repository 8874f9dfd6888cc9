// A client generated with openapi-typescript: the types of requests, answers, problems and events are the document's.
// It compiles under `strict`, and each wrong use below is one that the compiler refuses.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Event = components["schemas"]["Event"];
type DryRun = components["schemas"]["DryRun"];
type ProblemCode = components["schemas"]["ProblemCode"];

const { BASE_URL, TOKEN } = process.env;
const client = createClient<paths>({ baseUrl: BASE_URL, headers: { Authorization: `Bearer ${TOKEN}` } });
const path = { workspace_id: randomUUID() };
const header = () => ({ "Idempotency-Key": randomUUID() });

/** The receipt of a command that was done. The member `dry_run` tells the answer to a dry run from it. */
function done<Answer extends object>(answer: Answer | undefined): Exclude<Answer, DryRun> {
  assert.ok(answer && !("dry_run" in answer));
  return answer as Exclude<Answer, DryRun>;
}

const created = await client.PUT("/v1/workspaces/{workspace_id}", {
  params: { path },
  body: { name: "Acme Studio", plan_code: "free" },
});
assert.equal(created.error, undefined);

const deducted = await client.POST("/v1/workspaces/{workspace_id}/credits/deduct", {
  params: { path, header: header() },
  body: { feature_code: "video.render", quantity: "3", metadata: { job: "render-881" } },
});
assert.equal(done(deducted.data).credits, "1.5");

const tried = await client.POST("/v1/workspaces/{workspace_id}/credits/deduct", {
  params: { path, header: header(), query: { dry_run: true } },
  body: { feature_code: "video.render", credits: "31" },
});
assert.ok(tried.data && "dry_run" in tried.data);
assert.equal(tried.data.status, 403);
assert.deepEqual(tried.data.events.map((event) => event.type), ["UsageLimitExceeded"]);

// @ts-expect-error: exactly one of credits and quantity
const neither: components["schemas"]["DeductCreditsRequest"] = { feature_code: "video.render" };
assert.ok(neither);

const refused = await client.POST("/v1/workspaces/{workspace_id}/credits/deduct", {
  params: { path, header: header() },
  body: { feature_code: "video.render", credits: "31" },
});
assert.equal(refused.error?.code, "limit-exceeded" satisfies ProblemCode);
// @ts-expect-error: there is no such code
assert.notEqual(refused.error?.code, "out-of-luck" satisfies ProblemCode);

/** The compiler knows the data by the type, and that no type is forgotten. */
function told(event: Event): string {
  switch (event.type) {
    case "WorkspaceProvisioned":
      return `${event.data.name} has ${event.data.granted}`;
    case "CreditConsumed":
      return `${event.data.credits} on ${event.data.feature_code} for ${event.data.metadata?.job}`;
    case "UsageLimitExceeded":
      return `${event.data.requested_credits} of ${event.data.limit_credits}`;
    case "CreditLimitExceeded":
    case "LowCreditWarning":
      return event.data.available_credits;
    case "CreditsPurchased":
    case "CreditsGranted":
    case "GrantVoided":
    case "CreditsRefunded":
    case "PurchaseReversed":
    case "CreditsHeld":
    case "HoldReleased":
    case "CreditsExpiring":
    case "CreditsExpired":
    case "DebtRepaid":
    case "CreditReset":
    case "SubscriptionChanged":
    case "JobSubmitted":
    case "JobCompleted":
    case "JobFailed":
      return event.data.current_credits;
    default:
      return event satisfies never;
  }
}

const page = await client.GET("/v1/events", { params: { query: { workspace_id: path.workspace_id } } });
assert.deepEqual(page.data?.items.map(told), [
  "Acme Studio has 100",
  "1.5 on video.render for render-881",
  "31 of 30",
]);
const only = await client.GET("/v1/events", {
  params: { query: { workspace_id: path.workspace_id, type: ["CreditConsumed", "LowCreditWarning"] } },
});
assert.equal(only.data?.items.length, 1);
console.log("typescript: ok");
