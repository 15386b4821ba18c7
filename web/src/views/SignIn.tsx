// Signing in: by a link that the page was opened with, or by a token.

import { useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useEffect, useRef, useState } from "react";
import { api, Failure, type Schemas, setCsrf, value } from "../api/client";
import { keys } from "../api/queries";
import { arrival } from "../arrival";
import { Button, Field, Trouble } from "../parts/parts";

/** How long a session's page waits for the cluster to choose another leader, in milliseconds. */
const LEADER_MS = 30_000;
const AGAIN_MS = 1_000;

/** Signs in; whoever comes from a node that was lost may come before the cluster can decide again. */
async function begin(body: Schemas["SessionBeginBody"]): Promise<Schemas["SessionBegunView"]> {
  const until = Date.now() + (body.onward ? LEADER_MS : 0);
  for (;;) {
    try {
      return await value(api.POST("/v1/sessions", { body }));
    } catch (error) {
      const { status } = Failure.of(error);
      if ((status !== 0 && status !== 503) || Date.now() >= until) throw error;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }
}

export function SignIn({ ended }: { ended: boolean }) {
  const client = useQueryClient();
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const [token, setToken] = useState("");
  const begun = useRef(false);
  const { from } = arrival();

  const signIn = async (body: Schemas["SessionBeginBody"]) => {
    setBusy(true);
    setError(null);
    try {
      const answer = await begin(body);
      setCsrf(answer.session.csrf);
      if (window.location.pathname === "/sign-in") window.history.replaceState(null, "", "/");
      await client.resetQueries({ queryKey: keys.me });
    } catch (error) {
      // Another page of this browser may have brought the same session here a moment ago.
      const here = body.onward && (await api.GET("/v1/whoami").catch(() => null))?.response.ok;
      if (here) return client.resetQueries({ queryKey: keys.me });
      setError(error);
      setBusy(false);
    }
  };

  useEffect(() => {
    // Once: a link is used up by its first use, and effects may run twice.
    if (begun.current) return;
    begun.current = true;
    const { link, onward } = arrival();
    if (onward) void signIn({ onward });
    else if (link) void signIn({ link });
  });

  const submit = (event: FormEvent) => {
    event.preventDefault();
    void signIn({ token: token.trim() });
  };

  return (
    <main className="alone">
      <h1>Muster</h1>
      {busy && from && (
        <p role="status">
          Going on here: {from} did not answer. The cluster may have to choose a leader first.
        </p>
      )}
      {ended && !busy && error === null && <p>Your session has ended. Sign in again.</p>}
      <form onSubmit={submit} aria-label="Sign in">
        <Field label="Token" hint="Made on a node: muster token create NAME --role ROLE">
          {(ids) => (
            <input
              {...ids}
              type="password"
              autoComplete="current-password"
              spellCheck={false}
              required
              value={token}
              onChange={(event) => setToken(event.target.value)}
            />
          )}
        </Field>
        <Button kind="main" type="submit" isDisabled={busy || token.trim() === ""}>
          {busy ? "Signing in …" : "Sign in"}
        </Button>
      </form>
      <Button isDisabled={busy} onPress={() => void signIn({ certificate: true })}>
        Use this browser&apos;s certificate
      </Button>
      {error !== null && <Trouble error={error} what="Not signed in" />}
      <p className="quiet-text">
        Or run <code>muster web</code> on a node and open the link that it prints: it works once, for
        five minutes.
      </p>
    </main>
  );
}
