// What is used of noVNC, which has no types of its own (its docs/API.md).

declare module "@novnc/novnc" {
  export default class RFB extends EventTarget {
    constructor(
      place: HTMLElement,
      address: string | WebSocket,
      options?: { shared?: boolean; wsProtocols?: string[] },
    );
    scaleViewport: boolean;
    viewOnly: boolean;
    focusOnClick: boolean;
    background: string;
    focus(): void;
    blur(): void;
    disconnect(): void;
    sendCtrlAltDel(): void;
    clipboardPasteFrom(text: string): void;
  }
}
