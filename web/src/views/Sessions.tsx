// Who is signed in with a browser.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { useState } from "react";
import { api, value, type SessionView } from "../api/client";
import { keys, sessions } from "../api/queries";
import { length, mayDo, when } from "../parts/format";
import { Badge, Button, Facts, Section, Table, Trouble, Waiting } from "../parts/parts";
import { useMe } from "../session";

export function Sessions() {
  const me = useMe();
  const all = mayDo(me?.role, "administrator");
  return (
    <>
      <div className="page-head">
        <h1>Sessions</h1>
      </div>
      <Section title="Yours">
        <Facts
          facts={[
            ["Signed in as", me?.actor],
            ["Role", me?.role],
            ["Ends", me?.session ? when(me.session.expires) : undefined],
            ["Ends before if nobody uses it for", me?.session?.idle_s ? length(me.session.idle_s * 1000) : undefined],
          ]}
        />
        <p className="quiet-text">
          It ends by itself, when you sign out, and at once when its token is revoked; at every node.
        </p>
      </Section>
      <Section title="All">
        {all ? <All /> : <p>Seeing the others needs the role administrator; you are {me?.role}.</p>}
      </Section>
    </>
  );
}

function All() {
  const asked = useQuery(sessions);
  if (asked.error) return <Trouble error={asked.error} />;
  if (!asked.data) return <Waiting what="sessions" />;
  return (
    <Table label="Sessions" head={["Who", "Role", "State", "Begun", "Ends", "End it"]}>
      {asked.data.map((session) => (
        <Session key={session.id} session={session} />
      ))}
    </Table>
  );
}

function Session({ session }: { session: SessionView }) {
  const client = useQueryClient();
  const [error, setError] = useState<unknown>(null);
  const end = async () => {
    try {
      const params = { path: { session: session.id } };
      await value(api.DELETE("/v1/sessions/{session}", { params }));
      await client.invalidateQueries({ queryKey: keys.sessions });
    } catch (error) {
      setError(error);
    }
  };
  return (
    <tr>
      <th scope="row">{session.actor}</th>
      <td>{session.role}</td>
      <td>
        {session.stage === "link" ? "link, not used" : "signed in"}
        {session.own && <Badge tone="plain">this one</Badge>}
      </td>
      <td>{when(session.created)}</td>
      <td>{when(session.expires)}</td>
      <td>
        <Button
          aria-label={`End the session of ${session.actor}`}
          why={session.own ? "Sign out instead." : undefined}
          onPress={() => void end()}
        >
          End
        </Button>
        {error !== null && <Trouble error={error} />}
      </td>
    </tr>
  );
}
