// Buttons for what can be done to one machine or many, and the questions before what loses something.

import { useState } from "react";
import { Button, Dialog, Field, Same } from "../parts/parts";
import { useNotices } from "../parts/notices";
import { useRole } from "../session";
import { ACTIONS, type Action, command, fit, TYPED_FROM, whyNot } from "./actions";
import type { Vm } from "./filter";
import { perform } from "./perform";

/** Operations that are begun at the same time from one page. */
const AT_ONCE_MAX = 8;

export function ActionBar({ targets, label }: { targets: Pick<Vm, "id" | "name" | "phase">[]; label: string }) {
  const role = useRole();
  const { follow } = useNotices();
  const [asking, setAsking] = useState<Action | null>(null);

  const run = async (action: Action) => {
    const rest = [...fit(action, targets)];
    const one = async () => {
      for (let vm = rest.shift(); vm; vm = rest.shift()) {
        const { id, name } = vm;
        await follow(`${action.label.replace(" …", "")} ${name}`, () => perform(action.verb, id));
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE_MAX }, one));
  };

  return (
    <div className={`actions${targets.length === 0 ? " none" : ""}`} role="group" aria-label={label}>
      {ACTIONS.map((action) => (
        <Button
          key={action.verb}
          kind={action.loses ? "danger" : "plain"}
          why={whyNot(action, targets, role)}
          onPress={() => (action.loses ? setAsking(action) : void run(action))}
        >
          {action.label}
        </Button>
      ))}
      {asking && (
        <Question
          action={asking}
          names={fit(asking, targets).map((vm) => vm.name)}
          onClose={() => setAsking(null)}
          onYes={() => {
            setAsking(null);
            void run(asking);
          }}
        />
      )}
    </div>
  );
}

/** Says what is lost. For many machines at once their number has to be typed. */
export function Question({ action, names, onClose, onYes }: {
  action: Action;
  names: string[];
  onClose: () => void;
  onYes: () => void;
}) {
  const [typed, setTyped] = useState("");
  const label = action.label.replace(" …", "");
  const what = names.length === 1 ? names[0] : `${names.length} machines`;
  const mustType = names.length >= TYPED_FROM;
  const sure = !mustType || typed.trim() === String(names.length);
  return (
    <Dialog title={`${label}: ${what}?`} onClose={onClose} alert>
      <p>{action.loses}</p>
      {names.length > 1 && <p className="names">{names.join(", ")}</p>}
      {mustType && (
        <Field label={`Type ${names.length} to say that you mean all of them`}>
          {(ids) => (
            <input
              {...ids}
              inputMode="numeric"
              value={typed}
              onChange={(event) => setTyped(event.target.value)}
            />
          )}
        </Field>
      )}
      <Same
        command={command(action.verb, names)}
        call={`POST /v1/vms/{vm}/${action.verb}`.replace(
          "POST /v1/vms/{vm}/delete",
          "DELETE /v1/vms/{vm}",
        )}
      />
      <div className="dialog-buttons">
        <Button onPress={onClose}>Leave it</Button>
        <Button kind="danger" isDisabled={!sure} onPress={onYes}>
          {label}
        </Button>
      </div>
    </Dialog>
  );
}
