// What happened, the newest first: to what, why, and who asked for it.

import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import type { Schemas } from "../api/client";
import { events } from "../api/queries";
import { when, whenShort } from "../parts/format";
import { Badge, Trouble, Waiting } from "../parts/parts";

type EventView = Schemas["EventView"];

export function Events() {
  const [find, setFind] = useState("");
  const [bad, setBad] = useState(false);
  const words = find.toLowerCase();
  const keep = (event: EventView) =>
    (!bad || event.severity !== "info") &&
    `${event.subject.name} ${event.kind} ${event.text} ${event.actor ?? ""}`
      .toLowerCase()
      .includes(words);
  return (
    <>
      <div className="page-head">
        <h1>Events</h1>
      </div>
      <div className="filters" role="search">
        <input
          type="search"
          aria-label="Find in events"
          placeholder="Find in events"
          value={find}
          onChange={(event) => setFind(event.target.value)}
        />
        <label className="check">
          <input type="checkbox" checked={bad} onChange={(event) => setBad(event.target.checked)} />
          Warnings and errors only
        </label>
      </div>
      <EventLines keep={keep} most={500} />
      <p className="quiet-text">
        The last ones of this node are shown. All of them: <code>muster event list --limit 1000</code>
      </p>
    </>
  );
}

export function EventLines({ keep, most }: { keep?: (event: EventView) => boolean; most: number }) {
  const asked = useQuery(events);
  if (asked.error) return <Trouble error={asked.error} />;
  if (!asked.data) return <Waiting what="events" />;
  const kept = (keep ? asked.data.filter(keep) : asked.data).slice(-most).reverse();
  if (kept.length === 0) return <p>None.</p>;
  return (
    <ol className="events">
      {kept.map((event, place) => (
        <li key={event.seq > 0 ? event.seq : `${event.at}-${place}`}>
          <time dateTime={new Date(event.at).toISOString()} title={when(event.at)}>
            {whenShort(event.at)}
          </time>
          {event.severity !== "info" && (
            <Badge tone={event.severity === "error" ? "bad" : "busy"}>{event.severity}</Badge>
          )}
          <span className="event-text">
            {!event.text.includes(event.subject.name) && (
              <>
                <strong>{event.subject.name}</strong>{" "}
              </>
            )}
            {event.text}
            {event.actor && <span className="quiet-text"> · {event.actor}</span>}
          </span>
        </li>
      ))}
    </ol>
  );
}
