// Signing in: by a link that the page was opened with, or by a token.

import { useQueryClient } from "@tanstack/react-query";
import { type FormEvent, useEffect, useRef, useState } from "react";
import { api, type Schemas, setCsrf, value } from "../api/client";
import { keys } from "../api/queries";
import { Button, Field, Trouble } from "../parts/parts";

/** The secret in the address, which is taken out of it at once: it must not stay in the history. */
function takeLink(): string | null {
  const secret = window.location.hash.slice(1);
  if (window.location.pathname !== "/sign-in" || secret === "") return null;
  window.history.replaceState(null, "", "/sign-in");
  return secret;
}

export function SignIn({ ended }: { ended: boolean }) {
  const client = useQueryClient();
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const [token, setToken] = useState("");
  const begun = useRef(false);

  const signIn = async (body: Schemas["SessionBeginBody"]) => {
    setBusy(true);
    setError(null);
    try {
      const answer = await value(api.POST("/v1/sessions", { body }));
      setCsrf(answer.session.csrf);
      if (window.location.pathname === "/sign-in") window.history.replaceState(null, "", "/");
      await client.resetQueries({ queryKey: keys.me });
    } catch (error) {
      setError(error);
      setBusy(false);
    }
  };

  useEffect(() => {
    // Once: a link is used up by its first use, and effects may run twice.
    if (begun.current) return;
    begun.current = true;
    const link = takeLink();
    if (link) void signIn({ link });
  });

  const submit = (event: FormEvent) => {
    event.preventDefault();
    void signIn({ token: token.trim() });
  };

  return (
    <main className="alone">
      <h1>Muster</h1>
      {ended && error === null && <p>Your session has ended. Sign in again.</p>}
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
      {error !== null && <Trouble error={error} what="Not signed in" />}
      <p className="quiet-text">
        Or run <code>muster web</code> on a node and open the link that it prints: it works once, for
        five minutes.
      </p>
    </main>
  );
}
