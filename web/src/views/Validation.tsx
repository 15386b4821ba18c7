// Whether the hosts fit together and can be relied on: the last report, and a new one.

import { useQuery, useQueryClient } from "@tanstack/react-query";
import { createLazyRoute } from "@tanstack/react-router";
import { useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { keys } from "../api/queries";
import { length, mayDo, type Tone, when } from "../parts/format";
import { Badge, Button, Meter, Same, Section, Table, Trouble, Waiting } from "../parts/parts";
import { useRole } from "../session";

export const route = createLazyRoute("/validation")({ component: Validation });

const TONE: Record<Schemas["Verdict"], Tone> = { pass: "good", warn: "busy", fail: "bad" };
const ORDER: Schemas["Verdict"][] = ["fail", "warn", "pass"];

/** How often a validation that runs is looked at, in milliseconds: its progress is no event. */
const LOOK_MS = 1_000;

function Validation() {
  const client = useQueryClient();
  const role = useRole();
  const [error, setError] = useState<unknown>(null);
  const asked = useQuery({
    queryKey: keys.validation,
    queryFn: () => value(api.GET("/v1/cluster/validation")),
    refetchInterval: (query) => (query.state.data?.running ? LOOK_MS : false),
  });
  const running = asked.data?.running;
  const begin = async () => {
    setError(null);
    try {
      await value(api.POST("/v1/cluster/validate", { body: {} }));
    } catch (error) {
      setError(error);
    }
    await client.invalidateQueries({ queryKey: keys.validation });
  };
  return (
    <>
      <div className="page-head">
        <h1>Validation</h1>
        <Button
          kind="main"
          why={mayDo(role, "operator") ? undefined : "This needs the role operator."}
          isDisabled={Boolean(running)}
          onPress={() => void begin()}
        >
          Validate now
        </Button>
      </div>
      <p>
        Compares processors, versions, clocks and memory, measures networks and disks, and asks fence devices
        and the witness. Nothing is changed and nothing is switched off.
      </p>
      {(error ?? asked.error) !== null && <Trouble error={error ?? asked.error} />}
      {asked.isPending && !asked.error && <Waiting what="the last report" />}
      {running && (
        <Meter
          label="How far it is"
          part={running.done}
          whole={running.total}
          text={`${running.step}, step ${running.done} of ${running.total}`}
        />
      )}
      {asked.data?.report ? (
        <Report report={asked.data.report} />
      ) : (
        asked.data && !running && <p>This node has no report yet.</p>
      )}
      <Same command="muster cluster validate" call={"POST /v1/cluster/validate\n{}"} />
    </>
  );
}

/** Of what a finding is, in words. */
export function subject(of: Schemas["FindingSubject"]): string {
  switch (of.kind) {
    case "cluster":
      return "the cluster";
    case "node":
      return of.node;
    case "pair":
      return `${of.from} to ${of.to}${of.network ? ` over ${of.network}` : ""}`;
    case "network":
      return of.network;
    default:
      return Object.entries(of)
        .filter(([key, text]) => key !== "kind" && typeof text === "string")
        .map(([, text]) => text)
        .join(", ");
  }
}

function Report({ report }: { report: Schemas["ValidationReport"] }) {
  const findings = ORDER.flatMap((verdict) => report.findings.filter((one) => one.verdict === verdict));
  return (
    <Section title={`Of ${when(report.started)}`}>
      <p>
        <Badge tone={report.failed > 0 ? "bad" : "good"}>{report.failed} failed</Badge>{" "}
        <Badge tone={report.warned > 0 ? "busy" : "good"}>{report.warned} warned</Badge>{" "}
        <Badge tone="good">{report.passed} passed</Badge> in {length(report.took_ms)}, asked for at{" "}
        {report.asked_by}
      </p>
      <Table label="Findings" head={["", "Check", "Of", "Found", "Advice"]}>
        {findings.map((one, place) => (
          <tr key={place}>
            <td className="verdict">
              <Badge tone={TONE[one.verdict]}>{one.verdict}</Badge>
            </td>
            <th scope="row">{one.check}</th>
            <td>{subject(one.subject)}</td>
            <td className="long">{one.text}</td>
            <td className="long">{one.advice ?? ""}</td>
          </tr>
        ))}
      </Table>
    </Section>
  );
}
