// The screen, keyboard and mouse of a machine: RFB over a WebSocket, which the session's cookie and the
// page's origin open. Keys go as positions on the keyboard where the machine understands that (QEMU
// does), so that AltGr and every layout mean in the guest what the guest's own layout says.

import RFB from "@novnc/novnc";
import { useEffect, useRef, useState } from "react";
import { Button, Dialog, Field } from "../parts/parts";

type State = "connecting" | "open" | "closed";

export default function Screen({ vm, name }: { vm: string; name: string }) {
  const place = useRef<HTMLDivElement>(null);
  const head = useRef<HTMLDivElement>(null);
  const link = useRef<RFB | null>(null);
  const [state, setState] = useState<State>("connecting");
  const [times, setTimes] = useState(0);
  const [pasting, setPasting] = useState(false);
  const [copied, setCopied] = useState("");

  useEffect(() => {
    if (!place.current) return;
    setState("connecting");
    const address = new URL(`/v1/vms/${encodeURIComponent(vm)}/vnc`, window.location.href);
    address.protocol = "wss:";
    // Somebody else who looks on is not thrown out.
    const rfb = new RFB(place.current, address.href, { shared: true, wsProtocols: ["binary"] });
    rfb.scaleViewport = true;
    rfb.background = "#111418";
    rfb.addEventListener("connect", () => {
      setState("open");
      rfb.focus();
    });
    rfb.addEventListener("disconnect", () => setState("closed"));
    rfb.addEventListener("clipboard", (event) =>
      setCopied((event as CustomEvent<{ text: string }>).detail.text),
    );
    link.current = rfb;
    return () => {
      link.current = null;
      rfb.disconnect();
    };
  }, [vm, times]);

  const open = state === "open" ? undefined : "The screen is not connected.";
  return (
    <div className="console">
      <div className="console-head" ref={head}>
        <span role="status">
          {state === "open"
            ? "connected"
            : state === "connecting"
              ? "connecting …"
              : "closed: the machine stopped or moved, or the node is away"}
        </span>
        {state === "closed" && (
          <Button onPress={() => setTimes((times) => times + 1)}>Connect again</Button>
        )}
        <Button why={open} onPress={() => link.current?.sendCtrlAltDel()}>
          Ctrl+Alt+Del
        </Button>
        <Button why={open} onPress={() => setPasting(true)}>
          Clipboard …
        </Button>
        <a href={`/v1/vms/${encodeURIComponent(vm)}/screenshot`} download={`${name}.png`}>
          Picture
        </a>
        <span className="quiet-text">All keys go to the machine; Ctrl+Alt+Escape leaves the screen.</span>
      </div>
      <div
        ref={place}
        className="screen"
        role="group"
        aria-label={`Screen of ${name}`}
        onKeyDownCapture={(event) => {
          // A way out by keys alone.
          if (event.key !== "Escape" || !event.ctrlKey || !event.altKey) return;
          event.stopPropagation();
          event.preventDefault();
          link.current?.blur();
          head.current?.querySelector("button")?.focus();
        }}
      />
      {pasting && (
        <Clipboard
          copied={copied}
          onClose={() => setPasting(false)}
          onSend={(text) => {
            setPasting(false);
            link.current?.clipboardPasteFrom(text);
          }}
        />
      )}
    </div>
  );
}

/** What the guest copied, and what it shall find in its clipboard: for guests with an agent for it. */
function Clipboard({ copied, onClose, onSend }: {
  copied: string;
  onClose: () => void;
  onSend: (text: string) => void;
}) {
  const [text, setText] = useState(copied);
  return (
    <Dialog title="Clipboard of the machine" onClose={onClose}>
      <Field label="Text" hint="A guest without an agent for its clipboard does not see it">
        {(ids) => (
          <textarea {...ids} rows={6} value={text} onChange={(event) => setText(event.target.value)} />
        )}
      </Field>
      <div className="dialog-buttons">
        <Button onPress={onClose}>Leave it</Button>
        <Button kind="main" isDisabled={text === ""} onPress={() => onSend(text)}>
          Give it to the machine
        </Button>
      </div>
    </Dialog>
  );
}
