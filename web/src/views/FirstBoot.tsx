// What a machine's guest would be told at its first boot, before there is a machine: asked of the daemon,
// which makes it as it would for the machine itself.

import { useState } from "react";
import { api, type Schemas, value } from "../api/client";
import { Button, Trouble } from "../parts/parts";

type Body = Schemas["VmCreateBody"];

export function FirstBoot({ body, may }: { body: Body; may: boolean }) {
  const [told, setTold] = useState<{ of: string; files: Schemas["FirstBootFileView"][] } | null>(null);
  const [error, setError] = useState<unknown>(null);
  const asked = JSON.stringify(body);
  const show = async () => {
    setError(null);
    try {
      const { files } = await value(api.POST("/v1/first-boot", { body }));
      setTold({ of: asked, files });
    } catch (error) {
      setTold(null);
      setError(error);
    }
  };
  const why = !may
    ? "This needs the role administrator."
    : body.name === ""
      ? "The machine needs a name first."
      : body.cloud_init
        ? undefined
        : "Nothing is said to the guest: fill in a user, a key, a host name or user-data.";
  return (
    <>
      <Button why={why} onPress={() => void show()}>
        Show what the guest will be told
      </Button>
      {error !== null && <Trouble error={error} what="It would be refused" />}
      {told && body.cloud_init && (
        <div role="status">
          {told.of !== asked && <p className="quiet-text">The form was changed since: show it again.</p>}
          {told.files.map((file) => (
            <details key={file.name} className="same" open={file.name === "user-data"}>
              <summary>{file.name}</summary>
              <pre tabIndex={0} aria-label={file.name}>
                <code>{pretty(file.text)}</code>
              </pre>
            </details>
          ))}
        </div>
      )}
    </>
  );
}

/** The daemon's files are JSON, which is YAML, on one line; a user's own stays as it is. */
export function pretty(text: string): string {
  const [head, ...rest] = text.split("\n");
  const comment = head?.startsWith("#") === true;
  const data = comment ? rest.join("\n") : text;
  try {
    return `${comment ? `${head}\n` : ""}${JSON.stringify(JSON.parse(data), null, 2)}`;
  } catch {
    return text;
  }
}
