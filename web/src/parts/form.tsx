// A form in a dialog: its fields, what it sends, and the same by other ways.

import { type FormEvent, type ReactNode, useState } from "react";
import { Button, Dialog, Same, Trouble } from "./parts";

export function FormDialog({ title, label, ready, danger = false, command, call, onClose, onSubmit, children }: {
  title: string;
  /** What its button does, in a word. */
  label: string;
  /** Whether the fields say enough. */
  ready: boolean;
  danger?: boolean;
  command: string;
  call: string;
  onClose: () => void;
  /** A refusal is shown in the dialog, which stays open. */
  onSubmit: () => Promise<unknown>;
  children: ReactNode;
}) {
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const submit = async (event: FormEvent) => {
    event.preventDefault();
    if (!ready || busy) return;
    setBusy(true);
    setError(null);
    try {
      await onSubmit();
      onClose();
    } catch (error) {
      setError(error);
      setBusy(false);
    }
  };
  return (
    <Dialog title={title} onClose={onClose} alert={danger}>
      <form onSubmit={(event) => void submit(event)}>
        {children}
        {error !== null && <Trouble error={error} />}
        <Same command={command} call={call} />
        <div className="dialog-buttons">
          <Button onPress={onClose}>Leave it</Button>
          <Button kind={danger ? "danger" : "main"} type="submit" isDisabled={!ready || busy}>
            {label}
          </Button>
        </div>
      </form>
    </Dialog>
  );
}
