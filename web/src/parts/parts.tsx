// Small parts that every page is made of.

import { type ReactNode, useId } from "react";
import {
  Button as AriaButton,
  type ButtonProps,
  Dialog as AriaDialog,
  Heading,
  Modal,
  ModalOverlay,
} from "react-aria-components";
import { Failure, type Schemas } from "../api/client";
import { word, type Tone } from "./format";

/** A button. One that cannot be used says why, to eyes and to readers of the screen. */
export function Button({
  kind = "plain",
  why,
  children,
  ...props
}: Omit<ButtonProps, "children"> & {
  kind?: "plain" | "main" | "danger" | "quiet";
  why?: string | undefined;
  children: ReactNode;
}) {
  const id = useId();
  const off = why !== undefined || props.isDisabled === true;
  return (
    <span className="button-place" title={why}>
      <AriaButton
        {...props}
        className={`button ${kind}`}
        isDisabled={off}
        {...(why ? { "aria-describedby": id } : {})}
      >
        {children}
      </AriaButton>
      {why && (
        <span id={id} className="unseen">
          {why}
        </span>
      )}
    </span>
  );
}

/** A word with a colour: never the colour alone. */
export function Badge({ tone, children }: { tone: Tone; children: ReactNode }) {
  return <span className={`badge ${tone}`}>{children}</span>;
}

/** What went wrong, and what to do. */
export function Trouble({ error, what }: { error: unknown; what?: string }) {
  const failure = Failure.of(error);
  return (
    <div className="trouble" role="alert">
      <p>
        <strong>{what ? `${what}: ` : ""}</strong>
        {failure.message}
      </p>
      {failure.hint !== "" && <p className="hint">Next: {failure.hint}</p>}
    </div>
  );
}

/** A part of a page with its own heading. */
export function Section({
  title,
  children,
  beside,
}: {
  title: string;
  children: ReactNode;
  beside?: ReactNode;
}) {
  const id = useId();
  return (
    <section className="section" aria-labelledby={id}>
      <div className="section-head">
        <h2 id={id}>{title}</h2>
        {beside}
      </div>
      {children}
    </section>
  );
}

/** Names and values. */
export function Facts({ facts }: { facts: [string, ReactNode][] }) {
  return (
    <dl className="facts">
      {facts
        .filter(([, shown]) => shown !== null && shown !== undefined && shown !== "")
        .map(([name, shown]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{shown}</dd>
          </div>
        ))}
    </dl>
  );
}

/** A small table; it scrolls by itself where the screen is narrow. */
export function Table({
  label,
  head,
  children,
}: {
  label: string;
  head: string[];
  children: ReactNode;
}) {
  return (
    // A region that scrolls must be reachable by keys.
    <div className="table-place" role="region" aria-label={label} tabIndex={0}>
      <table>
        <thead>
          <tr>
            {head.map((name) => (
              <th key={name} scope="col">
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>{children}</tbody>
      </table>
    </div>
  );
}

/** A share of something, with its words. */
export function Meter({ label, part, whole, text }: {
  label: string;
  part: number;
  whole: number;
  text: string;
}) {
  const share = whole > 0 ? Math.min(100, Math.round((100 * part) / whole)) : 0;
  return (
    <div className="meter">
      <div
        role="meter"
        aria-label={label}
        aria-valuemin={0}
        aria-valuemax={100}
        aria-valuenow={share}
        aria-valuetext={text}
        className={share >= 90 ? "meter-bar full" : "meter-bar"}
      >
        <span style={{ inlineSize: `${share}%` }} />
      </div>
      <span>{text}</span>
    </div>
  );
}

/** A dialog over the page. Escape and a click outside close it. */
export function Dialog({
  title,
  onClose,
  children,
  alert = false,
}: {
  title: string;
  onClose: () => void;
  children: ReactNode;
  alert?: boolean;
}) {
  return (
    <ModalOverlay className="overlay" isOpen isDismissable onOpenChange={(open) => !open && onClose()}>
      <Modal className="modal">
        <AriaDialog role={alert ? "alertdialog" : "dialog"} className="dialog">
          <Heading slot="title">{title}</Heading>
          {children}
        </AriaDialog>
      </Modal>
    </ModalOverlay>
  );
}

/** A field with its label and, below it, what is wrong or what it means. */
export function Field({
  label,
  hint,
  error,
  children,
}: {
  label: string;
  hint?: string | undefined;
  error?: string | undefined;
  children: (ids: { id: string; "aria-describedby": string; "aria-invalid": boolean }) => ReactNode;
}) {
  const id = useId();
  const note = error ?? hint;
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {children({ id, "aria-describedby": `${id}-note`, "aria-invalid": error !== undefined })}
      <span id={`${id}-note`} className={error ? "field-note wrong" : "field-note"}>
        {note}
      </span>
    </div>
  );
}

/** What was looked at before something is done, and what was found. */
export function Checks({ checks, children }: {
  checks: Schemas["CheckView"][];
  children: ReactNode;
}) {
  return (
    <div role="status">
      <p>{children}</p>
      <ul className="plain-list">
        {checks.map((check) => (
          <li key={check.what}>
            <Badge tone={check.ok ? "good" : "bad"}>{check.ok ? "fits" : "does not fit"}</Badge>{" "}
            <strong>{check.what}</strong>: {check.detail}
            {check.hint && <span className="hint"> Next: {check.hint}</span>}
          </li>
        ))}
      </ul>
    </div>
  );
}

/** The command line and the call of the API that do the same as this page. */
export function Same({ command, call }: { command: string; call: string }) {
  return (
    <details className="same">
      <summary>The same by command line and API</summary>
      <pre>
        <code>{command}</code>
      </pre>
      <pre>
        <code>{call}</code>
      </pre>
    </details>
  );
}

/** A word of the API, as people read it. */
export function Word({ of }: { of: string }) {
  return <>{word(of)}</>;
}

/** While something is asked for the first time. */
export function Waiting({ what }: { what: string }) {
  return (
    <p className="quiet-text" role="status">
      Asking for {what} …
    </p>
  );
}
