// The serial console of a machine: bytes both ways over a WebSocket, which the session's cookie and
// the page's origin open. Nothing secret stands in its address, so no ticket is needed.

import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";
import { useEffect, useRef, useState } from "react";
import { Button } from "../parts/parts";

/** Lines that can be scrolled back to. */
const SCROLLBACK_LINES = 5_000;

type State = "connecting" | "open" | "closed";

export default function Console({ vm, name }: { vm: string; name: string }) {
  const place = useRef<HTMLDivElement>(null);
  const [state, setState] = useState<State>("connecting");
  const [why, setWhy] = useState("");
  const [times, setTimes] = useState(0);

  useEffect(() => {
    if (!place.current) return;
    setState("connecting");
    const terminal = new Terminal({
      scrollback: SCROLLBACK_LINES,
      screenReaderMode: true,
      fontFamily: "ui-monospace, monospace",
      fontSize: 14,
      theme: { background: "#111418", foreground: "#e6e8ea" },
    });
    const fit = new FitAddon();
    terminal.loadAddon(fit);
    terminal.open(place.current);
    fit.fit();
    const sized = new ResizeObserver(() => fit.fit());
    sized.observe(place.current);
    terminal.focus();

    const address = new URL(`/v1/vms/${encodeURIComponent(vm)}/serial`, window.location.href);
    address.protocol = "wss:";
    const socket = new WebSocket(address, "binary");
    socket.binaryType = "arraybuffer";
    socket.onopen = () => setState("open");
    socket.onmessage = (message) => terminal.write(new Uint8Array(message.data as ArrayBuffer));
    socket.onclose = (event) => {
      setState("closed");
      setWhy(event.reason || "the connection ended: the machine stopped or moved, or the node is away");
    };
    const bytes = new TextEncoder();
    const typed = terminal.onData((text) => {
      if (socket.readyState === WebSocket.OPEN) socket.send(bytes.encode(text));
    });
    return () => {
      socket.onclose = null;
      socket.close();
      typed.dispose();
      sized.disconnect();
      terminal.dispose();
    };
  }, [vm, times]);

  return (
    <div className="console">
      <div className="console-head">
        <span role="status">
          {state === "open" ? "connected" : state === "connecting" ? "connecting …" : `closed: ${why}`}
        </span>
        {state === "closed" && (
          <Button onPress={() => setTimes((times) => times + 1)}>Connect again</Button>
        )}
        <span className="quiet-text">Tab goes to the machine; Shift+Tab leaves the console.</span>
      </div>
      <div
        ref={place}
        className="console-screen"
        role="group"
        aria-label={`Serial console of ${name}`}
        onKeyDownCapture={(event) => {
          // A way out by keys alone: the terminal would send it to the machine.
          if (event.key === "Tab" && event.shiftKey) event.stopPropagation();
        }}
      />
    </div>
  );
}
