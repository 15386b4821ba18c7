import { describe, expect, it, vi } from "vitest";
import { answer, refusal, summaryOf } from "../fixtures";
import { api, Failure, known, onStale, setCsrf, value } from "./client";

const list = (query: { stale?: boolean }) =>
  api.GET("/v1/vms", { params: { query: { deleted: false, ...query } } });

describe("the way to the API", () => {
  it("gives the API's own words for a refusal, and its own where nobody answers", async () => {
    answer({ "GET /v1/vms": () => refusal(409, "busy", "web-1 is busy", "wait") });
    const refused = await value(list({})).catch(Failure.of);
    expect(refused).toMatchObject({ status: 409, code: "busy", message: "web-1 is busy", hint: "wait" });
    answer({});
    const silent = await value(list({})).catch(Failure.of);
    expect(silent).toMatchObject({ status: 0, code: "unreachable" });
    answer({ "GET /v1/vms": () => new Response("<html>", { status: 502 }) });
    const strange = await value(list({})).catch(Failure.of);
    expect(strange).toMatchObject({ status: 502, code: "bad_reply" });
  });

  it("shows the session's word with what changes something, and with nothing else", async () => {
    setCsrf("word");
    const came = answer({ "GET /v1/vms": () => [], "POST /v1/vms/a/start": () => ({}) });
    await value(list({}));
    await value(api.POST("/v1/vms/{vm}/start", { params: { path: { vm: "a" } } }));
    expect(came.map((request) => request.headers.get("x-muster-csrf"))).toEqual([null, "word"]);
    setCsrf("");
  });

  it("asks for what the node last knew when there is no majority, and says so", async () => {
    const told = vi.fn();
    onStale(told);
    const came = answer({
      "GET /v1/vms": (request) =>
        request.url.includes("stale=true")
          ? [summaryOf()]
          : refusal(503, "no_majority", "the state cannot be read", "--stale"),
    });
    expect(await known(list)).toHaveLength(1);
    expect(told.mock.lastCall).toEqual([true]);
    expect(came).toHaveLength(2);
    answer({ "GET /v1/vms": () => [] });
    expect(await known(list)).toEqual([]);
    expect(told.mock.lastCall).toEqual([false]);
    answer({ "GET /v1/vms": () => refusal(403, "forbidden", "no", "ask") });
    await expect(known(list)).rejects.toMatchObject({ status: 403 });
    onStale(() => {});
  });
});
